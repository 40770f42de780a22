"""Batches of circuits: the answers of an independent simulation, the same ones however a batch is cut, and noise as defined."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pennylane.tape import QuantumScript

from qedge.errors import BackendUnavailable, InvalidCircuit
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor, seed_of, statevector
from qedge.quantum.noise import Noise

PAULIS = {"X": np.array([[0, 1], [1, 0]]), "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1]), "I": np.eye(2)}
ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LIGHTNING, DEFAULT = Backend(), Backend(name="default.qubit")


def rotations(seed: int, qubits: int = 4, layers: int = 2, *, shots: int | None = None, measured: str = "ZZXY") -> QuantumScript:
    """Layers of rotations and CNOTs by seed, and the Pauli word that is measured."""
    generator, operations = np.random.default_rng(seed), []
    for _ in range(layers):
        operations += [qml.RY(generator.uniform(0, 6), wire) for wire in range(qubits)]
        operations += [qml.RX(generator.uniform(0, 6), wire) for wire in range(qubits)]
        operations += [qml.CNOT([wire, wire + 1]) for wire in range(qubits - 1)]
    return QuantumScript(operations, [qml.expval(qml.pauli.string_to_pauli_word(measured[:qubits]))], shots=shots)


def by_matrices(circuit: QuantumScript) -> NDArray[np.complex128]:
    """The state by matrix products in numpy, of RX, RY and CNOT alone."""
    qubits = len(circuit.wires)
    state = np.eye(1, 2**qubits)[0].astype(complex)
    for gate in circuit.operations:
        factors = [np.eye(2)] * qubits
        if gate.name == "CNOT":
            control, target = gate.wires
            zero, one = list(factors), list(factors)
            zero[control], one[control], one[target] = np.diag([1, 0]), np.diag([0, 1]), PAULIS["X"]
            state = (_kron(zero) + _kron(one)) @ state
        else:
            factors[gate.wires[0]] = scipy.linalg.expm(-0.5j * float(gate.data[0]) * PAULIS[gate.name[1]])
            state = _kron(factors) @ state
    return state


def _kron(factors: Sequence[NDArray[np.complex128]]) -> NDArray[np.complex128]:
    result = np.eye(1)
    for factor in factors:
        result = np.kron(result, factor)
    return result


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from(["lightning.qubit", "default.qubit", "statevector", "default.mixed"]))
def test_expectations_and_states_are_those_of_matrix_products(seed: int, name: str) -> None:
    circuit = rotations(seed)
    state = by_matrices(circuit)
    expected = np.vdot(state, _kron([PAULIS[letter] for letter in "ZZXY"]) @ state).real
    assert LocalExecutor().run([circuit], Backend(name=name)) == [pytest.approx(expected, abs=1e-12)]
    if name != "default.mixed":
        assert np.abs(statevector(circuit, Backend(name=name)) - state).max() < 1e-12


@settings(max_examples=15)
@given(st.integers(1, 12), st.sampled_from([LIGHTNING, DEFAULT]), st.sampled_from([None, 50]), st.integers(0, 5))
def test_a_batch_answers_the_same_however_it_is_cut(size: int, backend: Backend, shots: int | None, stream: int) -> None:
    backend = backend.model_copy(update={"shots": shots, "seed": 7})
    circuits = [rotations(seed, 3) for seed in range(12)]
    whole = LocalExecutor().run(circuits, backend, stream=stream)
    pieces = [
        answer
        for start in range(0, 12, size)
        for answer in LocalExecutor().run(circuits[start : start + size], backend, stream=stream, first=start)
    ]
    assert whole == pieces


@pytest.mark.slow
def test_an_answer_is_the_same_bit_for_bit_however_many_threads_a_process_may_use() -> None:
    """Of the sums over 14 qubits that lightning makes, about half end in another bit with two threads than with one."""
    code = """
