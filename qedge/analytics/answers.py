"""What may be read off noised sums: each statistic as numbers, each number with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from qedge.analytics.count_tree import CountTree
from qedge.analytics.encoding import Encoder
from qedge.analytics.heavy_hitters import Hunt
from qedge.analytics.intervals import CONFIDENCE, WITHIN, Interval, Noisy, around, of_ratio
from qedge.analytics.measurements import Measurement, Moment, RowCount
from qedge.analytics.plan import needs
from qedge.job.query import title
from qedge.job.statistics import Count, Histogram, Mean, Quantile, Statistic, Sum, Variance

COVERS = (
    f"Each interval by itself holds the true value with a chance of {CONFIDENCE:.0%} at least, over the noise of the release and of "
    "rounding. The true value is that of these clients, of the rows that count (each client's first, up to the cap), with values clipped "
    "to the range. Sampling error is not included: how these clients may differ from others."
)
_EACH_OF_TWO = 2.241403  # standard deviations that hold 97.5 %: two such intervals hold together with 95 % at least


@dataclass(frozen=True, eq=False)
class Measured:
    """What a release says of one measurement, in rows: values, [width] float64, and the standard deviation of the noise on each."""

    values: npt.NDArray[np.float64]
    deviation: float

    @property
    def first(self) -> Noisy:
        """Of one number."""
        return Noisy(float(self.values[0]), self.deviation)


@dataclass(frozen=True)
class Estimate:
    """One number: `of` what; `low`, `high`: its interval; equal to it without privacy, but for quantiles, which lie in a part of the range.

    Counts and sums are unbiased: noise may take a count below 0.
    """

    of: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """A statistic as it was asked for, and its numbers.

    deviation: of the noise on what it was computed from, in rows; note: how to read it.
    """

    title: str
    asked: dict[str, JsonValue]
    estimates: tuple[Estimate, ...]
    deviation: float
    note: str = ""

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return {
            "title": self.title,
            "statistic": self.asked,
            "estimates": [asdict(one) for one in self.estimates],
            "noise_std_rows": self.deviation,
            "note": self.note,
        }


def read_off(encoder: Encoder, total: npt.NDArray[np.int64], variance: int, clients: int) -> dict[Measurement, Measured]:
    """What a released sum says, measurement by measurement. variance: of its noise, in grid units squared, 0 without."""
    found = {}
    for scale, part in encoder.split(total):
        step, of_rounding = encoder.step(scale), clients / 4 if encoder.rounds(scale) else 0.0
        found[scale.measurement] = Measured(part.astype(np.float64) * step, math.sqrt(variance + of_rounding) * step)
    return found


def answer(statistic: Statistic, found: Mapping[Measurement, Measured], hunt: Hunt | None = None) -> Answer:
    """The answer to a statistic, from what was measured for it, or from its finished search."""
    measured = [found[measurement] for measurement in needs(statistic)]
    if hunt is not None:
        estimates, deviation, note = _hunted(hunt)
    else:
        estimates = tuple(_estimates(statistic, found, measured))
        deviation = max(one.deviation for one in measured)
        note = _NOTES.get(type(statistic), "") if deviation or isinstance(statistic, Quantile) else ""
    return Answer(title(statistic), statistic.model_dump(mode="json"), estimates, deviation, note)


_NOTES = {
    Mean: "Fieller's interval",
    Variance: "the interval is wider than it need be: it holds for the mean and the mean square at once",
    Quantile: "the interval is of whole steps of the range",
    Histogram: "intervals are of each count by itself",
}


def _estimates(statistic: Statistic, found: Mapping[Measurement, Measured], measured: Sequence[Measured]) -> Iterator[Estimate]:
    if isinstance(statistic, Count):
        yield _estimate("rows", measured[0].first)
    elif isinstance(statistic, Histogram):
        for name, value in zip(_bin_names(statistic), measured[0].values.tolist(), strict=True):
            yield _estimate(name, Noisy(value, measured[0].deviation))
    elif isinstance(statistic, Quantile):
        tree = CountTree.of([one.values for one in measured], [one.deviation**2 for one in measured])
        for quantile in statistic.quantiles:
            value, interval = tree.quantile(quantile, *statistic.range)
            yield Estimate(f"quantile {quantile:g}", value, interval.low, interval.high)
    elif isinstance(statistic, Sum | Mean | Variance):
        yield _of_moments(statistic, found)


def _estimate(of: str, noisy: Noisy) -> Estimate:
    interval = around(noisy)
    return Estimate(of, noisy.value, interval.low, interval.high)


def _bin_names(statistic: Histogram) -> list[str]:
    if statistic.categories is not None:
        return [*map(str, statistic.categories), "none of these"]
    low, high = statistic.range or (0.0, 0.0)
    ends = np.linspace(low, high, (statistic.bins or 1) + 1)
    return [f"{start:g} to {stop:g}" for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


def _of_moments(statistic: Sum | Mean | Variance, found: Mapping[Measurement, Measured]) -> Estimate:
    first = Moment(statistic.column, *statistic.range, 1)
    y = found[first].first
    if isinstance(statistic, Sum):
        rows = found[RowCount()].first if RowCount() in needs(statistic) else Noisy(0.0, 0.0)
        deviation = float(np.hypot(first.half * y.deviation, first.middle * rows.deviation))
        return _estimate("sum", Noisy(first.half * y.value + first.middle * rows.value, deviation))
    rows = found[RowCount()].first
    if isinstance(statistic, Mean):
        share, interval = _ratio(y, rows, WITHIN)
        value, low, high = (first.middle + first.half * one for one in (share, interval.low, interval.high))
        return Estimate("mean", value, low, high)
    return _variance(first.half, y, found[Moment(statistic.column, *statistic.range, 2)].first, rows)


def _ratio(above: Noisy, rows: Noisy, within: float) -> tuple[float, Interval]:
    """A mean of numbers in [-1, 1], and its interval; all of it where the number of rows is lost in the noise."""
    interval = of_ratio(above, rows, within)
    if interval is None:
        return (min(1.0, max(-1.0, above.value / rows.value)) if rows.value > 0 else 0.0), Interval(-1.0, 1.0)
    return min(1.0, max(-1.0, above.value / rows.value)), interval.clipped(-1.0, 1.0)


def _variance(half: float, y: Noisy, chebyshev: Noisy, rows: Noisy) -> Estimate:
    """half²·(mean of y² less the square of the mean of y), with y² = (T_2(y) + 1)/2; in [0, half²]."""
    mean, of_mean = _ratio(y, rows, _EACH_OF_TWO)
    second, of_second = _ratio(chebyshev, rows, _EACH_OF_TWO)
    largest = max(of_mean.low**2, of_mean.high**2)
    smallest = 0.0 if of_mean.low <= 0 <= of_mean.high else min(of_mean.low**2, of_mean.high**2)
    interval = Interval((of_second.low + 1) / 2 - largest, (of_second.high + 1) / 2 - smallest).clipped(0.0, 1.0)
    value = min(max((second + 1) / 2 - mean**2, 0.0), 1.0)
    return Estimate("variance", half**2 * value, half**2 * interval.low, half**2 * interval.high)


def _hunted(hunt: Hunt) -> tuple[tuple[Estimate, ...], float, str]:
    """What a search found, the most frequent first."""
    pairs = sorted(zip(hunt.found, hunt.counts or (), strict=True), key=lambda pair: -pair[1].value)
    estimates = tuple(_estimate(_text(value, hunt.statistic.length), count) for value, count in pairs)
    note = (
        f"a value that fewer than about {max(hunt.thresholds):.4g} rows have may be missed; the chance that anything is found which nobody "
        f"has is at most {hunt.statistic.false_positive:g}"
    )
    return estimates, pairs[0][1].deviation if pairs else 0.0, note


def _text(value: bytes, length: int) -> str:
    return value.decode(errors="ignore") + ("…" if len(value) == length else "")
