"""What a query costs, counted again by other means, and how its budget is shared."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge.analytics.encoding import FINEST
from qedge.analytics.measurements import Bins, Moment, RowCount
from qedge.analytics.plan import measured_at_once, plan_query, read_plan
from qedge.errors import InvalidPrivacy
from tests.analytics.populations import query_of

MEAN = {"kind": "mean", "column": "x", "range": [0, 4]}
VARIANCE = {"kind": "variance", "column": "x", "range": [0, 4]}
TREE = {"kind": "quantile", "column": "x", "range": [0, 4], "depth": 3}
HUNT = {"kind": "heavy-hitters", "column": "app", "length": 4}


def _epsilon(plan, clients_norms: list[tuple[float, int]]) -> float:
    """By Rényi divergences of Gaussians, order·norm²/(2σ²), in floats; each (squared norm over variance, how often)."""
    rho = sum(plan.order * ratio / 2 * times for ratio, times in clients_norms)
    a, delta = plan.order, plan.delta
    return rho + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)


@hypothesis_settings(max_examples=20)
@given(
    epsilon=st.floats(0.05, 20),
    delta=st.floats(1e-9, 5e-3),
    order=st.none() | st.integers(2, 64),
    hunts=st.booleans(),
    others=st.booleans(),
)
def test_the_whole_query_costs_its_epsilon_and_hardly_less(epsilon, delta, order, hunts, others):
    statistics = ([HUNT] if hunts else []) + ([MEAN, TREE] if others or not hunts else [])
    query = query_of(*statistics, privacy={"epsilon": epsilon, "delta": delta})
    try:
        plan = plan_query(query, 100, order)
    except InvalidPrivacy:
        assert order is not None  # an order at which so small an epsilon proves nothing
        return
    assert plan.epsilon <= epsilon
    assert plan.epsilon == pytest.approx(epsilon, rel=1e-3)
    charges = [(charge, times) for charge, times in ((plan.once, 1), (plan.hunting, plan.rounds)) if charge]
    ratios = [(charge.sensitivity_squared / charge.variance, times) for charge, times in charges]
    assert _epsilon(plan, ratios) <= plan.epsilon + 1e-6
    assert _epsilon(plan, ratios) == pytest.approx(plan.epsilon, rel=1e-3)
    assert read_plan(plan.plain()) == plan


def test_each_thing_is_measured_once_and_has_one_share():
    query = query_of({"kind": "count"}, MEAN, VARIANCE, TREE, {"kind": "sum", "column": "x", "range": [-2, 2]}, HUNT)
    shares = measured_at_once(query)
    x, y = Moment("x", 0, 4, 1), Moment("x", -2, 2, 1)
    assert shares == {
        RowCount(): 1,
        x: 1,
        Moment("x", 0, 4, 2): 1,
        y: 1,
        **{Bins("x", 0, 4, 2**level): pytest.approx(1 / 3) for level in (1, 2, 3)},
    }
    plan = plan_query(query, 100, None)
    assert plan.rounds == 5
    once, hunting = plan.once.cost.at(plan.order), plan.hunting.cost.at(plan.order) * plan.rounds
    assert hunting / (once + hunting) == pytest.approx(1 / 6, rel=1e-3)
    whole = plan.once.sensitivity_squared
    for bound, share in zip(plan.once.bounds, shares.values(), strict=True):
        assert bound**2 / whole == pytest.approx(float(share) / 5, rel=0.01)


def test_a_sum_over_a_symmetric_range_needs_no_count():
    assert measured_at_once(query_of({"kind": "sum", "column": "x", "range": [-2, 2]})).keys() == {Moment("x", -2, 2, 1)}
    assert RowCount() in measured_at_once(query_of({"kind": "sum", "column": "x", "range": [-2, 3]}))


@pytest.mark.parametrize(
    ("clients", "privacy"),
    [
        (1, {"epsilon": 1, "delta": 1e-4}),
        (100, {"epsilon": 1, "delta": 0.01}),
        (100, {"epsilon": 1e-7, "delta": 1e-4}),
        (100, {"epsilon": 200, "delta": 1e-4}),
    ],
    ids=["one client", "delta of one in so many", "too small", "too large"],
)
def test_a_promise_that_would_be_none_is_refused(clients, privacy):
    with pytest.raises(InvalidPrivacy):
        plan_query(query_of(MEAN, privacy=privacy), clients, None)


def test_rounding_is_lost_in_the_noise_at_any_epsilon():
    """A quarter of a squared grid unit a client, a million clients: at most 1 % of the variance."""
    for epsilon in (0.05, 1, 20):
        plan = plan_query(query_of(MEAN, TREE, privacy={"epsilon": epsilon, "delta": 1e-7}), 10**6, None)
        assert 0.01 * plan.once.variance >= 10**6 / 4
        assert max(plan.once.bounds) <= FINEST
