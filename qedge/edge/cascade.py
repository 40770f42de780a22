"""A cheap rung first, a dear one for the rows that the cheap one is unsure of: those whose two likeliest labels lie close together.

The gap under which a row is passed on is fitted on validation rows, so that the cascade is wrong on no larger share of them than the dear
rung is, plus what may be lost. The loss is cross-fitted: each fold of rows is judged by a gap that the other folds gave. The largest of
those gaps is kept, and what a cascade is said to pass on and to cost is by that one. It costs the cheap rung for each row; it is only worth
having where the dear one costs much more, and where the card says that it does not it stays off.

Source: Viola & Jones, CVPR 2001 (cascades); Chow, IEEE Trans. Inf. Theory 16 (1970), 41 (rejection by confidence); Jitkrittum et al.,
NeurIPS 2023 (when deferral by confidence suffices).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from qedge.edge.card import BATCHES, Card, Cost
from qedge.edge.rung import Rows, RungName
from qedge.edge.selector import Requirement
from qedge.errors import EdgeError, InvalidCalibration, NoRungFits
from qedge.uncertainty import paired_interval

WORTH = 0.8  # of the dear rung's time for one row, at most, or the cascade stays off
FOLDS = 5
_ALL = 1.0 + 2**-20  # over any gap: every row is passed on
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Answered:
    """Two rungs' probabilities [n, classes] float32 of the same validation rows, and the right labels' places [n]."""

    cheap: Rows
    dear: Rows
    labels: Places


class Cascade(BaseModel):
    """Rows with a gap under `threshold` go on from `cheap` to `dear`.

    share: of rows that go on; lost: accuracy of the dear rung less that of the cascade, with a 95 % interval of the paired difference;
    accuracy: of the cascade. Loss and accuracy are cross-fitted, by gaps no larger than the one that is kept. cost_ms, dear_ms: of one row,
    in the mean, by the cascade and by the dear rung alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cheap: RungName
    dear: RungName
    threshold: float = Field(ge=0)
    share: float = Field(ge=0, le=1)
    lost: float
    lost_interval: tuple[float, float]
    accuracy: float = Field(ge=0, le=1)
    rows: int = Field(ge=1)
    cost_ms: float = Field(ge=0)
    dear_ms: float = Field(ge=0)

    @property
    def pays(self) -> bool:
        """Whether the card predicts a gain."""
        return self.cost_ms <= WORTH * self.dear_ms

    def on(self, card: Card) -> Cascade:
        """The same, its costs by this card; what it loses and passes on is of the rungs, not of a machine."""
        cheap, dear = card[self.cheap].cost, card[self.dear].cost
        assert cheap is not None
        assert dear is not None
        return self.model_copy(update={"cost_ms": cost_ms(cheap, dear, self.share), "dear_ms": dear.latency[1].p50_ms})

    def unsure(self, probabilities: Rows) -> npt.NDArray[np.bool_]:
        """Which rows [n] go on."""
        return gaps(probabilities) < self.threshold


