"""Gram matrices of quantum kernels, from states that are simulated once, or entry by entry on a backend.

Sources: fidelity |<x|y>|²: V. Havlíček et al., Nature 567 (2019) 209; M. Schuld, N. Killoran, PRL 122, 040504 (2019). Projected:
H.-Y. Huang et al., "Power of data in quantum machine learning", Nature Communications 12, 2631 (2021), equation 9; of a wire's density
matrix with Bloch vector r, ||ρ - ρ'||² = |r - r'|² / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit, InvalidValue
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Executor, LocalExecutor
from qedge.quantum.qsvm.feature_maps import Reals, States, circuit, states
from qedge.quantum.qsvm.job import FeatureMap, Kernel

MOST_CIRCUITS = 20_000


@dataclass(frozen=True, eq=False)
class Encoded:
    """Rows as a kernel sees them: their states [rows, 2^qubits], or for a projected one their Bloch vectors [rows, 3 qubits]."""

    kernel: Kernel
    seen: States | Reals

    def gram(self, others: Encoded | None = None) -> Reals:
        """[rows, others' rows] float64; with itself it is symmetric, and 1 on the diagonal."""
        theirs = self.seen if others is None else others.seen
        if self.kernel.kind == "fidelity":
            overlaps = self.seen @ theirs.conj().T
            found = overlaps.real**2 + overlaps.imag**2
        else:
            squares = (self.seen.real**2).sum(1)[:, np.newaxis] + (theirs.real**2).sum(1) - 2 * self.seen.real @ theirs.real.T
            found = np.exp(-self.kernel.gamma / 2 * np.maximum(squares, 0))
        if others is None:
            found = (found + found.T) / 2
            np.fill_diagonal(found, 1.0)
        return np.minimum(found, 1.0)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> Encoded:
        return Encoded(self.kernel, self.seen[rows])


def encode(map_: FeatureMap, kernel: Kernel, rows: Reals) -> Encoded:
    """Simulate each row's state once; rows: [rows, qubits].

    Raises:
        InvalidValue: not finite. TooManyQubits: as `states`.
    """
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InvalidValue(f"rows: finite numbers [rows, features] are accepted; given: an array {list(rows.shape)}")
    found = states(map_, rows)
    return Encoded(kernel, found if kernel.kind == "fidelity" else bloch_vectors(found))


def bloch_vectors(found: States) -> Reals:
    """<X>, <Y>, <Z> of every wire: [states, 3 qubits]."""
    number, size = found.shape
    qubits = size.bit_length() - 1
    vectors = np.empty((number, qubits, 3))
    for wire in range(qubits):
        halves = found.reshape(number, 2**wire, 2, -1)
        across = (halves[:, :, 0].conj() * halves[:, :, 1]).sum((1, 2))
        vectors[:, wire, 0], vectors[:, wire, 1] = 2 * across.real, 2 * across.imag
        vectors[:, wire, 2] = (np.abs(halves[:, :, 0]) ** 2 - np.abs(halves[:, :, 1]) ** 2).sum((1, 2))
    return vectors.reshape(number, -1)


@dataclass(frozen=True, eq=False)
class MeasuredGram:
    """A Gram matrix from a backend, [rows, rows], and of each entry one standard deviation; circuits, shots: what it took."""

    values: Reals
    errors: Reals
    circuits: int
    shots: int


def measured_gram(
    map_: FeatureMap, kernel: Kernel, rows: Reals, backend: Backend, executor: Executor | None = None, *, stream: int = 0
) -> MeasuredGram:
    """The Gram matrix of rows [rows, qubits] on a backend.

    Fidelity: for each pair one circuit goes forth by one row and back by the other, and its share of all zeros is the kernel (its error
    by Laplace's rule, so that a few shots that agree claim no certainty). Projected: one circuit a row and Pauli letter, errors propagated
    to first order.

    Raises:
        InvalidCircuit: over 20,000 circuits. Others as the executor.
    """
    number, qubits = rows.shape
    pairs = list(combinations(range(number), 2))
    circuits = len(pairs) if kernel.kind == "fidelity" else 3 * number
    if circuits > MOST_CIRCUITS:
        raise InvalidCircuit(
            f"the kernel of {number} rows takes {circuits} circuits; accepted: rows that need at most {MOST_CIRCUITS}",
            given=circuits,
            accepted=MOST_CIRCUITS,
        )
    run = (executor or LocalExecutor()).run
    shots = (backend.shots or 0) * circuits
    maps = [circuit(map_, row).operations for row in rows]
    if kernel.kind == "projected":
        letters = [_letters(maps, letter, qubits) for letter in (qml.X, qml.Y, qml.Z)]
        answers = np.array(run([one for group in letters for one in group], backend, stream=stream), dtype=np.float64)
        vectors = answers.reshape(3, number, qubits).transpose(1, 2, 0).reshape(number, -1)
        values, errors = _projected(vectors, kernel.gamma, backend.shots)
        return MeasuredGram(values, errors, circuits, shots)
    wires = list(range(qubits))
    back = [[qml.adjoint(gate) for gate in reversed(operations)] for operations in maps]
    scripts = [QuantumScript([*maps[one], *back[other]], [qml.probs(wires)]) for one, other in pairs]
    zeros = [np.ravel(np.asarray(answer, dtype=np.float64))[0] for answer in run(scripts, backend, stream=stream)]
    values, errors = np.eye(number), np.zeros((number, number))
    for (one, other), share in zip(pairs, zeros, strict=True):
        values[one, other] = values[other, one] = share
        if backend.shots:
            even = (share * backend.shots + 1) / (backend.shots + 2)
            errors[one, other] = errors[other, one] = np.sqrt(even * (1 - even) / backend.shots)
    return MeasuredGram(values, errors, circuits, shots)


def _letters(maps: Sequence[Sequence[qml.operation.Operator]], letter: type, qubits: int) -> list[QuantumScript]:
    return [QuantumScript(operations, [qml.expval(letter(wire)) for wire in range(qubits)]) for operations in maps]


def _projected(vectors: Reals, gamma: float, shots: int | None) -> tuple[Reals, Reals]:
    """Kernel of measured Bloch vectors, and its error. What shots add to a squared distance on average is taken off."""
    apart = vectors[:, np.newaxis] - vectors
    noise = (1 - vectors**2) / shots if shots else np.zeros_like(vectors)
    variances = noise[:, np.newaxis] + noise
    squares = np.maximum((apart**2 - variances).sum(2), 0)
    values = np.exp(-gamma / 2 * squares)
    errors = gamma / 2 * values * np.sqrt((4 * apart**2 * variances + 2 * variances**2).sum(2))
    np.fill_diagonal(values, 1.0)
    np.fill_diagonal(errors, 0.0)
    return values, errors
