"""The discrete Gaussian sampler against its mass function in sixty digits, and its ties, one by one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.stats import chi2, skellam

from qedge.errors import InvalidPrivacy
from qedge.privacy.mechanisms import (
    MAX_VARIANCE,
    DiscreteGaussian,
    NoiseSource,
    SeededNoise,
    Skellam,
    SystemNoise,
    cumulative_table,
    skellam_table,
)

VARIANCES = (1, 2, 10, 1000, 10**6 + 3)
mp.dps = 60


class Script:
    """Bytes written down beforehand, and how many were asked for."""

    for_tests = True

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    def bytes(self, n: int) -> bytes:
        self.asked.append(n)
        answer = self.answers.pop(0)
        assert len(answer) == n
        return answer


@cache
def entries(variance: int) -> list[int]:
    """The table as 128-bit integers."""
    high, low, _ = cumulative_table(variance)
    return [int(h) << 64 | int(lo) for h, lo in zip(high, low, strict=True)]


@cache
def exact_cumulative(variance: int) -> list[mpf]:
    """P(|X| <= k) for each entry of the table, the normaliser by Poisson summation: sqrt(2πσ²) Σ_n exp(-2π²σ²n²)."""
    normaliser = mp.sqrt(2 * mp.pi * variance) * (1 + 2 * mp.nsum(lambda n: mp.exp(-2 * mp.pi**2 * variance * n * n), [1, 12]))
    total, cumulative = mpf(0), []
    for k in range(len(entries(variance))):
        total += (1 if k == 0 else 2) * mp.exp(-mpf(k * k) / (2 * variance))
        cumulative.append(total / normaliser)
    return cumulative


@pytest.mark.parametrize("variance", VARIANCES)
def test_every_table_entry_is_the_exact_probability_in_128_bits(variance: int) -> None:
    worst = max(abs(mpf(entry) - exact * 2**128) for entry, exact in zip(entries(variance), exact_cumulative(variance), strict=True))
    assert worst < 2
    assert entries(variance) == sorted(entries(variance))


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_claimed_distance_bounds_the_true_one(variance: int) -> None:
    sampled = [mpf(0), *(mpf(entry) / 2**128 for entry in entries(variance)), mpf(1)]
    exact = [mpf(0), *exact_cumulative(variance)]
    masses = zip(sampled[1:], sampled, exact[1:], exact, strict=False)
    tail = 1 - exact[-1]
    distance = (
        mp.fsum(abs((g - g_before) - (f - f_before)) for g, g_before, f, f_before in masses) + abs(sampled[-1] - sampled[-2] - tail)
    ) / 2
    assert 0 < distance <= DiscreteGaussian(variance).total_variation < 2e-31


def chi_square_p_value(draws: np.ndarray, variance: int) -> float:
    """Pearson's test of draws against the discrete Gaussian, neighbouring integers pooled to at least 400 expected."""
    reach = int(np.ceil(12 * variance**0.5)) + 1
    support = np.arange(-reach, reach + 1)
    mass = np.exp(-(support.astype(float) ** 2) / (2 * variance))
    expected = len(draws) * mass / mass.sum()
    bins = np.minimum((np.cumsum(expected) / 400).astype(int), int(len(draws) / 400) - 1)
    _, bins = np.unique(bins, return_inverse=True)
    wanted = np.bincount(bins, weights=expected)
    seen = np.bincount(bins[np.clip(draws, -reach, reach) + reach], minlength=len(wanted))
    return float(chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1))


@pytest.mark.parametrize("variance", VARIANCES)
def test_draws_follow_the_discrete_gaussian(variance: int) -> None:
    """False alarm: 1e-7 for each of five variances, 5e-7 in all."""
    assert chi_square_p_value(DiscreteGaussian(variance).sample(200_000, SystemNoise()), variance) > 1e-7


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_wrong_sampler_fails_the_same_test(variance: int) -> None:
    """A rounded continuous Gaussian whose variance is 4 % off, and a sign that is positive in eleven draws of twenty."""
    noise = SeededNoise(variance)
    right = DiscreteGaussian(variance).sample(200_000, noise)
    rounded = np.rint(np.random.default_rng(0).normal(0, (1.04 * variance) ** 0.5, 200_000)).astype(np.int64)
    leaning = np.where(np.arange(len(right)) % 10 == 0, np.abs(right), right)
    assert chi_square_p_value(right, variance) > 1e-7
    assert chi_square_p_value(rounded, variance) < 1e-7
    assert chi_square_p_value(leaning, variance) < 1e-7


