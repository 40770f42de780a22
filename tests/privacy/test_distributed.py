"""Noise in shares: what sums of them cost, against exact divergences of the convolved distributions computed independently."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import NANO, best_order, calibrate, epsilon_of
from qedge.privacy.distributed import LEAST_VARIANCE, NoiseShare, calibrate_shares
from qedge.privacy.mechanisms import SeededNoise

KINDS = ["discrete-gaussian", "skellam"]


def exact(kind: str, variance: int, shares: int, shift: int, order: int) -> mpmath.mpf:
    """The Rényi divergence of the sum of shares from itself shifted, in nats, by convolving masses with forty digits."""
    # The sum that defines it is largest order · shift away from zero.
    reach = math.ceil(16 * math.sqrt(variance * shares)) + (order + 1) * shift
    bits = 200 + math.ceil(reach**2 / variance)
    if kind == "skellam":
        total = variance * shares
        masses = [mpmath.exp(-total) * mpmath.besseli(abs(x), total) for x in range(-reach, reach + 1)]
    else:
        one = [mpmath.exp(-mpmath.mpf(x * x) / (2 * variance)) for x in range(-reach, reach + 1)]
        whole = mpmath.fsum(one)
        one = [mass / whole for mass in one]
        masses = one
        for _ in range(shares - 1):
            masses = _convolved(masses, one, reach, bits)
    moment = mpmath.fsum(
        masses[at] ** order * masses[at - shift] ** (1 - order) for at in range(shift, len(masses)) if masses[at] and masses[at - shift]
    )
    return mpmath.log(moment) / (order - 1)


def _convolved(left: list, right: list, reach: int, bits: int) -> list:
    """Masses of a sum, by whole numbers of so many bits in numpy's objects."""
    scale = mpmath.mpf(2) ** bits
    mine, other = (np.array([int(mass * scale) for mass in masses], dtype=object) for masses in (left, right))
    found = np.convolve(mine, other)[reach : reach + len(left)]
    return [mpmath.mpf(int(mass)) / scale**2 for mass in found]


CASES = [(4, 2, 1, 2), (4, 5, 3, 8), (9, 3, 2, 16), (16, 8, 10, 4), (50, 2, 7, 32), (25, 4, 1, 64)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("variance", "shares", "shift", "order"), CASES)
def test_a_sum_never_costs_less_than_its_exact_divergence(kind: str, variance: int, shares: int, shift: int, order: int) -> None:
    ours = NoiseShare(kind, variance).cost(shift**2, 1, shares).at(order) / NANO
    with mpmath.workdps(150):
        truth = float(exact(kind, variance, shares, shift, order))
    assert ours >= truth
    if kind == "discrete-gaussian":
        assert ours <= 1.01 * truth + 1e-8


@pytest.mark.parametrize(("variance", "shares", "shift", "order"), [(400, 3, 4, 4), (2500, 2, 12, 8)])
def test_with_noise_of_the_usual_size_a_skellam_sum_is_accounted_within_a_hundredth(
    variance: int, shares: int, shift: int, order: int
) -> None:
    ours = NoiseShare("skellam", variance).cost(shift**2, 1, shares).at(order) / NANO
    with mpmath.workdps(150):
        truth = float(exact("skellam", variance, shares, shift, order))
    assert truth <= ours <= 1.01 * truth


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_plan_is_within_a_hundredth_of_an_independent_epsilon_and_never_below(kind: str) -> None:
    """Sixty rounds of 650 entries at epsilon 8: the divergence of the continuous Gaussian of that variance is the independent computation;
    both kinds cost at least as much."""
    delta, squared, honest, rounds = 1e-3, 166_983, 47, 60
    fit = calibrate_shares(kind, 8.0, delta, squared, 650, honest, rounds)
    ours = epsilon_of(fit.cost_round.at(fit.order) * rounds, fit.order, delta)
    with mpmath.workdps(40):
        rho = mpmath.mpf(fit.order) * squared / (2 * fit.share.variance * honest) * rounds
        a = mpmath.mpf(fit.order)
        independent = rho + mpmath.log((a - 1) / a) - (mpmath.log(delta) + mpmath.log(a)) / (a - 1)
    assert float(independent) <= ours <= 1.01 * float(independent)
    assert ours <= 8.0


@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up_to_the_noise_of_one_coordinator_where_nobody_colludes_or_is_lost(kind: str) -> None:
    central = calibrate(8.0, 1e-3, 166_983, 1.0, 60)
    shared = calibrate_shares(kind, 8.0, 1e-3, 166_983, 650, 100, 60)
    assert shared.share.variance * 100 == pytest.approx(central.variance, rel=0.01)


def test_fewer_shares_that_count_make_larger_ones() -> None:
    variances = [calibrate_shares("discrete-gaussian", 4.0, 1e-4, 10_000, 50, honest, 10).share.variance for honest in (60, 30, 10, 2)]
    assert variances == sorted(variances)
    assert variances[-1] == pytest.approx(30 * variances[0], rel=0.01)


def test_no_share_is_smaller_than_two_grid_units() -> None:
    fit = calibrate_shares("discrete-gaussian", 900.0, 1e-3, 10, 5, 90, 1)
    assert fit.share.variance == LEAST_VARIANCE
    assert best_order(fit.cost_round, 1e-3)[1] < 900


@given(
    kind=st.sampled_from(KINDS),
    variance=st.integers(4, 10**6),
    shares=st.integers(2, 100),
    squared=st.integers(1, 10**6),
    dimensions=st.integers(1, 10**5),
)
def test_more_noise_more_shares_and_less_to_hide_never_cost_more(kind: str, variance: int, shares: int, squared: int, dimensions: int):
    cost = NoiseShare(kind, variance).cost(squared, dimensions, shares)
    for cheaper in (
        NoiseShare(kind, variance + 1).cost(squared, dimensions, shares),
        NoiseShare(kind, variance * 2).cost(squared, dimensions, shares),
        NoiseShare(kind, variance).cost(max(1, squared - 1), dimensions, shares),
    ):
        assert all(mine <= theirs + 2 for mine, theirs in zip(cheaper.nanos, cost.nanos, strict=True))
    assert all(
        nanos >= -(-a * squared * NANO // (2 * variance * shares)) for a, nanos in zip((2, 64), (cost.at(2), cost.at(64)), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_sum_of_shares_passes_the_reach_that_it_was_given(kind: str) -> None:
    """5,000 sums of 40 shares of 20 entries at a chance of 1e-10 each: false alarm 1e-6 in all; half of the reach is passed."""
    share, source = NoiseShare(kind, 9), SeededNoise(1)
    sums = sum(share.sample(5000 * 20, source) for _ in range(40))
    reach = share.reach(40, 20, 1e-10)
    assert np.abs(sums).max() <= reach
    assert np.abs(sums).max() > reach / 2
    assert reach < 9 * math.sqrt(9 * 40)


@pytest.mark.parametrize(("kind", "variance"), [("gaussian", 10), ("skellam", 3), ("discrete-gaussian", 0)])
def test_a_share_that_is_none_is_refused(kind: str, variance: int) -> None:
    with pytest.raises(InvalidPrivacy, match="share of"):
        NoiseShare(kind, variance)


def test_more_rounds_than_an_epsilon_pays_for_are_refused() -> None:
    with pytest.raises(InvalidPrivacy, match="more than epsilon"):
        calibrate_shares("skellam", 0.001, 1e-9, 100, 10, 10, 10**6)
