"""How an expectation value is measured: Pauli words that commute qubit by qubit together, in the bases they need, by probabilities.

Probabilities give the variance with the mean, and readout errors can be undone on them. Shots go to settings in proportion to the root of
the sum of their squared coefficients, which is best where nothing is known of the state (Wecker, Hastings, Troyer, Phys. Rev. A 92, 042303
(2015), section V). Outcomes are ordered as in `execution.wires_of`, the first wire most significant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.measurements import ExpectationMP
from pennylane.operation import Operator
from pennylane.ops import MidMeasure
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit, TooManyQubits
from qedge.quantum.execution import Answer, wires_of
from qedge.quantum.mitigation.mitigated import Estimate
from qedge.quantum.resources import in_cx_basis

Vector = NDArray[np.float64]
MOST_QUBITS = 20  # 8 MiB of probabilities


@dataclass(frozen=True)
class Setting:
    """One basis. letters: of each wire that is not measured in Z, and of those that are; values: [2^wires], of each outcome."""

    letters: Mapping[object, str]
    values: Vector
    share: float


@dataclass(frozen=True)
class Measurement:
    """An expectation value: a constant, and the settings that it takes. wires: all of the circuit's, in the order of outcomes."""

    wires: tuple[object, ...]
    constant: float
    settings: tuple[Setting, ...]

    def circuits(self, operations: Sequence[Operator], shots: int | None) -> list[QuantumScript]:
        """One a setting; shots: of all of them together; None: exact."""
        each = [None] * len(self.settings) if shots is None else divided(shots, [one.share for one in self.settings])
        probabilities = qml.probs(wires=list(self.wires))
        return [
            QuantumScript([*operations, *_rotations(one.letters)], [probabilities], shots=number)
            for one, number in zip(self.settings, each, strict=True)
        ]

    def shots(self, of_one: int | None) -> int | None:
        """So many for each setting."""
        return None if of_one is None else of_one * max(1, len(self.settings))

    @property
    def range(self) -> tuple[float, float]:
        """Between which every state's value is; narrower bounds there may be where settings do not commute."""
        low, high = (sum(float(bound(one.values)) for one in self.settings) for bound in (np.min, np.max))
        return self.constant + low, self.constant + high

    def estimate(self, answers: Sequence[Answer], circuits: Sequence[QuantumScript]) -> Estimate:
        """What the probabilities of `circuits` come to."""
        value, variance, taken = self.constant, 0.0, 0
        for setting, answer, circuit in zip(self.settings, answers, circuits, strict=True):
            shots = circuit.shots.total_shots
            mean, squared = mean_and_variance(np.asarray(answer, dtype=np.float64), setting.values, shots)
            value, variance, taken = value + mean, variance + squared, taken + (shots or 0)
        return Estimate(value, variance, taken, len(circuits))


def measurement(circuit: QuantumScript) -> Measurement:
    """How the one expectation value that a circuit asks for is measured.

    Raises:
        InvalidCircuit: it asks for something else, or for an observable that is no real sum of Pauli words, or measures on its way.
        TooManyQubits: more than `MOST_QUBITS`.
    """
    if len(circuit.measurements) != 1 or not isinstance(circuit.measurements[0], ExpectationMP):
        asked = ", ".join(type(one).__name__ for one in circuit.measurements) or "nothing"
        raise InvalidCircuit(f"mitigation takes circuits that measure one expval; given one that measures {asked}", given=asked)
    observable = circuit.measurements[0].obs
    words = None if observable is None else observable.pauli_rep
    if words is None:
        raise InvalidCircuit(
            f"mitigation takes observables that are sums of Pauli words (qml.pauli_decompose makes one of a matrix); given: {observable}",
            given=str(observable),
        )
    if any(abs(complex(one).imag) > 1e-12 or not np.isfinite(complex(one)) for one in words.values()):
        raise InvalidCircuit("an observable's coefficients are real and finite; given one that is not")
    if any(isinstance(one, MidMeasure) for one in circuit.operations):
        raise InvalidCircuit("mitigation takes circuits that measure at their end only; given one that measures on its way")
    wires = wires_of(circuit)
    if len(wires) > MOST_QUBITS:
        raise TooManyQubits(f"mitigation measures at most {MOST_QUBITS} qubits; given {len(wires)}", given=len(wires), limit=MOST_QUBITS)
    given = {tuple(word.items()): float(np.real(complex(one))) for word, one in words.items()}
    return Measurement(wires, given.pop((), 0.0), _settings(given, wires))


def gates(circuit: QuantumScript) -> list[Operator]:
    """A circuit's operations in one-qubit gates and CNOT, those that do nothing left out.

    Raises:
        InvalidCircuit: an operation that has no decomposition into these.
    """
    return [one for one in in_cx_basis(circuit).operations if one.name not in ("GlobalPhase", "Identity", "Barrier")]


def mean_and_variance(probabilities: Vector, values: Vector, shots: int | None) -> tuple[float, float]:
    """Of the mean of `values` over measured probabilities. Shots that all agree leave room for one in so many that does not."""
    mean = float(probabilities @ values)
    if shots is None:
        return mean, 0.0
    spread = float(probabilities @ (values - probabilities @ values) ** 2) / max(1, shots - 1)
    return mean, max(spread, (float(np.ptp(values)) / (2 * shots)) ** 2)


def divided(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole numbers of at least 1, in proportion to `shares`, by largest remainders."""
    if not len(shares):
        return []
    exact = np.asarray(shares, dtype=np.float64) / np.sum(shares) * max(0, total - len(shares))
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: max(0, total - len(shares)) - int(whole.sum())]] += 1
    return [int(one) + 1 for one in whole]


def _settings(words: Mapping[tuple[tuple[object, str], ...], float], wires: tuple[object, ...]) -> tuple[Setting, ...]:
    """Greedily, the largest coefficients first."""
    groups: list[tuple[dict[object, str], list[tuple[tuple[tuple[object, str], ...], float]]]] = []
    for word, coefficient in sorted(words.items(), key=lambda one: -abs(one[1])):
        fitting = (group for group in groups if all(group[0].get(wire, letter) == letter for wire, letter in word))
        if (group := next(fitting, None)) is None:
            groups.append(group := ({}, []))
        group[0].update(word)
        group[1].append((word, coefficient))
    return tuple(Setting(letters, _values(members, wires), _share(members)) for letters, members in groups)


def _share(members: Sequence[tuple[object, float]]) -> float:
    return float(np.sqrt(sum(one**2 for _, one in members))) or 1.0


def _values(members: Sequence[tuple[tuple[tuple[object, str], ...], float]], wires: tuple[object, ...]) -> Vector:
    outcomes = np.arange(2 ** len(wires))
    signs = {wire: 1.0 - 2.0 * (outcomes >> len(wires) - 1 - place & 1) for place, wire in enumerate(wires)}
    values = np.zeros(len(outcomes))
    for word, coefficient in members:
        values += coefficient * np.prod([signs[wire] for wire, _ in word], axis=0)
    return values


def _rotations(letters: Mapping[object, str]) -> list[Operator]:
    rotations: list[Operator] = []
    for wire, letter in letters.items():
        if letter == "X":
            rotations.append(qml.Hadamard(wire))
        elif letter == "Y":
            rotations.append(qml.RX(np.pi / 2, wire))
    return rotations
