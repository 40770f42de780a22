"""Noise that clients add themselves, each a share, so that a secure sum is private against the server that opens it.

What counts are the shares that no adversary knows: those of the fewest survivors of a group, less the colluders among them. A client's
share is an independent discrete Gaussian or Skellam draw on each entry of its own integer vector.

- **Discrete Gaussian** (Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
  Aggregation", ICML 2021). A sum of m of them is no discrete Gaussian, but close: completing the square, P(X+Y = z) of shares with
  variances σ² and kσ² is the mass of the discrete Gaussian with (k+1)σ² at z times Σ_x exp(-(x - z/(k+1))²/(2s²)), s² = σ²k/(k+1),
  which Poisson summation puts within a factor 1 ± 2.1 exp(-2π²s²) of √(2π)s. Numerator and normaliser together, and one share after
  another, the logarithm of the ratio of the two masses is at most τ = 10 Σ_(k=1)^(m-1) exp(-2π²σ²k/(k+1)) on each entry (their lemma;
  σ >= 1/2). Departure: from there the Rényi divergence of order α of the sum is bounded directly, by that of the discrete Gaussian with
  mσ², αΔ²/(2mσ²), and dτ(2α-1)/(α-1) for the change of both distributions.
- **Skellam** (Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021, theorem 3.5):
  sums are Skellam, and at integer orders D_α <= αΔ²/(2μ) + min(((2α-1)Δ² + 6Δ₁)/(4μ²), 3Δ₁/(2μ)) for the variance μ of the sum and an
  L1 sensitivity Δ₁, which for vectors of d integers is at most min(Δ², √d Δ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from numpy import int64
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import NANO, ORDERS, RenyiCost, allowance
from qedge.privacy.mechanisms import MAX_VARIANCE, DiscreteGaussian, NoiseSource, Skellam

DISCRETE_GAUSSIAN, SKELLAM = "discrete-gaussian", "skellam"
LEAST_VARIANCE = 4  # of one share: two grid units, where sums of shares are close to what they are accounted as


@dataclass(frozen=True)
class NoiseShare:
    """kind: discrete-gaussian or skellam; variance: of one client's share on each entry, in grid units squared.

    Raises:
        InvalidPrivacy: another kind, or a variance below 4.
    """

    kind: str
    variance: int

    def __post_init__(self) -> None:
        if self.kind not in (DISCRETE_GAUSSIAN, SKELLAM):
            raise InvalidPrivacy(f"a share of '{self.kind}' noise; accepted: {DISCRETE_GAUSSIAN}, {SKELLAM}", given=self.kind)
        if not LEAST_VARIANCE <= self.variance <= MAX_VARIANCE:
            raise InvalidPrivacy(
                f"a share of noise has variance {self.variance}; accepted: {LEAST_VARIANCE} to {MAX_VARIANCE:.0e}", given=self.variance
            )

    @property
    def words(self) -> str:
        """What a server announces, and each client compares with what it adds."""
        return f"{self.kind} variance={self.variance}"

    @property
    def total_variation(self) -> float:
        """How far one draw may be from its distribution."""
        return self._sampler.total_variation

    def sample(self, size: int, source: NoiseSource) -> NDArray[int64]:
        """One client's share, [size] int64."""
        return self._sampler.sample(size, source)

    def cost(self, sensitivity_squared: int, dimensions: int, shares: int) -> RenyiCost:
        """Of one sum with so many shares that the adversary does not know, never below the true divergence.

        sensitivity_squared: Δ², the largest squared norm by which one client's integers move the sum.
        """
        total = self.variance * shares
        if self.kind == DISCRETE_GAUSSIAN:
            apart = _apart(self.variance, shares) * dimensions
            return RenyiCost(
                tuple(-(-a * sensitivity_squared * NANO // (2 * total)) + math.ceil(apart * (2 * a - 1) / (a - 1) * NANO) for a in ORDERS)
            )
        first_norm = min(sensitivity_squared, math.isqrt(dimensions * sensitivity_squared) + 1)
        return RenyiCost(tuple(math.ceil(_skellam(a, sensitivity_squared, first_norm, total) * NANO) for a in ORDERS))

    def reach(self, shares: int, dimensions: int, chance: float) -> int:
        """A magnitude that no entry of a sum of so many shares passes, but with this chance.

        P(|X| >= t) <= 2 exp(-t²/(2(v + t/3))) for a sum of variance v (Bernstein): the moment generating function of the Skellam
        distribution is exp(v(cosh λ - 1)), and cosh λ - 1 <= λ²/(2(1 - λ/3)); the discrete Gaussian's is at most exp(vλ²/2).
        """
        total, exponent = self.variance * shares, math.log(2 * dimensions / chance)
        return math.ceil(exponent / 3 + math.sqrt(exponent**2 / 9 + 2 * total * exponent)) + 1

    @property
    def _sampler(self) -> DiscreteGaussian | Skellam:
        return DiscreteGaussian(self.variance) if self.kind == DISCRETE_GAUSSIAN else Skellam(self.variance)


@dataclass(frozen=True)
class SharedCalibration:
    """The least share for a plan, what each round then costs, and the order at which it was fitted."""

    share: NoiseShare
    cost_round: RenyiCost
    order: int


def calibrate_shares(
    kind: str,
    epsilon: float,
    delta: float,
    sensitivity_squared: int,
    dimensions: int,
    honest: int,
    rounds: int,
    order: int | None = None,
) -> SharedCalibration:
    """The least share with which so many releases, `honest` shares in each, stay within what (epsilon, delta) allows.

    At `order` when given (a budget that is open already), else at the order that needs the least noise for this plan.

    Raises:
        InvalidPrivacy: a parameter out of range, or no share that would do.
    """
    orders = ORDERS if order is None else (order,)
    a_round = {candidate: allowance(epsilon, delta, candidate) // rounds for candidate in orders}
    if max(a_round.values()) < 1:
        raise InvalidPrivacy(f"{rounds} rounds are more than epsilon {epsilon} can pay for at delta {delta}", given=rounds)

    def fits(variance: int) -> bool:
        cost = NoiseShare(kind, variance).cost(sensitivity_squared, dimensions, honest)
        return any(cost.at(candidate) <= nanos for candidate, nanos in a_round.items())

    low, high = LEAST_VARIANCE - 1, LEAST_VARIANCE
    while not fits(high):
        low, high = high, high * 2
        if high > MAX_VARIANCE:
            raise InvalidPrivacy(f"no share of noise up to variance {MAX_VARIANCE:.0e} would do for epsilon {epsilon}", given=epsilon)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    share = NoiseShare(kind, high)
    cost = share.cost(sensitivity_squared, dimensions, honest)
    chosen = max(a_round, key=lambda candidate: Fraction(a_round[candidate] - cost.at(candidate), max(1, a_round[candidate])))
    return SharedCalibration(share, cost, chosen)


def _apart(variance: int, shares: int) -> float:
    """τ: the logarithm of the ratio of the masses of a sum of shares and of the discrete Gaussian of its variance is at most this."""
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares)) * (1 + 1e-9)


def _skellam(order: int, sensitivity_squared: int, first_norm: int, variance: int) -> Fraction:
    """Theorem 3.5, exact."""
    more = min(Fraction((2 * order - 1) * sensitivity_squared + 6 * first_norm, 4 * variance**2), Fraction(3 * first_norm, 2 * variance))
    return Fraction(order * sensitivity_squared, 2 * variance) + more
