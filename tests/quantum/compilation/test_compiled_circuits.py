"""Compiled circuits: the same unitary, never with more CNOTs, whatever went in; swaps that only rename; budgets."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.quantum.backend import Backend
from qedge.quantum.compilation.compiler import compile_circuit
from qedge.quantum.execution import LocalExecutor
from tests.benchmarks.quantum_circuits import CIRCUITS

ANGLES = st.one_of(st.floats(-7, 7), st.sampled_from([0.0, np.pi / 2, np.pi, -np.pi, 2 * np.pi, 4 * np.pi]))
FIXED = [qml.Hadamard, qml.X, qml.Y, qml.Z, qml.S, qml.T, qml.SX, qml.CNOT, qml.CZ, qml.CY, qml.SWAP, qml.Toffoli]
TURNS = [qml.RX, qml.RY, qml.RZ, qml.PhaseShift, qml.CRX, qml.CRZ, qml.ControlledPhaseShift, qml.IsingXX, qml.IsingZZ, qml.SingleExcitation]


@st.composite
def scripts(draw: st.DrawFn, most_wires: int = 4, most_gates: int = 24) -> QuantumScript:
    wires = draw(st.integers(2, most_wires))
    gates: list[Operator] = []
    for _ in range(draw(st.integers(1, most_gates))):
        kind = draw(st.sampled_from(FIXED + TURNS))
        number = kind.num_wires or 1
        if number > wires:
            continue
        on = draw(st.permutations(range(wires)))[:number]
        gate = kind(draw(ANGLES), wires=on) if kind in TURNS else kind(wires=on)
        gates.append(qml.adjoint(gate) if draw(st.booleans()) and kind in (qml.S, qml.T, qml.SX) else gate)
    return QuantumScript([*(qml.Identity(wire) for wire in range(wires)), *gates])


def same(one: QuantumScript, other: QuantumScript) -> bool:
    wires = list(one.wires)
    first, second = (qml.matrix(script, wire_order=wires) for script in (one, other))
    overlap = np.vdot(second, first)
    return abs(overlap) > 0 and np.abs(second * overlap / abs(overlap) - first).max() < 1e-8


@given(scripts())
@settings(max_examples=60, deadline=None)
def test_a_compiled_circuit_is_the_same_with_no_cnot_more(script: QuantumScript) -> None:
    compiled = compile_circuit(script)
    assert same(script, compiled.script)
    assert compiled.after.cx <= compiled.before.cx
    assert compiled.after.gates <= compiled.before.gates
    assert not compiled.warnings


@given(scripts(most_wires=3, most_gates=12))
@settings(max_examples=25, deadline=None)
def test_compiling_again_gains_nothing_that_is_worse(script: QuantumScript) -> None:
    once = compile_circuit(script)
    assert not once.script.operations or compile_circuit(once.script).after.cx <= once.after.cx


@given(scripts(most_wires=3, most_gates=10), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_what_is_measured_is_the_same(script: QuantumScript, kind: int) -> None:
    wires = list(script.wires)
    measured = [
        [qml.probs(wires=wires)],
        [qml.expval(qml.Z(wires[0]) @ qml.X(wires[1]))],
        [qml.probs()],
        [qml.expval(qml.Y(wires[-1])), qml.probs(wires=wires[:1])],
    ][kind]
    circuit = QuantumScript([*script.operations, qml.SWAP(wires[:2]), qml.Hadamard(wires[0])], measured)
    compiled = compile_circuit(circuit)
    for one, other in zip(*(np.atleast_1d(np.asarray(answer, dtype=object)) for answer in _answers(circuit, compiled.script)), strict=True):
        np.testing.assert_allclose(np.asarray(other, dtype=float), np.asarray(one, dtype=float), atol=1e-8)


def _answers(*circuits: QuantumScript):
    return LocalExecutor().run(circuits, Backend(name="default.qubit"))


def test_a_swap_is_no_gate_where_something_is_measured_and_stays_one_where_nothing_is() -> None:
    gates = [qml.RX(0.3, 0), qml.CNOT([0, 1]), qml.SWAP([0, 1]), qml.RY(0.2, 0)]
    measured = compile_circuit(QuantumScript(gates, [qml.expval(qml.Z(0))]))
    assert measured.after.cx == 1
    assert measured.script.measurements[0].wires.tolist() == [1]
    assert compile_circuit(QuantumScript(gates)).after.cx == 2  # three and one, on the same wires: two do


@pytest.mark.parametrize("name", [name for name in CIRCUITS if name != "Givens-LiH"])
def test_circuits_of_the_benchmark_keep_their_unitary(name: str) -> None:
    script = CIRCUITS[name]()
    compiled = compile_circuit(script)
    assert compiled.after.cx <= compiled.before.cx
    (before, after) = _answers(script, compiled.script)
    np.testing.assert_allclose(after, before, atol=1e-8)


def test_known_identities_are_found() -> None:
    cx = qml.CNOT
    cases = [
        ([cx([0, 1]), qml.RZ(0.3, 0), qml.RX(0.2, 1), cx([0, 1])], 0),  # both turns pass
        ([cx([0, 1]), cx([0, 2]), cx([0, 1])], 1),  # one control
        ([cx([0, 2]), cx([1, 2]), cx([0, 2])], 1),  # one target
        ([cx([0, 1]), cx([1, 0]), cx([0, 1]), cx([1, 0]), cx([0, 1]), cx([1, 0])], 0),  # two swaps
        ([qml.CZ([0, 1]), qml.CZ([0, 1])], 0),
    ]
    for gates, expected in cases:
        assert compile_circuit(QuantumScript(gates)).after.cx == expected


def test_a_circuit_of_nothing_has_no_gates() -> None:
    compiled = compile_circuit(QuantumScript([qml.Hadamard(0), qml.Hadamard(0)], [qml.probs(wires=[0])]))
    assert (compiled.after.gates, compiled.after.depth) == (0, 0)
