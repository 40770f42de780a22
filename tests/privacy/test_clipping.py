"""The grid's bound holds whatever comes in, rounding does not lean, and sums of integers are exact in any order."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp, mpf

from qedge.errors import Diverged, InvalidPrivacy, ModelError
from qedge.privacy.clipping import FIXED_STEP, Grid, add_exactly, fixed_point, from_grid, to_grid

bounds = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([1e-290, 1e-30, 1e30, 1e100]))
any_float = st.floats(width=64)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 40))


def rounded_on(grid: Grid, updates: np.ndarray, seed: int = 0) -> np.ndarray:
    return to_grid(updates, grid, np.random.default_rng(seed), lambda row: np.random.default_rng([seed, row]))


def squared_norms(rounded: np.ndarray) -> list[int]:
    return [sum(int(x) ** 2 for x in row) for row in rounded]


class EveryWord:
    """Stands in for a generator: each of the 2^16 rounding words comes exactly once, or always the largest."""

    def __init__(self, largest: bool = False) -> None:
        self.largest = largest
        self.calls = 0

    def integers(self, low: int, high: int, size: int, dtype: type) -> np.ndarray:
        assert (low, high) == (0, 2**64)
        self.calls += 1
        if self.largest:
            return np.full(size, 2**64 - 1, dtype)
        return np.arange(4 * size, dtype=np.uint16).view(dtype)


@given(st.one_of(st.integers(1, 10**12), st.integers(1, 10**6).map(lambda root: root * root)), bounds)
def test_the_sensitivity_is_the_floor_of_the_papers_bound(params: int, bound: float) -> None:
    mp.dps = 60
    c, d = 16 * mp.sqrt(params), mpf(params)
    assert Grid(bound, params).sensitivity_squared == int(mp.floor(c * c + d / 4 + c + mp.sqrt(d) / 2))
    assert Grid(bound, params).step * Grid(bound, params).scale == pytest.approx(bound)


@given(st.data(), shapes, bounds)
@settings(max_examples=300)
def test_no_input_has_a_norm_past_the_bound(data: st.DataObject, shape: tuple[int, int], bound: float) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    special = st.sampled_from([0.0, 5e-324, 1e-300, bound, -bound, bound / math.sqrt(shape[1]), 1e308, math.inf, math.nan])
    with np.errstate(over="ignore"):
        updates = data.draw(hnp.arrays(np.float64, shape, elements=st.one_of(any_float, special))).astype(dtype)
    grid = Grid(bound, shape[1])
    with np.errstate(all="raise", under="ignore"):
        rounded = rounded_on(grid, updates)
    assert rounded.dtype == np.int64
    assert max(squared_norms(rounded)) <= grid.sensitivity_squared


@pytest.mark.parametrize("params", [1, 2, 7, 650, 2410])
def test_full_norm_updates_are_rounded_and_not_dropped(params: int) -> None:
    """Seeded. By the paper each draw is refused with chance at most 0.61: 64 in a row are 1e-14."""
    directions = np.random.default_rng(params).normal(size=(200, params))
    grid = Grid(0.5, params)
    rounded = rounded_on(grid, 1e3 * directions)
    exact = grid.scale * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.abs(rounded - exact).max() < 1 + 1e-9
    assert max(squared_norms(rounded)) <= grid.sensitivity_squared


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_update_that_is_not_finite_counts_as_zero(bad: float, place: int) -> None:
    updates = np.ones((3, 7), np.float32)
    updates[1, place] = bad
    rounded = rounded_on(Grid(1.0, 7), updates)
    assert not rounded[1].any()
    assert rounded[[0, 2]].all()


def test_an_update_that_64_draws_cannot_round_within_the_bound_counts_as_zero() -> None:
    grid, always_up = Grid(1.0, 1000), EveryWord(largest=True)
    update = np.full((1, 1000), 0.99 / math.sqrt(1000))
    assert math.ceil(0.99 * 16) ** 2 * 1000 <= grid.sensitivity_squared  # one step up is still allowed
    assert (to_grid(update, grid, always_up, lambda row: always_up) == 16).all()
    full = np.where(np.arange(1000) % 2 == 0, 1.03, 0.0)[None, :]  # 22.6 a coordinate, rounded up to 23: 264,500 > 256,771
    always_up.calls = 0
    assert not to_grid(full, grid, always_up, lambda row: always_up).any()
    assert always_up.calls == 64


@given(st.floats(-15, 15))
def test_rounding_over_all_words_is_unbiased_to_a_hundred_thousandth_of_a_unit(x: float) -> None:
    """All 2^16 words once each: the mean is the expected value itself, no sampling."""
    grid = Grid(1.0, 2**16)
    rounded = to_grid(np.full((1, 2**16), x * grid.step), grid, EveryWord(), lambda row: EveryWord())[0]
    assert abs(rounded.mean() - x) <= 2.0**-17 + 1e-9
    assert rounded.max() - rounded.min() <= 1


def test_repeated_rounding_averages_to_the_update() -> None:
    """Hoeffding: the mean of n roundings strays by 4.2/sqrt(n) with chance 2·exp(-2·4.2²) < 1e-15; 20 coordinates: < 2e-14."""
    grid, repeats = Grid(1.0, 20), 20_000
    update = np.random.default_rng(1).normal(size=20) * 0.1
    fresh = np.random.default_rng()
    rounded = to_grid(np.tile(update, (repeats, 1)), grid, fresh, lambda row: fresh)
    assert np.abs(rounded.mean(axis=0) - update / grid.step).max() < 4.2 / math.sqrt(repeats)


@given(st.data(), st.integers(2, 6), st.integers(1, 2000), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_clients_integers_do_not_depend_on_its_neighbours_updates(data: st.DataObject, clients: int, params: int, seed: int) -> None:
    updates = np.random.default_rng(seed).normal(size=(clients, params)).astype(np.float32)
    grid = Grid(0.7, params)
    together = rounded_on(grid, updates, seed)
    assert (rounded_on(grid, np.asfortranarray(updates), seed) == together).all()
    wide = np.zeros((clients, params + 3), np.float32)
    wide[:, 3:] = updates
    assert (rounded_on(grid, wide[:, 3:], seed) == together).all()
    emptied = data.draw(st.integers(0, clients - 1))
    for instead in (0.0, np.nan, 1e30, 0.01):
        changed = updates.copy()
        changed[emptied] = instead
        others = np.arange(clients) != emptied
        assert (rounded_on(grid, changed, seed)[others] == together[others]).all()


@given(st.integers(1, 300), bounds, st.integers(0, 2**32))
def test_an_update_within_the_bound_comes_back_within_a_step(params: int, bound: float, seed: int) -> None:
    grid = Grid(bound, params)
    update = np.random.default_rng(seed).uniform(-1, 1, size=(1, params)) * (bound / math.sqrt(params) / 2)
    before = update.copy()
    back = from_grid(rounded_on(grid, update, seed)[0], grid.step, 1)
    assert np.abs(back - update).max() <= grid.step * (1 + 1e-9)
    assert (update == before).all()


def test_read_only_updates_are_accepted() -> None:
    updates = np.ones((2, 3), np.float32)
    updates.flags.writeable = False
    assert rounded_on(Grid(1.0, 3), updates).shape == (2, 3)
    assert fixed_point(updates, [1, 2]).tolist() == [3 * 2**30] * 3


weighted = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(-1000, 1000, width=32)),
        st.lists(st.integers(0, 10**6), min_size=shape[0], max_size=shape[0]),
    )
)


@given(weighted)
def test_fixed_point_sums_are_exact(sample: tuple[np.ndarray, list[int]]) -> None:
    updates, weights = sample
    exact = [sum(weight * round(Fraction(float(x)) * 2**30) for x, weight in zip(column, weights, strict=True)) for column in updates.T]
    assert fixed_point(updates, weights).tolist() == exact


@given(weighted, st.randoms(use_true_random=False))
def test_fixed_point_sums_do_not_depend_on_order_or_grouping(sample: tuple[np.ndarray, list[int]], random: object) -> None:
    updates, weights = sample
    order = list(range(len(weights)))
    random.shuffle(order)  # type: ignore[attr-defined]
    cut = len(order) // 2
    parts = [fixed_point(updates[half], [weights[k] for k in half]) for half in (order[:cut], order[cut:])]
    assert (add_exactly(parts) == fixed_point(updates, weights)).all()


def test_from_grid_gives_back_the_weighted_mean() -> None:
    updates = np.array([[0.5, -1.0], [0.25, 3.0]])
    assert from_grid(fixed_point(updates, [1, 3]), FIXED_STEP, 4).tolist() == [0.3125, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, 2.0**33])
def test_without_privacy_an_update_too_large_or_not_finite_stops_the_run(bad: float) -> None:
    updates = np.zeros((2, 3), np.float32)
    updates[1, 2] = bad
    with pytest.raises(Diverged, match="not finite or too large"):
        fixed_point(updates, [1, 1])


def test_the_largest_sum_that_is_allowed_is_still_exact() -> None:
    updates = np.full((2, 1), 2.0**31 * 0.999, np.float64)
    assert fixed_point(updates, [1, 1])[0] == 2 * round(Fraction(float(updates[0, 0])) * 2**30)
    with pytest.raises(Diverged):
        fixed_point(updates, [1, 2])


def test_partial_sums_never_wrap_around() -> None:
    part = np.full(3, 2**61, np.int64)
    assert add_exactly([part]).tolist() == [2**61] * 3
    with pytest.raises(Diverged):
        add_exactly([part, part])
    with pytest.raises(Diverged):
        add_exactly([part] * 9)
    assert add_exactly([part // 2, -part]).tolist() == [-(2**60)] * 3
    assert (part == 2**61).all()


def test_partial_sums_are_left_as_they_were() -> None:
    parts = [np.ones(3, np.int64), np.ones(3, np.int64)]
    assert add_exactly(parts).tolist() == [2, 2, 2]
    assert np.array(parts).tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 5e-324])
def test_a_bound_that_clips_nothing_or_everything_is_refused(bound: float) -> None:
    with pytest.raises(InvalidPrivacy, match="positive, finite"):
        Grid(bound, 10)


@pytest.mark.parametrize("params", [0, -1])
def test_a_grid_without_parameters_is_refused(params: int) -> None:
    with pytest.raises(InvalidPrivacy, match="at least one"):
        Grid(1.0, params)


@pytest.mark.parametrize("shape", [(2, 4), (5,), (1, 2, 5)])
def test_updates_that_do_not_fit_the_grid_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="expected"):
        rounded_on(Grid(1.0, 5), np.zeros(shape))


@pytest.mark.parametrize(("shape", "weights"), [((2, 3), [1]), ((2, 3), [1, -1]), ((3,), [1, 1, 1])])
def test_weights_that_do_not_fit_the_updates_are_refused(shape: tuple[int, ...], weights: list[int]) -> None:
    with pytest.raises(ModelError, match="one weight"):
        fixed_point(np.zeros(shape), weights)
