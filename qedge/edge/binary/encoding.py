"""In how many levels a binary network sees its features, and from where to where: as few as the FP32 model hardly notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from qedge.edge.binary.architecture import Encoding
from qedge.edge.rung import Rows

BITS = (1, 2, 3, 4, 6, 8)
NOTICED = 0.02  # mean total variation between a teacher's answers to rows and to rounded rows that is let pass
_DEVIATIONS = 2.5


def fit_encoding(teacher: Callable[[Rows], Rows], rows: Rows) -> Encoding:
    """The encoding of fewest bits with which the teacher answers rows [n, F] nearly as before; of the most bits if none is.

    Three ranges compete: one for all features (an image's), each feature's own, and each one's mean and deviations (with outliers).
    """
    expected = teacher(rows)
    best: tuple[float, Encoding] | None = None
    for bits in BITS:
        for low, high in _ranges(rows):
            width = high - low
            unit = np.divide(2**bits - 1, width, out=np.zeros_like(width), where=width > 0)
            encoding = Encoding(np.stack([low, unit]), bits)
            off = float(np.abs(teacher(encoding.decoded(rows)) - expected).sum(1).mean()) / 2
            if best is None or off < best[0]:
                best = off, encoding
        assert best is not None
        if best[0] <= NOTICED:
            break
    return best[1]


def _ranges(rows: Rows) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Low and high of each feature."""
    low, high = rows.min(0), rows.max(0)
    yield np.full_like(low, low.min()), np.full_like(high, high.max())
    yield low, high
    mean, reach = rows.mean(0), _DEVIATIONS * rows.std(0)
    yield np.maximum(low, mean - reach), np.minimum(high, mean + reach)
