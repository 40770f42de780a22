"""Rényi accounting at integer orders: what a plan costs, what a budget allows, how much noise fits.

The currency is a vector of Rényi divergences in whole billionths of a nat ("nanos"), rounded up, so that costs add
exactly and in any order, and a float never decides whether a budget holds. Every conversion errs on the side of more
epsilon.

Neighbours: one client's rows emptied (zero-out). A release is the sum of the cohort's integer vectors, each of squared
norm at most Δ², plus discrete Gaussian noise; a cohort takes each client with probability q, independently.

Sources: Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism" (2019), section 3.3;
Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020), Proposition 12; Feldman, Zrnic,
"Individual Privacy Accounting via a Rényi Filter" (NeurIPS 2021) for why one order is frozen before the first charge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy

ORDERS: tuple[int, ...] = (*range(2, 65), 80, 96, 128, 192, 256, 512)
NANO = 10**9
MAX_EPSILON = 1e6
_POSITION = {order: position for position, order in enumerate(ORDERS)}
_ULP = 2.0**-53


@dataclass(frozen=True)
class RenyiCost:
    """Rényi divergence at each of `ORDERS`, in nanos (1e-9 nats), never below the true value.

    Raises:
        InvalidPrivacy: not one whole number >= 0 for each order.
    """

    nanos: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.nanos) != len(ORDERS) or any(type(n) is not int or n < 0 for n in self.nanos):
            raise InvalidPrivacy(f"a Rényi cost is {len(ORDERS)} whole numbers >= 0, one for each order")

    @classmethod
    def zero(cls) -> RenyiCost:
        """The cost of releasing nothing."""
        return cls((0,) * len(ORDERS))

    @classmethod
    def from_list(cls, nanos: Sequence[int]) -> RenyiCost:
        """The cost that `to_list` wrote."""
        return cls(tuple(nanos))

    def to_list(self) -> list[int]:
        """Nanos as a JSON list, aligned with `ORDERS`."""
        return list(self.nanos)

    def at(self, order: int) -> int:
        """Nanos at one of `ORDERS`.

        Raises:
            InvalidPrivacy: an order that is not accounted.
        """
        return self.nanos[_position(order)]

    def __add__(self, other: RenyiCost) -> RenyiCost:
        """Adaptive composition: divergences add, order by order (Mironov 2017, Proposition 1)."""
        return RenyiCost(tuple(mine + theirs for mine, theirs in zip(self.nanos, other.nanos, strict=True)))

    def __sub__(self, other: RenyiCost) -> RenyiCost:
        """What is left of a hold after a part of it; below zero is InvalidPrivacy."""
        return RenyiCost(tuple(mine - theirs for mine, theirs in zip(self.nanos, other.nanos, strict=True)))

    def __mul__(self, times: int) -> RenyiCost:
        """The cost of the same release `times` times."""
        return RenyiCost(tuple(n * times for n in self.nanos))

    __rmul__ = __mul__


def sampled_gaussian(sensitivity_squared: int, variance: int, rate: float) -> RenyiCost:
    """Cost of one noisy sum over a Poisson cohort: sensitivity_squared = Δ² and variance = σ² on the integer grid.

    At an integer order α the divergence is log(A)/(α-1), with (Mironov, Talwar, Zhang 2019, section 3.3)

        A = Σ_j C(α,j) (1-q)^(α-j) q^j exp(j(j-1) Δ²/(2σ²)).

    It is stated there for the Gaussian and holds unchanged for the discrete one. Let p be its mass on Z^d, one client's
    vector μ in Z^d with |μ|² <= Δ², r(x) = p(x-μ)/p(x), and m = 1-q+q·r the mixture over p.

    1. r^j p = exp(j(j-1)|μ|²/(2σ²)) · p(x-jμ), and jμ is on the lattice, so that Σ_x r^j p is exactly that exponential:
       expanding Σ_x p m^α by the binomial theorem gives A with |μ|², which grows with |μ|².
    2. The other direction is no larger: Σ_x p m^(1-α) <= Σ_x p m^α. The reflection x -> μ-x swaps p(x) and p(x-μ), hence
       Σ p f(r) = ½ Σ p (f(r) + r·f(1/r)), and it is enough that h(a) + r·h(b) >= 0 for h(y) = y^α - y^(1-α), r >= 1,
       a = 1+t, b = 1-t/r, t = q(r-1). On (0, 1] h is concave, so its tangent at b is at least h(1) = 0 at 1: that is the
       derivative of r·h(1-t/r) by r, t fixed. The sum is thus least at the least r, 1+t, where it is zero.
    3. Whatever the rest of the cohort is, it shifts both sides alike; averaging over it cannot raise A (joint convexity).

    A term is bounded from above, with every rounding counted, and the cost without sampling (αΔ²/(2σ²), exact in integers)
    caps the result: sampling never costs more.

    Raises:
        InvalidPrivacy: rate outside (0, 1], sensitivity or variance not a whole number >= 1.

    >>> sampled_gaussian(sensitivity_squared=100, variance=400, rate=1.0).at(2)
    250000000
    """
    for name, value in (("sensitivity_squared", sensitivity_squared), ("variance", variance)):
        if type(value) is not int or value < 1:
            raise InvalidPrivacy(f"{name} is {value}; accepted: a whole number >= 1 on the integer grid", given=value)
    if not 0 < rate <= 1:
        raise InvalidPrivacy(f"sampling rate is {rate}; accepted: a probability in (0, 1]", given=rate)
    unsampled = [-(-order * sensitivity_squared * NANO // (2 * variance)) for order in ORDERS]
    # Past an exponent of 1e6 sampling saves next to nothing and floats lose their last digits: the cap is the cost.
    if rate == 1 or sensitivity_squared > 10**6 * variance:
        return RenyiCost(tuple(unsampled))
    sampled = np.ceil(_sampled_divergence(rate, sensitivity_squared / (2 * variance)) * NANO * (1 + 4 * _ULP))
    return RenyiCost(tuple(min(int(nanos), cap) for nanos, cap in zip(sampled, unsampled, strict=True)))


def _sampled_divergence(rate: float, exponent: float) -> NDArray[np.float64]:
    """An upper bound of log(A)/(α-1) at each order, in nats, for Δ²/(2σ²) = exponent."""
    taken, left, log_binomials, starts = _binomial_terms()
    log_taken, log_left = math.log(rate), math.log1p(-rate)
    gain = log_binomials + taken * (taken - 1) * exponent
    loss = left * log_left + taken * log_taken
    # Each of the four parts carries at most 4 roundings and joining them 3 more; 16 covers them.
    terms = gain + loss + 16 * _ULP * (gain - loss)
    largest = np.maximum.reduceat(terms, starts)
    lengths = np.diff(np.append(starts, len(terms)))
    sums = np.add.reduceat(np.exp(terms - np.repeat(largest, lengths)), starts)
    # At most 513 positive terms: their exponentials and their sum are off by less than 2^-42 relatively.
    log_moments = largest + np.log(sums) + 8 * _ULP * np.abs(largest) + 2.0**-41
    return log_moments / (np.array(ORDERS) - 1.0)


@lru_cache(maxsize=1)
def _binomial_terms() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """For all orders end to end: j, α-j, log C(α,j), and where each order starts."""
    taken = [j for order in ORDERS for j in range(order + 1)]
    left = [order - j for order in ORDERS for j in range(order + 1)]
    logs = [math.log(math.comb(order, j)) for order in ORDERS for j in range(order + 1)]
    starts = np.cumsum([0, *(order + 1 for order in ORDERS[:-1])])
    return np.array(taken, float), np.array(left, float), np.array(logs, float), starts.astype(np.intp)


def epsilon_of(nanos: int, order: int, delta: float) -> float:
    """The epsilon that a Rényi cost of `nanos` at `order` proves at `delta`, rounded up.

    ε = ρ + log((α-1)/α) - (log δ + log α)/(α-1), at least 0 (Canonne, Kamath, Steinke 2020, Proposition 12).

    Raises:
        InvalidPrivacy: delta outside (0, 1), or an order that is not accounted.
    """
    _position(order)
    _check_delta(delta)
    parts = (nanos / NANO, math.log1p(-1 / order), -math.log(delta) / (order - 1), -math.log(order) / (order - 1))
    return max(0.0, sum(parts) + 16 * _ULP * sum(map(abs, parts)))


def allowance(epsilon: float, delta: float, order: int) -> int:
    """The most nanos at `order` whose `epsilon_of` is at most epsilon; -1 when not even a cost of nothing converts to it.

    Raises:
        InvalidPrivacy: epsilon outside [0, 1e6], delta outside (0, 1), or an order that is not accounted.
    """
    if not 0 <= epsilon <= MAX_EPSILON:
        raise InvalidPrivacy(f"epsilon is {epsilon}; accepted: 0 to {MAX_EPSILON:g}", given=epsilon)
    if epsilon_of(0, order, delta) > epsilon:
        return -1
    # The formula solved for ρ is right to well under a nano: start above it and come down to the first that fits.
    nanos = max(0, math.floor((epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)) * NANO)) + 2
    while epsilon_of(nanos, order, delta) > epsilon:
        nanos -= 1
    return nanos


def best_order(cost: RenyiCost, delta: float) -> tuple[int, float]:
    """The order at which a cost converts to the least epsilon, and that epsilon.

    Sound for a plan fixed beforehand; a budget that is charged adaptively keeps the order it was opened with.
    """
    order = min(ORDERS, key=lambda candidate: epsilon_of(cost.at(candidate), candidate, delta))
    return order, epsilon_of(cost.at(order), order, delta)


def frozen_order(epsilon: float, delta: float) -> int:
    """The order for a budget whose jobs are not known yet: the one that lets an unsampled Gaussian (ρ ∝ α) release most.

    Raises:
        InvalidPrivacy: no order converts to so small an epsilon at this delta.
    """
    allowances = {order: allowance(epsilon, delta, order) for order in ORDERS}
    order = max(ORDERS, key=lambda candidate: allowances[candidate] / candidate)
    if allowances[order] <= 0:
        raise _too_small(epsilon, delta, ORDERS)
    return order


@dataclass(frozen=True)
class Calibration:
    """The least noise for a plan: σ = noise_multiplier · Δ, σ² = variance (whole), and what each round then costs."""

    noise_multiplier: float
    variance: int
    cost_round: RenyiCost
    order: int


def calibrate(
    epsilon: float,
    delta: float,
    sensitivity_squared: int,
    rate: float,
    rounds: int,
    order: int | None = None,
    share: float = 1.0,
) -> Calibration:
    """The smallest whole variance at which `rounds` releases stay within `share` of what (epsilon, delta) allows.

    At `order` when given (a budget that is open already), else at the order that needs the least noise for this plan.

    Raises:
        InvalidPrivacy: a parameter out of range, an epsilon below what delta can prove, or more rounds than a budget
            counted in nanos can pay for.

    >>> calibrate(8.0, 1e-3, sensitivity_squared=16_000, rate=0.25, rounds=60).noise_multiplier > 1
    True
    """
    sampled_gaussian(sensitivity_squared, 1, rate)
    a_round = allowed_a_round(epsilon, delta, rounds, order, share)
    enough = min(evaluation_variance(nanos, candidate, sensitivity_squared) for candidate, nanos in a_round.items())
    variance, cost, chosen = least_variance(lambda given: sampled_gaussian(sensitivity_squared, given, rate), a_round, enough)
    return Calibration(math.sqrt(variance / sensitivity_squared), variance, cost, chosen)


def allowed_a_round(epsilon: float, delta: float, rounds: int, order: int | None, share: float) -> dict[int, int]:
    """The nanos that each of `rounds` equal releases may cost, at each order at which that is anything: `order`, or all when None.

    Raises:
        InvalidPrivacy: as `calibrate`.
    """
    if type(rounds) is not int or rounds < 1:
        raise InvalidPrivacy(f"rounds is {rounds}; accepted: a whole number >= 1", given=rounds)
    if not 0 < share <= 1:
        raise InvalidPrivacy(f"share of the budget is {share}; accepted: 0 < share <= 1", given=share)
    orders = ORDERS if order is None else (order,)
    allowed = {candidate: math.floor(Fraction(share) * allowance(epsilon, delta, candidate)) for candidate in orders}
    a_round = {candidate: nanos // rounds for candidate, nanos in allowed.items() if nanos >= rounds}
    if not a_round:
        most = max(allowed.values())
        if most < 1:
            raise _too_small(epsilon, delta, orders)
        raise InvalidPrivacy(
            f"{rounds} rounds are more than epsilon {epsilon} can pay for; accepted: at most {most}", given=rounds, accepted=most
        )
    return a_round


def least_variance(
    cost_of: Callable[[int], RenyiCost], a_round: Mapping[int, int], enough: int, short: int = 0
) -> tuple[int, RenyiCost, int]:
    """The smallest whole variance up to `enough`, which is, and over `short` whose cost fits at some order; that cost; and the order.

    cost_of: of a variance, falling as it grows; a_round: as `allowed_a_round` gives it.
    """

    def slack(cost: RenyiCost, candidate: int) -> int:
        return a_round[candidate] - cost.at(candidate)

    while enough - short > 1:
        variance = (short + enough) // 2
        cost = cost_of(variance)
        short, enough = (short, variance) if any(slack(cost, candidate) >= 0 for candidate in a_round) else (variance, enough)
    cost = cost_of(enough)
    return enough, cost, max(a_round, key=lambda candidate: Fraction(slack(cost, candidate), a_round[candidate]))


def evaluation_variance(nanos: int, order: int, sensitivity_squared: int) -> int:
    """The smallest variance at which one unsampled Gaussian release costs at most `nanos` at `order`.

    Raises:
        InvalidPrivacy: nothing to spend, or an order that is not accounted.
    """
    _position(order)
    if nanos < 1 or sensitivity_squared < 1:
        raise InvalidPrivacy(
            f"a release needs a cost of at least 1e-9 and a sensitivity of at least 1; given {nanos}, {sensitivity_squared}"
        )
    return -(-order * sensitivity_squared * NANO // (2 * nanos))


def exact_delta(delta: float, epsilon: float, total_variation: float) -> float:
    """What is left of delta for the exact mechanism when the one that runs is within `total_variation` of it: δ - (1+e^ε)·τ.

    For any event, P'(x) <= P(x)+τ <= e^ε P(y)+δ'+τ <= e^ε (P'(y)+τ)+δ'+τ, so the running mechanism has δ = δ' + (1+e^ε)τ.

    Raises:
        InvalidPrivacy: nothing is left.
    """
    _check_delta(delta)
    spent = (1 + math.exp(min(epsilon, 700.0))) * total_variation * (1 + 8 * _ULP)
    if not 0 <= spent < delta:
        raise InvalidPrivacy(f"noise within {total_variation:.2g} of the exact one proves nothing at delta {delta}, epsilon {epsilon}")
    return math.nextafter(delta - spent, 0.0) if spent else delta


def _position(order: int) -> int:
    if order not in _POSITION:
        raise InvalidPrivacy(
            f"order {order} is not accounted; accepted: {ORDERS[0]} to 64, {', '.join(map(str, ORDERS[63:]))}", given=order
        )
    return _POSITION[order]


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InvalidPrivacy(f"delta is {delta}; accepted: 0 < delta < 1", given=delta)


def _too_small(epsilon: float, delta: float, orders: Sequence[int]) -> InvalidPrivacy:
    least = min(epsilon_of(1, order, delta) for order in orders)
    return InvalidPrivacy(
        f"epsilon {epsilon} is too small for delta {delta}; accepted: more than {least:.4g}", given=epsilon, accepted=least
    )
