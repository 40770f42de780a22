"""A figure that was measured under noise: no digit that the noise hides, and how far it may be off."""

from __future__ import annotations

import math
from statistics import NormalDist


def rounded(value: float, deviation: float | None) -> float:
    """`value` to the place of the first digit of `deviation`, one standard deviation of its noise; as it is where there is none."""
    return round(value, _places(deviation)) if deviation else value


def plus_minus(value: float, deviation: float | None) -> str:
    """`value` and its noise as text.

    >>> plus_minus(0.4359375, 0.0312), plus_minus(0.9611111, None)
    ('0.44 ± 0.03', '0.9611')
    """
    if not deviation:
        return f"{value:.4f}"
    places = _places(deviation)
    return f"{value:.{places}f} ± {deviation:.{places}f}"


def paired_interval(lost: int, won: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of the share by which one of two is less often right on the same rows.

    lost, won: rows on which the other alone is right, and it alone. Each is given half a row more, so that no difference is ever certain.
    Source: Agresti and Min, Statistics in Medicine 24 (2005), 729 (Wald's interval of paired proportions, with pseudo-counts).
    """
    rows, more, less = rows + 2, lost + 0.5, won + 0.5
    difference = (more - less) / rows
    half = NormalDist().inv_cdf(0.975) * math.sqrt(max(0.0, (more + less) / rows - difference**2) / rows)
    return difference - half, difference + half


def _places(deviation: float) -> int:
    return max(0, -math.floor(math.log10(deviation)))
