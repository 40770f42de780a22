"""Curves through values at several strengths of noise, against curves that are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import InvalidValue
from qedge.quantum.mitigation.extrapolation import Extrapolated, extrapolate, shrunk

SCALES = [1.0, 2.0, 3.0, 4.0]
NUMBERS = st.floats(-5, 5)


@settings(max_examples=30, deadline=None)
@given(NUMBERS, NUMBERS, st.floats(1e-3, 1))
def test_a_line_is_read_exactly_by_every_curve_that_holds_lines(start: float, slope: float, variance: float) -> None:
    values = [start + slope * scale for scale in SCALES]
    for how in ("linear", "polynomial", "richardson"):
        assert extrapolate(SCALES, values, [variance] * 4, how).value == pytest.approx(start, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2), st.floats(0.2, 3), st.floats(0.05, 1.5))
def test_an_exponential_is_found_with_and_without_its_asymptote(asymptote: float, height: float, rate: float) -> None:
    values = [asymptote + height * np.exp(-rate * scale) for scale in SCALES]
    known = extrapolate(SCALES, values, [0.0] * 4, asymptote=asymptote)
    assert known.value == pytest.approx(asymptote + height, abs=1e-5)
    assert known.rate == pytest.approx(rate, abs=1e-5)
    assert extrapolate(SCALES, values, [0.0] * 4).value == pytest.approx(asymptote + height, abs=1e-3)


def test_richardson_counts_three_points_as_in_the_literature() -> None:
    """Lagrange's weights at 0 of 1, 2, 3 are 3, -3, 1 (Temme, Bravyi, Gambetta 2017, equation 4), so that errors grow by sqrt(19)."""
    found = extrapolate([1, 2, 3], [1.0, 0.5, 0.4], [0.01] * 3, "richardson")
    assert found.value == pytest.approx(3 * 1.0 - 3 * 0.5 + 0.4)
    assert found.variance == pytest.approx(19 * 0.01)


@pytest.mark.parametrize(("how", "asymptote"), [("linear", None), ("richardson", None), ("exponential", 0.0)])
def test_error_bars_are_those_of_repeated_draws(how: str, asymptote: float | None) -> None:
    """400 draws: the spread of a standard deviation is 3.5 %; 20 % are more than 5 of those (false alarm < 1e-6)."""
    true, errors = np.exp(-0.3 * np.array([1.0, 2.0, 3.0])), np.array([0.01, 0.015, 0.02])
    draws = true + errors * np.random.default_rng(1).normal(size=(400, 3))
    found = [extrapolate([1, 2, 3], draw, errors**2, how, asymptote=asymptote) for draw in draws]
    assert np.std([one.value for one in found]) == pytest.approx(np.mean([one.variance for one in found]) ** 0.5, rel=0.2)


@pytest.mark.parametrize("scales", [[1.0], [1.0, 1.0]])
def test_too_few_different_scales_are_refused(scales: list[float]) -> None:
    with pytest.raises(InvalidValue, match="different scales"):
        extrapolate(scales, [1.0] * len(scales), [0.0] * len(scales), "linear")


def test_values_that_leave_the_asymptote_are_taken_for_a_line() -> None:
    found, line = (extrapolate([1, 2, 3], [1.0, 1.2, 1.3], [0.01] * 3, how, asymptote=0.0) for how in ("exponential", "linear"))
    assert (found.value, found.variance, found.rate) == (pytest.approx(line.value), pytest.approx(line.variance), 0.0)


def test_a_correction_lost_in_its_own_error_bar_is_not_made_and_a_clear_one_is() -> None:
    """Weights 1.5 and -0.5 of a line through 1 and 3: by hand, way -0.5 (y3 - y1), variance 0.5 v, covariance 0.5 v."""
    for apart, expected in ((0.0, 0.0), (0.01, 0.0), (1.0, (0.25 - 0.005 - 0.005) / 0.25)):
        found = extrapolate([1, 3], [1.0, 1.0 - apart], [0.01, 0.01], "linear")
        assert shrunk(found, 1.0, [0.01, 0.01]) == pytest.approx(expected)
    assert shrunk(extrapolate([1, 3], [1.0, 0.9], [0.0, 0.0], "linear"), 1.0, [0.0, 0.0]) == 1.0


@settings(max_examples=50, deadline=None)
@given(NUMBERS, NUMBERS, st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_of_a_correction_never_more_than_all_and_never_less_than_none(near: float, far: float, one: float, other: float) -> None:
    found: Extrapolated = extrapolate([1, 3], [near, far], [one, other], "linear")
    assert 0 <= shrunk(found, near, [one, other]) <= 1


def test_a_shrunk_correction_errs_less_than_a_whole_one_where_noise_is_weak() -> None:
    """No bias at all, 2000 draws: the whole line's mean squared error is 2.5 v, of which the shrunk one's is below four fifths.

    Its spread over 2000 draws is some 3 %: five of those are 16 %, false alarm < 1e-6.
    """
    draws = np.random.default_rng(2).normal(0, 0.1, (2000, 2))
    whole, part = [], []
    for near, far in draws:
        found = extrapolate([1, 3], [near, far], [0.01, 0.01], "linear")
        whole.append(found.value**2)
        part.append((near + shrunk(found, near, [0.01, 0.01]) * (found.value - near)) ** 2)
    assert np.mean(part) < 0.8 * np.mean(whole)
