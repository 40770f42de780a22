"""What error bars are made of, each part against a computation of its own or against repeated draws."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, variance

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pennylane.tape import QuantumScript

from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.mitigation import clifford_regression, twirling
from qedge.quantum.mitigation.job import Mitigation
from qedge.quantum.mitigation.mitigated import Estimate
from qedge.quantum.mitigation.readout import of_rates
from qedge.quantum.mitigation.settings import measurement
from qedge.quantum.mitigation.study import mitigate
from qedge.quantum.noise import Noise

NUMBERS = st.floats(-1, 1)


def estimates(values: Sequence[float], squared_error: float) -> list[Estimate]:
    return [Estimate(value, squared_error, 100, 1) for value in values]


ONE = QuantumScript([qml.RY(0.6, 0)], [qml.expval(0.7 * qml.Z(0) + 0.6 * qml.X(0))])
TWO = QuantumScript(
    [qml.RY(0.6, 0), qml.CNOT([0, 1]), qml.RY(0.9, 1)],
    [qml.expval(0.7 * qml.Z(0) @ qml.Z(1) + 0.4 * qml.Z(0) + 0.6 * qml.X(0) @ qml.Z(1))],
)


class TestReadout:
    """What calibration leaves open, by itself and beside the shots of the circuit."""

    @pytest.mark.parametrize("circuit", [ONE, TWO])
    def test_an_error_bar_holds_what_calibration_leaves_open(self, circuit: QuantumScript) -> None:
        """Where the circuit's answers are exact: slopes by differences, squared, times the variance of each rate that was learnt."""
        measured, shots, step = measurement(circuit), 1_000_000, 1e-5
        circuits = measured.circuits(circuit.operations, None)
        assert len(circuits) == 2
        read = LocalExecutor().run(circuits, Backend(name="default.qubit"))
        rates = np.array([[0.05, 0.12], [0.10, 0.03]])[:, : len(circuit.wires)]

        def value(changed: np.ndarray) -> float:
            return of_rates(*changed).estimate(measured, read, circuits, constrained=False).value

        expected = 0.0
        for place, rate in np.ndenumerate(rates):
            change = np.zeros_like(rates)
            change[place] = step
            expected += ((value(rates + change) - value(rates - change)) / (2 * step)) ** 2 * rate * (1 - rate) / shots
        found = of_rates(*rates, shots).estimate(measured, read, circuits, constrained=False)
        assert found.variance == pytest.approx(expected, rel=1e-3)

    def test_of_a_whole_run_calibration_is_half_of_the_error_where_shots_are_equal(self) -> None:
        """<Z> of |0>: 0 is read as 1 by the same chance when it is calibrated and when it is measured.

        The mean of as many squares of normal numbers varies by sqrt(2 / draws): 5 of these are a false alarm of 6e-7, the seeds not fixed.
        """
        circuit, draws = QuantumScript([qml.RX(2 * np.pi, 0)], [qml.expval(qml.Z(0))]), 150
        asked = Mitigation(technique="readout", constrained=False)
        backends = [Backend(name="default.mixed", noise=Noise(readout=(0.2, 0.1)), shots=400, seed=seed) for seed in range(draws)]
        found = [mitigate(circuit, asked, one) for one in backends]
        ratio = fmean(((one.value - 1) / one.error) ** 2 for one in found)
        assert ratio == pytest.approx(1, abs=5 * np.sqrt(2 / draws))
        by_hand = 2 * 4 * 0.2 * 0.8 / 400 / (1 - 0.2 - 0.1) ** 2
        assert fmean(one.error**2 for one in found) == pytest.approx(by_hand, rel=0.05)


class TestTwirling:
    """The copies' mean is as uncertain as copies differ, and never less than their shots."""

    @given(st.lists(NUMBERS, min_size=2, max_size=20).filter(lambda values: np.ptp(values) > 0.01))
    def test_copies_that_differ_widen_the_error_bar(self, values: list[float]) -> None:
        found = twirling.combine(estimates(values, 1e-12))
        assert found.value == pytest.approx(fmean(values))
        assert found.variance == pytest.approx(variance(values) / len(values), rel=1e-6)

    def test_copies_that_happen_to_agree_leave_the_error_of_their_shots(self) -> None:
        found = twirling.combine([Estimate(0.5, 0.01, 100, 1), Estimate(0.5, 0.03, 100, 1), Estimate(0.5, 0.05, 100, 1)])
        assert found.variance == pytest.approx(0.09 / 9)
        assert (found.shots, found.circuits) == (300, 3)


class TestCliffordRegression:
    """The error bar of a line's value, and of what is put into it."""

    @given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=20), NUMBERS, st.floats(0, 0.1))
    def test_scatter_about_the_line_and_shots_widen_the_error_bar(
        self, points: list[tuple[float, float]], raw: float, squared_error: float
    ) -> None:
        """Covariances of slope and offset are those of numpy's fit."""
        noisy, ideal = np.transpose(points)
        if np.ptp(noisy) < 0.1:
            noisy = noisy + np.linspace(0, 1, len(noisy))
        (slope, offset), covariances = np.polyfit(noisy, ideal, 1, cov=True)
        found = clifford_regression.combine(Estimate(raw, squared_error, 100, 1), estimates(noisy, 1e-9), ideal)
        assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=1e-7)
        expected = np.array([raw, 1]) @ covariances @ np.array([raw, 1]) + slope**2 * squared_error
        assert found.variance == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def test_where_only_an_offset_is_fitted_its_scatter_widens_the_error_bar(self) -> None:
        ideal = [0.1, 0.4, -0.2, 0.3]
        found = clifford_regression.combine(Estimate(0.2, 0.01, 100, 1), estimates([0.5] * 4, 1e-6), ideal)
        assert found.spread_too_little
        assert found.value == pytest.approx(0.2 + fmean(ideal) - 0.5)
        assert found.variance == pytest.approx(0.01 + variance(ideal) / 4)
