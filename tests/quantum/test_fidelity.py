"""Fidelities against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennylane.tape import QuantumScript

from qedge.errors import BackendUnavailable, InvalidValue, TooManyQubits
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.fidelity import MOST_QUBITS, distribution_fidelity, measured_fidelity, state_fidelity
from qedge.quantum.noise import Noise

BELL = QuantumScript([qml.Hadamard(0), qml.CNOT([0, 1])], [qml.expval(qml.Z(0))])


def mixed(**rates: object) -> Backend:
    """A noisy backend."""
    return Backend(name="default.mixed", noise=Noise.model_validate(rates))


@settings(max_examples=10)
@given(st.floats(0, 0.75), st.integers(0, 4))
def test_a_depolarised_qubit_keeps_the_fidelity_of_the_formula(rate: float, gates: int) -> None:
    circuit = QuantumScript([qml.RY(0.7, 0)] * gates + [qml.RX(0.3, 0)], [qml.expval(qml.Z(0))])
    expected = (1 + (1 - 4 * rate / 3) ** (gates + 1)) / 2
    assert state_fidelity(circuit, mixed(depolarizing=rate)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["lightning.qubit", "default.qubit", "statevector"])
def test_an_ideal_backend_has_fidelity_one(name: str) -> None:
    assert state_fidelity(BELL, Backend(name=name)) == pytest.approx(1)
    assert measured_fidelity(BELL, Backend(name=name), LocalExecutor()) == pytest.approx(1)


def test_readout_is_part_of_what_is_measured_and_not_of_the_state() -> None:
    backend = mixed(readout=(0.1, 0.1))
    assert state_fidelity(BELL, backend) == pytest.approx(1)
    # 00 and 11 each keep 0.41 of 0.5: (2 sqrt(0.5 * 0.41))^2
    assert measured_fidelity(BELL, backend, LocalExecutor()) == pytest.approx(0.82)


def test_with_shots_the_fidelity_of_an_ideal_backend_lies_below_one_by_as_much_as_is_said() -> None:
    """Mean of 200; the tolerance is over 6 standard errors: false alarm below 1e-8."""
    circuit = QuantumScript([qml.Hadamard(0), qml.Hadamard(1)], [qml.expval(qml.Z(0))])
    executor, shots = LocalExecutor(), 500
    lost = [1 - measured_fidelity(circuit, Backend(shots=shots), executor, stream=stream) for stream in range(200)]
    assert np.mean(lost) == pytest.approx(3 / (4 * shots), rel=0.4)


def test_too_many_qubits_and_a_state_that_nobody_knows_are_refused() -> None:
    wide = QuantumScript([qml.Hadamard(wire) for wire in range(MOST_QUBITS + 1)], [qml.expval(qml.Z(0))])
    with pytest.raises(TooManyQubits, match=f"at most {MOST_QUBITS} qubits, given {MOST_QUBITS + 1}"):
        state_fidelity(wide, mixed())
    with pytest.raises(BackendUnavailable, match="not known"):
        state_fidelity(BELL, Backend(name="default.clifford"))


@pytest.mark.parametrize(("one", "other"), [([1, 2], [1]), ([np.nan, 1], [1, 1]), ([-1, 2], [1, 1]), ([0, 0], [1, 1])])
def test_what_is_no_distribution_is_refused(one: list[float], other: list[float]) -> None:
    with pytest.raises(InvalidValue):
        distribution_fidelity(one, other)


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=4), st.lists(st.floats(0.01, 10), min_size=4, max_size=4))
def test_a_fidelity_is_symmetric_and_one_only_for_the_same(one: list[float], other: list[float]) -> None:
    found = distribution_fidelity(one, other)
    assert found == pytest.approx(distribution_fidelity(other, one))
    assert 0 <= found <= 1
    assert distribution_fidelity(one, 3 * np.array(one)) == pytest.approx(1)
