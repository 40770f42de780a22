"""Federated averaging with server momentum.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, algorithm 1;
the server's momentum is that of Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution", 2019 (FedAvgM).
"""

from __future__ import annotations

from qedge.algorithms.state import Mean, ServerState, stepped
from qedge.job import Algorithm
from qedge.kernels.batches import LocalSGD


def client_update(algorithm: Algorithm) -> LocalSGD:
    """Epochs of mini-batch SGD from the global weights.

    With `layers: body` the head stays for all rounds what it was at first, for clients to train one of their own (FedBABU: Oh, Kim, Yun,
    "FedBABU: toward enhanced representation for federated image classification", ICLR 2022).
    """
    return LocalSGD(algorithm.learning_rate, algorithm.momentum, algorithm.weight_decay, layers=algorithm.layers)


def server_update(state: ServerState, mean: Mean, algorithm: Algorithm) -> ServerState:
    """v ← βv + Δ;  w ← w + ηv, with Δ the mean client update, β the server's momentum and η its learning rate."""
    if not algorithm.server_momentum:
        return stepped(state, algorithm.server_rate * mean.update, algorithm, state.slots)
    momentum = algorithm.server_momentum * state.slot("momentum") + mean.update
    return stepped(state, algorithm.server_rate * momentum, algorithm, {**state.slots, "momentum": momentum})
