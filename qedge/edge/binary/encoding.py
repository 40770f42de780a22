"""In how many levels a binary network sees its features, and from where to where: as few as the FP32 model hardly notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qedge.edge.binary.architecture import Encoding
from qedge.edge.rung import Rows

BITS = (1, 2, 3, 4, 6, 8)
LET_PASS = 0.1  # mean total variation between a teacher's answers to mixtures of rows, whole and rounded
_DEVIATIONS = 2.5


def fit_encoding(teacher: Callable[[Rows], Rows], rows: Rows) -> Encoding:
    """The encoding of fewest bits with which the teacher answers nearly as before; of the most bits if there is none.

    rows: [n, F] float32. The teacher is asked about halves of two rows: of rows that it was trained by it is too sure to notice anything.
    Three ranges compete: one for all features (an image's), each feature's own, and each one's mean and deviations (where there are
    outliers).
    """
    mixed = (rows + rows[::-1]) / np.float32(2)
    expected = teacher(mixed)
    for bits in BITS:
        encodings = [Encoding(_levels(low, high, bits), bits) for low, high in _ranges(rows)]
        off = [float(np.abs(teacher(encoding.decoded(mixed)) - expected).sum(1).mean()) / 2 for encoding in encodings]
        best = encodings[int(np.argmin(off))]
        if min(off) <= LET_PASS:
            break
    return best


def _levels(low: Rows, high: Rows, bits: int) -> Rows:
    width = high - low
    unit = np.divide(2**bits - 1, width, out=np.zeros_like(width), where=width > 0)
    return np.stack([low, np.where(np.isfinite(unit), unit, 0)]).astype(np.float32)


def _ranges(rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Low and high of each feature."""
    low, high = rows.min(0), rows.max(0)
    yield np.full_like(low, low.min()), np.full_like(high, high.max())
    yield low, high
    mean, reach = rows.mean(0), _DEVIATIONS * rows.std(0)
    yield np.maximum(low, mean - reach), np.minimum(high, mean + reach)
