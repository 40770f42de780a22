"""Banded strategies: sensitivities by brute force, decoding to the last bit, errors by dense algebra and by published figures."""

from __future__ import annotations

import math
from collections import deque
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_triangular, toeplitz
from scipy.optimize import minimize

from qedge.errors import Diverged, InvalidPrivacy, ModelError
from qedge.privacy.accounting import sampled_gaussian
from qedge.privacy.banded import IDENTITY, BandedStrategy, _error, _optimum, design, error, mix, sensitivity_squared, unmix
from qedge.privacy.mechanisms import DiscreteGaussian, SeededNoise

# Landau's constants G_0 … G_5, numerators and denominators: OEIS A277233 and A056982.
LANDAU = ((1, 1), (5, 4), (89, 64), (381, 256), (25609, 16384), (106405, 65536))
SETTINGS = [(1, 1), (7, 3), (40, 1), (40, 4), (40, 40), (100, 10), (200, 20), (300, 64)]

coefficients = st.builds(lambda first, rest: (first, *rest), st.integers(1, 30), st.lists(st.integers(-30, 30), max_size=4))
strategies = coefficients.map(BandedStrategy)


def dense(strategy: BandedStrategy | np.ndarray, rounds: int) -> np.ndarray:
    """M, [rounds, rounds]."""
    given_column = strategy.coefficients if isinstance(strategy, BandedStrategy) else strategy
    column = np.zeros(rounds, dtype=np.asarray(given_column).dtype)
    column[: len(given_column)] = given_column[:rounds]
    return np.tril(toeplitz(column))


def square_root(bands: int, scale: int) -> BandedStrategy:
    """The first terms of (1-x)^(-1/2), times the scale."""
    return BandedStrategy(tuple(round(scale * math.comb(2 * j, j) / 4**j) for j in range(bands)))


def patterns(rounds: int, separation: int) -> list[tuple[int, ...]]:
    """Every set of rounds that are at least the separation apart."""
    subsets = (chosen for size in range(1, rounds + 1) for chosen in combinations(range(rounds), size))
    return [chosen for chosen in subsets if all(b - a >= separation for a, b in pairwise(chosen))]


@st.composite
def settled(draw: st.DrawFn, most: int = 9) -> tuple[BandedStrategy, int, int]:
    """A strategy, rounds, and a separation that the strategy may be used with."""
    strategy = draw(strategies)
    return strategy, draw(st.integers(1, most)), draw(st.integers(strategy.bands, 12))


@given(settled())
@settings(max_examples=60)
def test_the_sensitivity_is_the_largest_over_every_set_of_rounds_that_far_apart(setting: tuple[BandedStrategy, int, int]) -> None:
    strategy, rounds, separation = setting
    squares = (dense(strategy, rounds) ** 2).sum(axis=0)
    assert sensitivity_squared(strategy, rounds, separation) == max(int(squares[list(p)].sum()) for p in patterns(rounds, separation))


@given(st.data(), settled(most=8), st.integers(1, 3))
@settings(max_examples=200)
def test_no_vectors_of_a_client_move_the_release_further(
    data: st.DataObject, setting: tuple[BandedStrategy, int, int], params: int
) -> None:
    strategy, rounds, separation = setting
    pattern = data.draw(st.sampled_from(patterns(rounds, separation)))
    moved = np.zeros((rounds, params), np.int64)
    for t in pattern:
        moved[t] = data.draw(st.lists(st.integers(-9, 9), min_size=params, max_size=params))
    bound = int((moved**2).sum(axis=1).max())
    assert ((dense(strategy, rounds) @ moved) ** 2).sum() <= bound * sensitivity_squared(strategy, rounds, separation)


def test_a_client_in_every_round_it_may_be_in_moves_the_release_as_far_as_is_charged() -> None:
    strategy = design(rounds=23, separation=5)
    moved = np.zeros((23, 1), np.int64)
    moved[::5] = 7
    assert ((dense(strategy, 23) @ moved) ** 2).sum() == 49 * sensitivity_squared(strategy, 23, 5)


