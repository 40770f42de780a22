"""Molecules as qubit Hamiltonians: PennyLane's integrals and Hartree-Fock in STO-3G, an active space, Jordan-Wigner.

Wires are spin orbitals, spin up on the even ones, spin down on the odd ones, ascending in orbital energy.
Source: A. Szabo, N. S. Ostlund, "Modern Quantum Chemistry" (1989), sections 3.4 (Roothaan), 6.5 (second-order perturbation).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from scipy.constants import angstrom, physical_constants

from qedge.errors import InvalidHamiltonian
from qedge.quantum.hamiltonians.pauli import Hamiltonian, from_terms
from qedge.quantum.hamiltonians.problem import Molecule

BOHR = physical_constants["Bohr radius"][0] / angstrom  # in ångström
STEPS = 2000
LIFT = 1.0  # hartree, of empty orbitals in Hartree-Fock's steps
SETTLED = 1e-6  # hartree; coupling of full and empty orbitals in a Fock matrix that has converged
CUTOFF = 1e-12  # hartree; integrals below it are rounding errors


@dataclass(frozen=True)
class Electrons:
    """Electrons in active orbitals. energies in hartree, over the whole molecule.

    one [p, q], two [p, q, r, s]: integrals over active spatial orbitals, H = core + Σ one a†p a_q + ½ Σ two a†p a†q a_r a_s.
    """

    hamiltonian: Hamiltonian
    number: int
    core: float
    one: NDArray[np.float64]
    two: NDArray[np.float64]

    @property
    def hartree_fock(self) -> float:
        """Energy of the determinant of the lowest orbitals."""
        full, one, two = slice(0, self.number // 2), self.one, self.two
        direct = np.einsum("ijji->", two[full, full, full, full])
        exchange = np.einsum("ijij->", two[full, full, full, full])
        return float(self.core + 2 * np.trace(one[full, full]) + 2 * direct - exchange)

    @property
    def second_order(self) -> float:
        """Energy by second-order perturbation (MP2) in the active space."""
        full = self.number // 2
        levels = np.diag(fock(self.one, self.two, full))
        pairs = self.two[:full, :full, full:, full:]  # [i, j, b, a]: <i j | a b>
        gaps = levels[:full, None, None, None] + levels[None, :full, None, None] - levels[full:][:, None] - levels[full:]
        return self.hartree_fock + float(np.sum(pairs * (2 * pairs - pairs.swapaxes(0, 1)) / gaps))


@lru_cache(maxsize=64)
def electrons_of(molecule: Molecule) -> Electrons:
    """The active electrons of a molecule and their Hamiltonian.

    Raises:
        InvalidHamiltonian: Hartree-Fock does not converge at this geometry.
    """
    constant, one, two = _molecular_integrals(molecule)
    number, orbitals = molecule.active_space
    core = (molecule.electrons - number) // 2
    unsettled = fock(one, two, molecule.electrons // 2)[: molecule.electrons // 2, molecule.electrons // 2 :]
    off = float(np.abs(unsettled).max(initial=0))
    if off > SETTLED:
        raise InvalidHamiltonian(
            f"Hartree-Fock does not converge for {molecule.name} at this geometry (off by {off:.1g} hartree after {STEPS} steps); "
            "accepted: geometries nearer to equilibrium",
            given=[list(atom.position) for atom in molecule.geometry],
        )
    full, active = slice(0, core), slice(core, core + orbitals)
    constant += 2 * np.trace(one[full, full])
    constant += 2 * np.einsum("ijji->", two[full, full, full, full]) - np.einsum("ijij->", two[full, full, full, full])
    one = fock(one, two, core)[active, active]
    two = two[active, active, active, active]
    sentence = qml.qchem.fermionic_observable(np.array([constant]), one, two, CUTOFF)
    words = qml.jordan_wigner(sentence, ps=True)
    terms = {"".join(word.get(wire, "I") for wire in range(2 * orbitals)): complex(value) for word, value in words.items()}
    return Electrons(from_terms(terms), number, float(constant), one, two)


def fock(one: NDArray[np.float64], two: NDArray[np.float64], full: int) -> NDArray[np.float64]:
    """One-electron integrals in the mean field of the first `full` orbitals, doubly occupied."""
    mean: NDArray[np.float64] = one + 2 * np.einsum("ipqi->pq", two[:full, :, :, :full]) - np.einsum("ipiq->pq", two[:full, :, :full, :])
    return mean


def _molecular_integrals(molecule: Molecule) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Repulsion of the nuclei, and the integrals over all molecular orbitals, each with its largest coefficient positive."""
    geometry = np.array([atom.position for atom in molecule.geometry]) / BOHR
    built = qml.qchem.Molecule([atom.element for atom in molecule.geometry], geometry, charge=molecule.charge)
    _, orbitals, _, kinetic, repulsion = (np.asarray(part) for part in qml.qchem.scf(built)())
    full = molecule.electrons // 2
    # At long bonds the search may end on a saddle where the charge is all at one atom; orbitals of the bare nuclei have their symmetry.
    bare = orbitals @ np.linalg.eigh(orbitals.T @ kinetic @ orbitals)[1]
    settled = [_settled(begun, kinetic, repulsion, full) for begun in (orbitals, bare)]
    orbitals = min(settled, key=lambda found: round(_mean_field_energy(found[:, :full], kinetic, repulsion), 8))
    largest = np.abs(np.round(orbitals, 6)).argmax(axis=0)
    orbitals = orbitals * np.sign(orbitals[largest, np.arange(len(largest))])
    one = orbitals.T @ kinetic @ orbitals
    two = np.einsum("ai,bj,abcd,ck,dl->ijkl", orbitals, orbitals, repulsion, orbitals, orbitals, optimize=True)
    constant = qml.qchem.nuclear_energy(built.nuclear_charges, built.coordinates)()
    return float(constant[0]), one, two.swapaxes(1, 3)


