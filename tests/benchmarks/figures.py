"""What a benchmark comes to: figures, each beside what was to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row of a table. reach: what was promised, or "" where the figure only stands beside another; kept: whether it was reached."""

    what: str
    reach: str
    measured: str
    kept: bool = True


def at_most(what: str, limit: float, values: Sequence[float], unit: str, digits: int = 3) -> Figure:
    """A figure whose median must not pass `limit`."""
    return Figure(what, f"≤ {limit:g} {unit}".rstrip(), spread(values, unit, digits), statistics.median(values) <= limit)


def never_more(what: str, limit: float, values: Sequence[float], digits: int = 3) -> Figure:
    """A figure of which not even the largest value may pass `limit`."""
    return Figure(what, f"never > {limit:g}", spread(values, "", digits), max(values) <= limit)


def at_least(what: str, limit: float, values: Sequence[float], unit: str, digits: int = 3) -> Figure:
    """A figure whose median must reach `limit`."""
    return Figure(what, f"≥ {limit:g} {unit}".rstrip(), spread(values, unit, digits), statistics.median(values) >= limit)


def beside(what: str, values: Sequence[float], unit: str, digits: int = 3) -> Figure:
    """A figure for comparison, of which nothing was promised."""
    return Figure(what, "", spread(values, unit, digits))


def spread(values: Sequence[float], unit: str, digits: int = 3) -> str:
    """Median, range and number of the values: `12.1 ms (11.4 to 13.9, 5 repetitions)`, to so many significant digits."""
    middle, low, high = (f"{value:.{digits}g}" for value in (statistics.median(values), min(values), max(values)))
    shown = f"{middle} {unit}".rstrip()
    return shown if len(values) == 1 else f"{shown} ({low} to {high}, {len(values)} repetitions)"
