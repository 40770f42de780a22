"""Noise that no single party adds: what the sum of many clients' shares protects, how large a share must be, how far it reaches.

Each client adds independent discrete noise to its own integer vector before it is masked; whoever opens the sum sees the noisy
sum only. `honest` shares are the ones that the adversary neither knows nor can take out again: the fewest survivors that a round
accepts, less the colluders assumed. Shares beyond them can only help (post-processing). Neighbours: one client's vector emptied,
its share of the noise still added; sampling of the cohort is not counted on.

Sources: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation" (ICML
2021), Proposition 14; Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning" (NeurIPS 2021),
its bound in d dimensions. Both are replaced below by smaller ones, proved here, at the integer orders that are accounted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import NANO, ORDERS, Calibration, RenyiCost, allowed_a_round, evaluation_variance, least_variance
from qedge.privacy.mechanisms import MAX_VARIANCE, NoiseKind, noise_of

LEAST_SHARE = 4  # two grid units of standard deviation: below, sums of discrete Gaussians stop being nearly Gaussian
_SLACK = 1 + 2.0**-40  # over what a few dozen float operations can lose
_DIRECT = 64


@dataclass(frozen=True)
class DistributedNoise:
    """Independent shares of discrete noise in a sum of integer vectors.

    variance: of one client's share in one coordinate, in grid units squared; honest: how many shares the adversary does not know;
    dimensions: of the vectors; sensitivity_squared: the largest squared L2 norm of one client's vector.

    Raises:
        InvalidPrivacy: another kind, a variance outside 4 to 10^12, or another number that is not whole and positive.

    >>> DistributedNoise("skellam", variance=40, honest=10, dimensions=3, sensitivity_squared=100).cost().at(2)
    250313609
    """

    kind: NoiseKind
    variance: int
    honest: int
    dimensions: int
    sensitivity_squared: int

    def __post_init__(self) -> None:
        _check_sum(self.kind, self.variance, self.honest, self.dimensions)
        _check_whole("sensitivity_squared", self.sensitivity_squared)
        if self.variance < LEAST_SHARE:
            raise InvalidPrivacy(f"variance of a share is {self.variance}; accepted: at least {LEAST_SHARE}", given=self.variance)

    @property
    def total_variation(self) -> float:
        """How far the honest shares of one release, as they are sampled, may be from the exact distributions."""
        return noise_of(self.kind, self.variance).total_variation * self.honest * self.dimensions

    def cost(self) -> RenyiCost:
        """Rényi divergence of one release, either way, at each order, rounded up."""
        if self.kind == "skellam":
            slope, extra = _skellam_curvature(self.honest * self.variance) * self.sensitivity_squared, Fraction(0)
        else:
            slope = Fraction(self.sensitivity_squared, 2 * self.honest * self.variance)
            extra = Fraction(_gaussian_spread(self.variance, self.honest)) * self.dimensions
        return RenyiCost(tuple(math.ceil(order * (slope + extra / (order - 1)) * NANO) for order in ORDERS))


def _gaussian_spread(variance: int, shares: int) -> float:
    """w such that the sum P of so many discrete Gaussians and the one Gaussian Q of the summed variance are within a factor of
    exp(w): ρ = P/Q has log(max ρ/min ρ) <= w.

    Adding a share to k others: Σ_x Q_k(x)·Q_1(z-x) is exp(-z²/(2(k+1)σ²)) times the mass of a Gaussian of variance s² = σ²k/(k+1) on
    a shifted lattice, which by Poisson's summation is within 1 ± r of one value, r = 2·Σ_n exp(-2π²s²n²) <= 2e/(1-e³) with
    e = exp(-2π²s²). So each share widens the range of ρ by at most (1+r)/(1-r), and w = Σ_k 2·atanh(r_k).

    Then D_α of the sum moved by Δ from the sum, with α an integer and Δ on the lattice, is at most α·|Δ|²/(2mσ²) + α/(α-1)·w in each
    coordinate: Σ Q(x-Δ)^α Q(x)^(1-α) = exp(α(α-1)|Δ|²/(2mσ²)) exactly, and ρ(x-Δ)^α ρ(x)^(1-α) <= max ρ·exp((α-1)w) <= exp(αw), as
    1, an average of ρ, is at least min ρ. Proposition 14 has 10·Σ_k exp(-2π²s²) in the place of α/(α-1)·w, which is at most about 8.
    From σ² = 4 on w is below 10^-16: the proposition's other bounds, better where it is large, would never be used.
    """

    def widening(k: int) -> float:
        e = math.exp(-2 * math.pi**2 * variance * k / (k + 1))
        return 2 * math.atanh(2 * e / (1 - e**3))

    alone = min(shares - 1, _DIRECT)
    return _SLACK * (math.fsum(widening(k) for k in range(1, alone + 1)) + (shares - 1 - alone) * widening(_DIRECT))


def _skellam_curvature(variance: int) -> Fraction:
    """c/2 = log(I_0(v)/I_1(v)) from above, v >= 4: D_α of a Skellam variable of variance v moved by an integer Δ is at most α·Δ²·c/2.

    Let φ(k) = -log P(k), P(k) = exp(-v)·I_|k|(v).

    1. φ(k+1) + φ(k-1) - 2φ(k) <= c for every k. I_k/I_0 is the mean of exp(-k²T/2) over a law of T >= 0 (Hartman, Watson, "Normal
       distribution functions on spheres and the modified Bessel functions", Annals of Probability 1974), so φ(k) = f(k²) with
       f concave and rising. At k = 0 the left side is 2(f(1)-f(0)) = c. Past it, with m the slope of f between (k-1)² and k², it
       is at most (2k+1)m - (2k-1)m = 2m <= c.
    2. So ψ(k) = ck²/2 - φ(k) is convex on the integers, and as x-Δ lies at 1/α of the way from x to x-αΔ, an integer,
       α·ψ(x-Δ) - (α-1)·ψ(x) <= ψ(x-αΔ), that is P(x-Δ)^α P(x)^(1-α) <= P(x-αΔ)·exp(cα(α-1)Δ²/2). Sum over x.

    3. r = I_1/I_0 is at least l = 1 - 1/(2v) - 1/(8v²) - 1/(4v³) from v = 4 on: there it is (0.8635 to 0.8633), r' = 1 - r/v - r²,
       and l' is less than 1 - l/v - l² by (1/4)/v³ - (49/64)/v⁴ - (1/16)/v⁵ - (1/16)/v⁶ > 0. The series of r goes on with 1/(8v³).

    Over coordinates the divergences add: |Δ|² in place of Δ². c = 1/v + 1/(2v²) + …, whereas the paper has, besides α/(2v)·|Δ|²,
    ((2α-1)|Δ|² + 6|Δ|_1)/(4v²): the same leading term, and nothing here depends on the L1 norm.
    """
    v = variance
    return Fraction(math.log1p((4 * v**2 + v + 2) / (8 * v**3 - 4 * v**2 - v - 2)) * _SLACK)


def calibrate_shares(
    kind: NoiseKind,
    epsilon: float,
    delta: float,
    sensitivity_squared: int,
    dimensions: int,
    honest: int,
    rounds: int,
    order: int | None = None,
    share: float = 1.0,
) -> Calibration:
    """The smallest variance of one client's share, at least 4, at which `rounds` releases stay within `share` of what (epsilon, delta)
    allows; the noise multiplier is that of the honest shares together.

    At `order` when given (a budget that is open already), else at the order that needs the least noise for this plan.

    Raises:
        InvalidPrivacy: a parameter out of range, an epsilon below what delta can prove, more rounds than a budget counted in nanos
            can pay for, or a share that would have to be larger than 10^12.

    >>> calibrate_shares("discrete-gaussian", 8.0, 1e-3, sensitivity_squared=16_000, dimensions=62, honest=20, rounds=60).variance
    13089
    """

    def cost_of(variance: int) -> RenyiCost:
        return DistributedNoise(kind, variance, honest, dimensions, sensitivity_squared).cost()

    cost_of(LEAST_SHARE)
    a_round = allowed_a_round(epsilon, delta, rounds, order, share)
    least = min(evaluation_variance(nanos, candidate, sensitivity_squared) for candidate, nanos in a_round.items())
    short, enough = LEAST_SHARE - 1, max(LEAST_SHARE, -(-least // honest))
    while enough <= MAX_VARIANCE:
        cost = cost_of(enough)
        if any(cost.at(candidate) <= nanos for candidate, nanos in a_round.items()):
            variance, cost, chosen = least_variance(cost_of, a_round, enough, short)
            return Calibration(math.sqrt(honest * variance / sensitivity_squared), variance, cost, chosen)
        short, enough = enough, enough + enough // 64 + 1
    raise InvalidPrivacy(
        f"{honest} shares of noise would need a variance over {MAX_VARIANCE:.0e} each; accepted: more honest clients, "
        "a larger epsilon or fewer rounds",
        given=honest,
    )


def noise_tail(kind: NoiseKind, variance: int, shares: int, dimensions: int, magnitude: int) -> float:
    """An upper bound of the chance that the sum of so many shares exceeds `magnitude`, either way, in any of the coordinates.

    Chernoff's bound of P(S >= a), a = magnitude + 1, twice and for each coordinate, with v the summed variance. A discrete Gaussian
    has E[exp(tX)] = exp(t²σ²/2) times the sum of its bell over the lattice moved by tσ² over that on the lattice, which is the
    largest: exp(-a²/(2v)). Skellam's is exp(v(cosh t - 1)), least against exp(ta) at sinh t = a/v: exp(√(v²+a²) - v - a·asinh(a/v)).
    Of the exact distributions: how they are sampled may add shares · dimensions · total_variation.

    Raises:
        InvalidPrivacy: another kind, or a number that is not whole and positive; a negative magnitude.
    """
    _check_sum(kind, variance, shares, dimensions)
    if type(magnitude) is not int or magnitude < 0:
        raise InvalidPrivacy(f"magnitude is {magnitude}; accepted: a whole number >= 0", given=magnitude)
    reach, spread = float(magnitude + 1), float(shares * variance)
    if kind == "skellam":
        rise, fall = reach * (reach / (math.hypot(spread, reach) + spread)), reach * math.asinh(reach / spread)
        exponent = rise - fall + 2.0**-45 * (rise + fall)
    else:
        exponent = -(reach * reach) / (2 * spread) / _SLACK
    return min(1.0, 2 * dimensions * math.exp(exponent) * _SLACK)


def noise_reach(kind: NoiseKind, variance: int, shares: int, dimensions: int, chance: float) -> int:
    """The least magnitude that the sum of so many shares exceeds in any coordinate with a chance of at most `chance`, as
    `noise_tail` bounds it.

    Raises:
        InvalidPrivacy: a chance outside (0, 1), and as `noise_tail`.

    >>> noise_reach("discrete-gaussian", variance=10_000, shares=50, dimensions=100_000, chance=1e-9)
    5738
    """
    check_chance(chance)
    short, enough = -1, 1
    while noise_tail(kind, variance, shares, dimensions, enough) > chance:
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if noise_tail(kind, variance, shares, dimensions, middle) <= chance else (middle, enough)
    return enough


def check_chance(chance: float) -> None:
    """Refuse what is not a probability strictly between 0 and 1."""
    if not 0 < chance < 1:
        raise InvalidPrivacy(f"chance is {chance}; accepted: a probability strictly between 0 and 1", given=chance)


def _check_sum(kind: NoiseKind, variance: int, shares: int, dimensions: int) -> None:
    if kind not in ("discrete-gaussian", "skellam"):
        raise InvalidPrivacy(f"noise is {kind!r}; accepted: 'discrete-gaussian' or 'skellam'", given=kind)
    for name, value in (("variance", variance), ("shares", shares), ("dimensions", dimensions)):
        _check_whole(name, value)
    if variance > MAX_VARIANCE:
        raise InvalidPrivacy(f"variance of a share is {variance}; accepted: up to {MAX_VARIANCE:.0e}", given=variance)


def _check_whole(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise InvalidPrivacy(f"{name} is {value}; accepted: a whole number >= 1", given=value)
