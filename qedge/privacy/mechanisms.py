"""Noise on the integers, discrete Gaussian and Skellam, and the sources that it is drawn from.

The published samplers (Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, Algorithm 3) are
exact and reject at random: how long they take depends on what they drew. Here each draw inverts a table rounded to 128 bits
(`qedge.privacy.noise_table`), whose distance from the exact distribution is bounded below and is to be added to delta.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy
from qedge.privacy.noise_table import CUT_BITS, TABLE_BITS, NoiseSource, NoiseTable, table_of

__all__ = ["DiscreteGaussian", "NoiseKind", "NoiseSource", "SeededNoise", "Skellam", "SystemNoise", "noise_of", "sample_share"]

NoiseKind = Literal["discrete-gaussian", "skellam"]
MAX_VARIANCE = 10**12
_BITS = 256  # fixed point of the Gaussian table's construction
_ONE = 1 << _BITS
_START_BITS = 192  # of the smallest Bessel function that a Skellam table starts from
_BEYOND = 360 * math.log(2)  # how far below one, in nats, the mass is from which it starts
_ZEROS = bytes(1 << 16)


class SystemNoise:
    """The only source whose noise may be released under a guarantee: nobody can predict its bytes or draw them again.

    Each call stretches 48 fresh bytes of the operating system's generator, a key and a first counter, by AES-256 in counter
    mode (NIST SP 800-38A): as good as uniform to whoever cannot break AES, and thirteen times as fast as asking for all of them.
    """

    for_tests = False

    def bytes(self, n: int) -> bytes:
        """`n` bytes under a key that is used once and forgotten."""
        stream = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()
        return stream.update(memoryview(_ZEROS)[:n] if n <= len(_ZEROS) else bytes(n))


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
        _check_variance(variance)
        self.variance = variance
        self.table = gaussian_table(variance)

    @property
    def total_variation(self) -> float:
        """As `NoiseTable.total_variation`: besides the cut to 128 bits an entry is off by less than 2^-128.

        With B = 256, step k of the recurrence is off by at most (k+1)² units of 2^-B, so a sum is by (K+2)³ of them, under 2^-180
        for the largest table; the mass left out past K, where x >= 14.1σ, is a geometric tail of ratio at most exp(-14/σ) that
        starts at 2^-144, under 2^-139 of the whole.
        """
        return self.table.total_variation

    def sample(self, size: int, source: NoiseSource) -> NDArray[np.int64]:
        """`size` independent draws, [size] int64."""
        return self.table.sample(size, source)


class Skellam:
    """The difference of two independent Poisson variables of mean variance/2: mass exp(-v)·I_|x|(v), with v the variance.

    Sums of independent Skellam variables are Skellam again, of the summed variance. total_variation: as for `DiscreteGaussian`.

    Raises:
        InvalidPrivacy: a variance that is not a whole number from 1 to 10^12.

    >>> Skellam(4).sample(3, SeededNoise(7)).dtype
    dtype('int64')
    """

    def __init__(self, variance: int) -> None:
        _check_variance(variance)
        self.variance = variance
        self.table = skellam_table(variance)

    @property
    def total_variation(self) -> float:
        """As `NoiseTable.total_variation`: besides the cut to 128 bits an entry is off by less than 2^-128.

        Weights W_k come from I_(k-1) = I_(k+1) + (2k/v)·I_k, backwards from W_(N+1) = W_N (Miller's algorithm).

        1. Every weight is at least 2^192 and cutting it to a whole number takes less than one unit; as no term is negative, a
           step's share of any later weight is at most what it was of its own: N·2^-192 in all, with N < 2^25.
        2. Without the cuts, and W_N = 1: from k to k-1 the difference W_k·I_(k+1) - W_(k+1)·I_k changes its sign and nothing else,
           so that it is below I_N, and every W_k is at least 1. The ratio W_(k+1)/W_k is then off by less than I_N/I_(k+1) of
           I_(k+1)/I_k: with I_N at 2^-337 of I_0 and I_(k+1) over 2^-145 of it, under 2^-192; 2^24 of them in a row, 2^-168.
        3. Past K, k >= σ and I_(k+1)/I_k < v/(k+v) <= σ/(σ+1) (Amos, Math. Comp. 1974): what is left out is a geometric tail of
           σ+1 times 2^-143 of the mass of zero, which is under 1/σ: below 2^-141 of the whole.
        """
        return self.table.total_variation

    def sample(self, size: int, source: NoiseSource) -> NDArray[np.int64]:
        """`size` independent draws, [size] int64."""
        return self.table.sample(size, source)


def noise_of(kind: NoiseKind, variance: int) -> DiscreteGaussian | Skellam:
    """The noise of that name and variance.

    Raises:
        InvalidPrivacy: another kind, or a variance that is not a whole number from 1 to 10^12.
    """
    if kind == "discrete-gaussian":
        return DiscreteGaussian(variance)
    if kind == "skellam":
        return Skellam(variance)
    raise InvalidPrivacy(f"noise is {kind!r}; accepted: 'discrete-gaussian' or 'skellam'", given=kind)


def sample_share(kind: NoiseKind, variance: int, size: int, source: NoiseSource) -> NDArray[np.int64]:
    """One client's share of the noise on a sum of vectors of `size` entries, [size] int64, to add before masking.

    Raises:
        InvalidPrivacy: another kind, or a variance that is not a whole number from 1 to 10^12.

    >>> int(abs(sample_share("skellam", 4, 1000, SeededNoise(7))).max()) < 20
    True
    """
    return noise_of(kind, variance).sample(size, source)


@lru_cache(maxsize=4)
def gaussian_table(variance: int) -> NoiseTable:
    """floor(2^128 · P(|X| <= k)) for k = 0, 1, … up to the cut."""
    reciprocal = (1 << (2 * _BITS)) // sum(_gaussian_weights(variance))

    def entries() -> Iterator[int]:
        cumulative = 0
        for weight in _gaussian_weights(variance):
            if cumulative:  # the last magnitude has no entry
                yield (cumulative * reciprocal) >> (2 * _BITS - TABLE_BITS)
            cumulative += weight

    return table_of(entries())


def _gaussian_weights(variance: int) -> Iterator[int]:
    """Masses of |X| = 0, 1, … in units of 2^-256, relative to the mass of zero, down to the cut.

    exp(-(x+1)²/2σ²) = exp(-x²/2σ²) · t_x with t_0 = exp(-1/2σ²) and t_(x+1) = t_x · exp(-1/σ²).
    """
    step, ratio = _exp_minus_inverse(variance), _exp_minus_inverse(2 * variance)
    yield _ONE
    weight = (_ONE * ratio) >> _BITS
    while weight > _ONE >> CUT_BITS:
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


@lru_cache(maxsize=4)
def skellam_table(variance: int) -> NoiseTable:
    """floor(2^128 · P(|X| <= k)) for k = 0, 1, … up to the cut.

    The identity exp(v) = I_0 + 2·Σ I_k makes the sum of the weights their normaliser; no exponential is computed.
    """
    total, zero = 0, 0
    for zero in _skellam_weights(variance):
        total += 2 * zero
    total -= zero
    reciprocal = (1 << (2 * total.bit_length())) // total
    shift = 2 * total.bit_length() - TABLE_BITS

    def entries() -> Iterator[int]:
        beyond = 0  # mass of the magnitudes past the one whose entry is due
        for weight in _skellam_weights(variance):
            if weight > zero >> CUT_BITS:
                if beyond:
                    yield ((total - beyond) * reciprocal) >> shift
                beyond += 2 * weight

    return table_of(entries(), falling=True)


def _skellam_weights(variance: int) -> Iterator[int]:
    """I_N, …, I_1, I_0 at `variance`, in units of which the first is 2^192."""
    later = weight = 1 << _START_BITS
    for order in range(_first_order(variance), 0, -1):
        yield weight
        later, weight = weight, later + 2 * order * weight // variance
    yield weight


def _first_order(variance: int) -> int:
    """N whose I_N/I_0 is below 2^-337.

    Chernoff's bound of the mass from N on is below 2^-360; zero has the largest mass, and as three quarters lie on the at most
    4σ+1 integers within 2σ of it (Chebyshev), that is above 2^-23.
    """
    order = math.ceil(math.sqrt(variance))
    while math.hypot(variance, order) - variance - order * math.asinh(order / variance) > -_BEYOND:
        order += 1 + order // 64
    return order


def _check_variance(variance: int) -> None:
    if type(variance) is not int or not 1 <= variance <= MAX_VARIANCE:
        raise InvalidPrivacy(f"noise variance is {variance}; accepted: a whole number from 1 to {MAX_VARIANCE:.0e}", given=variance)
