"""Two-qubit unitaries in the fewest CNOTs, none to three.

U = phase (A ⊗ B) exp(i (a XX + b YY + c ZZ)) (C ⊗ D). In the magic basis the outer factors are real and the middle is diagonal: they
are found from the eigenvectors of a symmetric unitary.
Sources: N. Khaneja, S. Glaser, Chem. Phys. 267 (2001) 11 (the decomposition); J. Zhang et al., Phys. Rev. A 67, 042313 (2003) (Weyl
chamber); F. Vatan, C. Williams, Phys. Rev. A 69, 032315 (2004), fig. 6 (three CNOTs); V. Shende et al., Phys. Rev. A 69, 062321 (2004) (how
many are needed).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qedge.quantum.compilation.gate import Gate, cnot, rx, ry, rz
from qedge.quantum.compilation.one_qubit import TOLERANCE, Matrix, gates_of

_X, _Y, _Z = (np.array(one, dtype=np.complex128) for one in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]))
_PAULIS = (_X, _Y, _Z)
_MAGIC = np.array([[1, 0, 0, 1j], [0, 1j, 1, 0], [0, 1j, -1, 0], [1, 0, 0, -1j]]) / math.sqrt(2)
# what XX, YY and ZZ are on the diagonal in the magic basis
_DIAGONALS = np.array([np.diag(_MAGIC.conj().T @ np.kron(one, one) @ _MAGIC).real for one in _PAULIS])


@dataclass(frozen=True)
class Weyl:
    """U = (after[0] ⊗ after[1]) exp(i Σ coordinates · (XX, YY, ZZ)) (before[0] ⊗ before[1]) up to phase; π/4 ≥ a ≥ b ≥ |c|."""

    coordinates: tuple[float, float, float]
    before: tuple[Matrix, Matrix]
    after: tuple[Matrix, Matrix]

    @property
    def cx(self) -> int:
        """How many CNOTs it takes."""
        a, b, c = self.coordinates
        if abs(c) > TOLERANCE:
            return 3
        if abs(b) > TOLERANCE:
            return 2
        return 0 if abs(a) <= TOLERANCE else 1 if abs(a - math.pi / 4) <= TOLERANCE else 2


def weyl(unitary: Matrix) -> Weyl:
    """The decomposition of a unitary [4, 4]."""
    magic = _MAGIC.conj().T @ (unitary / np.linalg.det(unitary) ** 0.25) @ _MAGIC
    vectors = _eigenvectors(magic.T @ magic)
    phases = np.angle(np.diag(vectors.T @ magic.T @ magic @ vectors)) / 2
    left = magic @ vectors * np.exp(-1j * phases)
    if np.linalg.det(left).real < 0:
        left[:, 0] *= -1
        phases[0] += math.pi
    coordinates = _DIAGONALS @ phases / 4
    after, before = _product(_MAGIC @ left.real @ _MAGIC.conj().T), _product(_MAGIC @ vectors.T @ _MAGIC.conj().T)
    return _in_chamber(coordinates, before, after)


def cheapest(unitary: Matrix, wires: tuple[int, int]) -> list[Gate]:
    """The unitary [4, 4] up to its phase in as few CNOTs as there can be, and one-qubit gates between them."""
    found = weyl(unitary)
    (a, b, c), (first, second) = found.coordinates, wires
    before, after = found.before, found.after
    if found.cx == 0:
        return [*gates_of(after[0] @ before[0], first), *gates_of(after[1] @ before[1], second)]
    if found.cx == 1:
        # CNOT is exp(i π/4 (1 - Z)(1 - X)): ZX, turned into XX by a Hadamard on its control
        hadamard = (_X + _Z) / math.sqrt(2)
        opening, ending = _half(-1, _Z), _half(-1, _X)
        before = (hadamard @ before[0], before[1])
        after = (after[0] @ hadamard @ opening.conj().T, after[1] @ ending.conj().T)
        inner: list[list[Gate]] = []
    elif found.cx == 2:
        # conjugated by a CNOT, X on its control is XX and Z on its target is ZZ: YY is turned into ZZ about X first
        turn = _half(1, _X)
        before = (turn @ before[0], turn @ before[1])
        after = (after[0] @ turn.conj().T, after[1] @ turn.conj().T)
        inner = [[rx(-2 * a, first), rz(-2 * b, second)]]
    else:
        before = (before[0], _half(1, _Z) @ before[1])
        after = (after[0] @ _half(-1, _Z), after[1])
        inner = [[rz(math.pi / 2 - 2 * c, first), ry(2 * a - math.pi / 2, second)], [ry(math.pi / 2 - 2 * b, second)]]
    gates = [*gates_of(before[0], first), *gates_of(before[1], second)]
    pairs = itertools.cycle([(second, first), (first, second)] if found.cx == 3 else [(first, second)])
    gates.append(cnot(*next(pairs)))
    for between in inner:
        gates += [*between, cnot(*next(pairs))]
    return [*gates, *gates_of(after[0], first), *gates_of(after[1], second)]


def _half(sign: int, pauli: Matrix) -> Matrix:
    """exp(i sign π/4 P)."""
    return (np.eye(2) + 1j * sign * pauli) / math.sqrt(2)


def _eigenvectors(symmetric: Matrix) -> NDArray[np.float64]:
    """Real, of determinant 1: of a symmetric unitary, whose real and imaginary parts commute; mixed lest eigenvalues meet."""
    best, least = np.eye(4), math.inf
    for angle in np.linspace(0.1, 3.0, 12):
        vectors = np.linalg.eigh(math.cos(angle) * symmetric.real + math.sin(angle) * symmetric.imag)[1]
        turned = vectors.T @ symmetric @ vectors
        error = float(np.abs(turned - np.diag(np.diag(turned))).max())
        if error < least:
            best, least = vectors, error
        if least < 1e-14:
            break
    if np.linalg.det(best) < 0:
        best[:, 0] *= -1
    return best


def _product(unitary: NDArray[np.inexact]) -> tuple[Matrix, Matrix]:
    """A and B of A ⊗ B."""
    u, s, v = np.linalg.svd(unitary.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4))
    first, second = (np.asarray(one.reshape(2, 2) * math.sqrt(s[0]), dtype=np.complex128) for one in (u[:, 0], v[0]))
    return first, second


def _in_chamber(given: NDArray[np.float64], before: tuple[Matrix, Matrix], after: tuple[Matrix, Matrix]) -> Weyl:
    """The same with its coordinates in the Weyl chamber, each step a local factor on either side."""
    coordinates = list(map(float, given))
    b0, b1 = before
    a0, a1 = after
    for k, pauli in enumerate(_PAULIS):
        turns = round(coordinates[k] / (math.pi / 2))
        coordinates[k] -= turns * math.pi / 2
        if turns % 2:  # exp(i π/2 PP) = i PP
            a0, a1 = a0 @ pauli, a1 @ pauli
    for k, m in ((0, 1), (1, 2), (0, 1)):
        if abs(coordinates[k]) < abs(coordinates[m]):
            swap = (_PAULIS[k] + _PAULIS[m]) / math.sqrt(2)  # exchanges the two axes and turns the third about, on both wires
            coordinates[k], coordinates[m] = coordinates[m], coordinates[k]
            a0, a1, b0, b1 = a0 @ swap, a1 @ swap, swap @ b0, swap @ b1
    for k in (0, 1):
        if coordinates[k] < 0:  # a Pauli on one wire turns the signs of the two others'
            kept = 3 - k - 2
            coordinates[k], coordinates[2] = -coordinates[k], -coordinates[2]
            a0, b0 = a0 @ _PAULIS[kept], _PAULIS[kept] @ b0
    return Weyl((coordinates[0], coordinates[1], coordinates[2]), (b0, b1), (a0, a1))
