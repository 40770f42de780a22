"""Federated averaging with server momentum.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, algorithm 1;
the server's momentum is that of Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution", 2019 (FedAvgM).
The model that is evaluated and served may be a moving average of the global weights (Polyak & Juditsky 1992): under privacy it takes
out much of the noise of the last rounds and, as post-processing of what was released, costs nothing (De et al. 2022, section 3.3).
An algorithm is a pair of pure functions: what a client does (`qedge.federated.client`, with a kernel) and what the server does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qedge.job import Algorithm


@dataclass(frozen=True)
class ServerState:
    """The global model between rounds.

    round: rounds finished; weights: [params] float32, from which clients train; momentum: [params] float64; average: [params]
    float64, of the weights so far.
    """

    round: int
    weights: np.ndarray
    momentum: np.ndarray
    average: np.ndarray

    @property
    def model(self) -> np.ndarray:
        """The weights that are evaluated and served, [params] float32."""
        return self.average.astype(np.float32)


def init(weights: np.ndarray) -> ServerState:
    """The state before the first round."""
    return ServerState(0, np.asarray(weights, dtype=np.float32), np.zeros(len(weights)), np.asarray(weights, dtype=np.float64))


def server_update(state: ServerState, mean_update: np.ndarray, algorithm: Algorithm) -> ServerState:
    """v ← βv + Δ;  w ← w + ηv;  a ← γa + (1 − γ)w, with Δ the mean client update, [params] float64.

    β is the server's momentum, η its learning rate, γ its averaging, at most (1 + t)/(10 + t) in round t so that the start is forgotten.
    """
    momentum = algorithm.server_momentum * state.momentum + mean_update
    with np.errstate(over="ignore"):  # whoever calls checks that the weights are finite
        weights = (state.weights + algorithm.server_learning_rate * momentum).astype(np.float32)
    kept = min(algorithm.server_averaging, (1 + state.round) / (10 + state.round))
    average = kept * state.average + (1 - kept) * weights
    return ServerState(state.round + 1, weights, momentum, average)
