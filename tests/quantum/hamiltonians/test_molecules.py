"""Molecules against numbers from elsewhere: PennyLane's whole Hamiltonian, textbooks, full diagonalisation."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest

from qedge.errors import InvalidHamiltonian
from qedge.quantum.hamiltonians import electronic
from qedge.quantum.hamiltonians.electronic import BOHR, electrons_of
from qedge.quantum.hamiltonians.exact import all_states, ground_energy, reference_state, sector
from qedge.quantum.hamiltonians.problem import Atom, Molecule
from qedge.quantum.hamiltonians.system import system_of

H2, LIH = Molecule(), Molecule(name="LiH")


def test_hydrogen_at_1_4_bohr_has_the_energies_of_the_textbook() -> None:
    """A. Szabo, N. S. Ostlund (1989): Hartree-Fock -1.1167 hartree (table 3.11), full CI -1.1373 (sections 4.1, 4.3)."""
    system = system_of(Molecule(bond_length=1.4 * BOHR))
    assert system.hartree_fock == pytest.approx(-1.1167, abs=5e-5)
    assert system.exact().value == pytest.approx(-1.1373, abs=1e-4)


def test_energies_at_equilibrium_are_those_known() -> None:
    assert system_of(H2).exact().value == pytest.approx(-1.13728383, abs=5e-9)
    assert system_of(LIH).exact().value == pytest.approx(-7.88244391, abs=2e-7)  # a bond length of 2.969280527 bohr, here of 8 digits


def test_the_qubit_hamiltonian_is_pennylanes() -> None:
    symbols, geometry = ["Li", "H"], np.array([[0, 0, 0], [0, 0, LIH.length / BOHR]])
    theirs, wires = qml.qchem.molecular_hamiltonian(symbols, geometry, active_electrons=2, active_orbitals=5)
    ours = electrons_of(LIH).hamiltonian
    assert ours.wires == wires == 10
    spectra = [np.linalg.eigvalsh(qml.matrix(one, wire_order=range(wires))) for one in (theirs, ours.observable())]
    np.testing.assert_allclose(*spectra, atol=1e-7)  # orbitals may differ in sign, spectra may not


def test_the_sector_holds_the_states_of_right_number_and_spin_and_nothing_leaves_it() -> None:
    hamiltonian = electrons_of(LIH).hamiltonian
    basis = sector(10, 2)
    bits = (basis[:, None] >> np.arange(9, -1, -1)) & 1
    assert len(basis) == 25
    assert (bits[:, ::2].sum(1) == 1).all()
    assert (bits[:, 1::2].sum(1) == 1).all()
    whole = hamiltonian.matrix(all_states(10))
    outside = np.setdiff1d(all_states(10), basis)
    assert abs(whole[np.ix_(outside, basis)]).max() < 1e-12


def test_hartree_fock_is_the_energy_of_the_reference_determinant() -> None:
    for molecule in (H2, LIH):
        system = system_of(molecule)
        place = int(np.searchsorted(system.basis, reference_state(system.hamiltonian.wires, system.electrons or 0)))
        assert system.matrix.toarray()[place, place] == pytest.approx(system.hartree_fock, abs=1e-10)


def test_second_order_energy_is_that_of_perturbation_theory_over_determinants() -> None:
    """E2 = -Σ |<double|H|reference>|² / (difference of orbital energies), summed over spin orbitals' determinants, not spatial formulas."""
    active = electrons_of(LIH)
    system = system_of(LIH)
    levels = np.repeat(np.diag(active.one + 2 * active.two[0, :, :, 0] - active.two[0, :, 0, :]), 2)
    matrix, reference = system.matrix.toarray(), system.reference
    place, total = int(np.searchsorted(system.basis, reference)), 0.0
    for at, state in enumerate(system.basis):
        occupied = [wire for wire in range(10) if (int(state) >> (9 - wire)) & 1]
        if not set(occupied) & {0, 1}:
            total -= matrix[at, place] ** 2 / (levels[occupied].sum() - levels[:2].sum())
    assert system.second_order == pytest.approx((system.hartree_fock or 0) + total, abs=1e-9)


def test_classical_answers_stand_in_order_and_two_electrons_need_no_more_than_singles_and_doubles() -> None:
    system = system_of(LIH)
    fock, _, cisd = (one.value for one in system.approximate())
    assert fock > cisd
    assert cisd == pytest.approx(system.exact().value, abs=1e-10)


def test_an_ion_of_ones_own_atoms_is_computed() -> None:
    """HeH+ at 1.4632 bohr: Hartree-Fock below helium alone in this basis (-2.8078), exact below Hartree-Fock."""
    atoms = (Atom(element="He", position=(0, 0, 0)), Atom(element="H", position=(0, 0, 1.4632 * BOHR)))
    system = system_of(Molecule(name="HeH+", atoms=atoms, charge=1))
    assert system.hartree_fock is not None
    assert system.exact().value < system.hartree_fock < -2.8078


def test_a_molecule_that_is_turned_in_space_keeps_its_energy() -> None:
    turned = (Atom(element="H", position=(0.3, 0.1, 0)), Atom(element="H", position=(0.3 + 0.74 * 0.6, 0.1 + 0.74 * 0.8, 0)))
    assert system_of(Molecule(atoms=turned)).exact().value == pytest.approx(system_of(H2).exact().value, abs=1e-9)


def test_stretched_bonds_converge_and_end_at_their_atoms() -> None:
    """The hydrogen atom in STO-3G has -0.46658185 hartree; plain Hartree-Fock steps oscillate here."""
    assert system_of(Molecule(bond_length=8)).exact().value == pytest.approx(2 * -0.46658185, abs=1e-6)
    for length in (2.5, 4.0):
        stretched = system_of(Molecule(name="LiH", bond_length=length))
        assert stretched.exact().value < stretched.hartree_fock < system_of(LIH).hartree_fock + 0.3


def test_hartree_fock_that_has_not_settled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(electronic, "STEPS", 1)
    with pytest.raises(InvalidHamiltonian, match="does not converge for LiH"):
        electrons_of(Molecule(name="LiH", bond_length=3.9))


def test_a_molecule_is_computed_once() -> None:
    assert electrons_of(Molecule(name="LiH")) is electrons_of(LIH)


@pytest.mark.slow
def test_beryllium_hydride_lies_below_its_approximations() -> None:
    system = system_of(Molecule(name="BeH2"))
    exact = system.exact().value
    fock, second_order, cisd = (one.value for one in system.approximate())
    assert (system.hamiltonian.wires, len(system.basis)) == (12, 225)
    assert exact < cisd < second_order < fock
    assert exact == pytest.approx(ground_energy(system.hamiltonian, sector(12, 4)), abs=1e-10)