import sys
from pennylane import Z, expval
from pennylane.tape import QuantumScript
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from tests.quantum.test_execution import rotations
energy = sum(0.5 * Z(wire) @ Z(wire + 1) for wire in range(13))
circuits = [QuantumScript(rotations(seed, 14, measured="Z" * 14).operations, [expval(energy)]) for seed in range(20)]
for name in ("lightning.qubit", "default.qubit"):
    print(*(float(answer).hex() for answer in LocalExecutor().run(circuits, Backend(name=name))))
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), **dict.fromkeys(THREADS, threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(said[0].split()) == 40


def test_the_same_circuit_at_two_places_or_in_two_streams_draws_other_shots() -> None:
    backend = Backend(shots=1000)
    executor = LocalExecutor()
    first, second = executor.run([rotations(1), rotations(1)], backend)
    assert first != second
    assert executor.run([rotations(1)], backend, stream=1) != [first]
    assert executor.run([rotations(1)], backend) == [first]
    assert len({seed_of(Backend(seed=seed), stream, place) for seed in range(5) for stream in range(5) for place in range(5)}) == 125


@pytest.mark.parametrize("name", ["lightning.qubit", "default.qubit", "default.mixed", "statevector"])
def test_shots_come_near_what_is_exact(name: str) -> None:
    """Within 6 standard deviations: false alarm below 1e-8."""
    circuit, shots = rotations(3), 4000
    (exact,) = LocalExecutor().run([circuit], LIGHTNING)
    (drawn,) = LocalExecutor().run([circuit], Backend(name=name, shots=shots))
    assert exact != drawn
    assert abs(exact - drawn) < 6 / np.sqrt(shots)


def test_a_circuits_own_shots_go_before_those_of_the_backend() -> None:
    circuit = rotations(3, shots=10)
    (answer,) = LocalExecutor().run([circuit], Backend(shots=1_000_000))
    assert round(float(answer) * 10) == pytest.approx(float(answer) * 10)


def test_wires_come_in_ascending_order_whatever_the_circuit_names_first() -> None:
    circuit = QuantumScript([qml.PauliX(5), qml.Identity(2), qml.Identity(9)], [qml.probs()])
    (answer,) = LocalExecutor().run([circuit], LIGHTNING)
    assert np.argmax(answer) == 0b010
    assert np.argmax(np.abs(statevector(circuit))) == 0b010
    named = QuantumScript([qml.PauliX("b"), qml.Identity("a")], [qml.probs()])
    assert np.argmax(LocalExecutor().run([named], DEFAULT)[0]) == 0b10


def test_every_kind_of_measurement_comes_back_in_its_shape() -> None:
    measured = [qml.expval(qml.Z(0)), qml.var(qml.X(1)), qml.probs(wires=[0, 1])]
    (answer,) = LocalExecutor().run([QuantumScript(rotations(1, 2).operations, measured)], LIGHTNING)
    assert isinstance(answer, tuple)
    assert [np.shape(one) for one in answer] == [(), (), (4,)]
    assert isinstance(answer[0], float)
    (samples,) = LocalExecutor().run([QuantumScript(rotations(1, 2).operations, [qml.sample(wires=[0, 1])])], Backend(shots=7))
    assert np.shape(samples) == (7, 2)
    several = QuantumScript([qml.RX(np.array([0.1, 0.2, 0.3]), 0)], [qml.expval(qml.Z(0))])
    assert LocalExecutor().run([several], LIGHTNING)[0] == pytest.approx(np.cos([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("circuit", "said"),
    [
        (QuantumScript([qml.Hadamard(0)], []), "measures nothing"),
        (QuantumScript([qml.Hadamard(0)], [qml.state()]), r"statevector\(\)"),
        (QuantumScript([qml.Hadamard(0)], [qml.counts(wires=0)]), "CountsMP"),
        (QuantumScript([qml.Hadamard(0)], [qml.sample(wires=0)]), "samples need shots"),
        (QuantumScript([qml.DepolarizingChannel(0.1, 0)], [qml.expval(qml.Z(0))]), "cannot run this circuit"),
    ],
)
def test_a_circuit_that_has_no_answer_is_refused(circuit: QuantumScript, said: str) -> None:
    with pytest.raises(InvalidCircuit, match=said):
        LocalExecutor().run([circuit], LIGHTNING)


def test_nothing_is_run_where_one_circuit_of_the_batch_is_refused() -> None:
    executor = LocalExecutor()
    with pytest.raises(InvalidCircuit):
        executor.run([rotations(1), QuantumScript([qml.Hadamard(0)], [])], LIGHTNING)
    assert not executor.ready


def test_a_backend_without_a_pure_state_gives_none() -> None:
    with pytest.raises(BackendUnavailable, match="no statevector"):
        statevector(rotations(1), Backend(name="default.mixed"))


def test_a_circuit_that_measures_on_its_way_runs_and_has_no_state() -> None:
    with qml.queuing.AnnotatedQueue() as queue:
        qml.Hadamard(0)
        outcome = qml.measure(0)
        qml.cond(outcome, qml.PauliX)(1)
        qml.expval(qml.Z(0) @ qml.Z(1))
    circuit = QuantumScript.from_queue(queue)
    assert LocalExecutor().run([circuit], DEFAULT) == [pytest.approx(1)]
    with pytest.raises(InvalidCircuit, match="no single state"):
        statevector(circuit)


def test_circuits_travel_whole() -> None:
    circuits = [rotations(seed, shots=20) for seed in range(3)]
    hamiltonian = 0.5 * qml.Z(0) @ qml.Z(1) + 0.3 * qml.X(0)
    circuits.append(QuantumScript([qml.DoubleExcitation(0.3, [0, 1, 2, 3]), qml.ctrl(qml.RX(0.2, 1), 0)], [qml.expval(hamiltonian)]))
    sent = pickle.loads(pickle.dumps(circuits))
    assert all(qml.equal(one, other) for one, other in zip(circuits, sent, strict=True))
    assert LocalExecutor().run(sent, LIGHTNING) == LocalExecutor().run(circuits, LIGHTNING)


class TestNoise:
    """Against density matrices and confusion matrices in numpy."""

    @settings(max_examples=10)
    @given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
    def test_depolarizing_shrinks_an_expectation_by_four_thirds_of_the_rate_for_each_gate(self, one: float, two: float, gates: int) -> None:
        gates = gates % 5
        noise = Noise(depolarizing=one, two_qubit=two)
        circuit = QuantumScript([qml.RX(0.0, 0)] * gates + [qml.CNOT([0, 1])], [qml.expval(qml.Z(0))])
        expected = (1 - 4 * one / 3) ** gates * (1 - 4 * two / 3)
        assert _noisy(circuit, noise) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(("noise", "expected"), [(Noise(amplitude_damping=0.3), -0.4), (Noise(phase_damping=0.3), -1.0)])
    def test_damping_is_the_channel_of_that_name(self, noise: Noise, expected: float) -> None:
        circuit = QuantumScript([qml.PauliX(0)], [qml.expval(qml.Z(0))])
        assert _noisy(circuit, noise) == pytest.approx(expected)
        plus = QuantumScript([qml.Hadamard(0)], [qml.expval(qml.X(0))])
        shrunk = np.sqrt(1 - 0.3)
        assert _noisy(plus, noise) == pytest.approx(shrunk)

    @settings(max_examples=15)
    @given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
    def test_readout_is_a_confusion_matrix_on_every_wire(self, up: float, down: float, seed: int) -> None:
        circuit = rotations(seed, 2)
        confusion = np.array([[1 - up, down], [up, 1 - down]])
        expected = np.kron(confusion, confusion) @ np.abs(by_matrices(circuit)) ** 2
        probabilities = _noisy(QuantumScript(circuit.operations, [qml.probs(wires=[0, 1])]), Noise(readout=(up, down)))
        assert probabilities == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("word", ["XZ", "YY", "IX", "ZX"])
    def test_readout_is_of_what_is_measured_in_whatever_basis(self, word: str) -> None:
        up, down = 0.1, 0.25
        circuit = rotations(5, 2, measured=word)
        turned = {"X": qml.Hadamard.compute_matrix(), "Y": np.array([[1, -1j], [1, 1j]]) / np.sqrt(2), "Z": np.eye(2), "I": np.eye(2)}
        state = _kron([turned[letter] for letter in word]) @ by_matrices(circuit)
        confusion = np.array([[1 - up, down], [up, 1 - down]])
        signs = _kron([np.diag(PAULIS["I" if letter == "I" else "Z"])[None] for letter in word])[0]
        expected = signs @ np.kron(confusion, confusion) @ np.abs(state) ** 2
        assert _noisy(circuit, Noise(readout=(up, down))) == pytest.approx(expected, abs=1e-12)

    def test_what_does_not_commute_is_read_one_after_another_and_put_together_in_order(self) -> None:
        noise = Noise(readout=(0.1, 0.2), depolarizing=0.01)
        operations, words = rotations(2, 2).operations, ["X", "Z", "Y"]
        measured = [qml.expval(qml.pauli.string_to_pauli_word(word)) for word in words]
        together = _noisy(QuantumScript(operations, measured), noise)
        alone = [_noisy(QuantumScript(operations, [one]), noise) for one in measured]
        assert together == pytest.approx(alone)
        total = 0.5 * qml.X(0) - 2.0 * qml.Z(0) + 0.25 * qml.Y(0)
        expected = 0.5 * alone[0] - 2.0 * alone[1] + 0.25 * alone[2]
        assert _noisy(QuantumScript(operations, [qml.expval(total)]), noise) == pytest.approx(expected)

    def test_a_gate_on_four_wires_suffers_as_the_gates_it_is_made_of(self) -> None:
        noise = Noise(depolarizing=0.001, two_qubit=0.01)
        whole = QuantumScript([qml.PauliX(0), qml.PauliX(1), qml.DoubleExcitation(0.5, [0, 1, 2, 3])], [qml.expval(qml.Z(0))])
        exact = LocalExecutor().run([whole], LIGHTNING)[0]
        assert abs(_noisy(whole, noise) - exact) > 0.05

    def test_noise_of_nothing_changes_nothing(self) -> None:
        (exact,) = LocalExecutor().run([rotations(4)], LIGHTNING)
        assert _noisy(rotations(4), Noise()) == pytest.approx(exact)

    def test_an_observable_that_is_not_made_of_paulis_is_refused_where_readout_is_noisy(self) -> None:
        circuit = QuantumScript([qml.Hadamard(0)], [qml.expval(qml.Hermitian(np.array([[1, 0.5], [0.5, 2]]), 0))])
        assert _noisy(circuit, Noise(depolarizing=0.0)) == pytest.approx(2.0)
        with pytest.raises(InvalidCircuit, match="Pauli"):
            _noisy(circuit, Noise(readout=(0.1, 0.1)))


def _noisy(circuit: QuantumScript, noise: Noise) -> object:
    (answer,) = LocalExecutor().run([circuit], Backend(name="default.mixed", noise=noise))
    return answer
