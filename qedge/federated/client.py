"""The clients that live on one node: train, clip, round to the grid, and give back one sum of integers.

One object stands for all clients whose rows it holds. What it gives back for a chunk depends on the chunk, the round and the
run's key alone, so a chunk can be run again, or elsewhere, and the sum is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qedge.data.federation import Rows
from qedge.federated.kernels import ClientBatches, build_kernel, plan_steps, single_thread
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from qedge.models import build, set_parameters
from qedge.privacy.clipping import Grid, add_exactly, fixed_point, to_grid


@dataclass(frozen=True)
class ClientSpec:
    """All that a node needs to stand for clients, next to their rows."""

    model: Model
    features: int
    classes: int
    algorithm: Algorithm
    kernel: str
    grid: Grid | None  # None: a run without privacy
    key: RunKey
    seed: int


@dataclass(frozen=True)
class PartialSum:
    """The integers of some clients, summed. total: [params] int64; weight: what they count for."""

    total: np.ndarray
    weight: int

    def __add__(self, other: PartialSum) -> PartialSum:
        return PartialSum(add_exactly([self.total, other.total]), self.weight + other.weight)


class FederatedClient:
    """Stands for every client whose rows it was given."""

    def __init__(self, spec: ClientSpec, train: Rows, test: Rows | None) -> None:
        self.spec = spec
        self.train = train
        self.test = test
        self.module = build(spec.model, spec.features, spec.classes, spec.seed)
        self.kernel = build_kernel(spec.kernel, self.module, spec.algorithm, private=spec.grid is not None)

    def partial_sum(self, round_number: int, weights: np.ndarray, chunks: Sequence[np.ndarray]) -> PartialSum:
        """Train every client of every chunk from `weights`, [params] float32, and sum their integers.

        Raises:
            Diverged: without privacy, an update that is not finite. Under privacy such an update counts as zero.
        """
        with single_thread():
            sums = [self._chunk_sum(round_number, weights, chunk) for chunk in chunks]
        return sum(sums[1:], start=sums[0])

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int) -> int:
        """Sum over `clients` of round(cap · share correct) on at most `cap` held-out rows each: one client adds 0..cap."""
        if self.test is None:
            return 0
        set_parameters(self.module, weights)
        self.module.eval()
        total = 0
        with single_thread(), torch.no_grad():
            for client in clients:
                features, labels = (rows[:cap] for rows in self.test.of(int(client)))
                if len(labels):
                    hits = self.module(torch.tensor(features)).argmax(1).numpy() == labels
                    total += round(cap * float(hits.mean()))
        return total

    def _chunk_sum(self, round_number: int, weights: np.ndarray, chunk: np.ndarray) -> PartialSum:
        clients = [self._batches(round_number, int(client)) for client in chunk]
        updates = self.kernel.updates(weights, clients)
        if self.spec.grid is None:
            counts = [min(len(client.labels), self.spec.algorithm.max_weight) for client in clients]
            return PartialSum(fixed_point(updates, counts), sum(counts))
        key = self.spec.key.derive("rounding", round_number, int(chunk[0]))
        rounded = to_grid(updates, self.spec.grid, key.generator(), lambda row: key.derive("again", row).generator())
        return PartialSum(rounded.sum(axis=0), len(chunk))

    def _batches(self, round_number: int, client: int) -> ClientBatches:
        features, labels = self.train.of(client)

        def generator() -> np.random.Generator:
            return self.spec.key.derive("steps", round_number, client).generator()

        return ClientBatches(features, labels, plan_steps(len(labels), self.spec.algorithm, generator))
