"""A Hamiltonian as a sum of Pauli words, and its matrix over any set of basis states.

A word is a pair of bit masks: P|b> = i^(number of Y) (-1)^popcount(b & signs) |b xor flips>. Words with the same flips fill the same
places of the matrix, so that it is built a group at a time. Basis states are integers, wire 0 the most significant bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pennylane as qml
from numpy.typing import ArrayLike, NDArray
from pennylane.operation import Operator
from scipy.sparse import coo_array, csr_array

from qedge.errors import InvalidHamiltonian, TooManyQubits

HERMITIAN = 1e-10  # how far, relative to the largest entry or coefficient, from Hermitian is a rounding error
LARGEST_BYTES = 2 * 1024**3
ENTRY_BYTES = 48  # of a matrix while it is built: row, column and value, twice


@dataclass(frozen=True)
class Hamiltonian:
    """Σ coefficient x word; words are of equal length, their first letter is of wire 0; coefficients in the energy's unit."""

    words: tuple[str, ...]
    coefficients: tuple[float, ...]

    @property
    def wires(self) -> int:
        """How many wires it acts on."""
        return len(self.words[0])

    @property
    def terms(self) -> dict[str, float]:
        """Its words and coefficients, as a job takes them."""
        return dict(zip(self.words, self.coefficients, strict=True))

    @cached_property
    def flips(self) -> NDArray[np.int64]:
        """Bits that each word flips: its X and Y."""
        return self._mask("XY")

    @cached_property
    def signs(self) -> NDArray[np.int64]:
        """Bits that each word takes a sign from: its Z and Y."""
        return self._mask("ZY")

    @cached_property
    def is_real(self) -> bool:
        """Whether its matrix is: every word has an even number of Y."""
        return not any(word.count("Y") % 2 for word in self.words)

    @property
    def norm(self) -> float:
        """Sum of the sizes of its coefficients, the constant's aside: half of its spectrum's width, at most."""
        return sum(abs(one) for word, one in zip(self.words, self.coefficients, strict=True) if word.strip("I"))

    def observable(self) -> Operator:
        """As PennyLane's."""
        return qml.Hamiltonian(list(self.coefficients), [qml.pauli.string_to_pauli_word(word) for word in self.words])

    def matrix(self, basis: NDArray[np.int64]) -> csr_array:
        """Its matrix over the basis states of `basis` [dimension], which ascend; what leads out of them is dropped.

        Raises:
            TooManyQubits: it would not fit in memory.
        """
        groups = np.unique(self.flips)
        if (needed := len(basis) * len(groups) * ENTRY_BYTES) > LARGEST_BYTES:
            raise TooManyQubits(
                f"the matrix over {len(basis)} states would take {needed / 1024**3:.1f} GiB; accepted: {LARGEST_BYTES / 1024**3:.0f} GiB",
                given=self.wires,
                needed_bytes=needed,
                limit_bytes=LARGEST_BYTES,
            )
        turns = np.array([1, 1j, -1, -1j])[[word.count("Y") % 4 for word in self.words]] * np.array(self.coefficients)
        factors = turns.real if self.is_real else turns
        rows, columns, values = [], [], []
        for flips in groups:
            places, inside = locate(basis, basis ^ flips)
            here = np.flatnonzero(inside)
            of_group = np.flatnonzero(self.flips == flips)
            value = sum(factors[one] * parity(basis[here] & self.signs[one]) for one in of_group)
            rows.append(places[here])
            columns.append(here)
            values.append(value)
        together = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        matrix = coo_array(together, shape=(len(basis), len(basis))).tocsr()
        matrix.eliminate_zeros()
        return matrix

    def _mask(self, letters: str) -> NDArray[np.int64]:
        bits = [[letter in letters for letter in word] for word in self.words]
        return np.array(bits, dtype=np.int64) @ (1 << np.arange(self.wires - 1, -1, -1, dtype=np.int64))


def parity(bits: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where an even number of bits is set, else -1."""
    return 1 - 2 * (np.bitwise_count(bits) & 1).astype(np.float64)


def locate(basis: NDArray[np.int64], states: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where in the ascending `basis` each of `states` stands, and whether it does."""
    places = np.minimum(np.searchsorted(basis, states), len(basis) - 1)
    return places, basis[places] == states


def from_terms(terms: Mapping[str, complex]) -> Hamiltonian:
    """One of Pauli words and their coefficients, which are real up to rounding; terms of nothing are dropped.

    Raises:
        InvalidHamiltonian: a coefficient that is not real or not finite, or no terms.
    """
    largest = max((abs(one) for one in terms.values()), default=0.0)
    kept = {word: one for word, one in terms.items() if abs(one) > 1e-14 * largest or not np.isfinite(one)}
    if not kept:
        raise InvalidHamiltonian(
            "a Hamiltonian without terms; accepted: one Pauli word or more with a coefficient other than zero", given=len(terms)
        )
    for word, one in kept.items():
        if not np.isfinite(one):
            raise InvalidHamiltonian(f"the coefficient of {word} is {one}; accepted: finite numbers", given=str(one))
        if abs(complex(one).imag) > HERMITIAN * largest:
            raise InvalidHamiltonian(
                f"not Hermitian: the coefficient of {word} is {one}; accepted: real ones", given=str(one), accepted="real"
            )
    return Hamiltonian(tuple(kept), tuple(float(complex(one).real) for one in kept.values()))


def from_operator(operator: Operator, wires: int | None = None) -> Hamiltonian:
    """One of a PennyLane operator on wires 0, 1, …, of which there are at least `wires`.

    Raises:
        InvalidHamiltonian: it is not Hermitian, has no Pauli words, or other wires.
    """
    sentence = operator.pauli_rep
    if sentence is None:
        raise InvalidHamiltonian(f"{operator.name} is no sum of Pauli words; accepted: qml.Hamiltonian and the like", given=operator.name)
    labels = set(operator.wires)
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        raise InvalidHamiltonian(f"wires {sorted(map(str, labels))}; accepted: 0, 1, 2, …", given=[str(label) for label in labels])
    size = max([wires or 1, *(label + 1 for label in labels)])
    return from_terms({"".join(word.get(wire, "I") for wire in range(size)): complex(one) for word, one in sentence.items()})


def from_matrix(matrix: ArrayLike) -> Hamiltonian:
    """One of a Hermitian matrix [2^n, 2^n].

    Raises:
        InvalidHamiltonian: it is not square, not of such a size, not finite or not Hermitian.
    """
    given = np.asarray(matrix, dtype=np.complex128)
    size = given.shape[0] if given.ndim else 0
    if given.shape != (size, size) or size < 2 or size & (size - 1):
        raise InvalidHamiltonian(f"a matrix of shape {given.shape}; accepted: [2^n, 2^n], n ≥ 1", given=list(given.shape))
    if not np.isfinite(given).all():
        raise InvalidHamiltonian("a matrix with entries that are not finite", given="not finite")
    off = float(np.abs(given - given.conj().T).max())
    if off > HERMITIAN * max(1.0, float(np.abs(given).max())):
        raise InvalidHamiltonian(f"not Hermitian: an entry is {off:.3g} off the conjugate of its mirror image", given=off)
    if not given.any():
        return from_terms({})
    return from_operator(qml.pauli_decompose(given, pauli=False, check_hermitian=False), size.bit_length() - 1)
