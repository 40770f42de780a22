"""What is no problem for a ground energy is refused with what was given and what would be accepted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import InvalidHamiltonian, InvalidJob, TooManyQubits
from qedge.quantum.hamiltonians.exact import all_states, ground_energy
from qedge.quantum.hamiltonians.ising import ising_chain
from qedge.quantum.hamiltonians.problem import Atom, Ising, Molecule, PauliTerms
from qedge.quantum.hamiltonians.system import system_of
from qedge.quantum.vqe.job import VQE, Ansatz

H, HE = ({"element": name, "position": (0.0, 0.0, 0.0)} for name in ("H", "He"))
FAR = {"element": "H", "position": (0.0, 0.0, 0.9)}


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"name": "LiH2"}, "did you mean 'LiH'"),
        ({"name": "caffeine"}, "give its atoms"),
        ({"bond_length": 0.0}, "bond length of 0"),
        ({"bond_length": -0.74}, "accepted: 0.2"),
        ({"atoms": [H, {**H, "position": (0, 0, 0.1)}]}, "closer than"),
        ({"atoms": [H, FAR], "bond_length": 0.9}, "one or the other"),
        ({"atoms": [{**H, "element": "Xx"}, FAR]}, "no basis for element 'Xx'"),
        ({"atoms": []}, "without atoms"),
        ({"charge": 1}, "open shell"),
        ({"multiplicity": 3}, "open shell"),
        ({"charge": 2}, "0 electrons"),
        ({"charge": -4}, "6 electrons"),
        ({"atoms": [H, HE | {"position": (0, 0, 1)}]}, "3 electrons"),
        ({"name": "LiH", "active_electrons": 3}, "3 active electrons"),
        ({"name": "LiH", "active_electrons": 6}, "from 2 to 4"),
        ({"name": "LiH", "active_electrons": 2, "active_orbitals": 6}, "1 to 5"),
        ({"name": "LiH", "active_electrons": 4, "active_orbitals": 1}, "2 to 6"),
    ],
)
def test_a_molecule_that_is_none_is_refused(given_: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidHamiltonian, match=said) as refused:
        Molecule.model_validate(given_)
    assert "given" in refused.value.facts


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "without terms"),
        ({"ZZ": 1j}, "not Hermitian"),
        ({"ZZ": "0.5+0.1j"}, "not Hermitian"),
        ({"ZZ": math.nan}, "finite"),
        ({"ZZ": math.inf}, "finite"),
        ({"ZA": 1}, "'ZA' is no Pauli word"),
        ({"ZZ": 1, "X": 1}, "'X' is no Pauli word on 2 wires"),
        ({"": 1}, "no Pauli word"),
    ],
)
def test_terms_that_are_no_hamiltonian_are_refused(terms: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidHamiltonian, match=said):
        PauliTerms.model_validate({"terms": terms})


def test_more_qubits_than_fit_are_refused_before_hartree_fock() -> None:
    atoms = tuple(Atom(element="C", position=(0, 0, 1.3 * place)) for place in range(6))
    with pytest.raises(TooManyQubits, match="choose an active space"):
        system_of(Molecule(name="C6", atoms=atoms))
    with pytest.raises(TooManyQubits, match="40 qubits"):
        system_of(Ising(sites=40))


def test_a_ring_of_two_and_a_chain_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidHamiltonian, match="ring of 2"):
        Ising(sites=2, periodic=True)
    with pytest.raises(InvalidHamiltonian, match="other than zero"):
        system_of(Ising(field=0, coupling=0))


def test_electrons_are_not_excited_where_there_are_none() -> None:
    with pytest.raises(InvalidJob, match="hardware-efficient"):
        VQE(problem=Ising(), ansatz=Ansatz(kind="uccsd"))


def test_a_job_is_read_from_plain_data_by_kind() -> None:
    job = VQE.model_validate({"problem": {"kind": "ising", "sites": 4, "field": 0.5, "periodic": True}})
    assert job.problem == Ising(sites=4, field=0.5, periodic=True)
    assert VQE.model_validate({"problem": {"name": "LiH"}}).problem == Molecule(name="LiH")
    assert VQE.model_validate(job.model_dump()) == job


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.floats(0.1, 3), st.floats(0.1, 3))
def test_an_open_chain_has_the_energy_of_its_free_fermions(sites: int, field: float, coupling: float) -> None:
    """P. Pfeuty, Annals of Physics 57 (1970) 79: E = -Σ singular values of the bidiagonal matrix of fields and couplings."""
    bidiagonal = field * np.eye(sites) + coupling * np.eye(sites, k=1)
    exact = -np.linalg.svd(bidiagonal, compute_uv=False).sum()
    chain = ising_chain(Ising(sites=sites, field=field, coupling=coupling))
    assert ground_energy(chain, all_states(sites)) == pytest.approx(exact, abs=1e-9)


def test_a_critical_ring_has_the_energy_of_its_momenta() -> None:
    """P. Pfeuty (1970): at field = coupling = 1 the even ring of n sites has E = -Σ 2 |cos(k/2)|, k = (2 m + 1) π / n, over n momenta."""
    sites = 8
    exact = -sum(2 * abs(math.cos((2 * m + 1) * math.pi / (2 * sites))) for m in range(sites))
    assert system_of(Ising(sites=sites, periodic=True)).exact().value == pytest.approx(exact, abs=1e-9)
