"""Federated averaging with server momentum.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, algorithm 1;
the server's momentum is that of Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution", 2019 (FedAvgM).
An algorithm is a pair of pure functions: what a client does (`qedge.federated.client`, with a kernel) and what the server does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qedge.job import Algorithm


@dataclass(frozen=True)
class ServerState:
    """The global model between rounds.

    round: rounds finished; weights: [params] float32; momentum: [params] float64.
    """

    round: int
    weights: np.ndarray
    momentum: np.ndarray


def init(weights: np.ndarray) -> ServerState:
    """The state before the first round."""
    return ServerState(0, np.asarray(weights, dtype=np.float32), np.zeros(len(weights), dtype=np.float64))


def server_update(state: ServerState, mean_update: np.ndarray, algorithm: Algorithm) -> ServerState:
    """v ← βv + Δ;  w ← w + ηv, with Δ the mean client update, [params] float64, β the momentum and η the server's rate."""
    momentum = algorithm.server_momentum * state.momentum + mean_update
    weights = state.weights + algorithm.server_learning_rate * momentum
    return ServerState(state.round + 1, weights.astype(np.float32), momentum)