def _mean(density: NDArray[np.float64], kinetic: NDArray[np.float64], repulsion: NDArray[np.float64]) -> NDArray[np.float64]:
    """What an electron feels of a closed shell of this density."""
    of_others: NDArray[np.float64] = 2 * np.einsum("pqrs,rs->pq", repulsion, density) - np.einsum("psqr,rs->pq", repulsion, density)
    return kinetic + of_others


def _mean_field_energy(orbitals: NDArray[np.float64], kinetic: NDArray[np.float64], repulsion: NDArray[np.float64]) -> float:
    """Of electrons in pairs in these orbitals, without the nuclei's repulsion."""
    density = orbitals @ orbitals.T
    return float(np.sum(density * (kinetic + _mean(density, kinetic, repulsion))))


def _settled(orbitals: NDArray[np.float64], kinetic: NDArray[np.float64], repulsion: NDArray[np.float64], full: int) -> NDArray[np.float64]:
    """Orbitals [basis function, orbital] that Hartree-Fock's steps leave as they are, from those of a first search.

    Plain steps, PennyLane's, go to and fro for ever at stretched bonds; with the empty orbitals lifted they go down. Source: V. R.
    Saunders, I. H. Hillier, "A level-shifting method for converging closed shell Hartree-Fock wave functions", IJQC 7 (1973) 699.
    """
    lifted = np.diag(np.r_[np.zeros(full), np.full(orbitals.shape[1] - full, LIFT)])
    for _ in range(STEPS):
        mean = _mean(orbitals[:, :full] @ orbitals[:, :full].T, kinetic, repulsion)
        levels = orbitals.T @ mean @ orbitals
        if np.abs(levels[:full, full:]).max(initial=0) < SETTLED / 1000:
            break
        orbitals = orbitals @ np.linalg.eigh(levels + lifted)[1]
    for part in (slice(0, full), slice(full, None)):  # each by energy, which lifting may have left as it was
        orbitals[:, part] = orbitals[:, part] @ np.linalg.eigh(levels[part, part])[1]
    return orbitals
