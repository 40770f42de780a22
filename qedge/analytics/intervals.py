"""Intervals that hold a true value with a stated chance, over the noise of a release and of rounding, and nothing else.

The noise is discrete Gaussian with a standard deviation of thousands of grid units: as good as normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
WITHIN = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96 standard deviations


@dataclass(frozen=True)
class Noisy:
    """A number and the standard deviation of its noise."""

    value: float
    deviation: float


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both possible."""

    low: float
    high: float

    def clipped(self, low: float, high: float) -> Interval:
        """As much of it as is possible."""
        return Interval(min(max(self.low, low), high), min(max(self.high, low), high))


def around(noisy: Noisy, within: float = WITHIN) -> Interval:
    """So many standard deviations to either side."""
    reach = within * noisy.deviation
    return Interval(noisy.value - reach, noisy.value + reach)


def of_ratio(above: Noisy, below: Noisy, within: float = WITHIN) -> Interval | None:
    """Of the ratio of two independently noised numbers, the lower one above 0: all r that (above - r·below) does not tell from 0.

    None where every ratio may be: the lower number is lost in its noise. Source: E. C. Fieller, "Some problems in interval estimation",
    Journal of the Royal Statistical Society B 16 (1954). It is no approximation, however noisy either is.
    """
    a = below.value**2 - (within * below.deviation) ** 2
    if a <= 0 or below.value <= 0:
        return None
    b, c = above.value * below.value, above.value**2 - (within * above.deviation) ** 2
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval((b - root) / a, (b + root) / a)
