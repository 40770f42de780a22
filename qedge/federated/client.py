"""The clients that live on one node: train, clip, round to the grid, and give back one sum of integers.

One object stands for all clients whose rows it holds. What it gives back for a chunk depends on the chunk, the round and the
run's key alone, so a chunk can be run again, or elsewhere, and the sum is the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qedge.algorithms import scaffold
from qedge.algorithms.choice import ALGORITHMS
from qedge.data.federation import Rows
from qedge.errors import Diverged
from qedge.federated.client_evaluation import ClientEvaluation
from qedge.federated.example_training import ExampleTraining
from qedge.federated.messages import Broadcast, Chunk, ClientSpec, PartialSum, nobody, timed
from qedge.kernels.batches import ClientBatches, plan, single_thread, steps_of
from qedge.kernels.choice import build_kernel, made_up_clients
from qedge.kernels.own_loop import OwnLoopKernel
from qedge.kernels.per_example.choice import build_sums, sums_difference
from qedge.kernels.sequential import SequentialKernel
from qedge.kernels.weighted_total import weighted_total
from qedge.models import build, parameters_vector
from qedge.privacy.clipping import Grid, fixed_point, to_grid, within_bound
from qedge.privacy.mechanisms import NoiseSource, SystemNoise

AHEAD_BYTES = 64 << 20
MOST_MASKED = 2**62 // 128  # without privacy: no sum of a group of at most 100 wraps in 64 bits
AGREES_WITHIN = 1e-2  # of the largest update; rounding is far less, but may tip a ReLU over that is within rounding of zero


class FederatedClient:
    """Stands for every client whose rows it was given; noise: of those that add it themselves."""

    def __init__(self, spec: ClientSpec, train: Rows, test: Rows | None, noise: NoiseSource | None = None) -> None:
        self.spec = spec
        self.noise = noise or SystemNoise()
        self.train = train
        self.module = build(spec.model, spec.features, spec.classes, spec.seed)
        self.ahead: dict[tuple[int, bytes], tuple[Any, float]] = {}
        self.evaluation = ClientEvaluation(spec, self.module, train, test)
        self.sgd = ALGORITHMS[spec.algorithm.kind].client_update(spec.algorithm)
        self.use_kernel(spec.kernel)

    def use_kernel(self, name: str) -> None:
        """Train with the kernel of that name from now on."""
        self.ahead = {}
        self.examples: ExampleTraining | None = None
        if self.spec.examples is not None:
            self.examples = ExampleTraining(self.spec.examples, self.sgd, build_sums(name, self.module), self.noise)
            return
        self.kernel = build_kernel(
            name,
            self.module,
            self.spec.algorithm,
            self.sgd,
            self.spec.features,
            self.spec.classes,
            private=self.spec.grid is not None or self.spec.secure is not None,
        )

    def kernel_difference(self) -> float | None:
        """How far the kernel's updates are from the sequential kernel's, over the largest of them; None where that is rounding.

        On made-up rows, so that what comes of it tells nothing of anybody's.
        """
        if self.examples is not None:
            with single_thread():
                return sums_difference(self.examples.sums, self.module, self.spec.features, self.spec.classes, AGREES_WITHIN)
        if isinstance(self.kernel, SequentialKernel | OwnLoopKernel):
            return None
        clients = made_up_clients(self.spec.algorithm, self.spec.features, self.spec.classes, 2)
        weights = parameters_vector(build(self.spec.model, self.spec.features, self.spec.classes, self.spec.seed))
        with single_thread():
            found = self.kernel.updates(weights, self.kernel.prepare(clients)).values
            oracle = SequentialKernel(self.module, self.sgd)
            expected = oracle.updates(weights, oracle.prepare(clients)).values
        difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))
        return None if difference <= AGREES_WITHIN else difference

    def prepare(self, round_number: int, chunks: Sequence[Chunk]) -> None:
        """Gather what a later `partial_sum` of that round will train on, until 64 MiB are full; it finds the same without."""
        room = AHEAD_BYTES if self.examples is None else 0  # batches that are drawn at each step cannot be
        self.ahead = {}
        with single_thread():
            for chunk in chunks:
                if room <= 0:
                    break
                begun = time.perf_counter()
                prepared = self._prepared(round_number, chunk)
                self.ahead[round_number, chunk.name] = prepared, time.perf_counter() - begun
                room -= self.kernel.bytes_of(prepared)

    def partial_sum(self, broadcast: Broadcast, chunks: Sequence[Chunk]) -> PartialSum:
        """Train every client of every chunk, and sum their integers.

        A client on whose rows the user's code raises is left out and named. Under privacy its update counts as zero, as does one that
        is not finite, and nobody hears of it: that it failed is as private as its rows.

        Raises:
            Diverged: without privacy, or where noise is in it already, an update that is not finite.
        """
        with single_thread():
            sums = [self._chunk_sum(broadcast, chunk) for chunk in chunks]
        return PartialSum.of(sums) if sums else nobody(broadcast, self.spec)

    def _chunk_sum(self, broadcast: Broadcast, chunk: Chunk) -> PartialSum:
        seconds: dict[str, float] = {}
        if self.examples is not None:
            return self._noised(broadcast, chunk, self.examples, seconds)
        ready = self.ahead.pop((broadcast.round, chunk.name), None)
        if ready is None:
            with timed(seconds, "gather"):
                prepared = self._prepared(broadcast.round, chunk)
            gather_s = seconds["gather"]
        else:
            prepared, gather_s = ready
        if (grid := self.spec.grid) is None:
            return self._weighted(broadcast, chunk, prepared, seconds, gather_s)
        with timed(seconds, "train"):
            trained = self.kernel.updates(broadcast.weights, prepared)
        with timed(seconds, "sum"):
            total = self._rounded(broadcast, chunk, trained.values, self._grid(broadcast, grid)).sum(axis=0)
        return PartialSum(total, len(chunk.clients), seconds=seconds, gather_s=gather_s)

    def _noised(self, broadcast: Broadcast, chunk: Chunk, examples: ExampleTraining, seconds: dict[str, float]) -> PartialSum:
        """A chunk of clients that add their noise themselves, all of the same weight, those without rows as well."""
        with timed(seconds, "train"):
            updates = examples.updates(broadcast.weights, self.train, chunk.clients.tolist())
        with timed(seconds, "sum"):
            total = fixed_point(updates, [1] * len(updates))
        return PartialSum(total, len(chunk.clients), seconds=seconds)

    def _weighted(self, broadcast: Broadcast, chunk: Chunk, prepared: Any, seconds: dict[str, float], gather_s: float) -> PartialSum:
        """A chunk without privacy, each client weighted by its rows."""
        with timed(seconds, "train"):
            most = 1 if broadcast.control is not None else self.spec.algorithm.max_weight  # SCAFFOLD takes clients as equals
            counts = np.minimum(self._rows(chunk), most)
            total = weighted_total(self.kernel, broadcast.weights, prepared, counts, self._corrections(broadcast, chunk))
        with timed(seconds, "sum"):
            controls = () if total.updates is None else self._new_controls(broadcast, chunk, total.updates, list(total.failed))
        reasons = {int(chunk.clients[place]): error.message for place, error in total.failed.items()}
        return PartialSum(total.integers, total.weight, reasons, controls, seconds, gather_s)

    def integers(self, broadcast: Broadcast, chunk: Chunk) -> tuple[np.ndarray, dict[int, str]]:
        """Of each client of a chunk the integers that `partial_sum` sums, [clients, length] int64, and what the user's code raised.

        Without privacy what a client counts for is the last of them, and one whose training failed counts for nothing.

        Raises:
            Diverged: without privacy, an update that is not finite, or too large.
        """
        with single_thread():
            trained = self.kernel.updates(broadcast.weights, self._prepared(broadcast.round, chunk))
            if self.spec.grid is not None:
                rotation = self.spec.rotation(broadcast.round)
                values = trained.values if rotation is None else rotation.forward(trained.values)
                return self._rounded(broadcast, chunk, values, self._grid(broadcast, self.spec.grid)), {}
            counts = np.minimum(self._rows(chunk), self.spec.algorithm.max_weight)
            counts[list(trained.failed)], trained.values[list(trained.failed)] = 0, 0
            each = [fixed_point(trained.values[place : place + 1], [int(count)]) for place, count in enumerate(counts)]
            if any(int(np.abs(one).max(initial=0)) > MOST_MASKED for one in each):
                raise Diverged("an update is too large to be masked with those of a group; a smaller learning rate may help")
            reasons = {int(chunk.clients[place]): error.message for place, error in trained.failed.items()}
            return np.column_stack([np.stack(each), counts]), reasons

    def _grid(self, broadcast: Broadcast, grid: Grid) -> Grid:
        """The round's own grid."""
        return grid if broadcast.bound is None else replace(grid, bound=broadcast.bound)

    def _rounded(self, broadcast: Broadcast, chunk: Chunk, updates: np.ndarray, grid: Grid) -> np.ndarray:
        """A chunk's updates on the grid of the round's bound, [clients, params] int64, with the counts within it where clients count.

        A client without rows adds nothing to either.
        """
        key = self.spec.key.derive("rounding", broadcast.round, int(chunk.clients[0]))
        rounded = to_grid(updates, grid, key.generator(), lambda row: key.derive("again", row).generator())
        if not self.spec.count_weight:
            return rounded
        within = np.where(within_bound(updates, grid.bound), 1, -1) * (self._rows(chunk) > 0)
        return np.column_stack([rounded, self.spec.count_weight * within])

    def _rows(self, chunk: Chunk) -> np.ndarray:
        """How many rows each of its clients holds, [clients] int64."""
        rows: np.ndarray = self.train.offsets[chunk.clients + 1] - self.train.offsets[chunk.clients]
        return rows

    def _corrections(self, broadcast: Broadcast, chunk: Chunk) -> np.ndarray | None:
        if broadcast.control is None or chunk.controls is None:
            return None
        return scaffold.correction(broadcast.control, chunk.controls)

    def _new_controls(self, broadcast: Broadcast, chunk: Chunk, updates: np.ndarray, failed: list[int]) -> tuple[Chunk, ...]:
        """The control variates after the round; a client that failed keeps its own."""
        if broadcast.control is None or chunk.controls is None:
            return ()
        algorithm = self.spec.algorithm
        steps = np.array([steps_of(int(rows), algorithm) for rows in self._rows(chunk)])
        steps[failed] = 0
        return (Chunk(chunk.clients, scaffold.new_controls(chunk.controls, broadcast.control, updates, steps, algorithm.learning_rate)),)

    def _prepared(self, round_number: int, chunk: Chunk) -> Any:
        return self.kernel.prepare([self._batches(round_number, int(client)) for client in chunk.clients])

    def _batches(self, round_number: int, client: int) -> ClientBatches:
        features, labels = self.train.of(client)

        def generator() -> np.random.Generator:
            return self.spec.key.derive("steps", round_number, client).generator()

        return plan(features, labels, self.spec.algorithm, generator)
