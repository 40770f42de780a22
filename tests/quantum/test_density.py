"""Density matrices prepared at once are those of PennyLane's own simulation, gate by gate."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.quantum.backend import Backend
from qedge.quantum.density import density_matrix, prepared
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.noise import Noise

WIRES = 4


@st.composite
def operations(draw: st.DrawFn) -> list[Operator]:
    """Gates and channels on one or two wires of four, in any order."""
    made: list[Operator] = []
    for _ in range(draw(st.integers(1, 12))):
        first, second, *_ = draw(st.permutations(range(WIRES)))
        angle, rate = draw(st.floats(-7, 7)), draw(st.floats(0, 1))
        made.append(
            draw(
                st.sampled_from(
                    [
                        qml.RX(angle, first),
                        qml.RY(angle, first),
                        qml.Hadamard(first),
                        qml.adjoint(qml.S(first)),
                        qml.Rot(angle, rate, -angle, first),
                        qml.CNOT([first, second]),
                        qml.CRY(angle, [first, second]),
                        qml.SingleExcitation(angle, [first, second]),
                        qml.DepolarizingChannel(rate, first),
                        qml.AmplitudeDamping(rate, first),
                        qml.PhaseDamping(rate, first),
                        qml.ThermalRelaxationError(rate, 1.0, 1.5, 0.3, first),
                        qml.PauliError("XY", rate, [first, second]),
                        qml.PauliRot(angle, "YX", [first, second]),
                        qml.PauliRot(angle, "ZZ", [first, second]),
                        qml.GlobalPhase(angle),
                    ]
                )
            )
        )
    return made


@settings(max_examples=40)
@given(operations())
def test_a_density_matrix_is_that_of_default_mixed(made: list[Operator]) -> None:
    script = QuantumScript(made, [qml.density_matrix(wires=range(WIRES))])
    (expected,) = qml.execute([script], qml.device("default.mixed", wires=WIRES), diff_method=None)
    short = prepared(script, range(WIRES))
    assert len(short.operations) == 1
    (found,) = qml.execute([short], qml.device("default.mixed", wires=WIRES), diff_method=None)
    assert np.abs(found - expected).max() < 1e-12
    kept = [one for one in made if one.name != "GlobalPhase"]
    assert np.abs(density_matrix(kept, range(WIRES)) - expected).max() < 1e-12


@pytest.mark.parametrize(
    "gates",
    [
        [qml.Toffoli([0, 1, 2])],
        [qml.RX(np.array([0.1, 0.2]), 0)],
        [qml.BasisState([1, 0], wires=[0, 1])],
        [],
    ],
)
def test_what_is_no_small_gate_is_left_as_it_is(gates: list[Operator]) -> None:
    script = QuantumScript(gates, [qml.expval(qml.Z(0))])
    assert prepared(script, range(3)) is script
    assert np.shape(LocalExecutor().run([script], Backend(name="default.mixed"))[0]) in ((), (2,))


def test_channels_that_differ_only_in_matrices_are_told_apart() -> None:
    flip, stay = [np.array([[0, 1], [1, 0]])], [np.eye(2)]
    script = QuantumScript([qml.QubitChannel(flip, 0), qml.QubitChannel(stay, 0)], [qml.expval(qml.Z(0))])
    assert LocalExecutor().run([script], Backend(name="default.mixed")) == [pytest.approx(-1)]
    words = QuantumScript([qml.PauliRot(np.pi, "X", 0), qml.PauliRot(np.pi, "Z", 0)], [qml.expval(qml.Z(0))])
    assert LocalExecutor().run([words], Backend(name="default.mixed")) == [pytest.approx(-1)]


PAULIS = [np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])]


def depolarised(state: np.ndarray, wire: int, rate: float) -> np.ndarray:
    """Kraus operators by hand: the state, and with `rate` one of X, Y, Z on that wire of two."""
    kraus = [np.sqrt(1 - rate) * PAULIS[0], *(np.sqrt(rate / 3) * pauli for pauli in PAULIS[1:])]
    whole = [np.kron(one, np.eye(2)) if wire == 0 else np.kron(np.eye(2), one) for one in kraus]
    return sum(one @ state @ one.conj().T for one in whole)


@pytest.mark.parametrize(("two_qubit", "after_cnot"), [(None, 0.2), (0.3, 0.3)])
def test_a_gate_on_two_wires_disturbs_both(two_qubit: float | None, after_cnot: float) -> None:
    noise = Noise(depolarizing=0.2, two_qubit=two_qubit)
    asked = [qml.Z(0), qml.Z(1), qml.Z(0) @ qml.Z(1), qml.X(0) @ qml.X(1)]
    circuits = [QuantumScript([qml.RY(0.7, 0), qml.CNOT([0, 1])], [qml.expval(one)]) for one in asked[:3]]
    # Measured in X, the turns before it suffer as any gate does: here they are gates of the circuit.
    turns = [qml.Hadamard(0), qml.Hadamard(1)]
    circuits.append(QuantumScript([*circuits[0].operations, *turns], [qml.expval(asked[2])]))
    answers = LocalExecutor().run(circuits, Backend(name="default.mixed", noise=noise))
    turned = np.kron(qml.RY(0.7, 0).matrix(), np.eye(2))[:, :1]
    state = depolarised(turned @ turned.conj().T, 0, 0.2)
    cnot = qml.CNOT([0, 1]).matrix()
    state = depolarised(depolarised(cnot @ state @ cnot, 0, after_cnot), 1, after_cnot)
    expected = [float(np.trace(state @ qml.matrix(one, [0, 1])).real) for one in asked]
    expected[3] *= (1 - 4 / 3 * 0.2) ** 2
    np.testing.assert_allclose(np.array(answers, dtype=float), expected, atol=1e-12)


def test_every_channel_follows_a_gate_on_each_of_its_wires_in_the_order_of_the_fields() -> None:
    """Kraus operators as in Nielsen and Chuang, section 8.3: decay sqrt(g)|0><1|, loss of phase sqrt(g)|1><1|."""
    noise = Noise(depolarizing=0.05, two_qubit=0.15, amplitude_damping=0.2, phase_damping=0.3)
    decay = [np.diag([1, np.sqrt(0.8)]), np.array([[0, np.sqrt(0.2)], [0, 0]])]
    phase = [np.diag([1, np.sqrt(0.7)]), np.diag([0, np.sqrt(0.3)])]

    def disturbed(state: np.ndarray, gate: Operator) -> np.ndarray:
        matrix = qml.matrix(gate, [0, 1])
        state = matrix @ state @ matrix.conj().T
        for wire in gate.wires:
            state = depolarised(state, wire, 0.15 if len(gate.wires) == 2 else 0.05)
            for kraus in (decay, phase):
                whole = [np.kron(one, np.eye(2)) if wire == 0 else np.kron(np.eye(2), one) for one in kraus]
                state = sum(one @ state @ one.T for one in whole)
        return state

    made = [qml.RY(0.7, 0), qml.RY(1.9, 1), qml.CNOT([0, 1]), qml.CNOT([1, 0])]
    state = np.diag([1.0, 0, 0, 0]).astype(complex)
    for gate in made:
        state = disturbed(state, gate)
    words = [one @ other for one in (qml.I(0), qml.X(0), qml.Y(0), qml.Z(0)) for other in (qml.X(1), qml.Y(1), qml.Z(1))]
    (answer,) = LocalExecutor().run([QuantumScript(made, [qml.expval(one) for one in words])], Backend(name="default.mixed", noise=noise))
    np.testing.assert_allclose(answer, [np.trace(state @ qml.matrix(one, [0, 1])).real for one in words], atol=1e-12)
