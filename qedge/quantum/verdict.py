"""Whether the quantum answer, the classical one, or neither, is the better; "no difference" is an answer.

Source for repeated splits of the same data: C. Nadeau, Y. Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003):
the variance of their mean is (1/J + n_test/n_train) of that of one, since training sets overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

import numpy as np
from scipy.stats import norm, t

CONFIDENCE = 0.95
FEWEST_SPLITS = 5


class Verdict(StrEnum):
    """Who won."""

    QUANTUM = "quantum better"
    CLASSICAL = "classical better"
    NEITHER = "no difference"


@dataclass(frozen=True)
class Compared:
    """A verdict and what it rests on: how much better the quantum answer is, and the 95 % interval of that."""

    verdict: Verdict
    advantage: float
    low: float
    high: float


def compare(
    quantum: float,
    classical: float,
    *,
    better: Literal["lower", "higher"],
    error: float = 0.0,
    baseline_error: float = 0.0,
    tolerance: float = 0.0,
) -> Compared:
    """Two values with independent errors, each one standard deviation; a difference within `tolerance` is none."""
    advantage = classical - quantum if better == "lower" else quantum - classical
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.hypot(error, baseline_error)
    return _judged(advantage, half, tolerance)


def compare_splits(
    quantum: Sequence[float], classical: Sequence[float], *, test_share: float, tested: int, tolerance: float = 0.0
) -> Compared:
    """Scores, higher being better, of both on the same splits, of which `test_share` (0 < share < 1) of the rows, `tested`, are tested on.

    Differences vary by at least one row of those, also where a few splits happen to agree; of fewer than 5 splits none is concluded from.
    """
    advantages = np.asarray(quantum, dtype=np.float64) - np.asarray(classical, dtype=np.float64)
    splits = len(advantages)
    spread = max(float(advantages.std(ddof=1)), 1 / tested) if splits > 1 else math.inf
    deviation = spread * math.sqrt(1 / splits + test_share / (1 - test_share))
    half = float(t.ppf((1 + CONFIDENCE) / 2, max(1, splits - 1))) * deviation
    found = _judged(float(advantages.mean()), half, tolerance)
    return found if splits >= FEWEST_SPLITS else replace(found, verdict=Verdict.NEITHER)


def _judged(advantage: float, half: float, tolerance: float) -> Compared:
    beyond = half + tolerance
    verdict = Verdict.QUANTUM if advantage > beyond else Verdict.CLASSICAL if advantage < -beyond else Verdict.NEITHER
    return Compared(verdict, advantage, advantage - half, advantage + half)
