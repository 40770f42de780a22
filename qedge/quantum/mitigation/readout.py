"""Readout errors: measured by two calibration circuits, undone on probabilities.

Each qubit has a confusion matrix of its own, with the probabilities of reading 0 as 1 and 1 as 0; together they are its tensor product.
They are learnt from |0...0> and |1...1>, so that errors of the X gates count as errors of reading 1, and correlated ones are not seen.
The inverse may give negative probabilities; the nearest distribution is taken instead, unless that is not wanted.

Source: S. Bravyi et al., "Mitigating measurement errors in multiqubit experiments", Phys. Rev. A 103, 042605 (2021), sections II and III;
J. Smolin, J. Gambetta, G. Smith, Phys. Rev. Lett. 108, 070502 (2012); C. Michelot, J. Optim. Theory Appl. 50, 195 (1986) for the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.tape import QuantumScript

from qedge.errors import InvalidValue
from qedge.quantum.execution import Answer
from qedge.quantum.mitigation.mitigated import Estimate
from qedge.quantum.mitigation.settings import Measurement, mean_and_variance

Vector = NDArray[np.float64]
MOST_CONDITION = 1e6
LEAST_TOLD = 4.0  # standard deviations between reading 0 and reading 1


@dataclass(frozen=True)
class Confusion:
    """How a register is misread. matrices: [qubits, read, prepared], columns sum to 1; shots: each column was learnt from, None: exact."""

    matrices: NDArray[np.float64]
    shots: int | None = None

    @property
    def condition(self) -> float:
        """How much the inverse can enlarge an error at most: the condition number, in the 1-norm, of all qubits together.

        A product over qubits: it grows exponentially with their number.
        """
        return float(np.prod([np.linalg.cond(one, 1) for one in self.matrices]))

    @property
    def overhead(self) -> float:
        """The 1-norm of the inverse, squared: about how many times as many shots the same error bar takes."""
        return float(np.prod([np.linalg.norm(np.linalg.inv(one), 1) for one in self.matrices])) ** 2

    def inverted(self, probabilities: Vector) -> Vector:
        """What was there before it was misread, [2^qubits]; some of it may be negative."""
        return _on_each(self._inverses(), probabilities)

    def _inverses(self) -> Vector:
        return np.asarray(np.linalg.inv(self.matrices), dtype=np.float64)

    def estimate(
        self, measurement: Measurement, answers: Sequence[Answer], circuits: Sequence[QuantumScript], *, constrained: bool = True
    ) -> Estimate:
        """As `Measurement.estimate`, with readout undone. The error bar holds the calibration's too, and is that without the constraint."""
        value, variance, taken = measurement.constant, 0.0, 0
        slopes = np.zeros((len(self.matrices), 2))
        turned = self._inverses().transpose(0, 2, 1)
        for setting, answer, circuit in zip(measurement.settings, answers, circuits, strict=True):
            read, shots = np.asarray(answer, dtype=np.float64), circuit.shots.total_shots
            undone, weights = self.inverted(read), _on_each(turned, setting.values)
            value += float((on_simplex(undone) if constrained else undone) @ setting.values)
            variance += mean_and_variance(read, weights, shots)[1]
            slopes += self._slopes(undone, setting.values)
            taken += shots or 0
        return Estimate(value, variance + self._of_calibration(slopes), taken, len(circuits))

    def _slopes(self, undone: Vector, values: Vector) -> NDArray[np.float64]:
        """Of the value by each qubit's two error rates, [qubits, 2]: d(A^-1) = -A^-1 dA A^-1, where the other qubits stay undone once."""
        qubits, inverses = len(self.matrices), self._inverses()
        before, after = undone.reshape((2,) * qubits), values.reshape((2,) * qubits)
        slopes = np.zeros((qubits, 2))
        for qubit in range(qubits):
            others = [axis for axis in range(qubits) if axis != qubit]
            met = inverses[qubit].T @ np.tensordot(after, before, axes=(others, others))  # [read, prepared] of this qubit
            slopes[qubit] = met[0, 0] - met[1, 0], met[1, 1] - met[0, 1]
        return slopes

    def _of_calibration(self, slopes: NDArray[np.float64]) -> float:
        if self.shots is None:
            return 0.0
        rates = np.stack([self.matrices[:, 1, 0], self.matrices[:, 0, 1]], axis=1)
        smoothed = (rates * self.shots + 0.5) / (self.shots + 1)
        return float(np.sum(slopes**2 * smoothed * (1 - smoothed)) / self.shots)


