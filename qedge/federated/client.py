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
from qedge.errors import ModelError
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from qedge.kernels.batches import ClientBatches, plan, single_thread
from qedge.kernels.choice import build_kernel
from qedge.models import build, set_parameters, users_code
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
        """Gather what a later `partial_sum` of that round will train on, until 64 MiB are full; it finds the same without."""
        room = AHEAD_BYTES
        self.ahead = {}
        with single_thread():
            for chunk in chunks:
                if room <= 0:
                    break
                prepared = self._prepared(round_number, chunk)
                self.ahead[round_number, chunk.tobytes()] = prepared
                room -= self.kernel.bytes_of(prepared)

    def partial_sum(self, round_number: int, weights: np.ndarray, chunks: Sequence[np.ndarray]) -> PartialSum:
        """Train every client of every chunk from `weights`, [params] float32, and sum their integers.

        Raises:
            Diverged: without privacy, an update that is not finite. ModelError: without privacy, the model raised.
            Under privacy the update of such a client counts as zero: that it failed is as private as its rows.
        """
        with single_thread():
            sums = [self._chunk_sum(round_number, weights, chunk) for chunk in chunks]
        nobody = PartialSum(np.zeros(len(weights), dtype=np.int64), 0)
        return sum(sums[1:], start=sums[0]) if sums else nobody

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int) -> np.ndarray:
        """Over the `clients` that hold rows out: the sum of round(cap · share correct), and cap times how many they are, [2] int64.

        At most `cap` rows of each are looked at, and one client adds 0..cap to either. A client on whose rows the model raises is right
        on none.
        """
        total = np.zeros(2, dtype=np.int64)
        if self.test is None:
            return total
        set_parameters(self.module, weights)
        self.module.eval()
        with single_thread(), torch.no_grad():
            for client in clients:
                features, labels = (rows[:cap] for rows in self.test.of(int(client)))
                if len(labels):
                    total += round(cap * self._share_correct(features, labels)), cap
        return total

    def _share_correct(self, features: np.ndarray, labels: np.ndarray) -> float:
        try:
            with users_code("the model"):
                return float((self.module(torch.tensor(features)).argmax(1).numpy() == labels).mean())
        except ModelError:
            return 0.0

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
