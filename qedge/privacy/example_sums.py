"""The sum of a batch's clipped gradients on an integer grid, with noise: what one step of DP-SGD releases.

Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016), algorithm 1, with discrete noise (Canonne, Kamath, Steinke 2020) so that
no float leaks its low bits (Mironov 2012). Gradients are clipped and summed as floats and the sum is rounded once, at random, to a grid
that is the same for everybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy
from qedge.privacy.accounting import ORDERS
from qedge.privacy.mechanisms import MAX_VARIANCE, DiscreteGaussian, NoiseSource

LEAST_VARIANCE = 1 << 24  # of the noise on the grid, so that what rounding adds to the sensitivity stays small at every order
CLIP_WITHIN = 1 - 2.0**-10  # of the bound: room for the last bits of float32 norms, products and sums
_PAIRS = ORDERS[-1] * (ORDERS[-1] - 1) // 2


@dataclass(frozen=True)
class SumGrid:
    """The grid for sums of gradients with `params` parameters, each clipped to L2 norm `bound`; refined: 1, or more for less noise.

    A sum s is rounded to floor(s/γ + u), u uniform on [0, 1)^d, drawn anew and independent of every row. With one row emptied s moves by
    at most C, c = C/γ = 16 · refined · √d grid units, and the integers by Δ(u), each entry of which is one of the two neighbours of its
    own mean δ_k, |δ| <= c. Those are independent, their squares reach over 2|δ_k|+1, and the mean of |Δ|² is at most c² + d/4; so by
    Hoeffding's lemma

        E exp(t|Δ|²) <= exp(t (c² + d/4) + t² (2c + √d)²/8).

    The moments that the accountant bounds are sums of positive terms A exp(t|Δ|²), t <= α(α-1)/(2σ²) (`accounting.sampled_gaussian`), for
    each u as it stands; averaging over u replaces |Δ|² by c² + d/4 + t (2c + √d)²/8. With σ² >= 2^24 and orders up to 512 that is
    `sensitivity_squared`, and the square root of it less than half a percent above c.

    Of a client's rows together (`mixture.sampled_group`) the exponents are Σ_{i<k} <Δ_i, Δ_k>/σ², Δ_i what a set of J_i >= 1 rows moves.
    With P = Σ_{i<k} J_i J_k its mean is at most P (c² + d/4)/σ², and the norm of its ranges P (2c + √d)/σ², as J_i + J_k <= 2 J_i J_k.
    So what holds of one row holds of P times it while P/σ² <= t, which the noise of `least_variance` sees to; the other direction's
    exponent, (α-1)/(2σ²) · (E|Δ|² + (α-1)|E Δ|²), goes the same way. Otherwise |Δ_i| <= J_i (c + √d) for every u.

    What is proved is that of the exact sum of the clipped gradients. Floats are summed instead: the norm, the clipping factor and the sum
    of one row's gradient are off in their last bits, and a library may add the others up in another order, or by another method, when a
    row is missing; the others of its block, that is, of some hundreds (`qedge.federated.example_training`). Gradients are clipped a
    thousandth below C, some ten thousand units in the last place of float32, to make up for that; that this is always enough is measured,
    not proved.

    Raises:
        InvalidPrivacy: a bound that is not positive and finite, or no parameter.

    >>> SumGrid(bound=1.0, params=650, refined=16).sensitivity_squared / SumGrid(1.0, 650, 16).scale ** 2 < 1.01
    True
    """

    bound: float
    params: int
    refined: int = 1

    def __post_init__(self) -> None:
        if self.params < 1 or self.refined < 1:
            raise InvalidPrivacy(f"a grid is for at least one parameter; given {self.params}", given=self.params)
        if not 1e-30 <= self.bound <= 1e30:
            raise InvalidPrivacy(f"clipping bound is {self.bound}; accepted here: 1e-30 to 1e30", given=self.bound)

    @property
    def scale(self) -> float:
        """c = C/γ: the clipping bound in grid units."""
        return 16 * self.refined * math.sqrt(self.params)

    @property
    def step(self) -> float:
        """γ: what one grid unit is worth in a sum."""
        return self.bound / self.scale

    @property
    def sensitivity_squared(self) -> int:
        """What one row may change, squared, as the accountant sees it; exact, rounded up, and two units for the last bits of u."""
        rounding = -(-_PAIRS * self.params * (32 * self.refined + 1) ** 2 // (8 * LEAST_VARIANCE))
        return 256 * self.refined**2 * self.params + -(-self.params // 4) + rounding + 2

    def sensitivity_squared_at(self, order: int, rows: int, variance: int) -> int:
        """That of one of up to `rows` rows of a client that count together, at one Rényi order."""
        if variance >= least_variance(order, rows):
            return self.sensitivity_squared
        return (16 * self.refined + 1) ** 2 * self.params + 2

    def refined_for(self, variance: int, least: int) -> SumGrid:
        """The grid on which noise that has `variance` on this one has at least `least`."""
        finer = math.isqrt(-(-least // variance) - 1) + 1 if variance < least else 1
        return SumGrid(self.bound, self.params, self.refined * finer)

    def rounded(self, total: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
        """A sum of clipped gradients on the grid, [params] int64."""
        units = generator.random(self.params)
        units += total * (1 / self.step)
        return np.floor(units, out=units).astype(np.int64)


def least_variance(order: int, rows: int) -> int:
    """The noise on the grid with which rounding is accounted as in `SumGrid`, up to this order and for so many rows together."""
    return max(LEAST_VARIANCE, -(-LEAST_VARIANCE * order * (order - 1) * rows**2 // (2 * _PAIRS)))


@dataclass(frozen=True)
class NoisySteps:
    """The steps that every client takes in a round, whatever its rows: `steps` of them, each on a batch that takes each of its first
    `max_rows` rows with probability `rate`.

    variance: of the noise on each step's sum, in grid units squared.

    Raises:
        InvalidPrivacy: noise that the grid's proof does not cover, or that cannot be drawn.
    """

    grid: SumGrid
    variance: int
    rate: float
    steps: int
    max_rows: int

    def __post_init__(self) -> None:
        if not LEAST_VARIANCE <= self.variance <= MAX_VARIANCE:
            raise InvalidPrivacy(
                f"the noise on a step would have variance {self.variance} on its grid; accepted: {LEAST_VARIANCE} to {MAX_VARIANCE:.0e}: "
                "a larger epsilon, fewer steps, a smaller rate, or a smaller model",
                given=self.variance,
            )

    @property
    def expected_batch(self) -> float:
        """The public denominator of a step: q·K."""
        return self.rate * self.max_rows

    @cached_property
    def noise(self) -> DiscreteGaussian:
        """What is added to every entry of a sum."""
        return DiscreteGaussian(self.variance)

    def release(self, total: NDArray[np.float64], generator: np.random.Generator, source: NoiseSource) -> NDArray[np.float32]:
        """The mean gradient of a step, [params] float32, from the sum of its clipped gradients, [params] float64: rounded, with noise,
        over the expected batch."""
        if not np.isfinite(total).all():  # of gradients clipped one by one it always is, unless the weights were not
            total = np.zeros_like(total)
        noised = self.grid.rounded(total, generator)
        noised += self.noise.sample(self.grid.params, source)
        return (noised * (self.grid.step / self.expected_batch)).astype(np.float32)
