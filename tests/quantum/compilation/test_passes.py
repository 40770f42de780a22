"""Each pass alone: what it is known to find, and that it changes nothing that a circuit does."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennylane.tape import QuantumScript

from qedge.quantum.compilation.cancellation import cancel
from qedge.quantum.compilation.compiler import compile_circuit
from qedge.quantum.compilation.equivalence import applied, distance
from qedge.quantum.compilation.excitations import rearranged
from qedge.quantum.compilation.gate import Gate, cnot, hadamard, rx, ry, rz
from qedge.quantum.compilation.lowering import lower, size
from qedge.quantum.compilation.passes import PASSES, WEIGHINGS, local
from qedge.quantum.compilation.pauli_form import Pauli, merge_rotations, pauli_form
from qedge.quantum.compilation.pauli_network import rewrite
from qedge.quantum.vqe.ansatz import AnsatzCircuit, excitations

WIRES = 4
_TURNS = st.builds(
    lambda turn, angle, wire: turn(angle, wire),
    st.sampled_from([rx, ry, rz]),
    st.one_of(st.sampled_from([k * math.pi / 4 for k in range(-4, 5)]), st.floats(-4, 4)),
    st.integers(0, WIRES - 1),
)
_PLAIN = st.builds(
    lambda name, wire: Gate(name, (wire,)), st.sampled_from(["Hadamard", "S", "T", "SX", "PauliY"]), st.integers(0, WIRES - 1)
)
_CNOTS = st.permutations(range(WIRES)).map(lambda wires: cnot(wires[0], wires[1]))
GATES = st.lists(st.one_of(_CNOTS, _TURNS, _PLAIN), max_size=30)


@settings(deadline=None)
@given(GATES)
def test_cancelled_merged_and_local_circuits_do_the_same_with_no_more_cnots(gates: list[Gate]) -> None:
    for smaller in (cancel(gates), merge_rotations(gates), local(gates)):
        assert distance(gates, smaller, WIRES) < 1e-9
        assert size(smaller)[0] <= size(gates)[0]


@settings(max_examples=40, deadline=None)
@given(GATES, st.sampled_from(WEIGHINGS))
def test_a_network_does_what_the_circuit_did_that_its_turns_came_from(gates: list[Gate], weighing: object) -> None:
    assert distance(gates, rewrite(pauli_form(gates, WIRES), WIRES, weighing), WIRES) < 1e-9


@pytest.mark.parametrize("between", [[], [rz(0.2, 0)], [rx(0.3, 1)], [cnot(0, 2)], [cnot(2, 1)], [rz(0.1, 0), cnot(0, 2), rx(1.0, 1)]])
def test_cnots_cancel_through_what_commutes_with_them(between: list[Gate]) -> None:
    assert cancel([cnot(0, 1), *between, cnot(0, 1)]) == between


@pytest.mark.parametrize("between", [[hadamard(0)], [rz(0.2, 1)], [cnot(1, 2)], [cnot(2, 0)]])
def test_cnots_do_not_cancel_through_what_does_not_commute(between: list[Gate]) -> None:
    gates = [cnot(0, 1), *between, cnot(0, 1)]
    assert cancel(gates) == gates


def test_phases_on_one_parity_merge_wherever_they_stand() -> None:
    gates = [cnot(0, 1), rz(0.3, 1), cnot(0, 1), hadamard(2), cnot(1, 0), rz(0.4, 0), cnot(1, 0)]
    merged = merge_rotations(gates)
    assert merged == [cnot(0, 1), rz(0.7, 1), cnot(0, 1), hadamard(2), cnot(1, 0), cnot(1, 0)]


def test_turns_that_merge_into_a_clifford_leave_no_turn() -> None:
    gates = [cnot(0, 1), rz(math.pi / 4, 1), cnot(0, 1), rx(0.2, 2), cnot(1, 0), rz(math.pi / 4, 0), cnot(1, 0), ry(0.5, 1)]
    form = pauli_form(gates, 3)
    assert len(form.turns) == 2
    assert distance(gates, rewrite(form, 3, WEIGHINGS[0]), 3) < 1e-12


def test_products_of_strings_are_those_of_their_matrices() -> None:
    def dense(one: Pauli) -> np.ndarray:
        factors = [np.linalg.matrix_power(qml.X.compute_matrix(), one.x >> w & 1) @ np.diag([1, 1 - 2 * (one.z >> w & 1)]) for w in (0, 1)]
        return 1j**one.phase * np.kron(factors[0], factors[1])

    strings = [Pauli(phase, x, z) for phase in (0, 1) for x, z in itertools.product(range(4), repeat=2)]
    for one, other in itertools.product(strings, repeat=2):
        a, b = dense(one), dense(other)
        np.testing.assert_allclose(dense(one * other), a @ b)
        assert one.commutes(other) == np.allclose(a @ b, b @ a)


@pytest.mark.parametrize("seed", range(4))
def test_a_clifford_circuit_leaves_no_turn_and_comes_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    gates: list[Gate] = []
    for _ in range(80):
        a, b = random.permutation(5)[:2].tolist()
        gates.append([cnot(a, b), hadamard(a), Gate("S", (a,))][int(random.integers(3))])
    form = pauli_form(gates, 5)
    assert not form.turns
    assert distance(gates, rewrite(form, 5, WEIGHINGS[0]), 5) < 1e-12


def test_gates_are_applied_as_pennylane_applies_them() -> None:
    gates = [hadamard(0), cnot(0, 2), ry(0.4, 1), cnot(2, 1), rz(0.3, 2), Gate("T", (0,)), cnot(1, 0), Gate("SX", (1,))]
    expected = qml.matrix(QuantumScript([gate.operation() for gate in gates]), wire_order=range(3))
    np.testing.assert_allclose(applied(gates, np.eye(8, dtype=np.complex128), 3), expected, atol=1e-14)


def test_a_difference_is_seen_on_all_and_on_random_states() -> None:
    gates = [hadamard(0), cnot(0, 1), rz(0.3, 1)]
    for sampled in (False, True):
        assert distance(gates, [*gates, rx(1e-6, 0)], 2, sampled=sampled) > 1e-8
        assert distance(gates, [*gates, rz(1e-6, 0)], 2, sampled=sampled) > 1e-8


def test_rearranged_double_excitations_do_the_same() -> None:
    script = QuantumScript(
        [qml.DoubleExcitation(0.3, [0, 1, 2, 3]), qml.DoubleExcitation(-0.7, [0, 1, 3, 4]), qml.SingleExcitation(0.1, [1, 2])]
    )
    others = list(rearranged(script))
    assert len(others) == 7
    for other in others:
        assert distance(lower(script), lower(other), 5) < 1e-12
    assert not list(rearranged(QuantumScript([qml.X(0)])))


def test_uccsd_of_hydrogen_takes_a_third_of_qiskits_cnots() -> None:
    """Qiskit 2.3.0 at level 3 leaves 52 of the 64."""
    found = compile_circuit(uccsd(), passes=["pauli-network"])
    assert found.before.cx == 64
    assert found.after.cx <= 18


@pytest.mark.parametrize("name", [name for name, one in PASSES.items() if one.installed()])
def test_every_pass_that_is_installed_gives_circuits_that_do_the_same(name: str) -> None:
    gates = lower(uccsd())
    for candidate in [*PASSES[name].run(gates, 4), *PASSES[name].start(uccsd())]:
        assert distance(gates, candidate, 4) < 1e-9


def uccsd() -> QuantumScript:
    """For H2, at fixed angles."""
    ansatz = AnsatzCircuit(4, 2, tuple(excitations(4, 2, fermionic=True)))
    return ansatz.circuit([0.1, -0.2, 0.3][: len(ansatz.gates)])
