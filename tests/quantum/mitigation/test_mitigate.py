"""Whole techniques on noisy simulators, against ideal values."""

from collections.abc import Callable

import numpy as np
import pennylane as qml
import pytest
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit, InvalidJob, InvalidValue, QEdgeError
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.mitigation.job import Mitigation
from qedge.quantum.mitigation.mitigated import Effect, Estimate, Mitigated
from qedge.quantum.mitigation.settings import divided, measurement
from qedge.quantum.mitigation.study import exact, mitigate
from qedge.quantum.mitigation.twirling import twirled
from qedge.quantum.noise import Noise

OBSERVABLE = 0.5 * qml.Z(0) @ qml.Z(1) + 0.3 * qml.X(0) - 0.7 * qml.Y(1) @ qml.Z(2) + 0.25 * qml.Identity(0)
CIRCUIT = QuantumScript(
    [qml.RY(0.4, 0), qml.CNOT([0, 1]), qml.RX(1.1, 1), qml.CNOT([1, 2]), qml.RZ(0.7, 2), qml.CZ([0, 2]), qml.RY(-0.3, 1)],
    [qml.expval(OBSERVABLE)],
)
GATES, READ = Noise(depolarizing=0.01), Noise(readout=(0.03, 0.08))


def noisy(noise: Noise, shots: int | None = None, seed: int = 0) -> Backend:
    return Backend(name="default.mixed", noise=noise, shots=shots, seed=seed)


def test_settings_measure_what_the_device_does() -> None:
    (expected,) = qml.device("default.qubit").execute([CIRCUIT])[:1]
    assert exact(CIRCUIT) == pytest.approx(float(expected), abs=1e-12)
    assert len(measurement(CIRCUIT).settings) == 2


def test_zero_noise_extrapolation_takes_most_of_the_noise_away_and_says_so() -> None:
    for folding in ("local", "global"):
        found = mitigate(CIRCUIT, Mitigation(folding=folding), noisy(GATES), ideal=exact(CIRCUIT))
        assert abs(found.value - exact(CIRCUIT)) < 0.3 * abs(found.raw.value - exact(CIRCUIT))
        assert found.effect == Effect.BETTER
        assert found.statement.startswith("zne: better")


def test_readout_errors_are_undone_exactly_where_nothing_is_drawn() -> None:
    found = mitigate(CIRCUIT, Mitigation(technique="readout"), noisy(READ))
    assert found.value == pytest.approx(exact(CIRCUIT), abs=1e-9)
    assert found.details["readout"]["one_as_zero"] == pytest.approx([0.08] * 3)


def test_clifford_regression_undoes_noise_that_is_linear() -> None:
    found = mitigate(CIRCUIT, Mitigation(technique="clifford-regression"), noisy(GATES), ideal=exact(CIRCUIT))
    assert abs(found.value - found.ideal) < 0.5 * abs(found.raw.value - found.ideal)


def test_twirled_circuits_do_the_same() -> None:
    generator, gates = np.random.default_rng(3), [qml.RX(0.3, 0), qml.CNOT([0, 1]), qml.CZ([1, 0]), qml.CNOT([1, 0])]
    plain = qml.matrix(QuantumScript(gates), wire_order=[0, 1])
    for _ in range(16):
        other = qml.matrix(QuantumScript(twirled(gates, generator)), wire_order=[0, 1])
        assert abs(np.trace(plain.conj().T @ other)) == pytest.approx(4, abs=1e-9)


def test_twirling_says_that_its_own_gates_make_it_worse() -> None:
    found = mitigate(CIRCUIT, Mitigation(technique="twirling", copies=4), noisy(GATES), ideal=exact(CIRCUIT))
    assert found.effect == Effect.WORSE
    assert "twirling: worse" in found.statement
    assert found.circuits == 5 * len(measurement(CIRCUIT).settings)


def test_error_bars_hold_the_ideal_value_and_costs_are_counted() -> None:
    """Readout alone is undone without bias where nothing is constrained: 5 error bars, false alarm 6e-7 where they are right."""
    found = mitigate(CIRCUIT, Mitigation(technique="readout", constrained=False), noisy(READ, shots=2000))
    assert abs(found.value - exact(CIRCUIT)) < 5 * found.error
    assert found.error > found.raw.error
    assert found.shots == 2000 * (2 + len(measurement(CIRCUIT).settings))
    assert found.circuits == 2 + len(measurement(CIRCUIT).settings)


def test_the_same_seeds_give_the_same_and_scales_share_their_shots() -> None:
    asked = Mitigation(readout=True)
    once, again = (mitigate(CIRCUIT, asked, noisy(READ, 500, 7), executor=LocalExecutor()) for _ in range(2))
    assert once == again
    assert once.shots == 500 * (2 + 3 * len(measurement(CIRCUIT).settings))


