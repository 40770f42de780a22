"""Workload A: the digits dealt to 100 clients of skewed labels and sizes, 20 of them a round, an MLP 64-32-10.

Local training is plain SGD over 2 epochs in the order of the rows, batches of 16, learning rate 0.1; the server averages by
rows. Everything is drawn from fixed generators, so that every framework does the same work and ends with the same weights.
This module needs numpy, torch and scikit-learn alone: the peer's environment imports it too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLIENTS, COHORT, CLASSES = 100, 20, 10
EPOCHS, BATCH, LEARNING_RATE = 2, 16, 0.1
HIDDEN = 32
TEST_ROWS = 360
NORM_AFTER_20_ROUNDS = 4.55388  # of all weights, with the cohorts of `published_cohorts`: Flower, pfl and plain torch agree on it

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Client:
    """One client's rows: features float32 [rows, 64] in [0, 1], labels int64 [rows]."""

    features: np.ndarray
    labels: np.ndarray


def make_clients() -> list[Client]:
    """The clients, by number."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    features = (pixels / 16.0).astype(np.float32)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    features, labels = features[order][TEST_ROWS:], labels[order][TEST_ROWS:].astype(np.int64)
    return [Client(features[rows], labels[rows]) for rows in _deal(labels, generator)]


def _deal(labels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each client: log-normal sizes, a label mix from a symmetric Dirichlet of 0.5."""
    shares = generator.lognormal(0, 0.6, CLIENTS)
    sizes = np.maximum(4, (shares / shares.sum() * len(labels)).astype(int))
    left = [np.flatnonzero(labels == digit).tolist() for digit in range(CLASSES)]
    dealt = []
    for size in sizes:
        mix = generator.dirichlet([0.5] * CLASSES)
        taken: list[int] = []
        for digit in generator.choice(CLASSES, size, p=mix):
            pool = left[digit] or max(left, key=len)  # a digit that ran out is replaced by the one most rows are left of
            if pool:
                taken.append(pool.pop())
        dealt.append(np.array(taken))
    return dealt


def published_cohorts(rounds: int) -> list[np.ndarray]:
    """The cohorts behind `NORM_AFTER_20_ROUNDS`, client numbers [20] each."""
    generator = np.random.default_rng(123)
    return [generator.choice(CLIENTS, COHORT, replace=False) for _ in range(rounds)]


def make_model() -> nn.Sequential:
    """The MLP with its initial weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def train_locally(model: nn.Module, client: Client) -> None:
    """One client's training, in place, by torch's own optimiser."""
    features, labels = torch.from_numpy(client.features), torch.from_numpy(client.labels)
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        for start in range(0, len(labels), BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(features[start : start + BATCH]), labels[start : start + BATCH]).backward()
            optimiser.step()


def train_plainly(clients: Sequence[Client], cohorts: Sequence[np.ndarray]) -> Weights:
    """The final weights of the whole workload, one client after another: what every framework must come to."""
    model = make_model()
    for cohort in cohorts:
        start = {name: value.clone() for name, value in model.state_dict().items()}
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in start.items()}
        for number in cohort:
            model.load_state_dict(start)
            train_locally(model, clients[number])
            for name, value in model.state_dict().items():
                total[name] += value.double() * len(clients[number].labels)
        rows = sum(len(clients[number].labels) for number in cohort)
        model.load_state_dict({name: (value / rows).float() for name, value in total.items()})
    return {name: value.numpy() for name, value in model.state_dict().items()}


def write_table(clients: Sequence[Client], path: Path) -> None:
    """The clients as a table: `features` [rows, 64], `label`, and `client`, text that sorts by number."""
    np.savez(
        path,
        features=np.concatenate([client.features for client in clients]),
        label=np.concatenate([client.labels for client in clients]),
        client=np.concatenate([np.full(len(client.labels), f"client-{number:03d}") for number, client in enumerate(clients)]),
    )


@functools.cache
def read_table(path: str) -> list[Client]:
    """The clients that `write_table` wrote."""
    with np.load(path) as table:
        features, labels, owner = table["features"], table["label"], table["client"]
    return [Client(features[owner == name], labels[owner == name]) for name in np.unique(owner)]


def read_client(path: str, number: int) -> Client:
    """One client of a table; the table is read once a process."""
    return read_table(path)[number]


def norm(weights: Weights) -> float:
    """Euclidean norm of all weights."""
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in weights.values())))
