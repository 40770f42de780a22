"""Sums of Pauli words against PennyLane's own matrices."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import InvalidHamiltonian, TooManyQubits
from qedge.quantum.hamiltonians.exact import all_states, ground_energy
from qedge.quantum.hamiltonians.pauli import Hamiltonian, from_matrix, from_operator, from_terms

sizes = st.integers(1, 4)
coefficients = st.floats(-3, 3).filter(lambda value: abs(value) > 1e-3)
sums = sizes.flatmap(
    lambda wires: st.dictionaries(st.text("IXYZ", min_size=wires, max_size=wires), coefficients, min_size=1, max_size=6)
).map(from_terms)


@settings(max_examples=40, deadline=None)
@given(sums)
def test_the_matrix_over_all_states_is_pennylanes(hamiltonian: Hamiltonian) -> None:
    ours = hamiltonian.matrix(all_states(hamiltonian.wires)).toarray()
    theirs = qml.matrix(hamiltonian.observable(), wire_order=range(hamiltonian.wires))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.isrealobj(ours) == hamiltonian.is_real


@settings(max_examples=40, deadline=None)
@given(sums, st.data())
def test_a_matrix_over_some_states_is_the_block_of_the_whole(hamiltonian: Hamiltonian, data: st.DataObject) -> None:
    whole = hamiltonian.matrix(all_states(hamiltonian.wires)).toarray()
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, 2**hamiltonian.wires - 1), min_size=1))))
    np.testing.assert_allclose(hamiltonian.matrix(chosen).toarray(), whole[np.ix_(chosen, chosen)], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(sums)
def test_a_sum_comes_back_from_its_operator_and_from_its_matrix(hamiltonian: Hamiltonian) -> None:
    whole = hamiltonian.matrix(all_states(hamiltonian.wires)).toarray()
    for again in (from_operator(hamiltonian.observable(), hamiltonian.wires), from_matrix(whole)):
        assert again.terms == pytest.approx(hamiltonian.terms, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(sums)
def test_no_eigenvalue_lies_outside_the_norm(hamiltonian: Hamiltonian) -> None:
    constant = hamiltonian.terms.get("I" * hamiltonian.wires, 0.0)
    assert ground_energy(hamiltonian, all_states(hamiltonian.wires)) >= constant - hamiltonian.norm - 1e-9


def test_large_matrices_are_diagonalised_as_small_ones_are() -> None:
    rng = np.random.default_rng(1)
    words = {"".join(rng.choice(list("IXYZ"), 9)): float(rng.normal()) for _ in range(12)}
    hamiltonian = from_terms(words)
    dense = np.linalg.eigvalsh(qml.matrix(hamiltonian.observable(), wire_order=range(9)))[0]
    assert ground_energy(hamiltonian, all_states(9)) == pytest.approx(dense, abs=1e-9)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[0, 1], [0, 0]], "not Hermitian"),
        ([[0, 1j], [1j, 0]], "not Hermitian"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], r"\(3, 3\)"),
        ([[1.0, 2.0]], r"\(1, 2\)"),
        ([[np.nan, 0], [0, 1]], "finite"),
        ([[0, 0], [0, 0]], "without terms"),
        (3.0, r"accepted: \[2\^n, 2\^n\]"),
    ],
)
def test_a_matrix_that_is_no_hamiltonian_is_refused(matrix: object, said: str) -> None:
    with pytest.raises(InvalidHamiltonian, match=said):
        from_matrix(matrix)


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        (qml.s_prod(1j, qml.X(0)), "not Hermitian"),
        (qml.s_prod(np.nan, qml.X(0)), "finite"),
        (qml.RX(0.3, wires=0), "no sum of Pauli words"),
        (qml.X("a") @ qml.Z(0), "wires"),
        (qml.s_prod(0.0, qml.X(0)), "without terms"),
    ],
)
def test_an_operator_that_is_no_hamiltonian_is_refused(operator: qml.operation.Operator, said: str) -> None:
    with pytest.raises(InvalidHamiltonian, match=said):
        from_operator(operator)


def test_what_would_not_fit_in_memory_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(TooManyQubits, match="40 qubits") as refused:
        all_states(40)
    assert refused.value.facts["limit"] == 20
    words = {"".join("X" if (number >> wire) & 1 else "Z" for wire in range(20)): 1.0 for number in range(200)}
    with pytest.raises(TooManyQubits, match="GiB"):
        from_terms(words).matrix(all_states(20))
