"""The clients that live on one node: train, clip, round to the grid, and give back one sum of integers.

One object stands for all clients whose rows it holds. What it gives back for a chunk depends on the chunk, the round and the
run's key alone, so a chunk can be run again, or elsewhere, and the sum is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qedge.data.federation import Rows
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from qedge.kernels.batches import ClientBatches, plan, single_thread
from qedge.kernels.choice import build_kernel
from qedge.models import build, set_parameters
from qedge.privacy.clipping import Grid, add_exactly, fixed_point, to_grid

AHEAD_BYTES = 64 << 20


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
        self.ahead: dict[tuple[int, bytes], Any] = {}

    def prepare(self, round_number: int, chunks: Sequence[np.ndarray]) -> None:
        """Gather what a later `partial_sum` of that round will train on, as far as 64 MiB go; it finds the same without."""
        room = AHEAD_BYTES
        self.ahead = {}
        with single_thread():
            for chunk in chunks:
                rows = int((self.train.offsets[chunk + 1] - self.train.offsets[chunk]).sum())
                room -= rows * self.train.features[:1].nbytes
                if room < 0:
                    break
                self.ahead[round_number, chunk.tobytes()] = self._prepared(round_number, chunk)

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
        prepared = self.ahead.pop((round_number, chunk.tobytes()), None)
        updates = self.kernel.updates(weights, self._prepared(round_number, chunk) if prepared is None else prepared)
        if self.spec.grid is None:
            rows = self.train.offsets[chunk + 1] - self.train.offsets[chunk]
            counts = np.minimum(rows, self.spec.algorithm.max_weight).tolist()
            return PartialSum(fixed_point(updates, counts), sum(counts))
        key = self.spec.key.derive("rounding", round_number, int(chunk[0]))
        rounded = to_grid(updates, self.spec.grid, key.generator(), lambda row: key.derive("again", row).generator())
        return PartialSum(rounded.sum(axis=0), len(chunk))

    def _prepared(self, round_number: int, chunk: np.ndarray) -> Any:
        return self.kernel.prepare([self._batches(round_number, int(client)) for client in chunk])

    def _batches(self, round_number: int, client: int) -> ClientBatches:
        features, labels = self.train.of(client)

        def generator() -> np.random.Generator:
            return self.spec.key.derive("steps", round_number, client).generator()

        return plan(features, labels, self.spec.algorithm, generator)