@pytest.mark.parametrize("variance", [1, 2, 10])
def test_a_table_shifted_by_one_entry_fails_the_same_test(variance: int) -> None:
    wrong = DiscreteGaussian(variance)
    wrong._high, wrong._low, wrong._first = wrong._high[1:], wrong._low[1:], np.maximum(wrong._first - 1, 0)
    assert chi_square_p_value(wrong.sample(200_000, SeededNoise(1)), variance) < 1e-7


def drawn(variance: int, uniform: int, negative: bool) -> int:
    """One draw from a given 128-bit uniform number: its low half is asked for only where the high half ties."""
    high, low = divmod(uniform, 2**64)
    source = Script(high.to_bytes(8, "little"), bytes([0x80 * negative]), low.to_bytes(8, "little"))
    draw = int(DiscreteGaussian(variance).sample(1, source)[0])
    tied = any(entry >> 64 == high for entry in entries(variance))
    assert source.asked == [8, 1, 8] if tied else [8, 1]
    return draw


@pytest.mark.parametrize("variance", VARIANCES)
@given(place=st.floats(0, 1, exclude_max=True), offset=st.integers(-2, 2), negative=st.booleans())
def test_a_tie_is_settled_by_the_low_words(variance: int, place: float, offset: int, negative: bool) -> None:
    table = entries(variance)
    uniform = min(table[int(place * len(table))] + offset, 2**128 - 1)
    magnitude = sum(entry <= uniform for entry in table)
    assert drawn(variance, uniform, negative) == (-magnitude if negative else magnitude)


@given(st.sampled_from(VARIANCES[:4]), st.integers(0, 2**128 - 1), st.booleans())
def test_a_draw_inverts_the_table(variance: int, uniform: int, negative: bool) -> None:
    magnitude = sum(entry <= uniform for entry in entries(variance))
    assert drawn(variance, uniform, negative) == (-magnitude if negative else magnitude)


@pytest.mark.parametrize("variance", [1, 1000])
def test_the_ends_of_the_uniform_range_reach_zero_and_the_last_magnitude(variance: int) -> None:
    assert drawn(variance, 0, negative=True) == 0
    assert drawn(variance, 2**128 - 1, negative=False) == len(entries(variance))


def test_several_ties_in_one_sample_each_take_their_own_word() -> None:
    table = entries(10)
    words = b"".join((entry >> 64).to_bytes(8, "little") for entry in table[:4])
    lows = [(entry & (2**64 - 1)).to_bytes(8, "little") for entry in table[:4]]
    below = [(entry - 1 & (2**64 - 1)).to_bytes(8, "little") for entry in table[:4]]
    assert DiscreteGaussian(10).sample(4, Script(words, b"\0", *lows)).tolist() == [1, 2, 3, 4]
    assert DiscreteGaussian(10).sample(4, Script(words, b"\0", *below)).tolist() == [0, 1, 2, 3]


