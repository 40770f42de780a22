"""Compiled circuits do the same in no more CNOTs and no more gates; PennyLane's matrices are the oracle."""

from __future__ import annotations

import math

import numpy as np
import pennylane as qml
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.errors import GateBudgetExceeded, InvalidCircuit, InvalidConfig
from qedge.quantum.compilation.compiler import compile_circuit
from qedge.quantum.resources import CX_BASIS, count

PLAIN: list[type[Operator]] = [
    *(qml.Hadamard, qml.PauliX, qml.PauliY, qml.PauliZ, qml.S, qml.T, qml.SX),
    *(qml.CNOT, qml.CZ, qml.CY, qml.SWAP, qml.ISWAP, qml.Toffoli, qml.CSWAP),
]
TURNS: list[type[Operator]] = [
    *(qml.RX, qml.RY, qml.RZ, qml.PhaseShift, qml.CRX, qml.CRY, qml.CRZ, qml.ControlledPhaseShift),
    *(qml.IsingXX, qml.IsingYY, qml.IsingZZ, qml.SingleExcitation, qml.DoubleExcitation),
]
ANGLES = st.one_of(st.sampled_from([0.0, math.pi / 4, math.pi / 2, math.pi, -math.pi / 2, 1e-9]), st.floats(-7, 7))


@st.composite
def circuits(draw: st.DrawFn) -> QuantumScript:
    """Up to 12 gates on 4 to 6 wires."""
    wires = draw(st.integers(4, 6))
    gates = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(PLAIN + TURNS))
        places = draw(st.permutations(range(wires)))[: kind.num_wires]
        gates.append(kind(draw(ANGLES), wires=places) if kind in TURNS else kind(wires=places))
    return QuantumScript([*map(qml.Identity, range(wires)), *gates])


def difference(one: QuantumScript, other: QuantumScript) -> float:
    """Of the unitaries, over all phases."""
    a, b = (qml.matrix(QuantumScript([*map(qml.Identity, one.wires), *each.operations]), wire_order=one.wires) for each in (one, other))
    overlap = np.vdot(b, a)
    return float(np.abs(a - b * overlap / abs(overlap)).max())


@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(circuits())
def test_compiled_circuits_do_the_same_in_no_more_gates_and_are_no_larger_the_second_time(script: QuantumScript) -> None:
    found = compile_circuit(script)
    assert difference(script, found.script) <= 1e-8
    assert found.after.cx <= found.before.cx
    assert found.after.gates <= found.before.gates
    assert {gate.name for gate in found.script.operations} <= CX_BASIS | {"GlobalPhase", "Identity"}
    again = compile_circuit(found.script)
    assert (again.after.cx, again.after.depth, again.after.gates) <= (found.after.cx, found.after.depth, found.after.gates)


@pytest.mark.parametrize("script", [QuantumScript([]), QuantumScript([qml.H(0), qml.H(0)])])
def test_a_circuit_of_which_nothing_is_left_is_compiled_again_to_nothing(script: QuantumScript) -> None:
    found = compile_circuit(script)
    assert found.after.gates == 0
    assert compile_circuit(found.script).after.gates == 0


def test_wires_keep_their_labels() -> None:
    script = QuantumScript(
        [qml.CNOT(["a", "b"]), qml.RZ(0.3, "a"), qml.CNOT(["a", "b"]), qml.H("b")], [qml.probs(wires=["b", "a"])], shots=100
    )
    found = compile_circuit(script).script
    assert count(found).cx == 0
    assert set(found.wires) <= {"a", "b"}
    assert found.shots.total_shots == 100
    assert found.measurements == script.measurements


def test_more_gates_than_the_budget_are_refused_or_warned_about() -> None:
    script = QuantumScript([qml.RX(0.1 * k, k % 3) if k % 2 else qml.CNOT([k % 3, (k + 1) % 3]) for k in range(30)])
    with pytest.raises(GateBudgetExceeded) as refused:
        compile_circuit(script, gate_budget=5)
    assert refused.value.facts["budget"] == 5
    (said,) = compile_circuit(script, gate_budget=5, on_over="warn").warnings
    assert "more than the budget of 5" in said
    assert not compile_circuit(script).warnings


@pytest.mark.parametrize("wrong", [{"gate_budget": 0}, {"passes": ["locl"]}, {"on_over": "ignore"}])
def test_settings_that_there_are_not_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        compile_circuit(QuantumScript([qml.X(0)]), **wrong)


@pytest.mark.parametrize("angle", [math.nan, math.inf, np.array([0.1, 0.2])])
def test_parameters_that_are_not_one_finite_number_are_refused(angle: object) -> None:
    with pytest.raises(InvalidCircuit, match="finite"):
        compile_circuit(QuantumScript([qml.RX(angle, 0)]))


def test_operations_without_a_decomposition_are_refused() -> None:
    class Opaque(Operator):
        num_wires = 1

    with pytest.raises(InvalidCircuit, match="Opaque"):
        compile_circuit(QuantumScript([Opaque(0)]))
    with pytest.raises(InvalidCircuit):
        count(QuantumScript([qml.measurements.MidMeasureMP(0)]))
