"""What example-level noise costs a whole client: the Poisson-sampled sum of up to K of its clipped gradients.

A client has at most K rows; each is in a step's batch with probability q, independently, and J ~ Bin(K, q) of them move the sum by at
most JΔ. Emptying the client is the mixture Σ_j P(J = j) N(jΔ, σ²) against N(0, σ²) (Ganesh, "Tight Group-Level DP Guarantees for DP-SGD
with Sampling via Mixture of Gaussians Mechanisms", arXiv 2401.10294). Rényi divergences at integer orders, in both directions; every
figure is an upper bound, with the discrete Gaussian on the lattice in the place of the Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import NANO, ORDERS, RenyiCost, allowance, sampled_gaussian

Floats = NDArray[np.float64]
_ULP = 2.0**-53
_CELLS = 256  # that an integral begins with
_FINE = 0.02  # width of the cells that carry it; the bound is then off by less than 1e-4 of the divergence
_NEGLIGIBLE = 50.0  # e^-50 of the largest
_TOGETHER = 64  # nodes that share a window of j


def sampled_group(sensitivity_squared: int, variance: int, rate: float, rows: int) -> RenyiCost:
    """Cost to a client of one noisy sum over a Poisson batch, of which at most `rows` rows are its own.

    sensitivity_squared = Δ², of one row, and variance = σ² on the integer grid; rate = q. With a = Δ/σ, and μ_S on the lattice what the
    client's rows of a set S add up to, |μ_S| <= |S|Δ; r_S(x) = p(x - μ_S)/p(x), p the mass of the noise; m = E_S r_S.

    1. Client present against emptied, log(E_p m^α)/(α-1): a product r_S1 ··· r_Sα p is p shifted by Σ μ_Si, times
       exp(Σ_{i<k} <μ_Si, μ_Sk>/σ²), so that its sum over the lattice is that factor, which is at most exp(a² Σ_{i<k} J_i J_k) with
       J_i = |S_i|. Averaged over independent J_i this is, expanded the same way, ∫ φ(x) (Σ_j P(J=j) exp(jax - j²a²/2))^α dx: the
       divergence of the scalar mixture. `_log_moment` bounds the integral.
    2. Emptied against present, log(E_p m^(1-α))/(α-1): by Jensen's inequality log m >= E_S log r_S = (<x, E μ_S> - E|μ_S|²/2)/σ², and the
       discrete Gaussian is sub-Gaussian, E_p exp(<x, v>) <= exp(σ²|v|²/2) (Canonne, Kamath, Steinke 2020), so that it is at most
       a²/2 · (Var J + α (E J)²). For a single row the first direction is the larger (`sampled_gaussian`), and there this is not used.
    3. Neither passes that of the whole group without sampling, α(KΔ)²/(2σ²) (joint quasi-convexity).
    4. Whatever the others' rows come to, it shifts both sides alike (joint convexity).

    Raises:
        InvalidPrivacy: a rate outside (0, 1]; rows, sensitivity or variance not a whole number >= 1.
    """
    if type(rows) is not int or rows < 1:
        raise InvalidPrivacy(f"rows is {rows}; accepted: a whole number >= 1", given=rows)
    sampled_gaussian(sensitivity_squared, variance, rate)  # refuses what is out of range
    return RenyiCost(tuple(group_nanos(sensitivity_squared, variance, rate, rows, order) for order in ORDERS))


def group_nanos(sensitivity_squared: int, variance: int, rate: float, rows: int, order: int) -> int:
    """`sampled_group` at one order, nanos.

    Raises:
        InvalidPrivacy: as `sampled_group`, or an order that is not accounted.
    """
    if rows == 1 or rate == 1:
        return sampled_gaussian(sensitivity_squared * rows**2, variance, rate).at(order)
    whole = sampled_gaussian(sensitivity_squared * rows**2, variance, 1.0).at(order)
    ratio, mean = sensitivity_squared / variance, rows * rate
    if order * rows * ratio > 1e6:  # without sampling it is far less than what follows
        return whole
    present = _log_moment(math.sqrt(ratio) * (1 + 4 * _ULP), rate, rows, order) / (order - 1)
    emptied = ratio / 2 * (mean * (1 - rate) + order * mean**2) * (1 + 16 * _ULP)
    return min(whole, math.ceil(max(present, emptied) * NANO * (1 + 4 * _ULP)))


def group_variance(nanos: int, order: int, sensitivity_squared: int, rate: float, rows: int) -> int:
    """A variance, within 1e-6 of the smallest, at which one `sampled_group` costs at most `nanos` at `order`.

    Raises:
        InvalidPrivacy: nothing to spend, or a parameter out of range.
    """
    if nanos < 1:
        raise InvalidPrivacy(f"a release needs a cost of at least 1e-9; given {nanos}", given=nanos)
    high = -(-order * sensitivity_squared * rows**2 * NANO // (2 * nanos))  # without sampling, which never costs less
    low = 0
    while high - low > 1 + high // 10**6:
        middle = max(low + 1, math.isqrt(max(1, low) * high)) if low else max(1, high // 16)
        low, high = (low, middle) if group_nanos(sensitivity_squared, middle, rate, rows, order) <= nanos else (middle, high)
    return high


def most_nanos(epsilon: float, delta: float, order: int, releases: int) -> int:
    """What one of so many releases may cost at `order` for all of them to stay within (epsilon, delta).

    Raises:
        InvalidPrivacy: less than a nano is left for each, or a parameter out of range.
    """
    each = allowance(epsilon, delta, order) // releases
    if each < 1:
        raise InvalidPrivacy(
            f"{releases} steps are more than epsilon {epsilon} can pay for at delta {delta}, order {order}", given=releases
        )
    return each


def _log_moment(shift: float, rate: float, rows: int, order: int) -> float:
    """An upper bound of log ∫ φ m^α, m(x) = Σ_j P(J=j) exp(j·shift·x - j²·shift²/2).

    log m is convex, so in a cell it lies below its chord; -x²/2 is its tangent at the middle less u²/2, u the distance from there. So the
    integral over a cell of width h is at most e^(value of both lines in the middle) · ∫ e^(su) e^(-u²/2) du, s the slope of their sum, and
    ∫ cosh(su) e^(-u²/2) du is at most the product of the means of both times h, since one rises with |u| and the other falls (Chebyshev).
    Left of the first cell m is at most what it is there; right of the last its logarithm rises by at most rows·shift.
    Cells that carry the integral are cut in four until they are fine.
    """
    steepest = order * rows * shift
    log_m = _mixture(shift, rate, rows)
    edges = np.linspace(-12.0, steepest + 12.0, _CELLS + 1)
    left, right = edges[:-1], edges[1:]
    begin, end = log_m(left), log_m(right)
    tails = np.array(
        [
            order * begin[0] - left[0] ** 2 / 2 - math.log(-left[0]),
            order * end[-1] - right[-1] ** 2 / 2 - math.log(right[-1] - steepest),
        ]
    )
    settled = [tails]
    while True:
        logs = _cells(left, right, begin, end, order)
        coarse = (logs > max(logs.max(), tails.max()) - _NEGLIGIBLE) & (right - left > _FINE)
        settled.append(logs[~coarse])
        if not coarse.any():
            break
        quarters = np.linspace(left[coarse], right[coarse], 5, axis=1)
        values = log_m(quarters.ravel()).reshape(quarters.shape)
        left, right = quarters[:, :-1].ravel(), quarters[:, 1:].ravel()
        begin, end = values[:, :-1].ravel(), values[:, 1:].ravel()
    logs = np.concatenate(settled)
    largest = float(logs.max())
    total = largest + math.log(float(np.exp(logs - largest).sum())) - math.log(2 * math.pi) / 2
    # Of each part: the logarithms of m and their multiples, the exponential and the sum of fewer than 2^20 positive terms.
    reach = rows * (1.0 + shift * (steepest + 12.0) + abs(math.log(rate)) - math.log1p(-rate)) + (rows * shift) ** 2
    return max(0.0, total) + order * _ULP * (16 * reach + rows + 64) + 2.0**-40


def _cells(left: Floats, right: Floats, begin: Floats, end: Floats, order: int) -> Floats:
    """The logarithm of each cell's bound, without the 1/√(2π)."""
    width, middle = right - left, (left + right) / 2
    slope = order * (end - begin) / width - middle
    half = np.maximum(np.abs(slope) * width / 2, 1e-8)
    log_mean_cosh = half + np.log(-np.expm1(-2 * half) / (2 * half))  # log(sinh(half)/half)
    mean_bell = np.where(width < 1, np.log1p(-(width**2) / 24 + width**4 / 640), 0.0)
    bound: Floats = order * (begin + end) / 2 - middle**2 / 2 + log_mean_cosh + mean_bell + np.log(width)
    return bound


