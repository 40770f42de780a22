"""What a query has to have measured, and what that costs: decided whole before anything is computed.

The rule by which a budget is shared. Each thing that has to be measured has one share of it, once, however many statistics use it: the
number of rows; the sum of a column in a range; the sum of its squares; a histogram; a tree of counts, the levels of which share its share
equally; the hunt for one column's heavy hitters, the rounds of which do. Whatever is measured at once is one vector, in the squared norm of
which each has its share (`qedge.analytics.encoding`), under noise of one size.

Relation: zero-out, one client's rows emptied, the number of clients public. Everybody is asked, so that nothing is amplified by sampling,
and epsilon is the same against whoever sees the answers and whoever knows the roster. Discrete Gaussian noise (Canonne, Kamath, Steinke
2020), accounted at the scope's frozen Rényi order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from pydantic import JsonValue

from qedge.analytics.encoding import bounds_of
from qedge.analytics.measurements import BYTES, Bins, Categories, Measurement, Moment, RowCount
from qedge.errors import InvalidPrivacy
from qedge.job.query import Query, QueryPrivacy
from qedge.job.statistics import Count, HeavyHitters, Histogram, Quantile, Statistic, Sum, Variance
from qedge.privacy.accounting import (
    NANO,
    RenyiCost,
    allowance,
    epsilon_of,
    evaluation_variance,
    exact_delta,
    frozen_order,
    sampled_gaussian,
)
from qedge.privacy.filter import check_range
from qedge.privacy.mechanisms import MAX_VARIANCE, DiscreteGaussian, NoiseKind
from qedge.privacy.noise_share import NoiseShare
from qedge.secure_aggregation.groups import Group

_DEVIATION = 1 << 14  # of the noise in grid units: rounding is lost in it up to millions of clients, and its table is made in 0.3 s
SHARED: NoiseKind = "discrete-gaussian"  # what clients add in secure sums
_UNCOUNTED = 1e-9  # of delta; less than the rounding of the number that is shown


def needs(statistic: Statistic) -> dict[Measurement, Fraction]:
    """What a statistic is computed from in one round, with the share of each; nothing for one that takes rounds of its own."""
    one = Fraction(1)
    if isinstance(statistic, HeavyHitters):
        return {}
    if isinstance(statistic, Count):
        return {RowCount(): one}
    if isinstance(statistic, Histogram):
        if statistic.categories is not None:
            return {Categories(statistic.column, tuple(str(value).encode() for value in statistic.categories)): one}
        low, high = statistic.range or (0.0, 0.0)
        return {Bins(statistic.column, low, high, statistic.bins or 1): one}
    column, (low, high) = statistic.column, statistic.range
    if isinstance(statistic, Quantile):
        return {Bins(column, low, high, 2**level): Fraction(1, statistic.depth) for level in range(1, statistic.depth + 1)}
    first, second = Moment(column, low, high, 1), Moment(column, low, high, 2)
    if isinstance(statistic, Sum) and first.middle == 0:
        return {first: one}
    shares: dict[Measurement, Fraction] = {RowCount(): one, first: one}
    return shares | {second: one} if isinstance(statistic, Variance) else shares


def measured_at_once(query: Query) -> dict[Measurement, Fraction]:
    """All that one round measures for a query, each once."""
    shares: dict[Measurement, Fraction] = {}
    for statistic in query.statistics:
        for measurement, share in needs(statistic).items():
            shares[measurement] = max(share, shares.get(measurement, share))
    return shares


def hunting_rounds(query: Query) -> int:
    """How many rounds heavy hitters take: one for every byte, and one in which what was found is counted afresh; 0 without any."""
    return max((hunt.length + 1 for hunt in query.hunts), default=0)


@dataclass(frozen=True)
class Charge:
    """One release: bounds, of what a client sends for each measurement, in grid units; the noise's variance, in grid units squared.

    share: in secure sums, what each client adds; the variance is then of those shares that are counted on.
    """

    bounds: tuple[int, ...]
    variance: int
    cost: RenyiCost
    share: NoiseShare | None = None

    @property
    def sensitivity_squared(self) -> int:
        """The largest squared norm of what one client sends."""
        return sum(bound**2 for bound in self.bounds)

    def plain(self) -> dict[str, JsonValue]:
        """What is put on record."""
        share: JsonValue = [self.share.kind, self.share.variance] if self.share else None
        return {"bounds": list(self.bounds), "variance": self.variance, "cost": list(self.cost.nanos), "share": share}


@dataclass(frozen=True)
class QueryPlan:
    """All that a query releases: `once`, what one round measures, if anything; `hunting`, each of `rounds` rounds for heavy hitters."""

    order: int
    delta: float
    once: Charge | None
    hunting: Charge | None
    rounds: int

    @property
    def cost(self) -> RenyiCost:
        """Of all of it."""
        whole = self.once.cost if self.once else RenyiCost.zero()
        return whole + self.hunting.cost * self.rounds if self.hunting else whole

    @property
    def epsilon(self) -> float:
        """Of all of it, at the scope's order."""
        return epsilon_of(self.cost.at(self.order), self.order, self.delta)

    def plain(self) -> dict[str, JsonValue]:
        """What is put on record and read back by `read_plan`."""
        charges = {name: charge.plain() if charge else None for name, charge in (("once", self.once), ("hunting", self.hunting))}
        return {"order": self.order, "delta": repr(self.delta), "rounds": self.rounds, **charges}


