"""Energies from shots: groups that can be read together, values without bias, error bars that are true."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import TooManyQubits
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.hamiltonians.exact import all_states
from qedge.quantum.hamiltonians.pauli import from_terms
from qedge.quantum.hamiltonians.problem import Molecule
from qedge.quantum.hamiltonians.system import system_of
from qedge.quantum.vqe.adjoint import energy_of
from qedge.quantum.vqe.ansatz import AnsatzCircuit, excitations, hardware_efficient
from qedge.quantum.vqe.measured import Group, Meter, groups_of

words = st.dictionaries(st.text("IXYZ", min_size=3, max_size=3), st.floats(0.1, 2), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(words)
def test_groups_hold_every_word_once_in_a_basis_that_reads_it(terms: dict[str, float]) -> None:
    constant, groups = groups_of(from_terms(terms))
    assert constant == pytest.approx(terms.get("III", 0.0))
    for word, coefficient in terms.items():
        if word == "III":
            continue
        read = [2 - wire for wire, letter in enumerate(word) if letter != "I"]
        signs = np.array([(-1) ** sum(outcome >> bit & 1 for bit in read) for outcome in range(8)])
        readers = [group for group in groups if all(a in ("I", b) for a, b in zip(word, group.basis, strict=True))]
        assert sum(float(signs @ group.values) / 8 for group in readers) >= coefficient - 1e-9
    total = sum(float(group.values @ group.values) / 8 for group in groups)
    assert total == pytest.approx(sum(one**2 for word, one in terms.items() if word != "III"))


@settings(max_examples=10, deadline=None)
@given(words, st.integers(0, 2**32 - 1))
def test_without_shots_the_groups_add_up_to_the_energy(terms: dict[str, float], seed: int) -> None:
    hamiltonian = from_terms(terms)
    ansatz = hardware_efficient(3, 1, 1, real=False)
    parameters = np.random.default_rng(seed).normal(0, 1, len(ansatz.gates))
    exact = energy_of(ansatz, hamiltonian.matrix(all_states(3)), all_states(3)).value(parameters)
    ((value, error),) = Meter(hamiltonian, Backend(name="default.qubit"), LocalExecutor()).measure(ansatz, [parameters])
    assert value == pytest.approx(exact, abs=1e-9)
    assert error == 0


def test_error_bars_are_those_of_the_values_and_values_have_no_bias() -> None:
    """Of 60 independent energies each over its error bar: the mean lies within 5.2 of its deviation 1/√60, the variance in [0.25, 2.2];
    a false alarm below 1e-6 by the normal and the chi-square law, and the seeds are fixed."""
    system = system_of(Molecule())
    ansatz = AnsatzCircuit(4, 2, tuple(excitations(4, 2)))
    parameters = np.array([0.5, 0.4, -0.3])
    exact = energy_of(ansatz, system.matrix, system.basis).value(parameters)
    meter = Meter(system.hamiltonian, Backend(shots=400, seed=11), LocalExecutor())
    pulls = np.array([(value - exact) / error for value, error in meter.measure(ansatz, [parameters] * 60)])
    assert abs(pulls.mean()) < 5.2 / np.sqrt(60)
    assert 0.25 < pulls.var(ddof=1) < 2.2
    assert meter.circuits == 60 * len(meter.groups)
    assert meter.shots == 400 * meter.circuits


def test_batches_draw_anew_and_repeat_with_the_seed() -> None:
    system = system_of(Molecule())
    ansatz = AnsatzCircuit(4, 2, tuple(excitations(4, 2)))
    meters = [Meter(system.hamiltonian, Backend(shots=200, seed=seed), LocalExecutor()) for seed in (5, 5, 6)]
    values = [[meter.measure(ansatz, [np.full(3, 0.4)])[0][0] for _ in range(2)] for meter in meters]
    assert values[0] == values[1]
    assert values[0][0] != values[0][1]
    assert values[0] != values[2]


def test_shots_that_all_agree_leave_an_error_bar() -> None:
    group = Group("Z", np.array([1.0, -1.0]))
    assert group.variance(np.array([1.0, 0.0]), 1) == pytest.approx(0.75)
    assert 0 < group.variance(np.array([1.0, 0.0]), 100) < group.variance(np.array([0.5, 0.5]), 100) == pytest.approx(1 / 100)


@pytest.mark.parametrize(("shots", "least"), [(30, 0.93), (100, 0.93), (1000, 0.93)])
def test_nineteen_of_twenty_energies_lie_within_two_error_bars_with_few_shots_too(shots: int, least: float) -> None:
    """One group whose rare outcomes are far away: of 4000 draws, a true coverage of 0.945 fails with a chance below 1e-4."""
    chances = np.array([0.987, 0.004, 0.004, 0.005])
    group = Group("ZZ", np.array([-1.0, 0.2, 0.3, 0.9]))
    drawn = np.random.default_rng(0).multinomial(shots, chances, 4000) / shots
    off = np.array([(one @ group.values - chances @ group.values) / group.variance(one, shots) ** 0.5 for one in drawn])
    assert (np.abs(off) < 1.96).mean() > least


def test_tables_of_outcomes_that_do_not_fit_are_refused_before_they_are_made() -> None:
    words = {f"{'Z' * place}X{'Z' * (29 - place)}": 1.0 for place in range(30)}
    with pytest.raises(TooManyQubits, match="30 bases of 30 qubits"):
        Meter(from_terms(words), Backend(shots=10), LocalExecutor())