@given(st.sampled_from(VARIANCES), st.lists(st.integers(0, 2**64 - 1), max_size=40))
@settings(deadline=None)
def test_each_draw_of_a_sample_stays_in_its_place(variance: int, words: list[int]) -> None:
    highs = [entry >> 64 for entry in entries(variance)]
    untied = [word for word in words if word not in highs]
    sample = DiscreteGaussian(variance).sample(
        len(untied), Script(b"".join(word.to_bytes(8, "little") for word in untied), bytes(-(-len(untied) // 8)))
    )
    assert sample.tolist() == [drawn(variance, word << 64, negative=False) for word in untied]


@given(st.sampled_from(VARIANCES), st.integers(0, 300), st.integers(0, 2**32))
@settings(deadline=None)
def test_opposite_sign_bits_give_the_opposite_draws(variance: int, size: int, seed: int) -> None:
    noise = SeededNoise(seed)
    words, signs = noise.bytes(8 * size), noise.bytes(-(-size // 8))
    gaussian = DiscreteGaussian(variance)
    draws = gaussian.sample(size, Script(words, signs))
    assert draws.dtype == np.int64
    assert draws.shape == (size,)
    assert (gaussian.sample(size, Script(words, bytes(255 - byte for byte in signs))) == -draws).all()


@given(st.sampled_from(VARIANCES), st.integers(0, 300))
@settings(deadline=None)
def test_a_sample_takes_the_same_bytes_whatever_it_draws(variance: int, size: int) -> None:
    """False alarm: a tie, under 300 · 14,000 / 2^64 < 1e-12 a sample."""

    class Counting(SystemNoise):
        taken = 0

        def bytes(self, n: int) -> bytes:
            self.taken += n
            return super().bytes(n)

    source = Counting()
    DiscreteGaussian(variance).sample(size, source)
    assert source.taken == 8 * size + -(-size // 8)


def test_the_variance_of_many_draws_is_the_one_asked_for() -> None:
    """A sample variance of n Gaussians has standard deviation σ²·sqrt(2/n); six of them: false alarm 2e-9. The mean: likewise."""
    draws = DiscreteGaussian(10**6 + 3).sample(400_000, SystemNoise()).astype(float)
    assert abs(draws.var() / (10**6 + 3) - 1) < 6 * (2 / len(draws)) ** 0.5
    assert abs(draws.mean()) < 6 * (10**6 / len(draws)) ** 0.5


@pytest.mark.slow
def test_a_grid_of_a_million_parameters_has_its_noise() -> None:
    """σ = 100,000: 1.4 million entries, each chunk of the construction joined to the next. False alarm 1e-7."""
    gaussian = DiscreteGaussian(10**10)
    assert gaussian.total_variation < 1e-31
    assert chi_square_p_value(gaussian.sample(200_000, SystemNoise()), 10**10) > 1e-7


@pytest.mark.parametrize("variance", [0, -1, 1.5, True, MAX_VARIANCE + 1, float("nan")])
def test_a_variance_off_the_grid_is_refused(variance: int) -> None:
    with pytest.raises(InvalidPrivacy, match="whole number from 1"):
        DiscreteGaussian(variance)


def test_a_table_cannot_be_altered() -> None:
    for words in cumulative_table(2):
        with pytest.raises(ValueError, match="read-only"):
            words[0] = 0


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise(3)], ids=["system", "seeded"])
def test_a_source_gives_as_many_bytes_as_asked_and_never_the_same_twice(source: NoiseSource) -> None:
    """False alarm: 2^-256."""
    assert [len(source.bytes(n)) for n in (0, 1, 8, 1000)] == [0, 1, 8, 1000]
    assert source.bytes(32) != source.bytes(32)


def test_seeded_noise_repeats_for_its_seed_and_says_that_it_is_for_tests() -> None:
    first, again, other = SeededNoise(5), SeededNoise(5), SeededNoise(50)
    assert [first.bytes(16), first.bytes(16)] == [again.bytes(16), again.bytes(16)]
    assert SeededNoise(5).bytes(16) != other.bytes(16)
    one, eleven = SeededNoise(1), SeededNoise(11)
    assert [one.bytes(16) for _ in range(11)][-1] != eleven.bytes(16)  # call 11 of seed 1, call 1 of seed 11
    assert first.for_tests
    assert not SystemNoise.for_tests


@pytest.mark.parametrize("variance", [1, 4, 100, 2500])
def test_the_skellam_table_is_that_of_bessel_functions_to_the_last_of_its_128_bits(variance: int) -> None:
    """Against an independent computation of I_k with sixty digits."""
    high, low, _ = skellam_table(variance)
    with mp.workdps(60):
        cumulative = mpf(0)
        for place in range(min(len(high), 200)):
            cumulative += (2 if place else 1) * mp.besseli(place, variance) * mp.exp(-variance)
            entry = (int(high[place]) << 64) + int(low[place])
            assert abs(mpf(entry) - cumulative * 2**128) <= 2


@pytest.mark.parametrize("variance", [1, 4, 100, 10_000])
def test_skellam_draws_fit_the_skellam_distribution(variance: int) -> None:
    """Chi-square over cells of at least 50 expected draws; false alarm 1e-7 each."""
    draws = Skellam(variance).sample(200_000, SeededNoise(variance))
    assert skellam_p_value(draws, variance) > 1e-7
    assert skellam_p_value(DiscreteGaussian(variance).sample(200_000, SeededNoise(variance)), variance) < 1e-7 or variance > 4


def skellam_p_value(draws: np.ndarray, variance: int) -> float:
    """Chi-square of draws against SciPy's Skellam distribution."""
    reach = int(4 * variance**0.5) + 4
    width = max(1, reach // 10)
    edges = np.arange(-reach - 0.5, reach + width, width)
    found = np.histogram(draws, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    masses = np.diff(np.concatenate([[0.0], skellam.cdf(np.floor(edges), variance / 2, variance / 2), [1.0]]))
    expected = masses * len(draws)
    enough = expected >= 50
    found_rest, expected_rest = found[~enough].sum(), expected[~enough].sum()
    terms = ((found[enough] - expected[enough]) ** 2 / expected[enough]).sum()
    if expected_rest > 5:
        terms += (found_rest - expected_rest) ** 2 / expected_rest
    return float(chi2.sf(terms, enough.sum() - 1 + (expected_rest > 5)))