def test_more_bands_than_the_separation_are_refused_because_the_bound_would_not_hold() -> None:
    strategy = BandedStrategy((2, 1, 1))
    with pytest.raises(InvalidPrivacy, match="accepted: at most 2"):
        sensitivity_squared(strategy, rounds=5, separation=2)
    with pytest.raises(InvalidPrivacy):
        error(strategy, rounds=5, separation=2)
    matrix = dense(strategy, 5)
    together = ((matrix[:, 0] + matrix[:, 2] + matrix[:, 4]) ** 2).sum()
    assert together > (matrix[:, [0, 2, 4]] ** 2).sum()  # what the formula would have charged


@given(settled(most=40))
def test_a_run_that_stops_early_costs_no_more_than_the_whole(setting: tuple[BandedStrategy, int, int]) -> None:
    strategy, rounds, separation = setting
    costs = [sensitivity_squared(strategy, n, separation) for n in range(1, rounds + 1)]
    assert costs == sorted(costs)
    assert costs[0] == strategy.coefficients[0] ** 2


@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3), st.integers(2, 5), st.integers(-6, 6), st.booleans())
@settings(max_examples=100)
def test_a_client_that_reacts_to_releases_is_covered_by_one_gaussian_event(
    first: int, high: int, low: int, order: int, threshold: int, swapped: bool
) -> None:
    """Rounds 0 and 2 of three, mixed by (2, 1): the second vector depends on the first release. Exact sums over the lattice."""
    strategy, variance = BandedStrategy((2, 1)), 20
    lattice = np.arange(-200, 201)
    log_normaliser = math.log(np.exp(-(lattice**2) / (2 * variance)).sum())

    def log_terms(shift: int) -> np.ndarray:
        """log(P^order · Q^(1-order)) at each point, for P shifted and Q not, or the other way round."""
        upper, lower = (lattice, lattice - shift) if swapped else (lattice - shift, lattice)
        return -(order * upper**2 + (1 - order) * lower**2) / (2 * variance) - log_normaliser

    def log_moment(shift: int) -> float:
        return math.log(np.exp(log_terms(shift)).sum())

    later = np.where(lattice >= threshold, log_moment(2 * high), log_moment(2 * low))
    divergence = (math.log(np.exp(log_terms(2 * first) + later).sum()) + log_moment(first)) / (order - 1)
    bound = max(first**2, high**2, low**2, 1)
    charged = sampled_gaussian(bound * sensitivity_squared(strategy, 3, 2), variance, 1.0).at(order) / 1e9
    assert divergence <= charged + 1e-9
    if abs(first) == abs(high) == abs(low) > 0:  # and nothing smaller would do
        assert divergence == pytest.approx(charged, abs=1e-8)


