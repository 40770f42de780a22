"""Discrete Gaussian noise on the integers, by inversion of a cumulative table.

The published sampler (Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, Algorithm 3)
is exact and rejects at random: how long it takes depends on what it drew. Here every draw takes one word, one search and one
sign bit; the price is a table rounded to 128 bits, whose distance from the exact distribution is bounded below and is to be
added to delta. Only whole numbers are computed with: no float can leak its low bits.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy

MAX_VARIANCE = 10**12
_BITS = 256  # fixed point of the table's construction
_ONE = 1 << _BITS
_CUT = _ONE >> 144  # masses below this, relative to the mass of zero, are left out
_CHUNK = 1 << 20

Words = NDArray[np.uint64]


class NoiseSource(Protocol):
    """Where random bytes come from. `for_tests`: they can be predicted, so what they protect has no guarantee."""

    for_tests: bool

    def bytes(self, n: int) -> bytes:
        """The next `n` uniform bytes."""
        ...


class SystemNoise:
    """The operating system's cryptographic generator: the only source whose noise may be released under a guarantee."""

    for_tests = False

    def bytes(self, n: int) -> bytes:
        """`n` bytes that nobody can predict or draw again."""
        return os.urandom(n)


class SeededNoise:
    """Bytes that repeat for the same seed, for tests: a release protected with them carries no guarantee and gets no receipt."""

    for_tests = True

    def __init__(self, seed: int) -> None:
        self._seed = str(seed).encode()
        self._calls = 0

    def bytes(self, n: int) -> bytes:
        """The next `n` bytes: SHAKE-256 (FIPS 202) of the seed and the number of the call."""
        self._calls += 1
        return hashlib.shake_256(b"qedge test noise\0%b/%d" % (self._seed, self._calls)).digest(n)


class DiscreteGaussian:
    """The distribution on the integers with mass proportional to exp(-x²/(2·variance)).

    total_variation: an upper bound, per coordinate, of the distance between what `sample` draws and that distribution.

    Raises:
        InvalidPrivacy: a variance that is not a whole number from 1 to 10^12.

    >>> DiscreteGaussian(4).sample(3, SeededNoise(7)).dtype
    dtype('int64')
    """

    def __init__(self, variance: int) -> None:
        if type(variance) is not int or not 1 <= variance <= MAX_VARIANCE:
            raise InvalidPrivacy(f"noise variance is {variance}; accepted: a whole number from 1 to {MAX_VARIANCE:.0e}", given=variance)
        self.variance = variance
        self._high, self._low = cumulative_table(variance)

    @property
    def total_variation(self) -> float:
        """(K+1)·2^-127 for a table of K entries.

        Two distributions on 0..K with cumulative masses G and F are at most Σ_k |G(k)-F(k)| apart, and the sign is exact. An
        entry is off by less than 2^-128 from being cut to 128 bits and by less than 2^-128 from all else: with B = 256, step
        k of the recurrence is off by at most (k+1)² units of 2^-B, so a sum is by (K+2)³ of them, under 2^-180 for the
        largest table; the mass left out past K, where x >= 14.1σ, is a geometric tail of ratio at most exp(-14/σ) that
        starts at 2^-144, under 2^-139 of the whole.
        """
        return math.ldexp(len(self._high) + 1, -127)

    def sample(self, size: int, source: NoiseSource) -> NDArray[np.int64]:
        """`size` independent draws, [size] int64: a word of 64 bits each, then a sign bit each, then words to settle ties."""
        words = np.frombuffer(source.bytes(8 * size), "<u8")
        signs = np.unpackbits(np.frombuffer(source.bytes(-(-size // 8)), np.uint8), count=size)
        # In rising order the search walks through the table instead of jumping about in it: twice as fast.
        order = np.argsort(words)
        magnitudes = np.empty(size, np.int64)
        magnitudes[order] = np.searchsorted(self._high, words[order], side="left")
        tied = self._high[np.minimum(magnitudes, len(self._high) - 1)] == words
        for draw in np.flatnonzero(tied):
            magnitudes[draw] = self._settle(int(magnitudes[draw]), source)
        return np.where(signs == 1, -magnitudes, magnitudes)

    def _settle(self, first: int, source: NoiseSource) -> int:
        """The magnitude when the high words of the entries from `first` on equal the drawn one: 64 more bits decide.

        It happens to one draw in 2^64 over the length of the table.
        """
        last = int(np.searchsorted(self._high, self._high[first], side="right"))
        word = np.frombuffer(source.bytes(8), "<u8")
        return first + int(np.searchsorted(self._low[first:last], word, side="right")[0])


@lru_cache(maxsize=4)
def cumulative_table(variance: int) -> tuple[Words, Words]:
    """floor(2^128 · P(|X| <= k)) for k = 0, 1, … up to the cut, as high and low words of 64 bits.

    A uniform 128-bit U then has magnitude #{k: entry(k) <= U}. The last magnitude, K, needs no entry.
    """
    reciprocal = (1 << (2 * _BITS)) // sum(_weights(variance))
    weights = _weights(variance)
    cumulative, entries, chunk = next(weights), [], bytearray()
    for weight in weights:
        chunk += ((cumulative * reciprocal) >> (2 * _BITS - 128)).to_bytes(16, "little")
        cumulative += weight
        if len(chunk) == _CHUNK:  # whole numbers are ten times as large as their bytes: not all at once
            entries.append(bytes(chunk))
            chunk.clear()
    table = np.frombuffer(b"".join([*entries, chunk]), "<u8").reshape(-1, 2)
    low, high = np.ascontiguousarray(table.T)
    low.flags.writeable = high.flags.writeable = False
    return high, low


def _weights(variance: int) -> Iterator[int]:
    """Masses of |X| = 0, 1, … in units of 2^-256, relative to the mass of zero, down to the cut.

    exp(-(x+1)²/2σ²) = exp(-x²/2σ²) · t_x with t_0 = exp(-1/2σ²) and t_(x+1) = t_x · exp(-1/σ²).
    """
    step, ratio = _exp_minus_inverse(variance), _exp_minus_inverse(2 * variance)
    yield _ONE
    weight = (_ONE * ratio) >> _BITS
    while weight > _CUT:
        yield 2 * weight
        ratio = (ratio * step) >> _BITS
        weight = (weight * ratio) >> _BITS


def _exp_minus_inverse(number: int) -> int:
    """2^256 · exp(-1/number) within one unit, for number >= 1: Taylor's series with 64 spare bits."""
    total = term = 1 << (_BITS + 64)
    count = 0
    while term:
        count += 1
        term //= number * count
        total += -term if count % 2 else term
    return total >> 64
