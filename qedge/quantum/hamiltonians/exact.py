"""Exact ground energies by sparse diagonalisation, in the sector of right particle number and spin, where there is one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

from qedge.errors import TooManyQubits
from qedge.quantum.hamiltonians.pauli import Hamiltonian

DENSE = 400  # dimensions up to which a full diagonalisation is quicker
MOST_WIRES = 20


def all_states(wires: int) -> NDArray[np.int64]:
    """Every basis state of so many wires, ascending.

    Raises:
        TooManyQubits: more than would be simulated here.
    """
    if wires > MOST_WIRES:
        raise TooManyQubits(
            f"{wires} qubits: one state would take {2**wires * 16 / 1024**2:.0f} MiB and an optimisation many; accepted: {MOST_WIRES}",
            given=wires,
            limit=MOST_WIRES,
        )
    return np.arange(1 << wires, dtype=np.int64)


def sector(wires: int, electrons: int) -> NDArray[np.int64]:
    """The basis states with half of `electrons` on the even wires, spin up, and half on the odd ones, ascending."""

    def strings(first: int) -> list[int]:
        spots = [1 << (wires - 1 - wire) for wire in range(first, wires, 2)]
        return [sum(chosen) for chosen in combinations(spots, electrons // 2)]

    up, down = np.array(strings(0), dtype=np.int64), np.array(strings(1), dtype=np.int64)
    return np.sort((up[:, None] | down[None, :]).ravel())


def reference_state(wires: int, electrons: int) -> int:
    """The basis state with the first `electrons` wires full: Hartree-Fock's, orbitals ascending in energy."""
    return ((1 << electrons) - 1) << (wires - electrons)


def excited_at_most(basis: NDArray[np.int64], reference: int, electrons: int) -> NDArray[np.int64]:
    """Those of `basis` that differ from the reference in at most so many electrons."""
    near: NDArray[np.bool_] = np.bitwise_count(basis ^ np.int64(reference)) <= 2 * electrons
    return basis[near]


def ground_energy(hamiltonian: Hamiltonian, basis: NDArray[np.int64]) -> float:
    """The lowest eigenvalue of the Hamiltonian over the basis states of `basis`, to about 1e-12 of its norm.

    Raises:
        TooManyQubits: the matrix would not fit in memory.
    """
    return lowest(hamiltonian.matrix(basis))


def lowest(matrix: csr_array) -> float:
    """The lowest eigenvalue of a Hermitian matrix. Lanczos begins at a fixed vector, without symmetry, so that runs repeat."""
    if matrix.shape[0] <= DENSE:
        return float(np.linalg.eigvalsh(matrix.toarray())[0])
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    return float(eigsh(matrix, k=1, which="SA", v0=start, tol=1e-12, return_eigenvectors=False)[0])