def run(strategy: BandedStrategy, sums: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Every round mixed, noised and decoded, with no more memory than the bands ask for: [rounds, params]."""
    recent: deque[np.ndarray] = deque(maxlen=strategy.bands - 1)
    estimates: deque[np.ndarray] = deque(maxlen=strategy.bands - 1)
    decoded = []
    for current, drawn in zip(sums, noise, strict=True):
        estimate = unmix(strategy, estimates, mix(strategy, recent, current) + drawn)
        recent.append(current)
        estimates.append(estimate)
        decoded.append(estimate)
    return np.array(decoded)


@given(strategies, st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_release_is_the_matrix_product_and_needs_only_the_last_rounds(
    strategy: BandedStrategy, rounds: int, params: int, seed: int
) -> None:
    sums = np.random.default_rng(seed).integers(-(2**40), 2**40, (rounds, params))
    product = dense(strategy, rounds) @ sums
    for t in range(rounds):
        assert np.array_equal(mix(strategy, list(sums[:t]), sums[t]), product[t])
        assert np.array_equal(mix(strategy, list(sums[max(0, t - strategy.bands + 1) : t]), sums[t]), product[t])


@pytest.mark.parametrize(("rounds", "separation"), SETTINGS)
def test_without_noise_decoding_gives_the_sums_back_to_the_last_bit(rounds: int, separation: int) -> None:
    sums = np.random.default_rng(rounds).integers(-(2**30), 2**30, (rounds, 5))
    assert np.array_equal(run(design(rounds, separation), sums, np.zeros_like(sums)), sums)


@pytest.mark.parametrize(("rounds", "separation"), SETTINGS)
def test_what_decoding_adds_is_the_inverse_matrix_times_the_noise(rounds: int, separation: int) -> None:
    strategy, generator = design(rounds, separation), np.random.default_rng(rounds)
    sums, noise = (generator.integers(-(2**20), 2**20, (rounds, 5)) for _ in range(2))
    expected = solve_triangular(dense(strategy, rounds), noise, lower=True)
    assert np.allclose(run(strategy, sums, noise) - sums, expected, rtol=0, atol=1e-6)


def test_the_noise_of_a_run_has_the_error_that_is_stated() -> None:
    """20,000 independent coordinates: the mean has a relative deviation of at most 1 %; false alarm below 1e-6 at 5.5 %, none as seeded."""
    rounds, separation, params, variance = 30, 5, 20_000, 900
    strategy = design(rounds, separation)
    noise = DiscreteGaussian(variance).sample(rounds * params, SeededNoise(1)).reshape(rounds, params)
    off = np.cumsum(run(strategy, np.zeros_like(noise), noise), axis=0)
    multiplier = math.sqrt(variance / sensitivity_squared(strategy, rounds, separation))
    assert (off**2).mean() == pytest.approx((multiplier * error(strategy, rounds, separation)) ** 2, rel=0.055)


@given(settled(most=30))
def test_the_error_is_that_of_the_dense_matrices(setting: tuple[BandedStrategy, int, int]) -> None:
    strategy, rounds, separation = setting
    tame = BandedStrategy((sum(map(abs, strategy.coefficients)), *strategy.coefficients[1:]))  # diagonally dominant: well conditioned
    decoder = np.tri(rounds) @ np.linalg.inv(dense(tame, rounds))
    expected = math.sqrt(sensitivity_squared(tame, rounds, separation) * (decoder**2).sum() / rounds)
    assert error(tame, rounds, separation) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 500), st.integers(1, 500))
def test_independent_noise_adds_up_over_rounds_and_participations(rounds: int, separation: int) -> None:
    expected = math.sqrt(-(-rounds // separation) * (rounds + 1) / 2)
    assert error(IDENTITY, rounds, separation) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bands", range(1, 7))
def test_the_square_roots_sensitivity_is_landaus_constant(bands: int) -> None:
    """Σ_(k<n) (binom(2k,k)/4^k)², the error of Fichtenberger, Henzinger, Upadhyay's factorisation, exact where 4^5 clears the fractions."""
    numerator, denominator = LANDAU[bands - 1]
    strategy = square_root(bands, scale=1024)
    assert sensitivity_squared(strategy, bands, bands) * denominator == 1024**2 * numerator
    mean = sum(n / d for n, d in LANDAU[:bands]) / bands
    assert error(strategy, bands, bands) == pytest.approx(math.sqrt(numerator / denominator * mean), rel=1e-12)


def test_the_square_roots_sensitivity_grows_as_published() -> None:
    """G_(n-1) = ln(n)/π + 1.0662758532 + O(1/n) (Watson 1930, from Landau 1913)."""
    rounds, scale = 4000, 2**30
    grown = sensitivity_squared(square_root(500, scale), 500, 500) / scale**2
    assert grown == pytest.approx(math.log(500) / math.pi + 1.0662758532 - 1 / (4 * math.pi * 500), abs=1e-6)
    assert grown < sensitivity_squared(design(rounds, rounds), rounds, rounds)


def test_the_square_roots_decoder_has_the_published_coefficients() -> None:
    """1, -1/2, -1/8, -1/16, -5/128 (Kalinin, McKenna, Upadhyay, Lampert, "Back to Square Roots", 2025): decoding one unit of noise."""
    strategy = square_root(5, scale=128)
    impulse = np.zeros((5, 1), np.int64)
    impulse[0] = 128
    assert run(strategy, np.zeros_like(impulse), impulse).ravel().tolist() == [1, -1 / 2, -1 / 8, -1 / 16, -5 / 128]


def nuclear_norm(rounds: int) -> float:
    """‖A‖_* of the matrix of all prefix sums: Σ_j 1/(2 sin((2j-1)π/(4n+2))) (Henzinger, Upadhyay, Upadhyay, SODA 2023)."""
    return float((1 / (2 * np.sin((2 * np.arange(1, rounds + 1) - 1) * math.pi / (4 * rounds + 2)))).sum())


def test_the_lower_bound_is_the_published_one() -> None:
    """‖A‖_*/n = ln(n)/π + 0.701 and no less (Henzinger, Kalinin, Upadhyay, "Normalized Square Root", 2025): all digits of it."""
    assert nuclear_norm(50) == pytest.approx(np.linalg.svd(np.tri(50), compute_uv=False).sum(), rel=1e-12)
    assert math.floor(1000 * (nuclear_norm(10**6) / 10**6 - math.log(10**6) / math.pi)) == 701


@pytest.mark.parametrize(("rounds", "separation"), SETTINGS)
def test_no_design_beats_the_published_lower_bound(rounds: int, separation: int) -> None:
    """error >= ‖A‖_*/√(nb): the b cyclic patterns share out the columns of C, so that the worst of them has at least ‖C‖²/b."""
    bound = nuclear_norm(rounds) / math.sqrt(rounds * min(separation, rounds))
    assert bound <= error(design(rounds, separation), rounds, separation) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("rounds", "separation", "theirs"),
    [
        (16, 4, 3.875060549907075),
        (64, 64, 2.1790434328611643),
        (100, 10, 9.317657376495054),
        (256, 16, 14.55029529712299),
        (500, 50, 10.882395314522991),
        (1000, 1000, 3.0490485859663936),
    ],
)
def test_a_design_has_the_error_of_jax_privacys_within_what_whole_coefficients_cost(rounds: int, separation: int, theirs: float) -> None:
    """The root of mean(`per_query_error`) times `minsep_sensitivity_squared` of jax-privacy 2.0.0's `optimize_banded_toeplitz`, 64 bits."""
    ours = error(design(rounds, separation), rounds, separation)
    assert theirs * (1 - 1e-6) <= ours <= theirs * (1 + 1e-3)


