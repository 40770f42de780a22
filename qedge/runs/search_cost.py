"""What a search can cost at most, priced before anything is held: each trial is a whole private job, and all of them add up.

Costs add as Rényi divergence at the scope's frozen order (`qedge.privacy.filter`). That the trials are compared adds nothing: they are
compared by released models on rows that are public. What is chosen by them is covered by what all of them cost together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pydantic import JsonValue

from qedge.config import Settings
from qedge.data.federation import Federation, default_scope, fingerprints
from qedge.data.federation import load as load_data
from qedge.errors import BudgetExceeded, Refused, UnknownScope
from qedge.federated.example_guarantee import plan_for
from qedge.federated.guarantee import Guarantee
from qedge.job import TrainingJob
from qedge.models import build, parameters_vector
from qedge.privacy.accounting import ORDERS, RenyiCost, allowance, epsilon_of
from qedge.privacy.filter import Opening, room
from qedge.privacy.ledger import Ledger, Plan, Scope
from qedge.records import Records
from qedge.search.trials import Trial


@dataclass(frozen=True)
class SearchCost:
    """What the trials of a search cost if each runs to its end. epsilons: of each by itself; epsilon: of all of them together."""

    scope: str
    delta: float
    epsilons: tuple[float, ...]
    epsilon: float

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return {"scope": self.scope, "delta": self.delta, "epsilons": list(self.epsilons), "epsilon": self.epsilon}


def price(jobs: Sequence[TrainingJob], settings: Settings) -> SearchCost | None:
    """The most that these jobs can cost together, all of them on the same data; None without privacy.

    Raises:
        BudgetExceeded: they do not all fit what is left; `trials_that_fit` says how many of them would, and the message what budget
            would take them all. Nothing is held then.
        Refused: any of its kinds, as `qedge.runs.preparation.prepare`.
    """
    first = jobs[0]
    if first.privacy is None:
        return None
    federation, records = load_data(first.data, first.seed), Records.open(settings.home)
    prints = fingerprints(federation, lambda message: records.keys.mac("fingerprint", message))
    name = first.privacy.budget or default_scope(first.data)
    known = records.ledger.find(prints, first.privacy.budget)
    known = known or next((scope for scope in records.ledger.scopes() if scope.name == name), None)
    if known is None and not settings.ledger.open_by_job:
        raise UnknownScope(f"no budget for these data; first: {_set_budget(name, jobs)}", scope=name)
    plans = [_plan(1, first, federation, known)]
    scope = known or Opening(first.privacy.epsilon, first.privacy.delta, plans[0].order, plans[0].unit).scope(name)
    plans += [_plan(number, job, federation, scope) for number, job in enumerate(jobs[1:], 2)]
    costs = [plan.cost(job.rounds, evaluated=True).at(scope.order) for plan, job in zip(plans, jobs, strict=True)]
    _refuse_over_budget(scope, costs, jobs, opened=known is not None)
    epsilons = tuple(epsilon_of(nanos, scope.order, scope.delta) for nanos in costs)
    return SearchCost(scope.name, scope.delta, epsilons, epsilon_of(sum(costs), scope.order, scope.delta))


def spent(trials: Sequence[Trial], cost: SearchCost, ledger: Ledger) -> float:
    """Epsilon of all that a search's trials have cost so far, together: what they released, or the whole plan where none is given back."""
    scope, whole = ledger.scope(cost.scope), RenyiCost.zero()
    for trial in trials:
        plan = ledger.plan(trial.run)
        if plan is not None:
            freed = trial.status in ("tried", "best", "stopped") and may_give_back(plan)
            whole = whole + (plan.part(set(ledger.releases(trial.run))) if freed else plan.cost)
    return scope.epsilon_of(whole)


def may_give_back(plan: Plan) -> bool:
    """Whether what a stopped plan has not released may be used otherwise: not where clients take turns, and the noise of rounds is
    correlated, for there a round's share of the plan is less than what that round alone releases."""
    return not plan.participation.startswith("cyclic")


def _plan(number: int, job: TrainingJob, federation: Federation, scope: Scope | None) -> Guarantee:
    schema = federation.schema
    try:
        params = len(parameters_vector(build(job.model, len(schema.features), len(schema.labels), job.seed)))
        return plan_for(job, len(federation.clients), params, scope)
    except Refused as error:
        raise type(error)(f"trial {number}: {error.message}", **error.facts) from None


def _refuse_over_budget(scope: Scope, costs: Sequence[int], jobs: Sequence[TrainingJob], *, opened: bool) -> None:
    left = room(scope)
    if sum(costs) <= left:
        return
    fit = sum(whole <= left for whole in accumulate(costs))
    together = epsilon_of(sum(costs), scope.order, scope.delta)
    needed = epsilon_of((scope.held + scope.committed).at(scope.order) + sum(costs), scope.order, scope.delta)
    budget = (
        f"qedge budget set {scope.name} --epsilon {_rounded_up(needed)} --delta {scope.delta:g}"
        if opened
        else _set_budget(scope.name, jobs)
    )
    raise BudgetExceeded(
        f"the {len(costs)} trials do not all fit scope '{scope.name}': together they can cost epsilon {together:.4g}, and "
        f"{scope.reserved:.4g} of {scope.epsilon:g} is spent or held; {f'the first {fit}' if fit else 'none of them'} would fit. "
        f"Accepted: fewer trials, a smaller privacy.epsilon for each, or a budget for all of them: {budget}",
        scope=scope.name,
        epsilon=scope.epsilon,
        asked=together,
        trials_that_fit=fit,
    )


def _set_budget(name: str, jobs: Sequence[TrainingJob]) -> str:
    """The command that opens a budget for all these jobs, at the order that makes it least."""
    asked = [job.privacy for job in jobs if job.privacy is not None]
    delta = asked[0].delta
    totals = {order: [allowance(one.epsilon, delta, order) for one in asked] for order in ORDERS}
    epsilons = {order: epsilon_of(sum(nanos), order, delta) for order, nanos in totals.items() if min(nanos) > 0}
    order = min(epsilons, key=lambda candidate: epsilons[candidate])
    unit = "" if asked[0].unit == "client" else f" --unit {asked[0].unit}"
    return f"qedge budget set {name} --epsilon {_rounded_up(epsilons[order])} --delta {delta:g} --order {order}{unit}"


def _rounded_up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 1000) / 1000:g}"
