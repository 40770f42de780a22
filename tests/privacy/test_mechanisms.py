"""The samplers against their mass functions in sixty digits, their ties, one by one, and the sources of bytes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy.special import ive
from scipy.stats import chi2

from qedge.errors import InvalidPrivacy
from qedge.privacy.mechanisms import (
    MAX_VARIANCE,
    DiscreteGaussian,
    NoiseKind,
    NoiseSource,
    SeededNoise,
    Skellam,
    SystemNoise,
    noise_of,
    sample_share,
)
from qedge.privacy.noise_table import NoiseTable

KINDS: tuple[NoiseKind, ...] = ("discrete-gaussian", "skellam")
VARIANCES = (1, 2, 10, 1000, 10**6 + 3)
each_noise = pytest.mark.parametrize(("kind", "variance"), [(kind, variance) for kind in KINDS for variance in VARIANCES])
noises = st.tuples(st.sampled_from(KINDS), st.sampled_from(VARIANCES))
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
def entries(kind: NoiseKind, variance: int) -> list[int]:
    """The table as 128-bit integers."""
    table = noise_of(kind, variance).table
    return [int(high) << 64 | int(low) for high, low in zip(table.high, table.low, strict=True)]


def mass(kind: NoiseKind, variance: int, k: int) -> mpf:
    """P(|X| = k); the Gaussian's normaliser by Poisson summation: sqrt(2πσ²) Σ_n exp(-2π²σ²n²)."""
    sides = 1 if k == 0 else 2
    if kind == "skellam":
        return sides * mp.besseli(k, variance) * mp.exp(-variance)
    return sides * mp.exp(-mpf(k * k) / (2 * variance)) / normaliser(variance)


@cache
def normaliser(variance: int) -> mpf:
    return mp.sqrt(2 * mp.pi * variance) * (1 + 2 * mp.nsum(lambda n: mp.exp(-2 * mp.pi**2 * variance * n * n), [1, 12]))


@cache
def exact_cumulative(kind: NoiseKind, variance: int) -> list[mpf]:
    """P(|X| <= k) for each entry of the table."""
    total, cumulative = mpf(0), []
    for k in range(len(entries(kind, variance))):
        total += mass(kind, variance, k)
        cumulative.append(total)
    return cumulative


summed = pytest.mark.parametrize(
    ("kind", "variance"), [("discrete-gaussian", v) for v in VARIANCES] + [("skellam", v) for v in VARIANCES[:4]]
)


@summed
def test_every_table_entry_is_the_exact_probability_in_128_bits(kind: NoiseKind, variance: int) -> None:
    table, exact = entries(kind, variance), exact_cumulative(kind, variance)
    assert max(abs(mpf(entry) - cumulative * 2**128) for entry, cumulative in zip(table, exact, strict=True)) < 2
    assert table == sorted(table)


@pytest.mark.parametrize("k", [1, 2, 100, 999, 1000, 2500, 5000])
def test_entries_of_a_wide_skellam_table_are_a_mass_apart(k: int) -> None:
    table = entries("skellam", 10**6 + 3)
    assert abs(mpf(table[k] - table[k - 1]) - mass("skellam", 10**6 + 3, k) * 2**128) < 2
    assert 2**128 - table[-1] < 2  # of which the last magnitude's mass, 2^-144 of the largest, is the end


@summed
def test_the_claimed_distance_bounds_the_true_one(kind: NoiseKind, variance: int) -> None:
    sampled = [mpf(0), *(mpf(entry) / 2**128 for entry in entries(kind, variance)), mpf(1)]
    exact = [mpf(0), *exact_cumulative(kind, variance)]
    masses = zip(sampled[1:], sampled, exact[1:], exact, strict=False)
    tail = 1 - exact[-1]
    distance = (
        mp.fsum(abs((g - g_before) - (f - f_before)) for g, g_before, f, f_before in masses) + abs(sampled[-1] - sampled[-2] - tail)
    ) / 2
    assert 0 < distance <= noise_of(kind, variance).total_variation < 2e-31


