"""The mixture bound against independent computations: high-precision integrals, finite sums, and sums over a real lattice."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import NANO, ORDERS, sampled_gaussian
from qedge.privacy.mixture import group_nanos, group_variance, most_nanos, sampled_group

CASES = [(2, 0.3, 100, 100, 3), (5, 0.05, 100, 400, 8), (12, 0.1, 1, 40, 5), (8, 0.5, 4, 900, 16), (20, 0.02, 1, 25, 4), (6, 0.9, 1, 9, 2)]


def _chance(rows: int, rate: float, j: int) -> float:
    return math.comb(rows, j) * rate**j * (1 - rate) ** (rows - j)


def _integrals(rows: int, rate: float, shift: float, order: int) -> tuple[float, float]:
    """Both directions of the scalar mixture by adaptive quadrature at 30 digits."""
    with mpmath.workdps(30):
        a, chances = mpmath.mpf(shift), [mpmath.mpf(_chance(rows, rate, j)) for j in range(rows + 1)]

        def mixture(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.fsum(p * mpmath.exp(j * a * x - j * j * a * a / 2) for j, p in enumerate(chances))

        def moment(power: int) -> float:
            edges = mpmath.linspace(-14 - rows * shift, order * rows * shift + 14, 24)
            return float(mpmath.log(mpmath.quad(lambda x: mpmath.npdf(x) * mixture(x) ** power, edges)) / (order - 1))

        return moment(order), moment(1 - order)


@pytest.mark.parametrize(("rows", "rate", "sensitivity", "variance", "order"), CASES)
def test_a_cost_is_never_below_either_direction_of_the_integral_and_hardly_above_the_worse(rows, rate, sensitivity, variance, order):
    present, emptied = _integrals(rows, rate, math.sqrt(sensitivity / variance), order)
    cost = sampled_group(sensitivity, variance, rate, rows).at(order) / NANO
    assert cost >= max(present, emptied)
    # Of the second direction the bound is Jensen's, a²/2 · (Var J + α (E J)²).
    jensen = sensitivity / variance / 2 * rows * rate * (1 - rate + order * rows * rate)
    assert cost <= max(present, jensen) * (1 + 1e-4) + 2 / NANO


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_first_direction_is_the_finite_sum_over_independent_batches(order: int):
    rows, rate, sensitivity, variance = 3, 0.4, 5, 8
    total = 0.0
    for counts in itertools.product(range(rows + 1), repeat=order):
        pairs = sum(i * k for i, k in itertools.combinations(counts, 2))
        total += math.prod(_chance(rows, rate, j) for j in counts) * math.exp(sensitivity / variance * pairs)
    exact = math.log(total) / (order - 1)
    assert exact <= sampled_group(sensitivity, variance, rate, rows).at(order) / NANO <= exact * (1 + 1e-4) + 1e-9


@given(
    vectors=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=3),
    rate=st.floats(0.02, 0.98),
    variance=st.integers(2, 30),
    order=st.integers(2, 6),
)
@hypothesis_settings(max_examples=30)
def test_no_rows_on_a_real_lattice_lose_more_in_either_direction(vectors, rate, variance, order):
    """Rows that pull in any directions, discrete noise in the plane, every term summed: what an attacker gets of a client's real rows."""
    reach = 9 * math.isqrt(variance) + 30
    axis = np.arange(-reach, reach + 1)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).astype(float)
    log_mass = -(x**2).sum(-1) / (2 * variance)
    log_mass -= np.logaddexp.reduce(log_mass, axis=None)
    parts = []
    for taken in itertools.product((0, 1), repeat=len(vectors)):
        shift = np.array(vectors).T @ np.array(taken)
        chance = math.prod(rate if one else 1 - rate for one in taken)
        parts.append(math.log(chance) + (2 * x @ shift - shift @ shift) / (2 * variance))
    log_ratio = np.logaddexp.reduce(parts, axis=0)
    cost = group_nanos(max(1, *(a * a + b * b for a, b in vectors)), variance, rate, len(vectors), order) / NANO
    for power in (order, 1 - order):
        divergence = np.logaddexp.reduce(log_mass + power * log_ratio, axis=None) / (order - 1)
        assert divergence <= cost * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.7, 1.0])
def test_of_a_single_row_it_is_the_sampled_gaussian(rate: float):
    assert sampled_group(1000, 2500, rate, 1) == sampled_gaussian(1000, 2500, rate)


def test_without_sampling_it_is_the_group_of_all_rows():
    assert sampled_group(10, 4000, 1.0, 7) == sampled_gaussian(490, 4000, 1.0)


@given(st.integers(1, 60), st.integers(1, 30), st.floats(1e-3, 0.5), st.floats(1e-3, 0.4), st.integers(1, 4000), st.integers(2, 32))
@hypothesis_settings(max_examples=60)
def test_more_rows_a_higher_rate_or_less_noise_never_cost_less(rows, more, rate, higher, variance, order):
    cost = group_nanos(64, variance, rate, rows, order)
    slack = 1 + cost // 10**4  # of the numerical bound
    assert group_nanos(64, variance, rate, rows + more, order) + slack >= cost
    assert group_nanos(64, variance, rate + higher, rows, order) + slack >= cost
    assert group_nanos(64, variance + 1, rate, rows, order) <= cost + slack


@given(st.integers(2, 5000), st.floats(1e-4, 1), st.integers(1, 10**6))
@hypothesis_settings(max_examples=15)
def test_no_order_costs_more_than_the_whole_group_without_sampling(rows: int, rate: float, variance: int):
    whole = sampled_gaussian(9 * rows**2, variance, 1.0)
    assert all(cost <= cap for cost, cap in zip(sampled_group(9, variance, rate, rows).nanos, whole.nanos, strict=True))


@given(st.integers(10**4, 10**9), st.sampled_from(ORDERS[:30]), st.integers(1, 400), st.floats(0.005, 1))
@hypothesis_settings(max_examples=25)
def test_the_noise_found_is_the_least_that_stays_within_the_cost(nanos: int, order: int, rows: int, rate: float):
    variance = group_variance(nanos, order, 1_000_000, rate, rows)
    assert group_nanos(1_000_000, variance, rate, rows, order) <= nanos
    less = int(variance * (1 - 1e-4)) - 1
    assert less < 1 or group_nanos(1_000_000, less, rate, rows, order) > nanos * (1 - 1e-3)


def test_what_cannot_be_accounted_is_refused():
    for bad in ((0, 1, 0.5, 2), (1, 0, 0.5, 2), (1, 1, 0.0, 2), (1, 1, 1.5, 2), (1, 1, 0.5, 0)):
        with pytest.raises(InvalidPrivacy):
            sampled_group(*bad)
    with pytest.raises(InvalidPrivacy):
        group_variance(0, 2, 10, 0.5, 3)
    with pytest.raises(InvalidPrivacy, match="more than epsilon"):
        most_nanos(0.001, 0.9, 2, 10**12)