def plan_query(query: Query, clients: int, order: int | None) -> QueryPlan:
    """The least noise with which the whole query costs at most its epsilon.

    order: the Rényi order that the scope to be charged has frozen, or None when the query will open it.

    Raises:
        InvalidPrivacy: one client, delta not below 1/clients, or no noise that would do.
    """
    privacy = query.privacy
    if privacy is None:
        raise InvalidPrivacy("the query says 'privacy: none', there is nothing to guarantee")
    if clients < 2:
        raise InvalidPrivacy("client-level privacy needs at least two clients; the client column names one")
    check_range(privacy.epsilon, privacy.delta, clients)
    order = order or frozen_order(privacy.epsilon, privacy.delta)
    shares, hunts, rounds = measured_at_once(query), len(query.hunts), hunting_rounds(query)
    at_once = sum(shares.values(), Fraction(0))
    each = Fraction(max(0, allowance(privacy.epsilon, privacy.delta, order))) / (at_once + hunts)
    plan = QueryPlan(
        order,
        privacy.delta,
        once=_charge(list(shares.values()), math.floor(each * at_once), order, privacy) if shares else None,
        hunting=_charge([Fraction(1)] * hunts, math.floor(each * hunts / rounds), order, privacy) if hunts else None,
        rounds=rounds,
    )
    if query.secure_aggregation is not None:
        plan = _in_shares(plan, query, query.secure_aggregation.groups(clients))
    if not _is_exact(plan, query, privacy.epsilon):
        raise InvalidPrivacy(
            f"privacy.epsilon is {privacy.epsilon}; so little noise protects nothing that could be proved; accepted: less, as 10",
            given=privacy.epsilon,
        )
    return plan


def _in_shares(plan: QueryPlan, query: Query, groups: Sequence[Group]) -> QueryPlan:
    """The same plan with the noise added by clients, sized for the smallest group: against a server that sees the sum of each."""
    honest = min(group.honest for group in groups)

    def shared(charge: Charge | None, dimensions: int) -> Charge | None:
        if charge is None:
            return None
        allowed, variance = charge.cost.at(plan.order), -(-charge.variance // honest)
        while (cost := NoiseShare(SHARED, variance).cost(charge.sensitivity_squared, dimensions, honest)).at(plan.order) > allowed:
            variance += variance // 10**6 + 1
        return Charge(charge.bounds, variance * honest, cost, NoiseShare(SHARED, variance, honest))

    return replace(plan, once=shared(plan.once, _widest(query)[0] or 1), hunting=shared(plan.hunting, _widest(query)[1] or 1))


def _widest(query: Query) -> tuple[int, int]:
    """Entries of the vector that is measured at once, and of the widest in the rounds for heavy hitters."""
    at_once = sum(measurement.width for measurement in measured_at_once(query))
    return at_once, sum(BYTES * hunt.most * hunt.length for hunt in query.hunts)


def read_plan(values: dict[str, JsonValue]) -> QueryPlan:
    """The plan that `QueryPlan.plain` put on record."""
    once, hunting = (_read_charge(values[name]) for name in ("once", "hunting"))
    return QueryPlan(int(str(values["order"])), float(str(values["delta"])), once, hunting, int(str(values["rounds"])))


def _charge(shares: Sequence[Fraction], nanos: int, order: int, privacy: QueryPrivacy) -> Charge:
    multiplier = math.sqrt(order * NANO / (2 * nanos)) if nanos > 0 else math.inf
    if multiplier > math.sqrt(MAX_VARIANCE) / len(shares):
        least = epsilon_of(1, order, privacy.delta)
        raise InvalidPrivacy(
            f"privacy.epsilon is {privacy.epsilon}: too small at delta {privacy.delta} and order {order}, which is frozen with the scope: "
            f"there the least of releases counts {least:.4g}; accepted: well above that, or a scope of its own with a higher order "
            "(`qedge budget set --order`)",
            given=privacy.epsilon,
        )
    bounds = bounds_of(shares, multiplier, _DEVIATION)
    sensitivity_squared = sum(bound**2 for bound in bounds)
    variance = evaluation_variance(nanos, order, sensitivity_squared)
    return Charge(bounds, variance, sampled_gaussian(sensitivity_squared, variance, 1.0))


def _is_exact(plan: QueryPlan, query: Query, epsilon: float) -> bool:
    """Whether sampling that is off by a total variation τ, which costs (1 + e^ε)τ of delta, costs too little to be counted."""
    at_once, hunted = _widest(query)
    off = _off(plan.once) * at_once if plan.once else 0.0
    off += _off(plan.hunting) * hunted * plan.rounds if plan.hunting else 0.0
    try:
        return exact_delta(plan.delta, epsilon, off) >= (1 - _UNCOUNTED) * plan.delta
    except InvalidPrivacy:
        return False


def _off(charge: Charge) -> float:
    """How far the noise on one coordinate, as it is sampled, may be from its distribution."""
    if charge.share is None:
        return DiscreteGaussian(charge.variance).total_variation
    return charge.share.total_variation * (charge.variance // charge.share.variance)


def _read_charge(value: JsonValue) -> Charge | None:
    if not isinstance(value, dict):
        return None
    variance = int(str(value["variance"]))
    return Charge(_whole(value["bounds"]), variance, RenyiCost(_whole(value["cost"])), NoiseShare.read(value["share"], variance))


def _whole(values: JsonValue) -> tuple[int, ...]:
    items: Sequence[JsonValue] = values if isinstance(values, list) else []
    return tuple(int(str(value)) for value in items)