def calibration(wires: Sequence[object], shots: int | None) -> list[QuantumScript]:
    """The two circuits that tell how each wire is misread; shots: of each."""
    probabilities = qml.probs(wires=list(wires))
    nothing = [qml.Identity(wire) for wire in wires]
    return [QuantumScript(gates, [probabilities], shots=shots) for gates in (nothing, [qml.PauliX(wire) for wire in wires])]


def confusion(answers: Sequence[Answer], shots: int | None) -> Confusion:
    """What the answers to `calibration` say.

    Raises:
        InvalidValue: a wire that is read the same, or nearly, whatever it is: what it was cannot be told.
    """
    zeros, ones = (_marginals(np.asarray(answer, dtype=np.float64)) for answer in answers)
    return of_rates(zeros[:, 1], ones[:, 0], shots)


def of_rates(zero_as_one: Sequence[float] | Vector, one_as_zero: Sequence[float] | Vector, shots: int | None = None) -> Confusion:
    """From the probabilities of reading 0 as 1 and 1 as 0, of each qubit.

    Raises:
        InvalidValue: probabilities outside 0 to 1, or a sum so near 1 that nothing can be told from what is read.
    """
    up, down = np.asarray(zero_as_one, dtype=np.float64), np.asarray(one_as_zero, dtype=np.float64)
    if up.shape != down.shape or up.ndim != 1 or not ((up >= 0) & (up <= 1) & (down >= 0) & (down <= 1)).all():
        raise InvalidValue("readout errors are probabilities between 0 and 1, two of each qubit")
    told = abs(1 - up - down)
    drawn = np.sqrt((up * (1 - up) + down * (1 - down)) / shots) if shots else np.zeros(len(up))
    if (short := told < np.maximum(1 / MOST_CONDITION, LEAST_TOLD * drawn)).any():
        qubit = int(np.argmax(short))
        raise InvalidValue(
            f"qubit {qubit} is read the same whatever it is, as far as can be told (0 as 1: {up[qubit]:.3g}, 1 as 0: {down[qubit]:.3g})",
            given=qubit,
        )
    return Confusion(np.stack([np.stack([1 - up, down], axis=1), np.stack([up, 1 - down], axis=1)], axis=1), shots)


def on_simplex(quasi: Vector) -> Vector:
    """The distribution nearest to `quasi`, in the sum of squares."""
    falling = np.sort(quasi)[::-1]
    above = (np.cumsum(falling) - 1) / np.arange(1, len(quasi) + 1)
    nearest: Vector = np.maximum(quasi - above[np.flatnonzero(falling > above)[-1]], 0.0)
    return nearest


def _on_each(matrices: NDArray[np.float64], vector: Vector) -> Vector:
    """The tensor product of matrices times a vector."""
    state = vector.reshape((2,) * len(matrices))
    for qubit, matrix in enumerate(matrices):
        state = np.moveaxis(np.tensordot(matrix, state, axes=(1, qubit)), 0, qubit)
    return state.reshape(-1)


def _marginals(probabilities: Vector) -> NDArray[np.float64]:
    """Of each qubit, [qubits, 2]."""
    qubits = len(probabilities).bit_length() - 1
    state = probabilities.reshape((2,) * qubits)
    return np.array([state.sum(axis=tuple(axis for axis in range(qubits) if axis != qubit)) for qubit in range(qubits)])
