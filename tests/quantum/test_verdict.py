"""The verdict: intervals against an independent computation, and how often equals are called different."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm, t

from qedge.quantum.verdict import FEWEST_SPLITS, Verdict, compare, compare_splits

SCORES = st.floats(0, 1)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=FEWEST_SPLITS, max_size=30), st.floats(0.05, 0.5))
def test_the_interval_of_splits_is_that_of_the_corrected_resampled_t_test(pairs: list[tuple[float, float]], share: float) -> None:
    """Nadeau and Bengio (2003), equation 9 with the variance of section 3: (1/J + n2/n1) S²."""
    differences = np.array([one - other for one, other in pairs])
    assume(differences.std(ddof=1) > 1e-3)
    found = compare_splits(*zip(*pairs, strict=True), test_share=share, tested=1000)
    variance = differences.var(ddof=1) * (1 / len(pairs) + share / (1 - share))
    low, high = t.interval(0.95, len(pairs) - 1, differences.mean(), math.sqrt(variance))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.advantage == pytest.approx(differences.mean())
    expected = Verdict.QUANTUM if low > 0 else Verdict.CLASSICAL if high < 0 else Verdict.NEITHER
    assert found.verdict is expected


@given(SCORES, SCORES, st.floats(0, 1), st.floats(0, 1))
def test_both_errors_widen_the_interval_of_two_values(quantum: float, classical: float, error: float, of_baseline: float) -> None:
    found = compare(quantum, classical, better="lower", error=error, baseline_error=of_baseline)
    half = norm.ppf(0.975) * math.sqrt(error**2 + of_baseline**2)
    assert (found.low, found.high) == pytest.approx((classical - quantum - half, classical - quantum + half), abs=1e-9)
    other = compare(quantum, classical, better="higher", error=of_baseline, baseline_error=error)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_a_few_splits_that_agree_conclude_nothing() -> None:
    """One row of 45 more in every split: it may be the same row."""
    for splits in (2, 3, 4, 5, 10):
        found = compare_splits([44 / 45] * splits, [43 / 45] * splits, test_share=0.25, tested=45)
        assert found.verdict is Verdict.NEITHER
        assert found.low < 0 < found.high
    clear = compare_splits([0.9, 0.91, 0.92, 0.9], [0.1, 0.1, 0.1, 0.1], test_share=0.25, tested=45)
    assert clear.verdict is Verdict.NEITHER  # of four
    assert compare_splits([0.9] * 5, [0.1] * 5, test_share=0.25, tested=45).verdict is Verdict.QUANTUM


@pytest.mark.parametrize("splits", [5, 10])
def test_equals_are_called_different_no_more_than_one_time_in_twenty(splits: int) -> None:
    """Of 2000 pairs of models that are right on each of 100 independent rows with the same chance; the seed is fixed."""
    draw = np.random.default_rng(splits)
    scores = draw.binomial(100, 0.9, (2000, 2, splits)) / 100
    called = [compare_splits(*pair, test_share=0.25, tested=100).verdict is not Verdict.NEITHER for pair in scores]
    assert np.mean(called) < 0.05


@pytest.mark.parametrize("splits", [5, 10])
def test_equals_whose_splits_overlap_are_called_different_one_time_in_twenty(splits: int) -> None:
    """Differences that correlate by the share tested on, as Nadeau and Bengio suppose: of 4000, 5 % within 5 deviations, 1.7 %."""
    draw, share = np.random.default_rng(splits), 0.25
    differences = 0.1 * (share**0.5 * draw.normal(size=(4000, 1)) + (1 - share) ** 0.5 * draw.normal(size=(4000, splits)))
    nothing = [0.0] * splits
    called = [compare_splits(one, nothing, test_share=share, tested=1000).verdict is not Verdict.NEITHER for one in differences]
    assert np.mean(called) == pytest.approx(0.05, abs=0.017)


def test_a_difference_within_the_tolerance_is_none() -> None:
    assert compare(1.0, 1.001, better="lower", tolerance=0.002).verdict is Verdict.NEITHER
    assert compare(1.0, 1.003, better="lower", tolerance=0.002).verdict is Verdict.QUANTUM
    assert compare(1.003, 1.0, better="lower", tolerance=0.002).verdict is Verdict.CLASSICAL
