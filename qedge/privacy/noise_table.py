"""Noise on the integers by inversion of a cumulative table: one word, one sign bit and, nearly always, three look-ups a draw.

A distribution that is symmetric about zero is given as the masses of its magnitudes, in whole numbers. The table holds
floor(2^128 · P(|X| <= k)), and a uniform 128-bit U has magnitude #{k: entry(k) <= U}. A guide says for each of 2^g equal parts of
the uniform range which magnitude it starts with (Chen, Asau, "On Generating Random Variates from an Empirical Distribution",
AIIE Transactions 1974): as a part is narrower than the largest masses it holds at most one boundary but for the tails, and one
comparison ends the search. Only whole numbers are computed with: no float can leak its low bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TABLE_BITS = 128
CUT_BITS = 144  # masses below 2^-144 of the mass of zero are left out
_BATCH = 8192  # draws at a time: what they need stays in the cache
_GUIDE_BITS = range(10, 21)
_CHUNK = 1 << 16  # entries

Words = NDArray[np.uint64]


class NoiseSource(Protocol):
    """Where random bytes come from. `for_tests`: they can be predicted, so what they protect has no guarantee."""

    for_tests: bool

    def bytes(self, n: int) -> bytes:
        """The next `n` uniform bytes."""
        ...


class NoiseTable:
    """Cumulative entries as high and low words of 64 bits, and the guide into the high ones.

    The last magnitude, `len(table)`, needs no entry.
    """

    def __init__(self, high: Words, low: Words) -> None:
        self.high, self.low = high, low
        # A word that is not below the last bound has to be searched for, so this one ends the look-ups and decides nothing.
        self._bounds = np.append(high, np.uint64(2**64 - 1))
        # Eight parts or more to the mass of zero: fewer than one draw in a hundred then meets a part with two boundaries.
        first = int(high[0]) + 1
        bits = min(max((2**67 // first).bit_length(), _GUIDE_BITS[0]), _GUIDE_BITS[-1])
        self._shift = np.uint64(64 - bits)
        starts = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._guide = np.searchsorted(high, starts, side="left").astype(np.int32)
        for words in (self.high, self.low, self._bounds, self._guide):
            words.flags.writeable = False

    def __len__(self) -> int:
        return len(self.high)

    def sample(self, size: int, source: NoiseSource) -> NDArray[np.int64]:
        """`size` independent draws, [size] int64.

        A batch takes a word of 64 bits for each draw, then a sign bit for each, then words to settle ties. All draws go through
        the same steps but for those of the tails.
        """
        draws = np.empty(size, np.int64)
        for start in range(0, size, _BATCH):
            batch = draws[start : start + _BATCH]
            words = np.frombuffer(source.bytes(8 * len(batch)), "<u8")
            signs = np.unpackbits(np.frombuffer(source.bytes(-(-len(batch) // 8)), np.uint8), count=len(batch))
            self._invert(words, batch, source)
            batch *= 1 - 2 * signs.view(np.int8)
        return draws

    def _invert(self, words: Words, magnitudes: NDArray[np.int64], source: NoiseSource) -> None:
        """Write each word's magnitude: #{k: high(k) < word}, and past the ties on its high word as many as low words decide."""
        magnitudes[:] = self._guide.take((words >> self._shift).view(np.int64))
        magnitudes += words > self._bounds.take(magnitudes)
        left = np.flatnonzero(words >= self._bounds.take(magnitudes))
        if not len(left):
            return
        magnitudes[left] = np.searchsorted(self.high, words[left], side="left")
        tied = words[left] == self._bounds.take(magnitudes[left])
        for draw in left[tied & (magnitudes[left] < len(self))]:
            magnitudes[draw] = self._settle(int(magnitudes[draw]), source)

    def _settle(self, first: int, source: NoiseSource) -> int:
        """The magnitude when the high words of the entries from `first` on equal the drawn one: 64 more bits decide.

        It happens to one draw in 2^64 over the length of the table.
        """
        last = int(np.searchsorted(self.high, self.high[first], side="right"))
        word = np.frombuffer(source.bytes(8), "<u8")
        return first + int(np.searchsorted(self.low[first:last], word, side="right")[0])

    @property
    def total_variation(self) -> float:
        """(K+1)·2^-127 for a table of K entries: how far a draw may be from a distribution that each entry misses by less than 2^-128,
        besides being cut to 128 bits.

        Two distributions on 0..K with cumulative masses G and F are at most Σ_k |G(k)-F(k)| apart, and the sign is exact.
        """
        return math.ldexp(len(self) + 1, 1 - TABLE_BITS)


def table_of(entries: Iterable[int], *, falling: bool = False) -> NoiseTable:
    """The table of 128-bit entries, from the first magnitude's up, or from the last one's down."""
    parts, chunk = [], bytearray()
    for entry in entries:
        chunk += entry.to_bytes(TABLE_BITS // 8, "little")
        if len(chunk) == _CHUNK * TABLE_BITS // 8:  # whole numbers are ten times as large as their bytes: not all at once
            parts.append(bytes(chunk))
            chunk.clear()
    words = np.frombuffer(b"".join([*parts, chunk]), "<u8").reshape(-1, 2)
    low, high = np.ascontiguousarray((words[::-1] if falling else words).T)
    return NoiseTable(high, low)
