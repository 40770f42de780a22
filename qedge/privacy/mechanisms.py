"""Discrete Gaussian and Skellam noise on the integers, by inversion of cumulative tables.

The published sampler of the discrete Gaussian (Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
Algorithm 3) is exact and rejects at random: how long it takes depends on what it drew. Here every draw takes one word and one sign bit,
and a look in the table, or a search where it falls far out; the price is a table rounded to 128 bits, whose distance from the exact
distribution is bounded below and is to be added to delta. Only whole numbers are computed with: no float can leak its low bits.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy

MAX_VARIANCE = 10**12
_BITS = 256  # fixed point of the table's construction
_ONE = 1 << _BITS
_CUT = _ONE >> 144  # masses below this, relative to the mass of zero, are left out
_CHUNK = 1 << 20
_STRETCHED = 1 << 12  # bytes: the operating system's generator takes ten times as long as the cipher
_CELL_BITS = 16

Words = NDArray[np.uint64]
Table = tuple[Words, Words, NDArray[np.int64]]


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
        """`n` bytes that nobody can predict or draw again: its own, or many from AES-256 in counter mode under a fresh key of its own."""
        if n < _STRETCHED:
            return os.urandom(n)
        return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor().update(bytes(n))


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


class _TableNoise:
    """A distribution on the integers that is the same on both sides of zero, by the cumulative masses of its magnitudes."""

    def __init__(self, table: Table) -> None:
        self._high, self._low, self._first = table

    def sample(self, size: int, source: NoiseSource) -> NDArray[np.int64]:
        """`size` independent draws, [size] int64: a word of 64 bits each, then a sign bit each, then words to settle ties."""
        words = np.frombuffer(source.bytes(8 * size), "<u8")
        signs = np.unpackbits(np.frombuffer(source.bytes(-(-size // 8)), np.uint8), count=size)
        magnitudes = self._search(words)
        tied = self._high[np.minimum(magnitudes, len(self._high) - 1)] == words
        for draw in np.flatnonzero(tied):
            magnitudes[draw] = self._settle(int(magnitudes[draw]), source)
        return np.where(signs == 1, -magnitudes, magnitudes)

    def _search(self, words: Words) -> NDArray[np.int64]:
        """How many entries are below each word."""
        cells = (words >> np.uint64(64 - _CELL_BITS)).astype(np.intp)
        first = self._first[cells]
        # Most cells of the upper bits hold one entry or none, then a comparison decides.
        magnitudes = first + (self._high[np.minimum(first, len(self._high) - 1)] < words)
        magnitudes = np.minimum(magnitudes, len(self._high))
        several = np.flatnonzero(self._first[cells + 1] - first > 1)
        # In rising order the search walks through the table instead of jumping about in it: twice as fast.
        order = several[np.argsort(words[several])]
        magnitudes[order] = np.searchsorted(self._high, words[order], side="left")
        return magnitudes

    def _settle(self, first: int, source: NoiseSource) -> int:
        """The magnitude when the high words of the entries from `first` on equal the drawn one: 64 more bits decide.

        It happens to one draw in 2^64 over the length of the table.
        """
        last = int(np.searchsorted(self._high, self._high[first], side="right"))
        word = np.frombuffer(source.bytes(8), "<u8")
        return first + int(np.searchsorted(self._low[first:last], word, side="right")[0])


class DiscreteGaussian(_TableNoise):
    """The distribution on the integers with mass proportional to exp(-x²/(2·variance)).

    total_variation: an upper bound, per coordinate, of the distance between what `sample` draws and that distribution.

    Raises:
        InvalidPrivacy: a variance that is not a whole number from 1 to 10^12.

    >>> DiscreteGaussian(4).sample(3, SeededNoise(7)).dtype
    dtype('int64')
    """

    def __init__(self, variance: int) -> None:
        self.variance = _checked(variance)
        super().__init__(cumulative_table(variance))

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


class Skellam(_TableNoise):
    """The difference of two Poisson variables of mean variance/2 each: mass exp(-μ) I_|x|(μ), I the modified Bessel function.

    Raises:
        InvalidPrivacy: a variance that is not a whole number from 1 to 10^12.
    """

    def __init__(self, variance: int) -> None:
        self.variance = _checked(variance)
        super().__init__(skellam_table(variance))

    @property
    def total_variation(self) -> float:
        """(K+1)·2^-127 for a table of K entries, as for the discrete Gaussian.

        The masses are I_k(μ), from the backward recurrence I_(k-1) = I_(k+1) + (2k/μ) I_k in whole numbers (Olver et al., "NIST Handbook of
        Mathematical Functions", 2010, 10.74(iv)). It begins where I_k is under 2^-320 of I_0, so that what it leaves out is, at the entries
        that are kept, under 2^-350 of them; all terms are positive and each division loses less than one unit of a number of more than 256
        bits, so that K steps are off by less than K·2^-255. The tail past K is cut as for the discrete Gaussian.
        """
        return math.ldexp(len(self._high) + 1, -127)


def _checked(variance: int) -> int:
    if type(variance) is not int or not 1 <= variance <= MAX_VARIANCE:
        raise InvalidPrivacy(f"noise variance is {variance}; accepted: a whole number from 1 to {MAX_VARIANCE:.0e}", given=variance)
    return variance


@lru_cache(maxsize=4)
def cumulative_table(variance: int) -> Table:
    """The table of the discrete Gaussian."""
    return _table(lambda: _weights(variance))


@lru_cache(maxsize=4)
def skellam_table(variance: int) -> Table:
    """The table of the Skellam distribution."""
    masses = _bessel(variance)
    return _table(lambda: iter(masses))


def _table(weights: Callable[[], Iterator[int]]) -> Table:
    """floor(2^128 · P(|X| <= k)) for k = 0, 1, … up to the cut, as high and low words of 64 bits.

    A uniform 128-bit U then has magnitude #{k: entry(k) <= U}. The last magnitude, K, needs no entry. Third, the number of entries below
    each of the 2^16 cells into which the upper bits of a word fall, and their number in all.
    """
    reciprocal = (1 << (2 * _BITS)) // sum(weights())
    masses = weights()
    cumulative, entries, chunk = next(masses), [], bytearray()
    for weight in masses:
        chunk += ((cumulative * reciprocal) >> (2 * _BITS - 128)).to_bytes(16, "little")
        cumulative += weight
        if len(chunk) == _CHUNK:  # whole numbers are ten times as large as their bytes: not all at once
            entries.append(bytes(chunk))
            chunk.clear()
    table = np.frombuffer(b"".join([*entries, chunk]), "<u8").reshape(-1, 2)
    low, high = np.ascontiguousarray(table.T)
    cells = np.arange(1 << _CELL_BITS, dtype=np.uint64) << np.uint64(64 - _CELL_BITS)
    first = np.append(np.searchsorted(high, cells, side="left"), len(high)).astype(np.int64)
    for part in (low, high, first):
        part.flags.writeable = False
    return high, low, first


def _bessel(variance: int) -> list[int]:
    """I_0(μ), 2 I_1(μ), 2 I_2(μ), … relative to I_0 in units of 2^-256, down to the cut."""
    # I_k is at most I_0 exp(-k²/(2(μ + k))) or so: where that is under 2^-320, the recurrence begins.
    nats = 320 * math.log(2)
    last = math.ceil(nats + math.sqrt(nats**2 + 2 * nats * variance)) + 16
    above, here, falling = 0, 1 << _BITS, []
    for k in range(last, 0, -1):
        above, here = here, above + 2 * k * here // variance
        falling.append(here)
    rising = falling[::-1]  # falling[-1] is I_0
    masses = [_ONE]
    for value in [*rising[1:], 1 << _BITS]:
        mass = (value << _BITS) // rising[0]
        if mass <= _CUT:
            break
        masses.append(2 * mass)
    return masses


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
