"""Distributed noise against divergences summed over the lattice: the masses of the sum of shares, convolved in forty digits.

`TABLE` has the cost of one release beside the exact divergence, in nats: never below, within 1 % for the discrete Gaussian, and for
Skellam where the whole variance is at least 64 and at least six times order · shift (its tails are heavier than a Gaussian's, and
a bound that is linear in the order does not see that they tell less at high orders).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.special import ive

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import NANO, ORDERS, Calibration, best_order, calibrate, epsilon_of
from qedge.privacy.distributed import DistributedNoise, _gaussian_spread, _skellam_curvature, calibrate_shares, noise_reach, noise_tail
from qedge.privacy.mechanisms import MAX_VARIANCE, NoiseKind, SystemNoise, noise_of, sample_share

KINDS: tuple[NoiseKind, ...] = ("discrete-gaussian", "skellam")
each_kind = pytest.mark.parametrize("kind", KINDS)
kinds = st.sampled_from(KINDS)
mp.dps = 40
_FARTHEST = 18  # order · shift of any case below

# kind, honest, variance of a share, shift (its square is the sensitivity), order, ours, exact
TABLE = [
    ("discrete-gaussian", 2, 4, 1, 2, 0.125, 0.125),
    ("discrete-gaussian", 5, 4, 1, 16, 0.4, 0.4),
    ("discrete-gaussian", 16, 4, 4, 3, 0.375, 0.375),
    ("discrete-gaussian", 3, 30, 2, 8, 0.177778, 0.177778),
    ("discrete-gaussian", 7, 9, 9, 2, 1.285714, 1.285714),
    ("skellam", 16, 4, 1, 2, 0.015750, 0.015623),
    ("skellam", 16, 4, 1, 5, 0.039374, 0.039017),
    ("skellam", 3, 30, 1, 12, 0.067043, 0.066405),
    ("skellam", 3, 30, 2, 2, 0.044695, 0.044433),
    ("skellam", 3, 30, 4, 3, 0.268172, 0.265865),
    ("skellam", 5, 25, 9, 2, 0.650621, 0.646097),
]
HARSH = [
    (kind, honest, variance, shift, order)
    for kind in KINDS
    for honest, variance in ((1, 4), (2, 4), (3, 5), (8, 4))
    for shift, order in ((1, 2), (1, 5), (1, 18), (2, 2), (2, 8), (3, 6), (9, 2))
]


@cache
def sum_masses(kind: NoiseKind, shares: int, variance: int, reach: int) -> np.ndarray:
    """P(S = x) at x = -reach … reach of the sum S of so many shares, each step over the same range."""
    if shares == 1:
        half = [share_mass(kind, variance, k) for k in range(reach + 1)]
        masses = np.array([*half[:0:-1], *half], object)
        return masses / masses.sum()
    both = (sum_masses(kind, shares // 2, variance, reach), sum_masses(kind, shares - shares // 2, variance, reach))
    return np.convolve(*both)[reach:-reach]


def share_mass(kind: NoiseKind, variance: int, k: int) -> mpf:
    return mp.besseli(k, variance) * mp.exp(-variance) if kind == "skellam" else mp.exp(-mpf(k * k) / (2 * variance))


def whole_masses(kind: NoiseKind, honest: int, variance: int, farthest: int = _FARTHEST) -> np.ndarray:
    """As far as the largest summand of any divergence lies, and eleven standard deviations on; a third more while convolving."""
    reach = farthest + math.ceil(11 * (honest * variance) ** 0.5)
    wide = reach + reach // 3
    return sum_masses(kind, honest, variance, wide)[wide - reach : wide + reach + 1]


@cache
def exact_divergence(kind: NoiseKind, honest: int, variance: int, shift: int, order: int, farthest: int = _FARTHEST) -> mpf:
    """D_α(S + shift ‖ S), summed point by point; the other way round it is the same, by reflection."""
    assert order * shift <= farthest
    masses = whole_masses(kind, honest, variance, farthest)
    summands = (after**order * before ** (1 - order) for after, before in zip(masses[:-shift], masses[shift:], strict=True))
    return mp.log(mp.fsum(summands)) / (order - 1)


def ours(kind: NoiseKind, honest: int, variance: int, sensitivity_squared: int, order: int, dimensions: int = 1) -> mpf:
    return mpf(DistributedNoise(kind, variance, honest, dimensions, sensitivity_squared).cost().at(order)) / NANO


@pytest.mark.parametrize(("kind", "honest", "variance", "shift", "order", "cost", "divergence"), TABLE)
def test_the_table_holds_and_costs_are_within_a_hundredth_above(
    kind: NoiseKind, honest: int, variance: int, shift: int, order: int, cost: float, divergence: float
) -> None:
    exact, given_cost = exact_divergence(kind, honest, variance, shift, order), ours(kind, honest, variance, shift**2, order)
    assert (round(float(given_cost), 6), round(float(exact), 6)) == (cost, divergence)
    assert exact <= given_cost <= exact * mpf("1.01")


@pytest.mark.parametrize(("kind", "honest", "variance", "shift", "order"), HARSH)
def test_a_cost_is_never_below_the_divergence_however_little_the_noise(
    kind: NoiseKind, honest: int, variance: int, shift: int, order: int
) -> None:
    exact, cost = exact_divergence(kind, honest, variance, shift, order), ours(kind, honest, variance, shift**2, order)
    assert exact <= cost
    if kind == "discrete-gaussian":
        assert cost <= exact + mpf("1.1") / NANO


@each_kind
@pytest.mark.parametrize("shift", [(1, -2), (3, 0), (2, 2), (-1, 1)])
def test_a_vector_costs_by_its_norm_in_whatever_direction(kind: NoiseKind, shift: tuple[int, int]) -> None:
    """Summed over a box of Z², both ways."""
    order, masses = 3, whole_masses(kind, 2, 4)
    middle = len(masses) // 2
    inside = range(-middle + 3, middle - 2)
    there = back = mpf(0)
    for x, y in product(inside, inside):
        at, moved = masses[middle + x] * masses[middle + y], masses[middle + x - shift[0]] * masses[middle + y - shift[1]]
        there += moved**order * at ** (1 - order)
        back += at**order * moved ** (1 - order)
    exact = mp.log(max(there, back)) / (order - 1)
    assert exact <= ours(kind, 2, 4, shift[0] ** 2 + shift[1] ** 2, order, dimensions=2)


@pytest.mark.parametrize(("variance", "shares"), [(1, 1), (1, 2), (1, 3), (1, 7), (2, 2), (2, 5), (4, 2)])
def test_a_sum_of_discrete_gaussians_is_within_its_factor_of_one(variance: int, shares: int) -> None:
    """Variances below the least share show the factor at all: it is 4e-4 at a variance of 1 and 3e-17 at 4."""
    summed = whole_masses("discrete-gaussian", shares, variance)
    middle = len(summed) // 2
    one = [mp.exp(-mpf((k - middle) ** 2) / (2 * shares * variance)) for k in range(len(summed))]
    ratios = [mass / gaussian for mass, gaussian in zip(summed, one, strict=True)]
    widest = mp.log(max(ratios) / min(ratios))
    assert widest <= mpf(_gaussian_spread(variance, shares)) + mpf(10) ** -30
    assert mpf(_gaussian_spread(variance, shares)) <= 1.01 * widest + mpf(10) ** -30 or shares > 2


def test_many_shares_widen_by_no_less_than_each_by_itself() -> None:
    terms = [_gaussian_spread(1, shares + 1) - _gaussian_spread(1, shares) for shares in (1, 2, 40, 63, 64, 65, 200)]
    assert terms == sorted(terms, reverse=True)
    exact = mp.fsum(2 * mp.atanh(2 * mp.nsum(lambda n, k=k: mp.exp(-2 * mp.pi**2 * n * n * k / (k + 1)), [1, 5])) for k in range(1, 200))
    assert exact <= _gaussian_spread(1, 200) <= 1.01 * exact


@given(st.one_of(st.integers(4, 60), st.integers(4, 3000)))
@settings(max_examples=60, deadline=None)
def test_the_skellam_curvature_is_met_from_above(variance: int) -> None:
    exact = mp.log(mp.besseli(0, variance) / mp.besseli(1, variance))
    bound = mpf(_skellam_curvature(variance).numerator) / _skellam_curvature(variance).denominator
    assert exact <= bound <= exact * (1 + mpf("0.004"))


@pytest.mark.parametrize("variance", [4, 9, 50, 400])
def test_no_skellam_mass_bends_more_than_the_middle_ones(variance: int) -> None:
    """The lemma of the proof: second differences of -log P are largest at zero."""
    logs = [-mp.log(mp.besseli(k, variance)) for k in range(8 * math.isqrt(variance))]
    bends = [2 * (logs[1] - logs[0]), *(logs[k + 1] + logs[k - 1] - 2 * logs[k] for k in range(1, len(logs) - 1))]
    assert max(bends) == bends[0] <= 2 * float(_skellam_curvature(variance))


@given(st.integers(1, 200), st.integers(4, 10**6), st.integers(1, 10**6), st.integers(1, 10**8), st.sampled_from(ORDERS))
def test_costs_are_no_larger_than_the_published_bounds(
    honest: int, variance: int, dimensions: int, sensitivity_squared: int, order: int
) -> None:
    """Kairouz et al. 2021, Proposition 14 (its first bound); Agarwal et al. 2021, in d dimensions, the L1 norm as small as the L2 norm."""
    whole = mpf(honest * variance)
    gaussian = mpf(order * sensitivity_squared) / (2 * whole)
    tau = 10 * mp.fsum(mp.exp(-2 * mp.pi**2 * variance * k / mpf(k + 1)) for k in range(1, honest))
    rounding = (1 + mpf(10) ** -11) * (1 + mpf("1e-3") / whole)
    assert ours("discrete-gaussian", honest, variance, sensitivity_squared, order, dimensions) <= gaussian + tau * dimensions + 1.1e-9
    skellam = gaussian + ((2 * order - 1) * sensitivity_squared + 6 * mp.sqrt(sensitivity_squared)) / (4 * whole**2)
    assert ours("skellam", honest, variance, sensitivity_squared, order) <= skellam * rounding + 1.1e-9


@given(kinds, st.integers(1, 500), st.integers(4, 10**9), st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_noise_or_more_honest_clients_never_cost_more(
    kind: NoiseKind, honest: int, variance: int, sensitivity_squared: int, more: int
) -> None:
    cost = DistributedNoise(kind, variance, honest, 10, sensitivity_squared).cost()
    louder = DistributedNoise(kind, variance + more, honest, 10, sensitivity_squared).cost()
    joined = DistributedNoise(kind, variance, honest + more, 10, sensitivity_squared).cost()
    for other in (louder, joined):
        assert all(less <= nanos * (1 + 1e-11) + 1 for less, nanos in zip(other.nanos, cost.nanos, strict=True))


def exact_delta_at(kind: NoiseKind, honest: int, variance: int, shift: int, epsilon: float) -> mpf:
    """The least delta of one release at epsilon: Σ (P(x-Δ) - e^ε P(x))_+."""
    masses = whole_masses(kind, honest, variance)
    pairs = zip(masses[:-shift], masses[shift:], strict=True)
    return mp.fsum(max(mpf(0), after - mp.exp(epsilon) * before) for after, before in pairs)


@each_kind
@pytest.mark.parametrize(("honest", "variance", "shift"), [(2, 4, 1), (3, 5, 3), (8, 4, 6)])
def test_the_epsilon_of_a_release_covers_the_hockey_stick_divergence(kind: NoiseKind, honest: int, variance: int, shift: int) -> None:
    for delta in (1e-3, 1e-6):
        _, epsilon = best_order(DistributedNoise(kind, variance, honest, 1, shift**2).cost(), delta)
        assert exact_delta_at(kind, honest, variance, shift, epsilon) <= delta


@each_kind
@pytest.mark.parametrize(("epsilon", "shift", "honest", "rounds"), [(3.0, 2, 4, 10), (1.0, 1, 6, 20), (8.0, 3, 3, 40)])
def test_the_epsilon_of_a_plan_is_within_a_hundredth_of_an_independent_one_and_never_below(
    kind: NoiseKind, epsilon: float, shift: int, honest: int, rounds: int
) -> None:
    """Exact divergences at the orders around the best, composed and converted as Canonne et al. (2020), Proposition 12, in forty digits."""
    delta = 1e-3
    fit = calibrate_shares(kind, epsilon, delta, shift**2, 1, honest, rounds)
    chosen, claimed = best_order(fit.cost_round * rounds, delta)
    farthest = (chosen + 1) * shift
    exact = min(
        rounds * exact_divergence(kind, honest, fit.variance, shift, order, farthest)
        + mp.log(mpf(order - 1) / order)
        - (mp.log(mpf(delta)) + mp.log(order)) / (order - 1)
        for order in range(max(2, chosen - 1), chosen + 2)
    )
    assert exact <= claimed <= 1.01 * exact
    assert claimed <= epsilon


@given(kinds, st.floats(0.5, 20), st.integers(1, 10**9), st.integers(1, 10**6), st.integers(1, 300), st.integers(1, 500))
@settings(max_examples=100, deadline=None)
def test_a_calibrated_share_is_the_least_that_fits(
    kind: NoiseKind, epsilon: float, sensitivity_squared: int, dimensions: int, honest: int, rounds: int
) -> None:
    delta = 1e-5
    fit = calibrate_shares(kind, epsilon, delta, sensitivity_squared, dimensions, honest, rounds)

    def spent(variance: int) -> float:
        cost = DistributedNoise(kind, variance, honest, dimensions, sensitivity_squared).cost() * rounds
        return best_order(cost, delta)[1]

    assert epsilon_of(fit.cost_round.at(fit.order) * rounds, fit.order, delta) <= epsilon
    assert fit.variance == 4 or spent(fit.variance - 1) > epsilon
    assert fit.cost_round == DistributedNoise(kind, fit.variance, honest, dimensions, sensitivity_squared).cost()
    assert fit.noise_multiplier == math.sqrt(honest * fit.variance / sensitivity_squared)


@given(kinds, st.floats(0.5, 20), st.integers(10**5, 10**9), st.integers(1, 300), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_shares_add_up_to_the_central_noise(kind: NoiseKind, epsilon: float, sensitivity_squared: int, honest: int, rounds: int) -> None:
    """On a grid as fine as training's: one grid unit squared a client for rounding up, and a thousandth for Skellam's curvature."""
    central = calibrate(epsilon, 1e-5, sensitivity_squared, 1.0, rounds)
    try:
        fit = calibrate_shares(kind, epsilon, 1e-5, sensitivity_squared, 1000, honest, rounds)
    except InvalidPrivacy:
        assert 1.001 * central.variance + honest > honest * MAX_VARIANCE
        return
    assert central.variance <= honest * fit.variance <= max(4 * honest, 1.001 * central.variance + honest)


def test_a_budget_that_is_open_keeps_its_order_and_a_part_of_it_needs_more_noise() -> None:
    def fit(order: int | None, share: float) -> Calibration:
        return calibrate_shares("skellam", 4.0, 1e-4, 10**6, 3000, 20, 30, order=order, share=share)

    free, frozen, part = fit(None, 1.0), fit(40, 1.0), fit(None, 0.5)
    assert frozen.order == 40 != free.order
    assert frozen.variance > free.variance
    assert part.variance > free.variance


@each_kind
def test_a_share_is_never_below_two_grid_units_of_standard_deviation(kind: NoiseKind) -> None:
    assert calibrate_shares(kind, 20.0, 1e-3, 1, 5, 1000, 1).variance == 4


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"kind": "laplace"}, "'discrete-gaussian' or 'skellam'"),
        ({"epsilon": 1e-6}, "too small"),
        ({"epsilon": -1.0}, "epsilon is"),
        ({"delta": 1.0}, "delta is"),
        ({"sensitivity_squared": 0}, "sensitivity_squared is 0"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"honest": 0}, "shares is 0"),
        ({"honest": 2.0}, "shares is 2.0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": 10**12}, "at most"),
        ({"share": 0.0}, "share of the budget"),
        ({"order": 65}, "order 65"),
        ({"sensitivity_squared": 10**16}, "more honest clients"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changed: dict[str, object], match: str) -> None:
    plan = {
        "kind": "skellam",
        "epsilon": 4.0,
        "delta": 1e-4,
        "sensitivity_squared": 100,
        "dimensions": 3,
        "honest": 5,
        "rounds": 7,
        "order": None,
        "share": 1.0,
    }
    calibrate_shares(**plan)
    with pytest.raises(InvalidPrivacy, match=match):
        calibrate_shares(**(plan | changed))


@pytest.mark.parametrize("variance", [3, 0, -4, 4.0, True, MAX_VARIANCE + 1])
def test_a_share_off_the_grid_or_too_small_is_refused(variance: int) -> None:
    with pytest.raises(InvalidPrivacy, match="variance"):
        DistributedNoise("skellam", variance, 5, 3, 100)


@each_kind
def test_every_coordinate_of_every_honest_share_counts_as_sampled_inexactly(kind: NoiseKind) -> None:
    noise = DistributedNoise(kind, 400, 6, 1000, 50)
    assert noise.total_variation == pytest.approx(6000 * noise_of(kind, 400).total_variation)


@each_kind
@pytest.mark.parametrize(("variance", "shares"), [(1, 1), (4, 1), (4, 8), (9, 3)])
def test_a_tail_is_bounded_from_above_and_not_wildly(kind: NoiseKind, variance: int, shares: int) -> None:
    masses = whole_masses(kind, shares, variance)
    middle = len(masses) // 2
    for magnitude in range(1 + int(9 * (variance * shares) ** 0.5)):
        exact = 2 * mp.fsum(masses[middle + magnitude + 1 :])
        assert exact <= noise_tail(kind, variance, shares, 1, magnitude) <= 40 * exact + mpf(10) ** -22
        assert noise_tail(kind, variance, shares, 7, magnitude) <= 7 * noise_tail(kind, variance, shares, 1, magnitude) * (1 + 1e-12)


@given(kinds, st.integers(1, MAX_VARIANCE), st.integers(1, 10**4), st.integers(1, 10**7), st.floats(1e-15, 0.5))
def test_the_reach_is_the_least_magnitude_that_the_tail_allows(
    kind: NoiseKind, variance: int, shares: int, dimensions: int, chance: float
) -> None:
    reach = noise_reach(kind, variance, shares, dimensions, chance)
    assert noise_tail(kind, variance, shares, dimensions, reach) <= chance
    assert reach == 0 or noise_tail(kind, variance, shares, dimensions, reach - 1) > chance


def test_a_wide_skellam_reaches_as_far_as_the_gaussian_and_a_narrow_one_farther() -> None:
    assert noise_reach("skellam", 10**8, 50, 10**5, 1e-9) == pytest.approx(noise_reach("discrete-gaussian", 10**8, 50, 10**5, 1e-9), abs=1)
    assert noise_reach("skellam", 4, 1, 10**5, 1e-9) > noise_reach("discrete-gaussian", 4, 1, 10**5, 1e-9)


@each_kind
def test_sums_of_shares_stay_within_the_reach_and_have_the_summed_variance(kind: NoiseKind) -> None:
    """False alarm: 1e-9 by the bound itself; six standard deviations of a sample variance, 2e-9."""
    shares, variance, size = 12, 50, 50_000
    total = sum(sample_share(kind, variance, size, SystemNoise()) for _ in range(shares))
    assert abs(total).max() <= noise_reach(kind, variance, shares, size, 1e-9)
    assert abs(total.var() / (shares * variance) - 1) < 6 * (2 / size) ** 0.5 * 1.01


def test_skellam_shares_sum_to_the_skellam_distribution_of_the_summed_variance() -> None:
    """Largest distance of cumulative masses (Kolmogorov-Smirnov, conservative on integers): 2·exp(-2·n·d²) = 1e-7."""
    shares, variance, size = 5, 4, 100_000
    total = np.sort(sum(sample_share("skellam", variance, size, SystemNoise()) for _ in range(shares)))
    support = np.arange(-60, 61)
    wanted = np.cumsum(ive(np.abs(support), shares * variance))
    seen = np.searchsorted(total, support, side="right") / size
    assert np.abs(seen - wanted).max() < math.sqrt(math.log(2e7) / (2 * size))


@pytest.mark.parametrize("chance", [0.0, 1.0, -1.0, float("nan")])
def test_a_chance_that_is_none_is_refused(chance: float) -> None:
    with pytest.raises(InvalidPrivacy, match="strictly between 0 and 1"):
        noise_reach("skellam", 4, 5, 3, chance)


@pytest.mark.parametrize("magnitude", [-1, 1.0])
def test_a_magnitude_that_is_none_is_refused(magnitude: int) -> None:
    with pytest.raises(InvalidPrivacy, match="magnitude"):
        noise_tail("skellam", 4, 5, 3, magnitude)
