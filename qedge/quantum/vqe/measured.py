"""Energies measured on a backend, with an honest error bar: Pauli words that can be read in one basis are measured together.

Each group is one circuit, and its outcomes' distribution gives the group's energy and, with the covariances of its words in it, the
variance. Source: O. Crawford et al., "Efficient quantum measurement of Pauli operators in the presence of finite sampling error",
Quantum 5 (2021) 385 (sorted insertion; here words are put together that agree wire by wire, so that one-qubit gates suffice).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.errors import TooManyQubits
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Executor
from qedge.quantum.hamiltonians.pauli import Hamiltonian, parity
from qedge.quantum.state_size import limit_bytes
from qedge.quantum.vqe.ansatz import AnsatzCircuit


@dataclass(frozen=True)
class Group:
    """Words measured together. basis: the letter each wire is read in; values: the energy of each outcome [2^wires]."""

    basis: str
    values: NDArray[np.float64]

    def turned(self) -> list[Operator]:
        """Gates that turn the basis into the one that is read."""
        turns = {"X": lambda wire: qml.RY(-math.pi / 2, wires=wire), "Y": lambda wire: qml.RX(math.pi / 2, wires=wire)}
        return [turns[letter](wire) for wire, letter in enumerate(self.basis) if letter in turns]

    def variance(self, chances: NDArray[np.float64], shots: int) -> float:
        """Of the mean of so many shots, with one more shot spread evenly: else an outcome that happened not to be seen, and is far away,
        would make the value too good and its error bar too small at once."""
        smoothed = (chances * shots + 1 / len(chances)) / (shots + 1)
        return float(smoothed @ (self.values - smoothed @ self.values) ** 2) / shots


def groups_of(hamiltonian: Hamiltonian) -> tuple[float, list[Group]]:
    """The constant, and the other words in groups, the largest coefficients first."""
    constant, members = 0.0, list[tuple[str, list[int]]]()
    for place in np.argsort(-np.abs(hamiltonian.coefficients), kind="stable"):
        word = hamiltonian.words[place]
        if not word.strip("I"):
            constant += hamiltonian.coefficients[place]
            continue
        for at, (basis, chosen) in enumerate(members):
            if all("I" in pair or pair[0] == pair[1] for pair in zip(basis, word, strict=True)):
                merged = "".join(max(pair) if "I" in pair else pair[0] for pair in zip(basis, word, strict=True))
                members[at] = (merged, [*chosen, int(place)])
                break
        else:
            members.append((word, [int(place)]))
    outcomes = np.arange(1 << hamiltonian.wires, dtype=np.int64)
    touched = hamiltonian.flips | hamiltonian.signs
    return constant, [
        Group(basis, sum((hamiltonian.coefficients[one] * parity(outcomes & touched[one]) for one in chosen), np.zeros(len(outcomes))))
        for basis, chosen in members
    ]


class Meter:
    """Measures energies of an ansatz on a backend; counts circuits and shots. Every batch draws its shots anew.

    first: the stream of the first batch's shots; `next_stream` is the one after the last.

    Raises:
        TooManyQubits: the groups' tables of outcomes would not fit in memory.
    """

    def __init__(self, hamiltonian: Hamiltonian, backend: Backend, executor: Executor, first: int = 0) -> None:
        _refuse_too_many_words(hamiltonian)
        self.constant, self.groups = groups_of(hamiltonian)
        self.circuits, self.shots = 0, 0
        self.next_stream = first
        self._wires, self._backend, self._executor = hamiltonian.wires, backend, executor

    def measure(self, ansatz: AnsatzCircuit, points: Sequence[NDArray[np.float64]]) -> list[tuple[float, float]]:
        """Energy and standard error at each of `points`, all in one batch.

        Raises:
            UnknownBackend, BackendUnavailable, TooManyQubits: as the executor does.
        """
        read = [qml.probs(wires=range(self._wires))]
        prepared = [ansatz.operations(point) for point in points]
        shots = self._backend.shots
        circuits = [QuantumScript([*one, *group.turned()], read, shots=shots) for one in prepared for group in self.groups]
        answers = self._executor.run(circuits, self._backend, stream=self.next_stream)
        self.next_stream += 1
        self.circuits += len(circuits)
        self.shots += len(circuits) * (shots or 0)
        energies = []
        for place in range(len(points)):
            mean, variance = self.constant, 0.0
            for group, answer in zip(self.groups, answers[place * len(self.groups) :], strict=False):
                chances = np.asarray(answer, dtype=np.float64)
                of_group = float(chances @ group.values)
                mean += of_group
                if shots is not None:
                    variance += group.variance(chances, shots)
            energies.append((mean, math.sqrt(variance)))
        return energies


def _refuse_too_many_words(hamiltonian: Hamiltonian) -> None:
    """Before anything is allocated; a group holds 2^wires values and as many measured frequencies, and there are at most as many as words.

    Raises:
        TooManyQubits: they would not fit.
    """
    bases = {word.replace("I", "Z") for word in hamiltonian.words}  # at least as many as the groups
    needed, allowed = 16 * len(bases) << hamiltonian.wires, limit_bytes()
    if needed > allowed:
        raise TooManyQubits(
            f"{len(bases)} bases of {hamiltonian.wires} qubits take an estimated {needed / 2**30:.3g} GiB, the limit is "
            f"{allowed / 2**30:.3g} GiB; accepted: fewer qubits, or no shots and no noise, where nothing has to be measured",
            given=hamiltonian.wires,
            needed_bytes=needed,
            limit_bytes=allowed,
        )
