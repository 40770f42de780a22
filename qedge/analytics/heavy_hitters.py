"""The search for a column's frequent values, byte by byte: beginnings that many rows have are followed up, one round for each byte.

A round counts, for every beginning that is still followed, each of the 256 bytes that may come next, 0 standing for the end; what passes
the round's threshold goes on, what has ended is found. A last round counts what was found afresh: the counts that let it through are
flattered by that. Sources: Zhu, Kairouz, McMahan, Sun, Li, "Federated heavy hitters discovery with differential privacy", AISTATS 2020
(a tree of beginnings, interactively); Bassily, Nissim, Stemmer, Thakurta, "Practical locally private heavy hitters", NeurIPS 2017 (counts
of beginnings under noise, with a threshold). Departure from the first: its privacy comes of drawing clients and of a threshold alone, here
every count has noise, and each round is charged.

The threshold: a beginning that nobody has counts 0, exactly, before noise. P[X >= m] <= P[N(0, σ²) >= m-1] for discrete Gaussian X
(Canonne, Kamath, Steinke 2020, proposition 25), so that with m = 1 + σ·z, and z such that all candidates of all rounds together come to at
most `false_positive`, nothing is found that nobody has but with that chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from qedge.analytics.intervals import Noisy
from qedge.analytics.measurements import BYTES, Continuations, Measurement, Occurrences
from qedge.job.statistics import HeavyHitters

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hunt:
    """Where a search stands. It follows from what was asked and what was released, so that it may be known to everybody.

    beginnings: still followed, sorted, `length` bytes each; found: values, sorted; thresholds: in rows, of the rounds so far; counts: of
    `found`, once they were counted afresh.
    """

    statistic: HeavyHitters
    beginnings: tuple[bytes, ...] = (b"",)
    length: int = 0
    found: tuple[bytes, ...] = ()
    thresholds: tuple[float, ...] = ()
    counts: tuple[Noisy, ...] | None = None

    @property
    def measurement(self) -> Measurement | None:
        """What the next round has to measure; None where the search is over."""
        if self.beginnings:
            return Continuations(self.statistic.column, self.beginnings, self.length)
        if self.found and self.counts is None:
            return Occurrences(self.statistic.column, self.found, self.statistic.length)
        return None

    def after(self, counts: Floats, deviation: float, unit: float) -> Hunt:
        """The search after a round. counts: [width], deviation: of their noise, unit: a grid unit, all in rows."""
        if not self.beginnings:
            return replace(self, counts=tuple(Noisy(float(count), deviation) for count in counts))
        threshold = self._threshold(deviation, unit)
        passed = np.flatnonzero(counts >= threshold)
        largest = passed[np.argsort(-counts[passed], kind="stable")]
        values = {int(place): self.beginnings[place // BYTES] + bytes([place % BYTES]) for place in largest}
        ended = [value[:-1] for value in values.values() if not value[-1]]
        going_on = sorted([value for value in values.values() if value[-1]][: self.statistic.most])
        length = self.length + 1
        if length == self.statistic.length:
            ended, going_on = ended + going_on, []
        found = tuple(sorted({*self.found, *ended}))
        return replace(self, beginnings=tuple(going_on), length=length, found=found, thresholds=(*self.thresholds, threshold))

    def _threshold(self, deviation: float, unit: float) -> float:
        """Of this round, in rows; without noise one row is enough."""
        if not deviation:
            return unit
        candidates = BYTES * len(self.beginnings) * self.statistic.length
        return unit - deviation * NormalDist().inv_cdf(self.statistic.false_positive / candidates)
