"""What is measured of one client's rows, in rows: each a few numbers of which a client with n rows moves the L2 norm by n at most.

That holds whatever the rows say, for every row adds a vector of norm at most 1: a one, a number in [-1, 1], or a one in one of many places.
The rest of the privacy argument needs nothing else (`qedge.analytics.encoding`). A client without rows is all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from qedge.data.client_columns import ClientRows

Counts = npt.NDArray[np.int64]
FIXED_POINT = 30  # bits after the point of a row's number
BYTES = 256


@dataclass(frozen=True)
class RowCount:
    """How many rows there are."""

    width = 1

    def counts(self, rows: ClientRows) -> Counts:
        """[1] int64."""
        return np.array([rows.count], np.int64)


@dataclass(frozen=True)
class Moment:
    """The sum of T_k(y) over rows, with y = (x - middle)/half in [-1, 1] for a value x clipped to [low, high].

    T_1(y) = y and T_2(y) = 2y² - 1 are Chebyshev's polynomials: both use all of [-1, 1], so that noise of one size hides each least.
    """

    column: str
    low: float
    high: float
    degree: Literal[1, 2]
    width = 1

    @property
    def middle(self) -> float:
        """Of the range."""
        return self.low / 2 + self.high / 2

    @property
    def half(self) -> float:
        """Half of the range's width."""
        return self.high / 2 - self.low / 2

    def fixed_point_sum(self, rows: ClientRows) -> int:
        """In units of 2^-30; a row adds 2^30 at most."""
        y = np.clip((np.clip(rows.numbers[self.column], self.low, self.high) - self.middle) / self.half, -1, 1)
        value = y if self.degree == 1 else 2 * y * y - 1
        return int(np.rint(value * 2**FIXED_POINT).astype(np.int64).sum())


@dataclass(frozen=True)
class Bins:
    """Rows by which of `width` equal parts of [low, high] a value lies in; those beyond it in the first and last."""

    column: str
    low: float
    high: float
    width: int

    def counts(self, rows: ClientRows) -> Counts:
        """[width] int64."""
        share = (np.clip(rows.numbers[self.column], self.low, self.high) - self.low) / (self.high - self.low)
        places = np.minimum((share * self.width).astype(np.int64), self.width - 1)
        return np.bincount(places, minlength=self.width).astype(np.int64)


@dataclass(frozen=True)
class Categories:
    """Rows by which category a value is, the last place being for none of them."""

    column: str
    categories: tuple[bytes, ...]

    @property
    def width(self) -> int:
        """The categories, and one."""
        return len(self.categories) + 1

    def counts(self, rows: ClientRows) -> Counts:
        """[width] int64."""
        return np.bincount(_places(rows.texts[self.column], self.categories), minlength=self.width).astype(np.int64)


@dataclass(frozen=True)
class Continuations:
    """Rows by which of some beginnings their value has, and by the byte that follows it, 0 where the value ends there.

    beginnings: sorted, none with a NUL, `length` bytes each.
    """

    column: str
    beginnings: tuple[bytes, ...]
    length: int

    @property
    def width(self) -> int:
        """256 places for each beginning."""
        return BYTES * len(self.beginnings)

    def counts(self, rows: ClientRows) -> Counts:
        """[width] int64, byte by byte of the first beginning, then of the next."""
        texts = rows.texts[self.column]
        if not rows.count:
            return np.zeros(self.width, np.int64)
        letters = texts.view(np.uint8).reshape(rows.count, -1)
        begun = texts.astype(f"S{self.length}") if self.length else np.zeros(rows.count, "S1")
        places = _places(begun, self.beginnings)
        known = places < len(self.beginnings)
        following = letters[known, self.length].astype(np.int64)
        return np.bincount(places[known] * BYTES + following, minlength=self.width).astype(np.int64)


@dataclass(frozen=True)
class Occurrences:
    """Rows that have each of some values, or begin with it where it is of the full `length`."""

    column: str
    values: tuple[bytes, ...]
    length: int

    @property
    def width(self) -> int:
        """One place for each value."""
        return len(self.values)

    def counts(self, rows: ClientRows) -> Counts:
        """[width] int64."""
        places = _places(rows.texts[self.column].astype(f"S{self.length}"), self.values)
        return np.bincount(places, minlength=self.width + 1)[:-1].astype(np.int64)


Counting = RowCount | Bins | Categories | Continuations | Occurrences
Measurement = Counting | Moment


def _places(texts: npt.NDArray[np.bytes_], known: tuple[bytes, ...]) -> Counts:
    """Where each text stands among the known ones, [rows] int64; their number for one that is none of them."""
    words = np.array(known)
    order = np.argsort(words)
    found = np.minimum(np.searchsorted(words, texts, sorter=order), len(known) - 1)
    places = order[found]
    return np.where(words[places] == texts, places, len(known)).astype(np.int64)