def gaps(probabilities: Rows) -> Rows:
    """The likeliest label's probability less the second's [n]."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    found: Rows = two[:, 1] - two[:, 0]
    return found


def fit(card: Card, cheap: RungName, dear: RungName, answered: Answered, *, most_lost: float = 0.003, folds: int = FOLDS) -> Cascade:
    """The cascade of two rungs that loses at most `most_lost` of accuracy, a share, by rows that neither rung was made by.

    Raises:
        EdgeError: rungs that are one, or were not measured on this machine, or a loss that is no share. UnknownRung: not in the ladder.
        InvalidCalibration: answers that do not fit together, or fewer rows than folds.
    """
    costs = card[cheap].cost, card[dear].cost
    if costs[0] is None or costs[1] is None or cheap == dear:
        raise EdgeError(f"no cascade of {cheap} and {dear}: accepted are two rungs that were measured on this machine", rungs=[cheap, dear])
    if not 0 <= most_lost < 1:
        raise EdgeError(f"most_lost is {most_lost}; accepted: a share from 0 up to 1", given=most_lost)
    _refuse(answered, folds, most_lost)
    gap = gaps(answered.cheap).astype(np.float64)
    right = [(one.argmax(axis=1) == answered.labels).astype(np.int64) for one in (answered.cheap, answered.dear)]
    costlier = right[1] - right[0]  # what a row loses that is not passed on: 1, 0 or -1
    place = np.arange(len(gap)) % folds
    thresholds = [threshold(gap[place != fold], costlier[place != fold], most_lost) for fold in range(folds)]
    passed = np.array([thresholds[fold] for fold in place]) > gap
    lost = np.where(passed, 0, costlier)
    kept, mean = max(thresholds), float(lost.mean())
    share, interval = float((gap < kept).mean()), paired_interval(int((lost > 0).sum()), int((lost < 0).sum()), len(lost))
    return Cascade(
        cheap=cheap,
        dear=dear,
        threshold=kept,
        share=share,
        lost=mean,
        lost_interval=interval,
        accuracy=float(right[1].mean()) - mean,
        rows=len(gap),
        cost_ms=cost_ms(costs[0], costs[1], share),
        dear_ms=costs[1].latency[1].p50_ms,
    )


def fit_best(card: Card, answered: Mapping[RungName, Rows], labels: Places, *, most_lost: float = 0.003) -> Cascade:
    """Of all pairs of rungs the cascade that takes least time here, of those that pay; answered: probabilities of the same rows, by rung.

    Raises:
        NoRungFits: no pair pays; the nearest is named. And as `fit`.
    """
    fitted = []
    for cheap, dear in permutations(answered, 2):
        costs = card[cheap].cost, card[dear].cost
        if costs[0] is not None and costs[1] is not None and costs[0].latency[1].p50_ms < costs[1].latency[1].p50_ms:
            fitted.append(fit(card, cheap, dear, Answered(answered[cheap], answered[dear], labels), most_lost=most_lost))
    paying = [one for one in fitted if one.pays]
    if paying:
        return max(paying, key=lambda one: (one.accuracy >= max(other.accuracy for other in paying) - most_lost, -one.cost_ms))
    if not fitted:
        raise NoRungFits(f"{card.model}: no cascade; accepted: two rungs or more, measured on this machine, one faster than another")
    near = min(fitted, key=lambda one: one.cost_ms / one.dear_ms)
    raise NoRungFits(
        f"{card.model}: no cascade is worth having; nearest: {near.cheap}, then {near.dear} for {near.share:.1%} of rows, "
        f"{near.cost_ms:.3g} ms a row where {near.dear} alone takes {near.dear_ms:.3g}",
        model=card.model,
        nearest=near.cheap,
    )


def against(cascade: Cascade, card: Card, requirement: Requirement, budget: int) -> str:
    """Why a cascade would not do: no gain, or what is required; "" if it does."""
    cheap, dear = card[cascade.cheap].cost, card[cascade.dear].cost
    assert cheap is not None
    assert dear is not None
    if not cascade.pays:
        return f"it would take {cascade.cost_ms:.3g} ms a row, and {cascade.dear} alone takes {cascade.dear_ms:.3g}"
    if cascade.accuracy < max(requirement.accuracy or 0.0, requirement.accuracy_low or 0.0):
        return f"its accuracy is {cascade.accuracy:.4g}"
    if cheap.pss_bytes + dear.pss_bytes > min(budget, requirement.memory_bytes or budget):
        return f"{cascade.cheap} and {cascade.dear} together take {cheap.pss_bytes + dear.pss_bytes} bytes"
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        limit, most = getattr(requirement, name), getattr(cheap.latency[1], name) + getattr(dear.latency[1], name)
        if limit is not None and most > limit:
            return f"a row that goes on has a {name} of {most:.3g} ms"
    return ""


def threshold(gap: npt.NDArray[np.float64], costlier: Places, most_lost: float) -> float:
    """The least gap such that rows at or above it, left to the cheap rung, lose at most that share of all rows [n]; ties go together.

    What they lose is counted with one standard error more, and that with one more row: of many gaps, the one that just passes has been
    lucky, and rows that none was lost on do not say that none will be.
    """
    order = np.argsort(gap, kind="stable")
    ascending = gap[order]
    left = costlier[order][::-1].cumsum()[::-1]  # lost by leaving this row and all with larger gaps
    differ = np.abs(costlier[order])[::-1].cumsum()[::-1]
    begins = np.r_[True, ascending[1:] > ascending[:-1]]
    allowed = np.flatnonzero(begins & (left + np.sqrt(differ + 1) <= most_lost * len(gap)))
    if not len(allowed):
        return _ALL
    return float(ascending[allowed[0]]) if allowed[0] else 0.0  # with none to pass on, nor is a row of a lesser gap than any here


def cost_ms(cheap: Cost, dear: Cost, share: float, batch: int = 1) -> float:
    """Milliseconds of a call with so many rows, in the mean: all of them by the cheap rung, that share of them by the dear one."""
    rows = np.arange(batch + 1)
    chances = np.array([math.comb(batch, int(k)) * share**k * (1 - share) ** (batch - k) for k in rows])
    times = np.array([_median_ms(dear, int(k)) for k in rows])
    return _median_ms(cheap, batch) + float(chances @ times)


def _median_ms(cost: Cost, rows: int) -> float:
    """Of a call with so many rows, between the batches that were measured."""
    return float(np.interp(rows, (0, *BATCHES), (0.0, *(cost.latency[batch].p50_ms for batch in BATCHES)))) if rows else 0.0


def _refuse(answered: Answered, folds: int, most_lost: float) -> None:
    shapes: Sequence[tuple[int, ...]] = [answered.cheap.shape, answered.dear.shape]
    rows = len(answered.labels)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != rows or shapes[0][1] < 2:
        raise InvalidCalibration(
            f"answers {list(shapes[0])} and {list(shapes[1])} to {rows} labels; accepted: two of [rows, classes]",
            given=list(map(list, shapes)),
        )
    if not 2 <= folds <= rows:
        raise InvalidCalibration(f"{rows} rows in {folds} folds; accepted: two folds or more, a row or more in each", given=rows)
    if not (np.isfinite(answered.cheap).all() and np.isfinite(answered.dear).all()):
        raise InvalidCalibration("an answer is not a finite number")
    least = math.ceil(folds / (folds - 1) / most_lost) if most_lost else 0
    if rows < least:
        raise InvalidCalibration(f"{rows} rows cannot show a loss of at most {most_lost:g}; accepted: {least} rows or more", given=rows)
