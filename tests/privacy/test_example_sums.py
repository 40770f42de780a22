"""The grid for sums of clipped gradients: what rounding adds to the sensitivity, and that released steps are what they say."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import ORDERS
from qedge.privacy.example_sums import LEAST_VARIANCE, NoisySteps, SumGrid, least_variance
from qedge.privacy.mechanisms import SeededNoise


@given(st.integers(1, 10**8), st.integers(1, 4096))
def test_rounding_costs_less_than_half_a_percent(params: int, refined: int):
    grid = SumGrid(1.0, params, refined)
    assert grid.scale**2 + params / 4 <= grid.sensitivity_squared
    assert math.sqrt((grid.sensitivity_squared - 5) / grid.scale**2) < 1.005


@given(
    moved=st.lists(st.floats(-4, 4), min_size=1, max_size=6),
    refined=st.integers(1, 3),
    base=st.floats(-1e4, 1e4),
    order=st.sampled_from(ORDERS),
)
@hypothesis_settings(max_examples=200)
def test_the_moments_of_what_one_row_moves_stay_under_the_sensitivity(moved: list[float], refined: int, base: float, order: int):
    """Entry by entry the integers move by one of two neighbours, with the chances that a uniform u gives them: the exact mean of
    exp(t|Δ|²) over u, against exp(t · sensitivity_squared), t the largest that the accountant takes at this order."""
    grid = SumGrid(1.0, len(moved), refined)
    norm = math.sqrt(sum(m * m for m in moved)) or 1.0
    t, log_mean = order * (order - 1) / (2 * LEAST_VARIANCE), 0.0
    for m in moved:
        start, delta = base * m, m / norm * grid.scale
        # floor(start + delta + u) - floor(start + u): the fractional parts say for which u each of the two is taken
        low = math.floor(delta)
        chance = delta - low
        log_mean += math.log((1 - chance) * math.exp(t * low**2) + chance * math.exp(t * (low + 1) ** 2))
        for u in (0.0, 0.25, 0.5, 0.999):
            assert math.floor(start + delta + u) - math.floor(start + u) in (low - (delta == low), low, low + 1)
    assert log_mean <= t * grid.sensitivity_squared


@given(
    sets=st.lists(st.integers(1, 20), min_size=2, max_size=12),
    params=st.integers(1, 4),
    alike=st.booleans(),
    seed=st.integers(0, 9999),
    refined=st.integers(1, 4),
)
@hypothesis_settings(max_examples=200)
def test_the_moments_of_what_a_clients_rows_move_together_stay_under_theirs(sets, params, alike, seed, refined):
    """Sets of J_i rows move the integers by Δ_i(u), all by the same u: the exact mean of exp(Σ_{i<k} <Δ_i, Δ_k>/σ²) over u, against
    exp(Σ_{i<k} J_i J_k · sensitivity_squared/σ²) with the least noise for which that is claimed."""
    grid, generator = SumGrid(1.0, params, refined), np.random.default_rng(seed)
    variance = least_variance(len(sets), 20)
    directions = generator.standard_normal((1 if alike else len(sets), params))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    moved = directions * np.array(sets)[:, None] * grid.scale * (1.0 if seed % 2 else generator.random())
    log_mean = 0.0
    for entries in moved.T:
        edges = np.unique([0.0, 1.0, *(math.floor(entry) + 1 - entry for entry in entries)])
        terms = []
        for low, high in pairwise(edges):
            integers = np.floor(entries + (low + high) / 2)
            terms.append(math.log(high - low) + (integers.sum() ** 2 - (integers**2).sum()) / 2 / variance)
        log_mean += float(np.logaddexp.reduce(terms))
    together = (sum(sets) ** 2 - sum(one * one for one in sets)) / 2
    assert log_mean <= together * grid.sensitivity_squared_at(len(sets), 20, variance) / variance
    assert grid.sensitivity_squared_at(len(sets), 20, variance - 1) >= (grid.scale + math.sqrt(params)) ** 2


def test_a_sum_is_rounded_to_its_own_mean():
    """False alarm below 1e-6: the mean of 20,000 roundings of each of 50 entries has standard deviation at most 0.5/√20,000; 6 of them."""
    grid, total = SumGrid(1.0, 50), np.linspace(-1, 1, 50)
    generator = np.random.default_rng(3)
    found = np.mean([grid.rounded(total, generator) for _ in range(20_000)], axis=0)
    assert np.abs(found - total / grid.step).max() < 6 * 0.5 / math.sqrt(20_000)


def test_a_step_releases_the_mean_over_the_public_expected_batch_with_noise_of_the_planned_size():
    """False alarm below 1e-6: 60,000 draws; their mean square is within 4 % of the variance (seven standard deviations)."""
    grid = SumGrid(2.0, 60_000).refined_for(10**7, LEAST_VARIANCE)
    steps = NoisySteps(grid, 4 * 10**7, rate=0.1, steps=3, max_rows=80)
    assert steps.expected_batch == 8
    total = np.full(grid.params, 0.5)
    released = steps.release(total, np.random.default_rng(0), SeededNoise(1)).astype(np.float64)
    noise = (released - total / 8) * 8 / grid.step
    assert abs(noise.mean()) < 6 * math.sqrt(4 * 10**7 / 60_000)
    assert np.mean(noise**2) == pytest.approx(4 * 10**7, rel=0.04)


def test_a_sum_that_is_not_finite_is_released_as_noise_alone():
    steps = NoisySteps(SumGrid(1.0, 10), LEAST_VARIANCE, 1.0, 1, 1)
    broken, none = (steps.release(np.full(10, v), np.random.default_rng(0), SeededNoise(1)) for v in (math.nan, 0.0))
    assert (broken == none).all()


def test_a_grid_is_refined_until_the_noise_is_fine_enough():
    coarse = SumGrid(1.0, 100)
    assert coarse.refined_for(LEAST_VARIANCE, LEAST_VARIANCE) == coarse
    fine = coarse.refined_for(40_000, LEAST_VARIANCE)
    assert 40_000 * fine.refined**2 >= LEAST_VARIANCE > 40_000 * (fine.refined - 1) ** 2


@pytest.mark.parametrize("make", [lambda: SumGrid(0.0, 5), lambda: SumGrid(1.0, 0), lambda: SumGrid(math.inf, 5)])
def test_a_grid_for_nothing_is_refused(make):
    with pytest.raises(InvalidPrivacy):
        make()


@pytest.mark.parametrize("variance", [LEAST_VARIANCE - 1, 10**13])
def test_noise_that_the_proof_does_not_cover_or_that_cannot_be_drawn_is_refused(variance: int):
    with pytest.raises(InvalidPrivacy, match="accepted"):
        NoisySteps(SumGrid(1.0, 5), variance, 0.5, 1, 1)
