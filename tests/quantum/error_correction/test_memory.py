"""Encoded memories against known rates and thresholds."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from qedge.errors import BackendUnavailable, InvalidValue
from qedge.quantum.error_correction import memory
from qedge.quantum.error_correction.memory import circuit_of, exact_interval, memory_study
from qedge.quantum.error_correction.threshold import crossing
from qedge.quantum.result import Result
from qedge.quantum.verdict import Verdict

pytest.importorskip("stim")
pytest.importorskip("pymatching")


def test_a_repetition_code_with_right_syndromes_fails_when_most_bits_flip() -> None:
    """Exactly: more than half of 5 bits flip. 20,000 shots, 5 standard deviations: false alarm 6e-7."""
    (point,) = memory_study("repetition", distances=[5], rates=[0.1], shots=20_000, noise="capacity").points
    expected = float(binom.sf(2, 5, 0.1))
    assert abs(point.logical - expected) < 5 * (expected * (1 - expected) / 20_000) ** 0.5


def test_below_threshold_an_encoded_bit_outlives_one_that_is_not(tmp_path: Path) -> None:
    study = memory_study("surface", distances=[3, 5], rates=[0.005], shots=5000)
    result = study.result()
    assert result.verdict == Verdict.QUANTUM
    assert result.baseline.value == pytest.approx((1 - 0.99**5) / 2)
    assert result.resources.qubits == circuit_of("surface", "phenomenological", 5, 0.005).num_qubits
    result.save(tmp_path / "memory.json")
    assert Result.load(tmp_path / "memory.json") == result


def test_every_data_qubit_flips_at_the_rate_given() -> None:
    """One round of distance 3 without syndrome errors: the detectors of weight 2 fire with 2p(1-p), those of 4 with their own parity."""
    circuit = circuit_of("surface", "capacity", 3, 0.05)
    fired = circuit.compile_detector_sampler(seed=1).sample(20_000).mean(axis=0)[:4]
    expected = {weight: (1 - 0.9**weight) / 2 for weight in (2, 4)}
    for rate in fired:
        assert min(abs(rate - one) for one in expected.values()) < 5 * (0.25 / 20_000) ** 0.5


def test_two_curves_cross_where_they_were_made_to() -> None:
    rates, shots = np.linspace(0.02, 0.04, 5), 100_000
    at = {size: 1 / (1 + np.exp(-(np.log(rates / 0.03) * size - 2))) for size in (3, 5)}
    found = crossing(rates, *((at[size] * shots).astype(int) for size in (3, 5)), shots)
    assert found is not None
    assert found.low < 0.03 < found.high
    assert found.rate == pytest.approx(0.03, rel=0.02)
    assert crossing(rates / 10, *((at[3] / size * shots).astype(int) for size in (3, 5)), shots) is None


@pytest.mark.parametrize(("failures", "low", "high"), [(0, 0.0, 0.3085), (1, 0.0025, 0.4450), (10, 0.6915, 1.0)])
def test_intervals_are_those_of_clopper_and_pearson(failures: int, low: float, high: float) -> None:
    """Of 10, as tabulated."""
    assert exact_interval(failures, 10) == pytest.approx((low, high), abs=5e-5)


def test_the_threshold_of_the_surface_code_is_the_published_one() -> None:
    """0.103 with right syndromes (Wang, Harrington, Preskill 2003); the seed is fixed, the interval is some 8 % to either side."""
    rates = [0.09, 0.097, 0.103, 0.11, 0.117]
    found = memory_study("surface", noise="capacity", distances=[7, 9], rates=rates, shots=5000, seed=1).threshold
    assert found is not None
    assert found.rate == pytest.approx(0.103, rel=0.08)
    assert found.low < 0.103 < found.high


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"stim and pymatching: pip install 'qedge\[memory\]'"):
        memory_study()


@pytest.mark.parametrize(
    "wrong",
    [
        {"distances": [3, 4]},
        {"distances": []},
        {"rates": [0.0]},
        {"rates": [0.5]},
        {"rates": [float("nan")]},
        {"shots": 0},
        {"code": "colour"},
        {"noise": "none"},
    ],
)
def test_what_cannot_be_studied_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        memory_study(**wrong)
