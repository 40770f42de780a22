"""A QAOA circuit on a backend: the mean gain of its answers, how often they are an optimum, each with its error bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pennylane as qml
from pennylane.measurements import MeasurementProcess

from qedge.quantum.backend import Backend
from qedge.quantum.execution import Answer, Executor
from qedge.quantum.qaoa.angles import split
from qedge.quantum.qaoa.circuit import circuit
from qedge.quantum.qaoa.classical import Bounds
from qedge.quantum.qaoa.problems import Bits, Problem, Reals

WHOLE = 14  # qubits up to which the frequencies of all bitstrings come back, and single shots above


@dataclass(frozen=True)
class Drawn:
    """Gains of bitstrings, [k], and their frequencies, [k], which sum to 1.

    shots: at least 2; None where the frequencies are exact probabilities; bits: [k, n], None where they are all bitstrings in order.
    """

    gains: Reals
    frequencies: Reals
    shots: int | None
    bits: Bits | None = None

    @property
    def mean(self) -> tuple[float, float]:
        """The mean gain, and one standard deviation of it."""
        mean = float(self.frequencies @ self.gains)
        if self.shots is None:
            return mean, 0.0
        variance = float(self.frequencies @ (self.gains - mean) ** 2)
        return mean, math.sqrt(variance / (self.shots - 1))

    def optimum(self, bounds: Bounds) -> tuple[float, float]:
        """How often the gain is the best, and one standard deviation of that, which is not 0 for what was never seen.

        Source: A. Agresti, B. A. Coull, The American Statistician 52 (1998) 119, with one success and one failure added.
        """
        chance = float(self.frequencies[bounds.are_optima(self.gains)].sum())
        if self.shots is None:
            return chance, 0.0
        added = (chance * self.shots + 1) / (self.shots + 2)
        return chance, math.sqrt(added * (1 - added) / (self.shots + 2))

    def best(self, qubits: int) -> tuple[str, float]:
        """The best bitstring among those that were drawn, and its gain."""
        place = int(np.where(self.frequencies > 0, self.gains, -np.inf).argmax())
        bits = f"{place:0{qubits}b}" if self.bits is None else "".join(map(str, self.bits[place].tolist()))
        return bits, float(self.gains[place])


@dataclass
class Sampler:
    """Runs circuits of one problem; counts them."""

    problem: Problem
    backend: Backend
    executor: Executor
    thetas: Reals | None = None
    circuits: int = field(default=0, init=False)
    _batches: int = field(default=0, init=False)
    _gains: Reals | None = field(default=None, init=False)

    @property
    def shots(self) -> int:
        """Taken so far."""
        return self.circuits * (self.backend.shots or 0)

    def draw(self, points: Sequence[Reals]) -> list[Drawn]:
        """What comes back at each of several points, angles [2p]; they run as one batch.

        Raises:
            UnknownBackend, BackendUnavailable, TooManyQubits, InvalidCircuit: as the executor does.
        """
        problem, shots = self.problem, self.backend.shots
        circuits = [circuit(problem, *split(problem, point), [self._measurement()], thetas=self.thetas, shots=shots) for point in points]
        answers = self.executor.run(circuits, self.backend, stream=self._batches)
        self._batches += 1
        self.circuits += len(circuits)
        return [self._drawn(answer) for answer in answers]

    def means(self, points: Sequence[Reals]) -> list[float]:
        """The mean gain at each point."""
        return [drawn.mean[0] for drawn in self.draw(points)]

    def _measurement(self) -> MeasurementProcess:
        wires = range(self.problem.qubits)
        return qml.probs(wires=wires) if self.backend.shots is None or self.problem.qubits <= WHOLE else qml.sample(wires=wires)

    def _drawn(self, answer: Answer) -> Drawn:
        values, shots = np.asarray(answer, dtype=np.float64), self.backend.shots
        if values.ndim == 1 and len(values) == 2**self.problem.qubits:
            if self._gains is None:
                self._gains = self.problem.diagonal()
            return Drawn(self._gains, values, shots)
        bits, counts = np.unique(values.reshape(-1, self.problem.qubits).astype(np.int8), axis=0, return_counts=True)
        return Drawn(self.problem.gains(bits), counts / counts.sum(), shots, bits)