def chi_square_p_value(draws: np.ndarray, kind: NoiseKind, variance: int) -> float:
    """Pearson's test of draws against the distribution, neighbouring integers pooled to at least 400 expected."""
    reach = int(np.ceil(12 * variance**0.5)) + 1
    support = np.arange(-reach, reach + 1).astype(float)
    masses = np.exp(-(support**2) / (2 * variance)) if kind == "discrete-gaussian" else ive(np.abs(support), variance)
    expected = len(draws) * masses / masses.sum()
    bins = np.minimum((np.cumsum(expected) / 400).astype(int), int(len(draws) / 400) - 1)
    _, bins = np.unique(bins, return_inverse=True)
    wanted = np.bincount(bins, weights=expected)
    seen = np.bincount(bins[np.clip(draws, -reach, reach) + reach], minlength=len(wanted))
    return float(chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1))


@each_noise
def test_draws_follow_the_distribution(kind: NoiseKind, variance: int) -> None:
    """False alarm: 1e-7 for each of ten cases, 1e-6 in all."""
    assert chi_square_p_value(sample_share(kind, variance, 200_000, SystemNoise()), kind, variance) > 1e-7


@each_noise
def test_a_wrong_sampler_fails_the_same_test(kind: NoiseKind, variance: int) -> None:
    """A rounded continuous Gaussian whose variance is 4 % off, and a sign that is positive in eleven draws of twenty."""
    right = sample_share(kind, variance, 200_000, SeededNoise(variance))
    rounded = np.rint(np.random.default_rng(0).normal(0, (1.04 * variance) ** 0.5, 200_000)).astype(np.int64)
    leaning = np.where(np.arange(len(right)) % 10 == 0, np.abs(right), right)
    assert chi_square_p_value(right, kind, variance) > 1e-7
    assert chi_square_p_value(rounded, kind, variance) < 1e-7
    assert chi_square_p_value(leaning, kind, variance) < 1e-7


@pytest.mark.parametrize("variance", [1, 2, 10])
def test_one_kind_of_noise_is_not_taken_for_the_other(variance: int) -> None:
    assert chi_square_p_value(sample_share("skellam", variance, 200_000, SeededNoise(1)), "discrete-gaussian", variance) < 1e-7
    assert chi_square_p_value(sample_share("discrete-gaussian", variance, 200_000, SeededNoise(1)), "skellam", variance) < 1e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", [1, 2, 10])
def test_a_table_shifted_by_one_entry_fails_the_same_test(kind: NoiseKind, variance: int) -> None:
    table = noise_of(kind, variance).table
    shifted = NoiseTable(table.high[1:], table.low[1:])
    assert chi_square_p_value(shifted.sample(200_000, SeededNoise(1)), kind, variance) < 1e-7


def drawn(kind: NoiseKind, variance: int, uniform: int, negative: bool) -> int:
    """One draw from a given 128-bit uniform number: its low half is asked for only where the high half ties."""
    high, low = divmod(uniform, 2**64)
    source = Script(high.to_bytes(8, "little"), bytes([0x80 * negative]), low.to_bytes(8, "little"))
    draw = int(sample_share(kind, variance, 1, source)[0])
    tied = any(entry >> 64 == high for entry in entries(kind, variance))
    assert source.asked == [8, 1, 8] if tied else [8, 1]
    return draw


