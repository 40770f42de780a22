"""The consistent tree against ordinary weighted least squares, and quantiles against the rows they are of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.analytics.count_tree import CountTree


def _design(depth: int) -> np.ndarray:
    """Which leaves each part of each level covers, [parts, leaves]."""
    return np.concatenate([np.kron(np.eye(2**level), np.ones(2 ** (depth - level))) for level in range(1, depth + 1)])


def _levels(numbers: np.ndarray, depth: int) -> list[np.ndarray]:
    ends = np.cumsum([2**level for level in range(1, depth + 1)])
    return np.split(numbers, ends[:-1])


@given(depth=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_it_is_the_weighted_least_squares_estimate_and_knows_its_own_errors(depth, seed):
    """Against the normal equations, written out: estimates, and the standard deviation of every difference a quantile rests on."""
    generator = np.random.default_rng(seed)
    design, variances = _design(depth), generator.uniform(0.5, 3, depth)
    weights = np.concatenate([np.full(2 ** (level + 1), 1 / variances[level]) for level in range(depth)])
    numbers = design @ generator.poisson(20, 2**depth) + generator.normal(0, 1 / np.sqrt(weights))
    covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
    leaves = covariance @ design.T @ (weights * numbers)
    tree = CountTree.of(_levels(numbers, depth), variances.tolist())
    assert np.allclose(np.diff(tree.below), leaves)
    for quantile in (0.1, 0.5, 0.93):
        functional = np.tri(2**depth + 1, 2**depth, -1) - quantile
        wanted = np.sqrt(np.einsum("ij,jk,ik->i", functional, covariance, functional))
        assert np.allclose(tree.deviations(quantile), wanted)


def test_without_noise_the_tree_is_the_counts():
    counts = np.array([3.0, 0.0, 5.0, 2.0, 0.0, 0.0, 7.0, 1.0])
    levels = [counts.reshape(2, 4).sum(1), counts.reshape(4, 2).sum(1), counts]
    tree = CountTree.of(levels, [0.0] * 3)
    assert np.diff(tree.below).tolist() == counts.tolist()
    assert not tree.deviations(0.5).any()


@given(st.lists(st.floats(-5, 15), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_without_noise_a_quantile_lies_in_the_step_of_the_range_that_holds_it(values, quantile):
    depth, clipped = 5, np.clip(values, 0, 10)
    places = np.minimum((clipped / 10 * 2**depth).astype(int), 2**depth - 1)
    levels = [np.bincount(places >> (depth - level), minlength=2**level).astype(float) for level in range(1, depth + 1)]
    value, interval = CountTree.of(levels, [0.0] * depth).quantile(quantile, 0, 10)
    assert interval.low <= value <= interval.high
    below = (clipped < value - 10 / 2**depth).mean()
    upto = (clipped <= value + 10 / 2**depth).mean()
    assert below <= quantile + 1e-9
    assert upto >= quantile - 1e-9


def test_of_nobody_a_quantile_may_be_anywhere():
    value, interval = CountTree.of([np.zeros(2), np.zeros(4)], [1.0, 1.0]).quantile(0.5, 2, 6)
    assert (interval.low, interval.high) == (2, 6)
    assert 2 <= value <= 6


def test_consistency_takes_off_most_of_the_noise_of_a_long_range():
    """Half of the range, of 256 leaves: by leaves alone 128 variances. Bound from Hay et al. 2010, theorem 4: O(log^3) instead."""
    tree = CountTree.of([np.zeros(2**level) for level in range(1, 9)], [1.0] * 8)
    assert tree.deviations(0.0)[128] == pytest.approx(np.sqrt(0.52), rel=0.1)
    assert tree.deviations(0.0).max() < np.sqrt(128) / 4