def test_a_design_for_one_participation_comes_within_a_twentieth_of_the_lower_bound() -> None:
    assert nuclear_norm(2000) / 2000 > 0.95 * error(design(2000, 2000), 2000, 2000)


@pytest.mark.parametrize(("rounds", "separation"), SETTINGS)
def test_whole_coefficients_cost_less_than_a_thousandth_of_the_error(rounds: int, separation: int) -> None:
    best = _error(_optimum(rounds, separation, min(rounds, separation)), rounds, separation)
    assert error(design(rounds, separation), rounds, separation) < 1.001 * best * (1 + 1e-12)


@pytest.mark.parametrize(("rounds", "separation"), [(9, 3), (12, 4), (10, 10)])
def test_the_search_finds_what_a_dense_search_without_slopes_finds(rounds: int, separation: int) -> None:
    pattern = np.arange(0, rounds, separation)

    def dense_error(rest: np.ndarray) -> float:
        matrix = dense(np.concatenate([[1.0], rest]), rounds)
        return math.sqrt((matrix[:, pattern] ** 2).sum() * ((np.tri(rounds) @ np.linalg.inv(matrix)) ** 2).sum() / rounds)

    bands = min(rounds, separation)
    searched = minimize(dense_error, np.zeros(bands - 1), method="Powell", options={"xtol": 1e-6, "ftol": 1e-12, "maxfev": 20_000})
    assert _error(_optimum(rounds, separation, bands), rounds, separation) == pytest.approx(searched.fun, rel=1e-7)


