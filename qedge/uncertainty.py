"""A figure that was measured under noise, with no digit that the noise hides."""

from __future__ import annotations

import math


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


def _places(deviation: float) -> int:
    return max(0, -math.floor(math.log10(deviation)))
