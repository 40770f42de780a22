"""SCAFFOLD: control variates take the clients' drift out of their steps.

Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020, algorithm 1 with option II. The
server keeps a control variate c, every client one of its own, c_i; all begin at zero. A client corrects each gradient by c − c_i
(`correction`), and after K steps of rate η its control is c_i⁺ = c_i − c + (x − y_i)/(Kη) (`new_control`). The server adds the mean
of the changes over all clients, those that took part or not. Clients count alike, as in the paper, however many rows they hold: what is
minimised is the mean of their losses, where the other algorithms here weight it by rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qedge.algorithms import fedavg
from qedge.algorithms.fedavg import client_update
from qedge.algorithms.state import Mean, ServerState
from qedge.job import Algorithm

__all__ = ["CONTROL", "client_update", "correction", "new_controls", "server_update"]

CONTROL = "control"  # the server's control variate among its slots


def correction(control: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What is added to each gradient of some clients: c − c_i, [clients, params] float32.

    control: the server's, [params] float32; own: the clients', [clients, params] float32.
    """
    difference: np.ndarray = control - own
    return difference


def new_controls(own: np.ndarray, control: np.ndarray, updates: np.ndarray, steps: np.ndarray, learning_rate: float) -> np.ndarray:
    """The clients' control variates after a round: c_i − c − (y_i − x)/(Kη), [clients, params] float32.

    updates: y_i − x, [clients, params] float32; steps: K of each, [clients]; one without steps keeps what it has.
    """
    trained = steps > 0
    after = own.copy()
    after[trained] -= control + updates[trained] / (steps[trained, None] * np.float32(learning_rate))
    return after


def server_update(state: ServerState, mean: Mean, algorithm: Algorithm) -> ServerState:
    """FedAvg's step, and c ← c + (1/N) Σ (c_i⁺ − c_i)."""
    after = fedavg.server_update(state, mean, algorithm)
    change = np.zeros(len(state.weights)) if mean.control is None else mean.control
    return replace(after, slots={**after.slots, CONTROL: state.slot(CONTROL) + change})
