"""What a search can cost is known, and refused, before anything is held; the ledger comes to the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qedge.config import Settings, load
from qedge.errors import BudgetExceeded, UnknownScope
from qedge.privacy.ledger_events import Plan
from qedge.records import Records
from qedge.runs.preparation import prepare
from qedge.runs.search_cost import may_give_back, price
from qedge.search.space import trial_jobs
from tests.search.searches import SPACE, small_search

BUDGET = 20.0
ORDER = 3  # at 2, which is frozen by default with so large a budget, a trial of epsilon 2 would not be proved at delta 0.01


def jobs(**changes: object) -> list:
    return [job for _, job in trial_jobs(small_search(**changes))]  # type: ignore[arg-type]


def open_budget(settings: Settings, epsilon: float = BUDGET) -> None:
    Records.open(settings.home).ledger.set_budget("wine", epsilon=epsilon, delta=0.01, order=ORDER, actor="test")


@pytest.mark.parametrize(
    "space", [SPACE, {"cohort.rate": {"uniform": [0.2, 0.9]}, "rounds": {"integers": [2, 5]}, "privacy.epsilon": {"uniform": [1.6, 3]}}]
)
def test_the_price_of_a_search_is_what_the_ledger_then_holds(settings: Settings, space: dict[str, object]) -> None:
    """Also where a searched parameter changes what a trial costs: each is priced by itself."""
    open_budget(settings)
    asked = jobs(search={"space": space}, privacy={"epsilon": 2})
    cost = price(asked, settings)
    assert cost is not None
    assert Records.open(settings.home).ledger.scope("wine").reserved == 0
    for job in asked:
        prepare(job, settings)
    scope = Records.open(settings.home).ledger.scope("wine")
    assert cost.epsilon == scope.reserved
    assert max(cost.epsilons) < cost.epsilon < sum(cost.epsilons) + 1e-9
    assert [job.privacy.epsilon >= each for job, each in zip(asked, cost.epsilons, strict=True)] == [True] * 3


def test_trials_that_do_not_all_fit_are_refused_with_how_many_would_and_nothing_is_held(settings: Settings) -> None:
    open_budget(settings, 3.0)
    with pytest.raises(BudgetExceeded, match="3 trials do not all fit") as refused:
        price(jobs(privacy={"epsilon": 2}), settings)
    fit = refused.value.facts["trials_that_fit"]
    assert fit in (1, 2)
    assert price(jobs(search={"trials": fit}, privacy={"epsilon": 2}), settings) is not None
    with pytest.raises(BudgetExceeded):
        price(jobs(search={"trials": int(str(fit)) + 1}, privacy={"epsilon": 2}), settings)
    records = Records.open(settings.home)
    assert records.ledger.scope("wine").reserved == 0
    assert list((settings.home / "runs").iterdir()) == []


@pytest.mark.parametrize("opened", [False, True])
def test_the_budget_that_the_refusal_names_takes_the_whole_search(settings: Settings, opened: bool) -> None:
    if opened:
        open_budget(settings, 2.0)
    with pytest.raises(BudgetExceeded) as refused:
        price(jobs(privacy={"epsilon": 2}), settings)
    said = re.search(r"qedge budget set (\S+) --epsilon (\S+) --delta (\S+)(?: --order (\d+))?$", refused.value.message)
    assert said is not None
    order = int(said[4]) if said[4] else None
    ledger = Records.open(settings.home).ledger
    ledger.set_budget(said[1], epsilon=float(said[2]), delta=float(said[3]), order=order, actor="test")
    cost = price(jobs(privacy={"epsilon": 2}), settings)
    assert cost is not None
    assert cost.epsilon <= float(said[2]) <= cost.epsilon * 1.1 + 0.01


def test_what_is_spent_or_held_by_others_is_counted(settings: Settings) -> None:
    open_budget(settings, 4.0)
    assert price(jobs(search={"trials": 2}, privacy={"epsilon": 2}), settings) is not None
    prepare(jobs(privacy={"epsilon": 3})[0], settings)
    with pytest.raises(BudgetExceeded):
        price(jobs(search={"trials": 2}, privacy={"epsilon": 2}), settings)


def test_where_jobs_may_open_no_budget_the_search_names_the_one_to_open(settings: Settings) -> None:
    strict = settings.model_copy(update={"ledger": settings.ledger.model_copy(update={"open_by_job": False})})
    with pytest.raises(UnknownScope, match=r"qedge budget set wine --epsilon \S+ --delta 0\.01 --order"):
        price(jobs(), strict)


def test_without_privacy_a_search_costs_nothing(tmp_path: Path) -> None:
    settings = load(home=tmp_path / "untouched", environ={})
    assert price(jobs(privacy="none"), settings) is None
    assert not settings.home.exists()


def test_what_correlated_noise_has_not_released_is_never_given_back(settings: Settings) -> None:
    """The first rounds of such a plan release more than their share of it: freeing the rest would hide a part of what was spent."""
    open_budget(settings)
    turns, drawn = {"sampling": "cyclic", "rate": None, "period": 3}, {}
    plans: list[Plan | None] = []
    for cohort in (turns, drawn):
        run = prepare(jobs(cohort=cohort, rounds=6, privacy={"epsilon": 2})[0], settings).run
        plans.append(Records.open(settings.home).ledger.plan(run))
    assert [may_give_back(plan) for plan in plans if plan is not None] == [False, True]
