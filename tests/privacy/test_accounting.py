"""The accountant against sums over the lattice, fifty-digit arithmetic, published values and its own inverse."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import (
    NANO,
    ORDERS,
    RenyiCost,
    allowance,
    best_order,
    calibrate,
    epsilon_of,
    evaluation_variance,
    exact_delta,
    frozen_order,
    sampled_gaussian,
)

mp.dps = 50
orders = st.sampled_from(ORDERS)
rates = st.one_of(st.floats(1e-12, 1.0), st.sampled_from([1e-300, 1e-6, 0.25, 0.5, 1 - 1e-12, math.nextafter(1.0, 0.0)]))
deltas = st.floats(1e-15, 0.5)
costs = st.lists(st.integers(0, 10**15), min_size=len(ORDERS), max_size=len(ORDERS)).map(RenyiCost.from_list)
DELTA_400 = 400**-1.1


def true_nanos(order: int, sensitivity_squared: int, variance: int, rate: float) -> mpf:
    """The sum of Mironov, Talwar, Zhang (2019), section 3.3, in 50 digits."""
    q, exponent = mpf(rate), mpf(sensitivity_squared) / (2 * variance)
    moment = mp.fsum(mp.binomial(order, j) * (1 - q) ** (order - j) * q**j * mp.exp(j * (j - 1) * exponent) for j in range(order + 1))
    return mp.log(moment) / (order - 1) * NANO


@given(orders, st.integers(1, 10**9), st.integers(1, 10**12), rates)
@settings(max_examples=150, deadline=None)
def test_a_cost_is_the_true_divergence_rounded_up_to_a_nano(order: int, sensitivity_squared: int, variance: int, rate: float) -> None:
    with mp.workdps(400 if rate < 1e-100 else 60):
        true = true_nanos(order, sensitivity_squared, variance, rate)
        cost = sampled_gaussian(sensitivity_squared, variance, rate).at(order)
        assert true <= cost
        unsampled = mpf(order * sensitivity_squared * NANO) / (2 * variance)
        closest = unsampled if sensitivity_squared > 10**6 * variance else true
        assert cost <= closest * (1 + mpf(10) ** -11) + mpf("1.1")
        assert cost <= sampled_gaussian(sensitivity_squared, variance, 1.0).at(order)


@given(st.sampled_from((64, 256, 512)), st.integers(1, 1000), st.integers(10**3, 10**6), st.floats(1e-3, 0.999))
@settings(max_examples=30, deadline=None)
def test_rounding_errors_of_large_exponents_are_covered(order: int, variance: int, ratio: int, rate: float) -> None:
    sensitivity_squared = variance * ratio - variance // 3
    with mp.workdps(60):
        assert true_nanos(order, sensitivity_squared, variance, rate) <= sampled_gaussian(sensitivity_squared, variance, rate).at(order)


def lattice_divergences(order: int, shift: tuple[int, ...], variance: int, rate: float) -> tuple[mpf, mpf]:
    """Rényi divergences in nats, mixture from unshifted and back, summed point by point over a box of Z^d."""
    # Past |x| = jμ + 12σ every summand is below 1e-30 of the whole.
    boxes = [range(-math.ceil(12 * variance**0.5) - order * abs(s), math.ceil(12 * variance**0.5) + order * abs(s) + 1) for s in shift]
    exponent = mpf(1) / (2 * variance)
    total = forward = backward = mpf(0)
    for point in product(*boxes):
        mass = mp.exp(-exponent * sum(x * x for x in point))
        shifted = mp.exp(-exponent * sum((x - s) ** 2 for x, s in zip(point, shift, strict=True)))
        mixture = (1 - mpf(rate)) * mass + mpf(rate) * shifted
        total += mass
        forward += mixture**order * mass ** (1 - order)
        backward += mass**order * mixture ** (1 - order)
    return mp.log(forward / total) / (order - 1), mp.log(backward / total) / (order - 1)


@pytest.mark.parametrize(
    ("order", "shift", "variance", "rate"),
    [(2, (3,), 5, 0.3), (2, (1,), 1, 0.9), (5, (2,), 9, 0.5), (8, (4,), 40, 0.05), (3, (1, -2), 3, 0.25), (2, (7,), 4, 0.01)],
)
def test_sums_over_the_lattice_equal_the_cost_and_the_other_direction_is_no_larger(
    order: int, shift: tuple[int, ...], variance: int, rate: float
) -> None:
    forward, backward = lattice_divergences(order, shift, variance, rate)
    cost = sampled_gaussian(sum(s * s for s in shift), variance, rate).at(order)
    assert 0 <= cost - forward * NANO < mpf("1.1")
    assert backward <= forward


@given(orders, st.floats(0, 1), st.floats(1, 1e6))
def test_the_pointwise_inequality_of_the_proof_holds(order: int, rate: float, ratio: float) -> None:
    def h(y: mpf) -> mpf:
        return y**order - y ** (1 - order)

    t = mpf(rate) * (mpf(ratio) - 1)
    largest = (1 + t) ** order
    assert h(1 + t) + ratio * h(1 - t / mpf(ratio)) >= -largest * mpf(10) ** -40


@given(st.integers(1, 10**14), st.integers(1, 10**14))
def test_without_sampling_the_cost_is_exact(sensitivity_squared: int, variance: int) -> None:
    cost = sampled_gaussian(sensitivity_squared, variance, 1.0)
    for order in (2, 17, 512):
        assert 0 <= cost.at(order) * 2 * variance - order * sensitivity_squared * NANO < 2 * variance


@given(st.integers(1, 10**6), st.integers(1, 10**8), rates, st.integers(1, 10**6), rates)
def test_more_noise_costs_less_and_more_sampling_or_a_higher_order_costs_more(
    sensitivity_squared: int, variance: int, rate: float, extra: int, other: float
) -> None:
    cost = sampled_gaussian(sensitivity_squared, variance, rate)
    quieter = sampled_gaussian(sensitivity_squared, variance + extra, rate)
    rarer = sampled_gaussian(sensitivity_squared, variance, min(rate, other))
    # Rounding up may add a nano, or the last digit of a float, on either side.
    assert all(less <= more * (1 + 1e-11) + 1 for less, more in zip(quieter.nanos, cost.nanos, strict=True))
    assert all(less <= more * (1 + 1e-11) + 1 for less, more in zip(rarer.nanos, cost.nanos, strict=True))
    assert all(less <= more * (1 + 1e-11) + 1 for less, more in zip(cost.nanos, cost.nanos[1:], strict=False))


def test_astronomical_sensitivity_is_a_whole_number_and_not_infinity() -> None:
    assert sampled_gaussian(10**400, 1, 0.5).at(2) == 10**400 * NANO


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps", "best_of_all_orders", "tight"),
    [(0.01, 1.0, 1000, 2.101, 1.828), (0.1, 1.1, 100, 6.614, 5.913)],
)
def test_published_epsilons_are_met_from_above(rate: float, multiplier: float, steps: int, best_of_all_orders: float, tight: float) -> None:
    """RDP with fractional orders (Opacus 1.6) and PLD (dp-accounting) at delta 1e-5; whole orders alone cost a little more."""
    grid = 10**6
    _, epsilon = best_order(sampled_gaussian(grid, round(multiplier**2 * grid), rate) * steps, 1e-5)
    assert tight < best_of_all_orders <= epsilon < 1.03 * best_of_all_orders


@pytest.mark.parametrize(("epsilon", "multiplier"), [(8.0, 1.27), (3.0, 2.38)])
def test_calibration_meets_the_measured_noise_multipliers(epsilon: float, multiplier: float) -> None:
    assert calibrate(epsilon, DELTA_400, 10**6, 0.25, 60).noise_multiplier == pytest.approx(multiplier, abs=0.006)


@given(st.integers(0, 10**12), orders, deltas)
def test_epsilon_is_the_formula_rounded_up(nanos: int, order: int, delta: float) -> None:
    formula = mpf(nanos) / NANO + mp.log(mpf(order - 1) / order) - (mp.log(mpf(delta)) + mp.log(order)) / (order - 1)
    epsilon = epsilon_of(nanos, order, delta)
    assert max(formula, 0) <= epsilon <= max(formula, 0) + mpf(10) ** -13 * (1 + nanos / NANO + abs(math.log(delta)))


@given(st.floats(0.3, 20), st.integers(1, 50), deltas)
def test_epsilon_is_never_below_that_of_the_analytic_gaussian(multiplier: float, releases: int, delta: float) -> None:
    """Balle and Wang (ICML 2018), Theorem 8: the exact delta of a Gaussian mechanism, here composed, at our epsilon."""
    grid = 10**6
    variance = round(multiplier**2 * grid)
    _, epsilon = best_order(sampled_gaussian(grid, variance, 1.0) * releases, delta)
    mu = mp.sqrt(mpf(releases) * grid / variance)
    exact = mp.ncdf(mu / 2 - epsilon / mu) - mp.exp(epsilon) * mp.ncdf(-mu / 2 - epsilon / mu)
    assert exact <= delta


@given(st.floats(0, 1000), deltas, orders)
def test_an_allowance_is_the_largest_cost_that_fits(epsilon: float, delta: float, order: int) -> None:
    nanos = allowance(epsilon, delta, order)
    if nanos == -1:
        assert epsilon_of(0, order, delta) > epsilon
    else:
        assert epsilon_of(nanos, order, delta) <= epsilon < epsilon_of(nanos + 1, order, delta)


@given(st.integers(0, 10**13), deltas, orders)
def test_the_epsilon_of_a_cost_allows_that_cost_and_a_hair_less_does_not(nanos: int, delta: float, order: int) -> None:
    epsilon = epsilon_of(nanos, order, delta)
    if epsilon > 0:
        assert allowance(epsilon, delta, order) >= nanos
        assert allowance(math.nextafter(epsilon, 0), delta, order) < nanos


@given(costs, deltas)
def test_no_order_beats_the_best_one(cost: RenyiCost, delta: float) -> None:
    order, epsilon = best_order(cost, delta)
    assert epsilon == epsilon_of(cost.at(order), order, delta)
    assert all(epsilon <= epsilon_of(cost.at(other), other, delta) for other in ORDERS)


@given(st.floats(0.5, 100), st.floats(1e-10, 1e-2))
def test_a_frozen_order_lets_an_unsampled_gaussian_release_most(epsilon: float, delta: float) -> None:
    chosen = frozen_order(epsilon, delta)
    noise = evaluation_variance(allowance(epsilon, delta, chosen), chosen, 10**6)
    others = [(order, allowance(epsilon, delta, order)) for order in ORDERS]
    assert all(noise <= evaluation_variance(nanos, order, 10**6) for order, nanos in others if nanos > 0)


@given(costs, costs, costs, st.integers(0, 1000))
def test_costs_add_exactly_in_any_order(a: RenyiCost, b: RenyiCost, c: RenyiCost, times: int) -> None:
    assert (a + b) + c == a + (b + c) == (c + a) + b
    assert a + RenyiCost.zero() == a
    assert (a + b) - b == a
    assert (a + b) * times == times * a + b * times
    assert RenyiCost.from_list(a.to_list()) == a
    assert [a.at(order) for order in ORDERS] == a.to_list()


plans = st.tuples(st.floats(0.3, 50), st.floats(1e-9, 1e-2), st.integers(1, 10**7), st.floats(1e-4, 1), st.integers(1, 2000))


@given(plans, st.one_of(st.none(), st.integers(2, 64)), st.floats(0.5, 1))
@settings(deadline=None)
def test_calibrated_noise_fits_and_one_unit_of_variance_less_does_not(
    plan: tuple[float, float, int, float, int], order: int | None, share: float
) -> None:
    epsilon, delta, sensitivity_squared, rate, rounds = plan
    candidates = ORDERS if order is None else (order,)

    def fits(variance: int) -> list[int]:
        cost = sampled_gaussian(sensitivity_squared, variance, rate) * rounds
        return [each for each in candidates if cost.at(each) <= share * allowance(epsilon, delta, each)]

    try:
        calibration = calibrate(epsilon, delta, sensitivity_squared, rate, rounds, order=order, share=share)
    except InvalidPrivacy:
        assert all(share * allowance(epsilon, delta, each) < rounds for each in candidates)
        return
    assert calibration.order in fits(calibration.variance)
    assert calibration.cost_round == sampled_gaussian(sensitivity_squared, calibration.variance, rate)
    assert calibration.noise_multiplier**2 * sensitivity_squared == pytest.approx(calibration.variance)
    assert epsilon_of((calibration.cost_round * rounds).at(calibration.order), calibration.order, delta) <= epsilon
    # A nano of a round's cost, or the last digits of a float, is the finest that the search can tell apart.
    finest = max(1, calibration.variance // 10**10, 2 * calibration.variance // min(calibration.cost_round.nanos))
    assert calibration.variance <= finest or not fits(calibration.variance - finest)


def test_a_frozen_order_needs_no_less_noise_than_the_order_that_suits_the_plan() -> None:
    own = calibrate(3.0, DELTA_400, 16_000, 0.25, 60)
    frozen = calibrate(3.0, DELTA_400, 16_000, 0.25, 60, order=frozen_order(3.0, DELTA_400))
    assert own.variance < frozen.variance < 1.05 * own.variance
    assert frozen.order == frozen_order(3.0, DELTA_400)


@given(st.integers(1, 10**12), orders, st.integers(1, 10**9))
def test_evaluation_variance_is_the_smallest_that_fits(nanos: int, order: int, sensitivity_squared: int) -> None:
    variance = evaluation_variance(nanos, order, sensitivity_squared)
    assert sampled_gaussian(sensitivity_squared, variance, 1.0).at(order) <= nanos
    assert variance == 1 or sampled_gaussian(sensitivity_squared, variance - 1, 1.0).at(order) > nanos


@given(st.floats(0.01, 30), st.floats(1e-9, 0.1), st.floats(0, 0.9))
def test_inexact_noise_is_paid_for_out_of_delta(epsilon: float, delta: float, part: float) -> None:
    distance = part * delta / (1 + math.exp(epsilon))
    left = exact_delta(delta, epsilon, distance)
    assert mpf(left) + (1 + mp.exp(epsilon)) * mpf(distance) <= mpf(delta)
    assert left == pytest.approx(delta * (1 - part))
    assert exact_delta(delta, epsilon, 0.0) == delta


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(InvalidPrivacy, match=r"\(0, 1\]"):
        sampled_gaussian(10, 10, rate)
    with pytest.raises(InvalidPrivacy, match=r"\(0, 1\]"):
        calibrate(1.0, 1e-5, 10, rate, 10)


@pytest.mark.parametrize(("sensitivity_squared", "variance"), [(0, 1), (1, 0), (-1, 1), (1, -1), (1.5, 1), (1, 2.5), (True, 1)])
def test_a_sensitivity_or_variance_off_the_grid_is_refused(sensitivity_squared: int, variance: int) -> None:
    with pytest.raises(InvalidPrivacy, match="whole number"):
        sampled_gaussian(sensitivity_squared, variance, 0.5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    for convert in (lambda: epsilon_of(1, 2, delta), lambda: allowance(1.0, delta, 2), lambda: exact_delta(delta, 1.0, 1e-30)):
        with pytest.raises(InvalidPrivacy, match="0 < delta < 1"):
            convert()


@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf, 1e7])
def test_an_epsilon_outside_its_range_is_refused(epsilon: float) -> None:
    with pytest.raises(InvalidPrivacy, match="accepted: 0 to"):
        allowance(epsilon, 1e-5, 2)


@pytest.mark.parametrize("order", [0, 1, 65, 513, -2])
def test_an_order_that_is_not_accounted_is_refused(order: int) -> None:
    for use in (lambda: epsilon_of(1, order, 1e-5), lambda: RenyiCost.zero().at(order), lambda: evaluation_variance(1, order, 1)):
        with pytest.raises(InvalidPrivacy, match="accepted: 2 to 64, 80"):
            use()


@pytest.mark.parametrize("nanos", [[], [0] * (len(ORDERS) - 1), [-1] * len(ORDERS), [0.5] * len(ORDERS), [True] * len(ORDERS)])
def test_a_cost_that_is_not_one_whole_number_an_order_is_refused(nanos: list[int]) -> None:
    with pytest.raises(InvalidPrivacy, match="whole numbers"):
        RenyiCost.from_list(nanos)


def test_a_cost_never_goes_below_zero() -> None:
    one = sampled_gaussian(1, 1, 1.0)
    with pytest.raises(InvalidPrivacy):
        one - one * 2
    with pytest.raises(InvalidPrivacy):
        one * -1


def test_an_impossible_plan_is_told_what_would_be_accepted() -> None:
    with pytest.raises(InvalidPrivacy, match="too small for delta") as small:
        calibrate(0.001, 1e-5, 100, 0.1, 10)
    least = small.value.facts["accepted"]
    assert isinstance(least, float)
    assert calibrate(1.0001 * least, 1e-5, 100, 0.1, 1).variance > 0
    with pytest.raises(InvalidPrivacy, match="at most") as long:
        calibrate(0.1, 1e-5, 100, 0.1, 10**10)
    most = long.value.facts["accepted"]
    assert isinstance(most, int)
    assert calibrate(0.1, 1e-5, 100, 0.1, most).variance > 0
    with pytest.raises(InvalidPrivacy, match="too small"):
        frozen_order(0.001, 1e-5)


@pytest.mark.parametrize(("rounds", "share"), [(0, 1.0), (-1, 1.0), (1.5, 1.0), (1, 0.0), (1, 1.1), (1, math.nan)])
def test_rounds_and_share_out_of_range_are_refused(rounds: int, share: float) -> None:
    with pytest.raises(InvalidPrivacy, match="accepted"):
        calibrate(1.0, 1e-5, 100, 0.1, rounds, share=share)


def test_no_noise_at_all_spends_nothing_to_release_nothing() -> None:
    assert epsilon_of(RenyiCost.zero().at(2), 2, 0.5) == 0.0
    with pytest.raises(InvalidPrivacy):
        evaluation_variance(0, 2, 1)
    with pytest.raises(InvalidPrivacy, match="proves nothing"):
        exact_delta(1e-5, 1000.0, 1e-30)
