"""A thousand circuits over two quantum workers on Ray, one of them killed with SIGKILL when half of the batch is done, against the same
batch in one process.

Each backend has circuits of its own. Every answer must be that of the single process bit for bit, those of the workers that stayed and
those of the worker that died, whatever it had under way. Times are of whole batches, from the call to the last answer, workers and
process taking turns; the workers were up before, and nothing else was: with one killed, the time holds that of starting another wherever
the batch was not done before. A circuit has one thread, in a worker and in
the one process, which has as many as it likes otherwise.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pennylane as qml
from pennylane.tape import QuantumScript

from actors.cluster import connect
from actors.quantum_executor import Batch, RayExecutor
from actors.reservation import give_back, reserve
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Answer, LocalExecutor
from qedge.quantum.noise import Noise
from tests.benchmarks.figures import Figure, beside, never_more
from tests.benchmarks.surroundings import WORKERS, scratch, settings_of

REPEAT = 3
CIRCUITS = 1000


@dataclass(frozen=True)
class Work:
    """Circuits of so many qubits and layers of rotations and CNOTs, on a backend."""

    name: str
    backend: Backend
    qubits: int
    layers: int

    def circuits(self) -> list[QuantumScript]:
        """A thousand different ones, by seed."""
        return [self._circuit(seed) for seed in range(CIRCUITS)]

    def _circuit(self, seed: int) -> QuantumScript:
        operations: list[qml.operation.Operator] = []
        for angles in np.random.default_rng(seed).uniform(0, 2 * np.pi, (self.layers, self.qubits)):
            operations += [qml.RY(angle, wire) for wire, angle in enumerate(angles)]
            operations += [qml.CNOT([wire, wire + 1]) for wire in range(self.qubits - 1)]
        energy = sum(0.5 * qml.Z(wire) @ qml.Z(wire + 1) for wire in range(self.qubits - 1))
        return QuantumScript(operations, [qml.expval(energy)])


WORKS = (
    Work("lightning.qubit, 4 qubits, exact", Backend(), 4, 3),
    Work("lightning.qubit, 14 qubits, exact", Backend(), 14, 4),
    Work("lightning.qubit, 8 qubits, 1000 shots", Backend(shots=1000, seed=1), 8, 3),
    Work("default.mixed, 3 qubits, noise, 1000 shots", Backend(name="default.mixed", shots=1000, noise=Noise(depolarizing=0.01)), 3, 2),
)


class Losing(RayExecutor):
    """Loses a worker, one that has something under way, when half of a batch is done."""

    def __init__(self, *given: object, **options: object) -> None:
        super().__init__(*given, **options)
        self.alive = self.pids()
        self.to_lose = False
        self.lost: list[int] = []

    def _await_one(self, batch: Batch) -> None:
        if self.to_lose and batch.left <= len(batch.circuits) // 2:
            slot = next(slot for slot, lane in enumerate(self.lanes) if lane.sent)
            os.kill(self.alive[slot], signal.SIGKILL)
            self.lost.append(self.alive[slot])
            self.to_lose = False
        super()._await_one(batch)


def measure(repeat: int) -> list[Figure]:
    """Each kind of work `repeat` times in one process, over the workers, and over the workers with one killed."""
    figures = []
    with scratch() as folder, connect(settings_of(folder / "home", address="local"), start=True):
        reserved = reserve("quantum-workers", lambda: None)
        try:
            for work in WORKS:
                figures += _of_work(work, Losing(reserved, workers=WORKERS), repeat)
        finally:
            give_back("quantum-workers")
    return figures


def _of_work(work: Work, workers: Losing, repeat: int) -> list[Figure]:
    circuits, local = work.circuits(), LocalExecutor()
    seconds: dict[str, list[float]] = {"one": [], "workers": [], "killed": []}
    wrong: list[float] = []
    killed = 0
    try:
        workers.run(circuits[:100], work.backend)  # what is loaded and built once
        local.run(circuits[:100], work.backend)
        for turn in range(repeat):
            expected = _timed(seconds["one"], local, circuits, work.backend, turn)
            unharmed = _timed(seconds["workers"], workers, circuits, work.backend, turn)
            workers.alive, workers.to_lose = workers.pids(), True
            answers = _timed(seconds["killed"], workers, circuits, work.backend, turn)
            killed += not workers.to_lose
            wrong.append(_different(expected, unharmed) + _different(expected, answers))
            workers.pids()  # the successor is up before the next turn
    finally:
        workers.close()
    speedup = [one / more for one, more in zip(seconds["one"], seconds["workers"], strict=True)]
    return [
        never_more(f"{work.name}: answers of {CIRCUITS} that differ from the single process, one worker of {WORKERS} killed", 0, wrong),
        Figure(f"{work.name}: workers killed", str(repeat), str(killed), killed == repeat),
        beside(f"{work.name}: one process", [CIRCUITS / one for one in seconds["one"]], "circuits/s"),
        beside(f"{work.name}: {WORKERS} workers", [CIRCUITS / one for one in seconds["workers"]], "circuits/s"),
        beside(f"{work.name}: … times one process", speedup, "times", 2),
        beside(f"{work.name}: {WORKERS} workers, one killed midway", [CIRCUITS / one for one in seconds["killed"]], "circuits/s"),
    ]


def _timed(
    seconds: list[float], executor: LocalExecutor | RayExecutor, circuits: Sequence[QuantumScript], backend: Backend, stream: int
) -> list[Answer]:
    begun = time.monotonic()
    answers = executor.run(circuits, backend, stream=stream)
    seconds.append(time.monotonic() - begun)
    return answers


def _different(expected: Sequence[Answer], answers: Sequence[Answer]) -> int:
    """How many are not the same bit for bit."""
    return abs(len(expected) - len(answers)) + sum(not np.array_equal(one, other) for one, other in zip(expected, answers, strict=False))
