"""The privacy filter: which budgets can be opened, and which plans fit them.

A scope's (epsilon, delta) and Rényi order are fixed before anything is released. A plan is accepted iff held + committed +
plan, at that order, converts to at most epsilon at that delta: a privacy filter, valid though every plan is chosen after
seeing all earlier releases (Feldman & Zrnic 2021, Theorem 4.3; Lécuyer 2021, Theorem 1). Choosing the best order afterwards
would not be.

Source: V. Feldman, T. Zrnic, "Individual privacy accounting via a Rényi filter", NeurIPS 2021; M. Lécuyer, "Practical
privacy filters and odometers with Rényi differential privacy", 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qedge.errors import BudgetExceeded, InvalidPrivacy
from qedge.privacy.accounting import ORDERS, RenyiCost, allowance, epsilon_of, frozen_order
from qedge.privacy.ledger_events import Plan, Scope

UNITS, RELATION = ("client", "example"), "zero-out"
UNIT = UNITS[0]
MAX_EPSILON = 1000.0
_CRUMB = 1e-3  # of a budget


@dataclass(frozen=True)
class Opening:
    """The budget with which a first job opens the scope of its data. clients: how many, where that is to be checked."""

    epsilon: float
    delta: float
    order: int
    unit: str = UNIT
    relation: str = RELATION
    clients: int | None = None

    def scope(self, name: str) -> Scope:
        """The scope that it opens.

        Raises:
            InvalidPrivacy: a parameter out of range, or nothing would fit.
        """
        check_range(self.epsilon, self.delta, self.clients)
        if self.order not in ORDERS:
            raise InvalidPrivacy(
                f"order is {self.order}; accepted: {ORDERS[0]} to 64, then {', '.join(map(str, ORDERS[63:]))}", given=self.order
            )
        if self.unit not in UNITS or self.relation != RELATION:
            raise InvalidPrivacy(
                f"a {self.unit} under {self.relation} is not accounted; accepted: a {' or an '.join(UNITS)} under {RELATION}",
                given=self.unit,
            )
        if allowance(self.epsilon, self.delta, self.order) < 0:
            raise InvalidPrivacy(
                f"nothing fits epsilon {self.epsilon:g} at delta {self.delta:g} and order {self.order}; accepted: a higher order, "
                f"as order {frozen_order(self.epsilon, self.delta)}",
                given=self.order,
            )
        nothing = RenyiCost.zero()
        return Scope(name, self.unit, self.relation, self.epsilon, self.delta, self.order, nothing, nothing)


def check_range(epsilon: float, delta: float, clients: int | None) -> None:
    """Refuse a budget that is none.

    Raises:
        InvalidPrivacy: epsilon outside (0, 1000], or delta outside (0, 1) or not below 1/clients.
    """
    if not 0 < epsilon <= MAX_EPSILON:
        raise InvalidPrivacy(f"epsilon is {epsilon}; accepted: 0 < epsilon <= {MAX_EPSILON:g}", given=epsilon)
    if not 0 < delta < 1:
        raise InvalidPrivacy(f"delta is {delta}; accepted: 0 < delta < 1/clients", given=delta)
    if clients is not None and delta * clients >= 1:
        raise InvalidPrivacy(f"delta is {delta}; accepted: below 1/clients = {1 / clients:.3g}", given=delta)


def refuse_thawing(scope: Scope, **given: object) -> None:
    """Refuse another delta, order or unit than the one frozen with the scope.

    Raises:
        InvalidPrivacy: names what is frozen.
    """
    for name, value in given.items():
        frozen = getattr(scope, name)
        if value not in (None, frozen):
            raise InvalidPrivacy(
                f"the {name} of scope '{scope.name}' is frozen at {frozen}, what it released was accounted with it; given {value}. "
                "Only epsilon can change",
                scope=scope.name,
                given=value,
                frozen=frozen,
            )


def room(scope: Scope) -> int:
    """Nanos at the scope's order that a new plan may cost; below zero where the budget was lowered under what is reserved."""
    return allowance(scope.epsilon, scope.delta, scope.order) - _reserved(scope)


def most_epsilon(scope: Scope) -> float:
    """The largest epsilon that one new job may ask at the scope's delta and order and be held; 0.0 when nothing more fits.

    It is no difference of epsilons: costs add as Rényi divergence, and each job's epsilon pays the conversion anew, so that this
    and what is reserved may come to more than the budget. Less than a thousandth of the budget is nothing: the conversion alone would
    be most of such a job's epsilon.
    """
    left = room(scope)
    if left <= _CRUMB * allowance(scope.epsilon, scope.delta, scope.order):
        return 0.0
    return epsilon_of(left, scope.order, scope.delta) if _reserved(scope) else scope.epsilon


def least_epsilon(scope: Scope) -> float:
    """What the conversion at the scope's delta and order counts before anything is released: a job asks more, or nothing."""
    return max(0.0, epsilon_of(0, scope.order, scope.delta))


def refuse_over_budget(scope: Scope, plan: Plan) -> None:
    """The filter: held + committed + plan at the frozen order, against the most that converts to the budget.

    Raises:
        BudgetExceeded: with what was asked, what one job may ask at most, and how many of the plan's rounds would fit.
    """
    left = room(scope)
    if plan.cost.at(scope.order) <= left:
        return
    each = plan.per_round.at(scope.order)
    others = sum(cost.at(scope.order) for cost in (plan.first, plan.final) if cost)
    fit = max(0, (left - others) // each) if each else 0
    most = most_epsilon(scope)
    offer = (
        f"a new job may ask privacy.epsilon {rounded_down(most)} at most; with this plan's noise, {fit} of its rounds would fit"
        if most
        else f"nothing more fits: {fit} of its rounds would"
    )
    raise BudgetExceeded(
        f"the plan does not fit scope '{scope.name}': its {plan.rounds} rounds alone come to epsilon {scope.epsilon_of(plan.cost):.4g}, "
        f"and {scope.reserved:.4g} of {scope.epsilon:g} is spent or held; {offer}",
        scope=scope.name,
        epsilon=scope.epsilon,
        new_job_epsilon=most,
        asked=scope.epsilon_of(plan.cost),
        rounds_that_fit=fit,
    )


def rounded_down(epsilon: float) -> str:
    """An epsilon in four digits after the point that still fits: rounding to the nearest could ask for more than there is."""
    return f"{math.floor(epsilon * 10**4) / 10**4:g}"


def _reserved(scope: Scope) -> int:
    return (scope.held + scope.committed).at(scope.order)
