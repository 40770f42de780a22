"""Folded circuits against the circuits themselves."""

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennylane.operation import Operator

from qedge.errors import InvalidCircuit, InvalidValue
from qedge.quantum.mitigation.folding import fold

GATES = [
    *(qml.RX(0.3, 0), qml.CNOT([0, 1]), qml.SX(1), qml.S(0), qml.CZ([1, 0]), qml.T(1)),
    *(qml.RZ(-1.1, 1), qml.PhaseShift(0.4, 0), qml.RY(0.7, 1), qml.Hadamard(0), qml.CNOT([1, 0])),
]


def unitary(gates: list[Operator]) -> np.ndarray:
    found = np.eye(4, dtype=complex)
    for gate in gates:
        if gate.name != "Barrier":
            found = qml.matrix(gate, wire_order=[0, 1]) @ found
    return found


@settings(max_examples=15, deadline=None)
@given(st.floats(1, 6), st.sampled_from(["local", "global"]))
def test_folding_changes_the_length_and_nothing_else(scale: float, how: str) -> None:
    folded, reached = fold(GATES, scale, how)
    assert abs(np.trace(unitary(GATES).conj().T @ unitary(folded))) == pytest.approx(4, abs=1e-9)
    assert sum(gate.name != "Barrier" for gate in folded) == pytest.approx(reached * len(GATES))
    assert abs(reached - scale) <= 2.01 / len(GATES) + 1e-9


def test_local_folding_lengthens_both_kinds_of_gates_alike() -> None:
    gates = [one for _ in range(10) for one in (qml.RX(0.1, 0), qml.CNOT([0, 1]))]
    folded, reached = fold(gates, 2)
    assert reached == 2
    assert sum(gate.name == "CNOT" for gate in folded) == 20


def test_scales_below_one_and_gates_without_an_inverse_are_refused() -> None:
    with pytest.raises(InvalidValue, match="at least 1"):
        fold(GATES, 0.5)
    with pytest.raises(InvalidCircuit, match="cannot be folded"):
        fold([qml.Toffoli([0, 1, 2])], 3)