def _mixture(shift: float, rate: float, rows: int) -> Callable[[Floats], Floats]:
    """x to log Σ_j P(J=j) exp(j·shift·x - j²·shift²/2), x ascending.

    The terms are log-concave in j, and their peak and its flanks move up with x: a block of nodes needs those that count at its first
    node or above and at its last or below. What is left out is less than rows · e^-50 of the whole, under a unit in the last place.
    """
    j = np.arange(rows + 1.0)
    fixed = _log_binomials(rows) + j * math.log(rate) + (rows - j) * math.log1p(-rate) - (j * shift) ** 2 / 2

    def log_m(nodes: Floats) -> Floats:
        values = np.empty_like(nodes)
        for start in range(0, len(nodes), _TOGETHER):
            block = nodes[start : start + _TOGETHER]
            first, last = (fixed + shift * j * x for x in (block.min(), block.max()))
            low = int(np.argmax(first > first.max() - _NEGLIGIBLE))
            high = rows - int(np.argmax((last > last.max() - _NEGLIGIBLE)[::-1]))
            terms = fixed[low : high + 1] + shift * j[low : high + 1] * block[:, None]
            largest = terms.max(axis=1, keepdims=True)
            values[start : start + _TOGETHER] = largest[:, 0] + np.log(np.exp(terms - largest).sum(axis=1))
        return values

    return log_m


@lru_cache(maxsize=8)
def _log_binomials(rows: int) -> Floats:
    logs, binomial = [], 1
    for j in range(rows + 1):
        logs.append(math.log(binomial))
        binomial = binomial * (rows - j) // (j + 1)
    return np.array(logs)
