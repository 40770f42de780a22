"""A problem made ready: its Hamiltonian, the basis states its ground state lives on, and the classical answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from qedge.errors import TooManyQubits
from qedge.quantum.hamiltonians.electronic import electrons_of
from qedge.quantum.hamiltonians.exact import MOST_WIRES, all_states, excited_at_most, ground_energy, lowest, reference_state, sector
from qedge.quantum.hamiltonians.ising import ising_chain
from qedge.quantum.hamiltonians.pauli import Hamiltonian, from_terms
from qedge.quantum.hamiltonians.problem import Ising, Molecule, PauliTerms, Problem
from qedge.quantum.result import Baseline


@dataclass(frozen=True)
class System:
    """A Hamiltonian and where its ground state is looked for. electrons: active ones, None where there are no particles."""

    title: str
    unit: str
    hamiltonian: Hamiltonian
    basis: NDArray[np.int64]
    electrons: int | None = None
    hartree_fock: float | None = None
    second_order: float | None = None

    @cached_property
    def matrix(self) -> csr_array:
        """The Hamiltonian over the basis states."""
        return self.hamiltonian.matrix(self.basis)

    @property
    def reference(self) -> int:
        """The basis state that ansaetze begin at."""
        return reference_state(self.hamiltonian.wires, self.electrons or 0)

    def exact(self) -> Baseline:
        """The lowest eigenvalue, which is what a classical computer answers at this size."""
        of = f"{self.electrons} electrons, equal spins" if self.electrons else "all states"
        how = f"sparse, {of}: dimension {len(self.basis)}; nothing to tune"
        return Baseline("exact diagonalisation", lowest(self.matrix), how=how)

    def approximate(self) -> tuple[Baseline, ...]:
        """Classical answers that stay cheap when the system grows; of molecules only."""
        if self.electrons is None or self.hartree_fock is None or self.second_order is None:
            return ()
        singles_doubles = excited_at_most(self.basis, self.reference, 2)
        return (
            Baseline("Hartree-Fock", self.hartree_fock, how="STO-3G, restricted, until self-consistent"),
            Baseline("MP2", self.second_order, how="second-order perturbation in the active space"),
            Baseline("CISD", ground_energy(self.hamiltonian, singles_doubles), how=f"over {len(singles_doubles)} determinants"),
        )


def system_of(problem: Problem) -> System:
    """The system that a problem describes; whether it fits in memory is asked before anything is computed.

    Raises:
        TooManyQubits: more than would be simulated here.
        InvalidHamiltonian: Hartree-Fock does not converge, or nothing is left of the terms.
    """
    match problem:
        case Molecule():
            return _molecule(problem)
        case Ising():
            basis = all_states(problem.sites)
            shape = "ring" if problem.periodic else "chain"
            title = f"Ising {shape}, {problem.sites} sites, field {problem.field:g}, coupling {problem.coupling:g}"
            return System(title, "", ising_chain(problem), basis)
        case PauliTerms():
            hamiltonian = from_terms(problem.terms)
            return System(
                f"{len(hamiltonian.words)} Pauli words on {hamiltonian.wires} wires", "", hamiltonian, all_states(hamiltonian.wires)
            )


def _molecule(molecule: Molecule) -> System:
    number, orbitals = molecule.active_space
    if 2 * orbitals > MOST_WIRES:
        raise TooManyQubits(
            f"{molecule.name}: {orbitals} active orbitals take {2 * orbitals} qubits; accepted: {MOST_WIRES} (choose an active space)",
            given=2 * orbitals,
            limit=MOST_WIRES,
        )
    active = electrons_of(molecule)
    length = "" if molecule.length is None else f", {molecule.length:g} Å"
    title = f"{molecule.name}{length}, {number} electrons in {orbitals} orbitals"
    basis = sector(2 * orbitals, number)
    return System(title, "Ha", active.hamiltonian, basis, number, active.hartree_fock, active.second_order)