@each_noise
@given(place=st.floats(0, 1, exclude_max=True), offset=st.integers(-2, 2), negative=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_tie_is_settled_by_the_low_words(kind: NoiseKind, variance: int, place: float, offset: int, negative: bool) -> None:
    table = entries(kind, variance)
    uniform = min(table[int(place * len(table))] + offset, 2**128 - 1)
    magnitude = sum(entry <= uniform for entry in table)
    assert drawn(kind, variance, uniform, negative) == (-magnitude if negative else magnitude)


@given(st.sampled_from(KINDS), st.sampled_from(VARIANCES[:4]), st.integers(0, 2**128 - 1), st.booleans())
@settings(deadline=None)
def test_a_draw_inverts_the_table(kind: NoiseKind, variance: int, uniform: int, negative: bool) -> None:
    magnitude = sum(entry <= uniform for entry in entries(kind, variance))
    assert drawn(kind, variance, uniform, negative) == (-magnitude if negative else magnitude)


@given(noises, st.integers(0, 2**20 - 1), st.sampled_from([0, 1, 2**44 - 1]))
@settings(deadline=None)
def test_the_guide_says_what_a_search_of_the_whole_table_finds(noise: tuple[NoiseKind, int], part: int, offset: int) -> None:
    """At both edges of parts of the uniform range, for guides of any length up to the largest."""
    uniform = (part << 44 | offset) << 64
    assert drawn(*noise, uniform, negative=False) == sum(entry <= uniform for entry in entries(*noise))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", [1, 1000])
def test_the_ends_of_the_uniform_range_reach_zero_and_the_last_magnitude(kind: NoiseKind, variance: int) -> None:
    assert drawn(kind, variance, 0, negative=True) == 0
    assert drawn(kind, variance, 2**128 - 1, negative=False) == len(entries(kind, variance))


def test_a_word_of_ones_is_the_last_magnitude_where_no_entry_ties_with_it() -> None:
    """Its only bound would be the one that ends the look-ups; no low word is asked for."""
    table = NoiseTable(np.array([2**63], np.uint64), np.array([5], np.uint64))
    source = Script(bytes([255]) * 8, b"\0")
    assert table.sample(1, source).tolist() == [1]
    assert source.asked == [8, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_several_ties_in_one_sample_each_take_their_own_word(kind: NoiseKind) -> None:
    table = entries(kind, 10)
    words = b"".join((entry >> 64).to_bytes(8, "little") for entry in table[:4])
    lows = [(entry & (2**64 - 1)).to_bytes(8, "little") for entry in table[:4]]
    below = [(entry - 1 & (2**64 - 1)).to_bytes(8, "little") for entry in table[:4]]
    assert sample_share(kind, 10, 4, Script(words, b"\0", *lows)).tolist() == [1, 2, 3, 4]
    assert sample_share(kind, 10, 4, Script(words, b"\0", *below)).tolist() == [0, 1, 2, 3]


@given(noises, st.lists(st.integers(0, 2**64 - 1), max_size=40))
@settings(deadline=None)
def test_each_draw_of_a_sample_stays_in_its_place(noise: tuple[NoiseKind, int], words: list[int]) -> None:
    highs = {entry >> 64 for entry in entries(*noise)}
    untied = [word for word in words if word not in highs]
    answers = [b"".join(word.to_bytes(8, "little") for word in untied), bytes(-(-len(untied) // 8))]
    sample = noise_of(*noise).sample(len(untied), Script(*answers))
    assert sample.tolist() == [drawn(*noise, word << 64, negative=False) for word in untied]


def test_a_long_sample_is_its_batches_end_to_end() -> None:
    sizes, noise = (8192, 8192, 616), SeededNoise(4)
    parts = [sample_share("skellam", 1000, size, noise) for size in sizes]
    assert (sample_share("skellam", 1000, sum(sizes), SeededNoise(4)) == np.concatenate(parts)).all()


@given(noises, st.integers(0, 300), st.integers(0, 2**32))
@settings(deadline=None)
def test_opposite_sign_bits_give_the_opposite_draws(noise: tuple[NoiseKind, int], size: int, seed: int) -> None:
    seeded = SeededNoise(seed)
    answers = [seeded.bytes(8 * size), seeded.bytes(-(-size // 8))][: 2 * min(size, 1)]
    opposite = [*answers[:1], *(bytes(255 - byte for byte in signs) for signs in answers[1:])]
    draws = sample_share(*noise, size, Script(*answers))
    assert draws.dtype == np.int64
    assert draws.shape == (size,)
    assert (sample_share(*noise, size, Script(*opposite)) == -draws).all()


@given(noises, st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_a_sample_takes_the_same_bytes_whatever_it_draws(noise: tuple[NoiseKind, int], size: int) -> None:
    """False alarm: a tie, under 30 · 20,000 · 14,129 / 2^64 < 1e-9."""

    class Counting(SystemNoise):
        taken = 0

        def bytes(self, n: int) -> bytes:
            self.taken += n
            return super().bytes(n)

    source = Counting()
    sample_share(*noise, size, source)
    assert source.taken == 8 * size + -(-size // 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_variance_of_many_draws_is_the_one_asked_for(kind: NoiseKind) -> None:
    """A sample variance of n nearly Gaussian draws has standard deviation σ²·sqrt(2/n); six of them: 2e-9 each. The mean: likewise."""
    draws = sample_share(kind, 10**6 + 3, 400_000, SystemNoise()).astype(float)
    assert abs(draws.var() / (10**6 + 3) - 1) < 6 * (2 / len(draws)) ** 0.5
    assert abs(draws.mean()) < 6 * (10**6 / len(draws)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_a_share_and_the_system_never_does(kind: NoiseKind) -> None:
    """False alarm: 10,000 draws that agree, under 0.3^10000."""
    assert (sample_share(kind, 4, 10_000, SeededNoise(1)) == sample_share(kind, 4, 10_000, SeededNoise(1))).all()
    assert (sample_share(kind, 4, 10_000, SystemNoise()) != sample_share(kind, 4, 10_000, SystemNoise())).any()


def test_neighbouring_draws_are_not_correlated() -> None:
    """Of n independent pairs the correlation has standard deviation 1/sqrt(n): six of them at three distances, 6e-9 in all."""
    draws = sample_share("discrete-gaussian", 1000, 200_000, SystemNoise()).astype(float)
    for distance in (1, 8, 8192):
        assert abs(np.mean(draws[distance:] * draws[:-distance]) / 1000) < 6 / (len(draws) - distance) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_of_a_million_parameters_has_its_noise(kind: NoiseKind) -> None:
    """σ = 100,000: 1.4 million entries, each chunk of the construction joined to the next. False alarm 1e-7.

    A Skellam variable of that width differs from the Gaussian by 1e-11, far less than draws can show.
    """
    noise = noise_of(kind, 10**10)
    assert noise.total_variation < 1e-31
    assert chi_square_p_value(noise.sample(200_000, SystemNoise()), "discrete-gaussian", 10**10) > 1e-7


@pytest.mark.parametrize("variance", [0, -1, 1.5, True, MAX_VARIANCE + 1, float("nan")])
def test_a_variance_off_the_grid_is_refused(variance: int) -> None:
    for noise in (DiscreteGaussian, Skellam):
        with pytest.raises(InvalidPrivacy, match="whole number from 1"):
            noise(variance)


def test_a_noise_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidPrivacy, match="'discrete-gaussian' or 'skellam'"):
        sample_share("laplace", 4, 1, SystemNoise())


def test_a_table_cannot_be_altered() -> None:
    for noise in (DiscreteGaussian(2), Skellam(2)):
        for words in (noise.table.high, noise.table.low, noise.table._bounds, noise.table._guide):
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


def test_a_long_answer_of_the_system_is_no_repetition() -> None:
    """Past the zeros kept at hand as well; false alarm: two equal blocks of 16 bytes among 2^14, under 2^-101."""
    answer = SystemNoise().bytes(1 << 18)
    assert len({answer[start : start + 16] for start in range(0, len(answer), 16)}) == 1 << 14
