"""Counts of a range cut in halves, level by level, each level noised by itself: made consistent, and read for quantiles.

Consistent means that the two halves of a part come to the part. Of all such trees the one nearest to what was released, each level
weighed by the inverse of its variance, is best: no linear unbiased estimate has less variance. Source: Hay, Rastogi, Miklau, Suciu,
"Boosting the accuracy of differentially private histograms through consistency", VLDB 2010, theorem 3. Departures: levels may differ in
variance, and the whole itself is not released, so that it is the sum of its halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qedge.analytics.intervals import WITHIN, Interval

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CountTree:
    """below: [leaves + 1] float64, the estimate of how many rows lie below each boundary of leaves, the first 0, the last all of them.

    total_variance: of the last; split_variances: [depth] of the difference that a part's halves were told apart by, from the top.
    """

    below: Floats
    total_variance: float
    split_variances: Floats

    @classmethod
    def of(cls, levels: Sequence[Floats], variances: Sequence[float]) -> CountTree:
        """The consistent tree of noisy levels, from two parts down to the leaves: [2], [4], … float64, each with its variance."""
        known, variance = levels[-1], variances[-1]
        ups, split_variances = [known], [2 * variance]
        for level, own in zip(reversed(levels[:-1]), reversed(variances[:-1]), strict=True):
            halves, of_halves = known.reshape(-1, 2).sum(axis=1), 2 * variance
            weight = of_halves / (own + of_halves) if own + of_halves else 1.0
            known = weight * level + (1 - weight) * halves
            variance = weight * own
            ups.append(known)
            split_variances.append(2 * variance)
        parts = np.array([known.sum()])
        for known in reversed(ups):
            left, right = known.reshape(-1, 2).T
            parts = np.stack([(parts + left - right) / 2, (parts - left + right) / 2], axis=1).reshape(-1)
        return cls(np.concatenate([[0.0], np.cumsum(parts)]), 2 * variance, np.array(split_variances[::-1]))

    def deviations(self, quantile: float) -> Floats:
        """The standard deviation of below[j] - quantile·(all), for every boundary j, [leaves + 1] float64.

        The estimate of a part's left half is (part + d)/2, of its right half (part - d)/2, with a d that is not correlated with the part,
        nor with any other d on the way down. So below[j] is linear in independent terms, followed here from the leaves up.
        """
        depth = len(self.split_variances)
        inner = np.arange(2**depth)
        share, variance = np.zeros(2**depth), np.zeros(2**depth)
        for level in reversed(range(depth)):
            right = (inner >> (depth - 1 - level)) & 1
            variance += (np.where(right, 1 - share, share) / 2) ** 2 * self.split_variances[level]
            share = (right + share) / 2
        share, variance = np.append(share, 1.0), np.append(variance, 0.0)
        deviations: Floats = np.sqrt(variance + (share - quantile) ** 2 * self.total_variance)
        return deviations

    def quantile(self, quantile: float, low: float, high: float) -> tuple[float, Interval]:
        """A quantile of the rows in [low, high], between 0 and 1, and its interval.

        The interval is of whole leaves: all those at whose ends the counts do not say that the quantile lies elsewhere.
        """
        ends = np.linspace(low, high, len(self.below))
        excess = self.below - quantile * self.below[-1]
        reach = WITHIN * self.deviations(quantile)
        # A leaf holds it if no more than the quantile's share lies below its left end and no less below its right one.
        possible = np.flatnonzero((excess[:-1] <= reach[:-1]) & (excess[1:] >= -reach[1:]))
        interval = Interval(float(ends[possible[0]]), float(ends[possible[-1] + 1])) if len(possible) else Interval(low, high)
        # Counts below rise; what noise makes fall is levelled, half way between the highest before and the lowest after.
        rising = (np.maximum.accumulate(excess) + np.minimum.accumulate(excess[::-1])[::-1]) / 2
        leaf = int(np.clip(np.searchsorted(rising, 0.0, side="right") - 1, 0, len(self.below) - 2))
        rise = rising[leaf + 1] - rising[leaf]
        into = float(np.clip(-rising[leaf] / rise, 0, 1)) if rise > 0 else 0.5
        value = float(ends[leaf] + into * (ends[leaf + 1] - ends[leaf]))
        # Levelling may lead out of what is possible.
        return min(max(value, interval.low), interval.high), interval
