"""Extrapolation to no noise: curves through values at several strengths of noise, read at zero, with their error bars.

Polynomials and exponentials are fitted by least squares weighted by variances; Richardson's is the polynomial through every point. An
exponential is y(s) = y0 + k (1 - e^(-c s)) / c, whose limit for c = 0 is a line, or y(s) = a + (y0 - a) e^(-c s) where the asymptote a is
known, and a line where values do not go towards it. For every rate c the rest is a linear fit, so that one number is searched for and no
starting point is needed.

Source: Giurgica-Tiron et al. (2020), section III; S. Endo, S. Benjamin, Y. Li, Phys. Rev. X 8, 031027 (2018), section III for exponentials;
G. Golub, V. Pereyra, SIAM J. Numer. Anal. 10 (1973) for taking the linear part out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from qedge.errors import InvalidValue

Extrapolation = Literal["linear", "polynomial", "richardson", "exponential"]
Vector = NDArray[np.float64]
MOST_DECAY = 2.0  # e^-2: a seventh of the signal is left at scale 1; beyond, curves through shot noise run away
_GRID = 41
_NO_DECAY = 1e-6


@dataclass(frozen=True)
class Extrapolated:
    """The value without noise.

    weights: how it changes with the value at each scale; rate: c of an exponential, 0 where that is a line; None for polynomials.
    """

    value: float
    variance: float
    weights: tuple[float, ...]
    rate: float | None = None


def extrapolate(
    scales: Sequence[float],
    values: Sequence[float],
    variances: Sequence[float],
    how: Extrapolation = "exponential",
    *,
    degree: int = 2,
    asymptote: float | None = None,
) -> Extrapolated:
    """The value at scale 0, and its variance.

    variances: of the values; all 0 where nothing was drawn: then all weigh the same. degree: of the polynomial; asymptote: of the
    exponential, None where it is to be fitted too.

    Raises:
        InvalidValue: fewer scales than the curve has parameters, two that are the same, or values that are not finite.
    """
    s, y, variance = (np.asarray(one, dtype=np.float64) for one in (scales, values, variances))
    needed = parameters(how, len(s), degree, asymptote is not None)
    refuse_scales(scales, needed, how)
    if not (len(s) == len(y) == len(variance)) or not np.isfinite([s, y, variance]).all() or (variance < 0).any():
        raise InvalidValue("extrapolation takes as many finite values and variances as scales")
    weights = 1 / variance if (variance > 0).all() else np.ones(len(s))
    if how == "exponential":
        return _exponential(s, y, variance, weights, asymptote)
    at_zero = weights_at_zero(s, needed - 1, weights)
    return _of(float(at_zero @ y), at_zero, variance)


def shrunk(found: Extrapolated, first: float, variances: Sequence[float]) -> float:
    """How much of the way from the value at the first scale to the one without noise, 0 to 1, has the smallest mean squared error.

    The squared bias of `first` is taken for the squared way less the variance that shots alone give it, but for no less than 0, and the
    extrapolated value for unbiased. A way b + e of bias b and chance e, taken k times: (1 - k)^2 b^2 + Var(first + k e) is least at
    k = (b^2 - Cov(first, e)) / (b^2 + Var(e)). Without shots it is 1.

    Source: the positive part of W. James, C. Stein, Proc. 4th Berkeley Symp. 1, 361 (1961), of one number.
    """
    way = found.value - first
    weights = np.array(found.weights)
    weights[0] -= 1
    variance = float(weights**2 @ np.asarray(variances))
    together = float(weights[0] * variances[0])
    squared_bias = way**2 - variance
    if variance == 0:
        return 1.0
    return float(np.clip((squared_bias - together) / way**2, 0, 1)) if squared_bias > 0 else 0.0


def parameters(how: Extrapolation, scales: int, degree: int, with_asymptote: bool) -> int:
    """How many a curve has, and so how many scales it takes."""
    known = {"linear": 2, "polynomial": degree + 1, "richardson": max(2, scales), "exponential": 2 if with_asymptote else 3}
    return known[how]


def refuse_scales(scales: Sequence[float], needed: int, how: str) -> None:
    """Check the scales before anything is run.

    Raises:
        InvalidValue: fewer than needed, or two that are the same.
    """
    if len(scales) < needed or len(set(scales)) != len(scales):
        raise InvalidValue(f"{how} extrapolation takes {needed} or more different scales; given {list(scales)}", given=list(scales))


def weights_at_zero(scales: Vector, degree: int, weights: Vector) -> Vector:
    """What each value counts for in the weighted polynomial's value at scale 0."""
    root = np.sqrt(weights / weights.max())
    powers = np.vander(scales, degree + 1, increasing=True)
    first: Vector = np.linalg.pinv(root[:, None] * powers)[0] * root
    return first


def _exponential(s: Vector, y: Vector, variance: Vector, weights: Vector, asymptote: float | None) -> Extrapolated:
    root = np.sqrt(weights / weights.max())
    target = root * (y if asymptote is None else y - asymptote)

    def solved(rate: float) -> tuple[float, Vector]:
        basis = root[:, None] * _basis(s, rate, asymptote is None)
        found = np.linalg.lstsq(basis, target, rcond=None)[0]
        return float(np.sum((basis @ found - target) ** 2)), found

    grid = np.linspace(0, MOST_DECAY, _GRID)
    best = int(np.argmin([solved(rate)[0] for rate in grid]))
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    refined = float(minimize_scalar(lambda rate: solved(rate)[0], bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x)
    rate = min((float(grid[best]), refined), key=lambda one: solved(one)[0])
    if asymptote is not None and rate <= _NO_DECAY:  # noise does not lead there: a level value would be all that this curve can say
        line = weights_at_zero(s, 1, weights)
        return _of(float(line @ y), line, variance, 0.0)
    found = solved(rate)[1]
    jacobian = _basis(s, rate, asymptote is None)
    if rate > _NO_DECAY:
        change = 1e-5
        slope = (_basis(s, rate + change, asymptote is None) - _basis(s, rate - change, asymptote is None)) @ found / (2 * change)
        jacobian = np.column_stack([jacobian, slope])
    at_zero = np.linalg.pinv(root[:, None] * jacobian)[0] * root
    return _of(float(found[0]) + (asymptote or 0.0), at_zero, variance, rate)


def _of(value: float, weights: Vector, variance: Vector, rate: float | None = None) -> Extrapolated:
    return Extrapolated(value, float(weights**2 @ variance), tuple(weights.tolist()), rate)


def _basis(s: Vector, rate: float, with_asymptote: bool) -> Vector:
    """The value at 0 is the first coefficient."""
    if not with_asymptote:
        return np.exp(-rate * s)[:, None]
    return np.column_stack([np.ones(len(s)), -np.expm1(-rate * s) / rate if abs(rate) > 1e-12 else s])
