"""The threshold of a family of codes: the physical error rate at which a larger code is no better than a smaller one.

The difference of both codes' logical log-odds is a smooth function of the physical rate; a line through it, weighted by its variances,
crosses zero there. Its interval is that of the crossings of rates drawn from their posterior distributions, given Jeffreys' prior. Two
sizes cross near the threshold and not on it: what is missing to infinite size is not in the interval.

Source: crossing of finite sizes as in Wang, Harrington, Preskill (2003), section 5; L. Brown, T. Cai, A. DasGupta, Statist. Sci. 16, 101
(2001) for the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qedge.quantum.verdict import CONFIDENCE

DRAWS = 1000
_MOST_LOST = 0.1
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """A physical error rate and its 95 % interval."""

    rate: float
    low: float
    high: float


def crossing(rates: Sequence[float], small: Sequence[int], large: Sequence[int], shots: int, *, seed: int = 0) -> Threshold | None:
    """Where failures of the larger code, fewer at first, become more than those of the smaller; None where that is not seen in `rates`.

    small, large: failures of each code, of `shots` at each rate. Also none is it where one draw in ten does not cross.
    """
    x, fails = np.asarray(rates, dtype=np.float64), np.array([small, large], dtype=np.float64)
    chances = (fails + 0.5) / (shots + 1)
    weights = 1 / (1 / (shots * chances * (1 - chances))).sum(axis=0)
    found = _crossings(x, _odds(chances[1:]) - _odds(chances[:1]), weights)[0]
    generator = np.random.default_rng(seed)
    drawn = generator.beta(fails[:, None] + 0.5, shots - fails[:, None] + 0.5, (2, DRAWS, len(x)))
    drawn = np.clip(drawn, 1e-12, 1 - 1e-12)
    crossed = _crossings(x, _odds(drawn[1]) - _odds(drawn[0]), weights)
    crossed = crossed[np.isfinite(crossed)]
    if not np.isfinite(found) or len(crossed) < (1 - _MOST_LOST) * DRAWS:
        return None
    low, high = np.quantile(crossed, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Threshold(float(found), float(low), float(high))


def _crossings(rates: Vector, differences: Vector, weights: Vector) -> Vector:
    """Of each row of differences, NaN where the line does not rise through zero within the rates."""
    logs = np.log(rates)
    share = weights / weights.sum()
    middle = float(share @ logs)
    slopes = differences @ (share * (logs - middle)) / float(share @ (logs - middle) ** 2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: Vector = np.exp(middle - (differences @ share) / slopes)
    found[~((slopes > 0) & (found >= rates.min()) & (found <= rates.max()))] = np.nan
    return found


def _odds(chances: Vector) -> Vector:
    odds: Vector = np.log(chances) - np.log1p(-chances)
    return odds