@pytest.mark.parametrize(("rounds", "separation"), [(60, 12), (200, 8), (12, 12)])
def test_more_bands_are_never_worse(rounds: int, separation: int) -> None:
    errors = [_error(_optimum(rounds, separation, bands), rounds, separation) for bands in range(1, separation + 1)]
    assert all(more <= fewer * (1 + 1e-9) for fewer, more in pairwise(errors))
    assert errors[0] == pytest.approx(error(IDENTITY, rounds, separation))


@pytest.mark.parametrize(("rounds", "separation"), [(100, 4), (100, 20), (2000, 50)])
def test_a_design_beats_the_square_root_and_independent_noise(rounds: int, separation: int) -> None:
    found = error(design(rounds, separation), rounds, separation)
    assert found < error(square_root(separation, 2**20), rounds, separation) < error(IDENTITY, rounds, separation)


def test_fewer_bands_are_kept_to_when_asked_for() -> None:
    assert design(100, 20, most_bands=5).bands <= 5
    assert design(100, 20, most_bands=1) == IDENTITY
    assert error(design(100, 20), 100, 20) < error(design(100, 20, most_bands=5), 100, 20) < error(IDENTITY, 100, 20)


@given(strategies.filter(lambda strategy: strategy.bands > 1), st.sampled_from([2**62, -(2**62), 2**63 - 1, -(2**63)]))
def test_a_mixture_that_could_leave_62_bits_is_refused_not_wrapped(strategy: BandedStrategy, huge: int) -> None:
    small, large = np.zeros(2, np.int64), np.array([0, huge])
    with pytest.raises(Diverged):
        mix(strategy, [small], large)
    if strategy.coefficients[1]:
        with pytest.raises(Diverged):
            mix(strategy, [large], small)


def test_the_largest_mixture_that_fits_is_exact() -> None:
    top = np.array([2**60 - 1, 1 - 2**60])
    assert mix(BandedStrategy((3, 1)), [top], top).tolist() == [4 * (2**60 - 1), -4 * (2**60 - 1)]
    with pytest.raises(Diverged):
        mix(BandedStrategy((3, 1)), [top + 1], top + 1)


def test_sums_that_are_not_whole_or_not_of_one_length_are_refused() -> None:
    strategy, sums = BandedStrategy((2, 1)), np.zeros(3, np.int64)
    for recent, current in (([], sums.astype(float)), ([sums.astype(float)], sums), ([sums[:2]], sums), ([], sums.reshape(1, 3))):
        with pytest.raises(ModelError):
            mix(strategy, recent, current)
    with pytest.raises(ModelError):
        unmix(strategy, [np.zeros(2)], sums)


@pytest.mark.parametrize("wrong", [(), (0,), (-1,), (1.0,), (1, 0.5), (True,), (1, 2**31)])
def test_what_is_no_invertible_whole_matrix_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(InvalidPrivacy):
        BandedStrategy(wrong)


@pytest.mark.parametrize(("rounds", "separation", "bands"), [(0, 1, None), (1, 0, None), (1.5, 1, None), (3, True, None), (3, 2, 0)])
def test_what_is_no_pattern_is_refused(rounds: int, separation: int, bands: int | None) -> None:
    with pytest.raises(InvalidPrivacy):
        design(rounds, separation, bands)
    if bands is None:
        with pytest.raises(InvalidPrivacy):
            error(IDENTITY, rounds, separation)
