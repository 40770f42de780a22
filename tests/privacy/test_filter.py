"""What a scope says a new job may ask is what its filter lets through, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qedge.errors import BudgetExceeded, InvalidPrivacy
from qedge.federated.planning import plan_guarantee
from qedge.job import TrainingJob
from qedge.privacy.accounting import ORDERS, RenyiCost, allowance
from qedge.privacy.filter import Opening, most_epsilon, refuse_over_budget, rounded_down
from qedge.privacy.ledger import Plan, Scope
from qedge.records import Records

DELTA = 1e-3


def scope_of(epsilon: float, order: int, spent: float) -> Scope:
    """A scope of which this share of its allowance is held."""
    opened = Opening(epsilon, DELTA, order).scope("wine")
    held = RenyiCost((int(allowance(epsilon, DELTA, order) * spent),) * len(ORDERS))
    return Scope("wine", opened.unit, opened.relation, epsilon, DELTA, order, held, RenyiCost.zero())


def plan(nanos: int) -> Plan:
    return Plan("r", "wine", 1, RenyiCost((nanos,) * len(ORDERS)), None, "poisson")


@settings(max_examples=200, deadline=None)
@given(epsilon=st.floats(0.5, 50), order=st.sampled_from(ORDERS), spent=st.floats(0, 1) | st.floats(0.998, 1), more=st.floats(1e-6, 1))
def test_a_job_may_cost_all_that_the_most_it_may_ask_allows_and_nothing_above_it(epsilon, order, spent, more):
    try:
        scope = scope_of(epsilon, order, spent)
    except InvalidPrivacy:
        assume(False)
    most = most_epsilon(scope)
    if most > 0:
        refuse_over_budget(scope, plan(allowance(most, DELTA, order)))
        assert float(rounded_down(most)) <= most <= epsilon
        above = allowance(most + more, DELTA, order)
        with pytest.raises(BudgetExceeded, match=r"may ask privacy\.epsilon .* at most"):
            refuse_over_budget(scope, plan(above))
    else:  # less than a thousandth may be left, of which the conversion would take the most
        with pytest.raises(BudgetExceeded, match="nothing more fits"):
            refuse_over_budget(scope, plan(allowance(epsilon, DELTA, order) // 500))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.floats(0.5, 7.5), rounds=st.integers(1, 40), charged=st.booleans())
def test_a_real_job_that_asks_the_most_it_may_is_held(make_job: Callable[..., TrainingJob], first, rounds, charged):
    """Whatever was spent before, however many rounds, and with a charged evaluation in its plan."""
    job = {"rounds": rounds, "data": {"evaluation": None if charged else "public"}}
    opened = Opening(8.0, DELTA, 12).scope("wine")
    before = plan_guarantee(make_job(privacy={"epsilon": first, "delta": DELTA}, **job), 400, 650, 12)
    scope = Scope("wine", opened.unit, opened.relation, 8.0, DELTA, 12, before.cost(rounds, evaluated=True), RenyiCost.zero())
    asked = plan_guarantee(make_job(privacy={"epsilon": most_epsilon(scope), "delta": DELTA}, **job), 400, 650, 12)
    refuse_over_budget(scope, Plan("r", "wine", rounds, asked.per_round, asked.evaluation, "poisson"))


def test_nothing_more_may_be_asked_when_the_cap_is_lowered_to_what_is_spent(tmp_path: Path):
    ledger = Records.open(tmp_path).ledger
    opening = Opening(8.0, DELTA, 12)
    held = ledger.hold(
        Plan("r", "wine", 2, RenyiCost((10**9,) * len(ORDERS)), None, ""),
        frozenset({hashlib.sha256(b"rows").hexdigest()}),
        opening=opening,
    )
    assert 0 < most_epsilon(held) < 8
    assert most_epsilon(ledger.set_budget("wine", epsilon=held.reserved, actor="ann")) == 0
    assert most_epsilon(ledger.set_budget("wine", epsilon=0.01, actor="ann")) == 0
    assert most_epsilon(opening.scope("new")) == 8.0