def test_an_error_bar_that_outgrew_the_bias_is_called_worse() -> None:
    raw = Estimate(0.5, 1e-4, 1000, 1)
    assert Mitigated("zne", raw, 0.51, 0.2, 3000, 3).effect == Effect.WORSE
    assert Mitigated("zne", raw, 0.9, 0.02, 3000, 3).effect == Effect.BETTER
    assert Mitigated("zne", raw, 0.9, 0.02, 3000, 3, ideal=0.5).effect == Effect.WORSE


@pytest.mark.parametrize("total", [3, 10, 1001])
def test_shots_are_divided_without_loss(total: int) -> None:
    parts = divided(total, [0.5, 0.3, 0.01])
    assert sum(parts) == total
    assert min(parts) >= 1


def test_what_cannot_be_mitigated_is_refused() -> None:
    with pytest.raises(InvalidCircuit, match="one expval"):
        mitigate(QuantumScript([qml.X(0)], [qml.probs(wires=[0])]), Mitigation(), Backend())
    with pytest.raises(InvalidValue, match="further apart"):
        mitigate(QuantumScript([qml.X(0)], [qml.expval(qml.Z(0))]), Mitigation(scale_factors=(1, 1.1, 1.2)), Backend())
    with pytest.raises(InvalidJob, match="scale_factors"):
        Mitigation(scale_factors=(1.0, 0.5))
    with pytest.raises(InvalidJob, match="takes 3 or more"):
        Mitigation(scale_factors=(1.0, 3.0), asymptote="fitted")


def test_one_gate_is_folded_to_fewer_scales_than_asked_and_still_extrapolated() -> None:
    found = mitigate(QuantumScript([qml.RX(0.3, 0)], [qml.expval(qml.Z(0))]), Mitigation(), noisy(GATES), ideal=float(np.cos(0.3)))
    assert found.details["scales"] == [1.0, 3.0]
    assert found.effect == Effect.BETTER


def test_a_circuit_without_gates_has_nothing_to_correct() -> None:
    found = mitigate(QuantumScript([], [qml.expval(qml.Z(0))]), Mitigation(), noisy(GATES, shots=100))
    assert found.value == 1.0


def test_circuits_without_gates_on_two_wires_are_mitigated_like_others() -> None:
    circuit = QuantumScript([gate(0.3, wire) for wire in range(2) for gate in (qml.RX, qml.RY)], [qml.expval(qml.Z(0) @ qml.Z(1))])
    found = mitigate(circuit, Mitigation(), noisy(GATES), ideal=exact(circuit))
    assert found.effect == Effect.BETTER


def test_a_value_that_no_state_has_is_put_to_the_nearest_that_one_has_and_told() -> None:
    circuit = QuantumScript([qml.Hadamard(0), qml.CNOT([0, 1])], [qml.expval(qml.Z(0) @ qml.Z(1))])
    steep = Mitigation(extrapolation="richardson", scale_factors=(1.0, 3.0, 5.0), shrunk=False)
    free = steep.model_copy(update={"constrained": False})
    backends = [noisy(GATES, shots=200, seed=seed) for seed in range(20)]
    outside = [one for one in backends if mitigate(circuit, free, one).value > 1]
    assert outside
    held = mitigate(circuit, steep, outside[0])
    assert held.value == 1.0
    assert "which no state has" in held.details["warnings"][0]


def test_a_clifford_circuit_learns_nothing_and_says_so() -> None:
    circuit = QuantumScript([qml.Hadamard(0), qml.CNOT([0, 1]), qml.RZ(np.pi / 2, 1)], [qml.expval(qml.X(0) @ qml.Y(1))])
    found = mitigate(circuit, Mitigation(technique="clifford-regression"), noisy(GATES))
    assert found.value == pytest.approx(exact(circuit), abs=1e-9)
    assert "Clifford already" in found.details["warnings"][0]


def test_a_matrix_is_refused_with_what_makes_pauli_words_of_it() -> None:
    hermitian = qml.Hermitian(np.array([[0, 1], [1, 0]]), 0)
    projector = qml.Projector([1], 0)
    for observable in (hermitian, projector):
        if observable.pauli_rep is None:
            with pytest.raises(InvalidCircuit, match="pauli_decompose"):
                mitigate(QuantumScript([qml.X(0)], [qml.expval(observable)]), Mitigation(), Backend())


@pytest.mark.parametrize(
    "wrong",
    [lambda: Backend(shots=0), lambda: Noise(depolarizing=1.1), lambda: Noise(readout=(0.1, 1.2)), lambda: Noise(depolarizing=np.nan)],
)
def test_what_no_backend_can_be_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(QEdgeError):
        wrong()


@pytest.mark.parametrize("factors", [(1.0,), (), (0.5, 1.0), (2.0, 3.0), (1.0, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_scale_factors_that_no_curve_takes_are_refused(factors: tuple[float, ...]) -> None:
    with pytest.raises(QEdgeError):
        Mitigation(scale_factors=factors)
