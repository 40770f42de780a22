"""A random rotation that spreads every vector evenly, so that sums of its entries fit fewer bits.

Without it a coordinate of a sum may be as large as all norms together; after it a coordinate is near its share of the norm, and
the ring that masked vectors live in can be smaller. Norms do not change, so clipping, sensitivity and noise stay as they are.

Source: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation" (ICML
2021), section 4.2 and Lemma 29, after Ailon, Chazelle (STOC 2006). Where this departs: no padding. With b the largest power of two
that is at most d, signs and a Walsh-Hadamard transform act on the first b coordinates, then, with signs of their own, on the last
b. As 2b > d, every coordinate is in one or both, and each result mixes b entries, more than half of them all.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy, ModelError
from qedge.privacy.distributed import check_chance

RING_BITS = range(16, 33)
_SLACK = 1 + 2.0**-40

Vectors = NDArray[np.float64]


class Rotation:
    """The rotation of vectors of so many dimensions that a public seed of at least 16 bytes stands for; both sides derive the same.

    Raises:
        InvalidPrivacy: fewer than 16 bytes of seed, or no dimension.

    >>> rotation = Rotation(b"a seed of the round", dimensions=3)
    >>> bool(np.allclose(rotation.backward(rotation.forward(np.eye(3))[1]), [0, 1, 0]))
    True
    """

    def __init__(self, seed: bytes, dimensions: int) -> None:
        if type(dimensions) is not int or dimensions < 1:
            raise InvalidPrivacy(f"a rotation is of at least one dimension; given {dimensions}", given=dimensions)
        if len(seed) < 16:
            raise InvalidPrivacy(f"the rotation's seed has {len(seed)} bytes; accepted: at least 16", given=len(seed))
        self.dimensions = dimensions
        self.block = mixed_entries(dimensions)
        bits = hashlib.shake_256(b"qedge rotation\0" + seed).digest(-(-self.block // 4))
        signs = 1.0 - 2.0 * np.unpackbits(np.frombuffer(bits, np.uint8), count=2 * self.block)
        # Both signs carry the factor that makes the transform orthonormal.
        self._first, self._last = signs.reshape(2, self.block) / math.sqrt(self.block)

    def forward(self, vectors: NDArray[np.float32] | NDArray[np.float64]) -> Vectors:
        """Each row rotated, [clients, dimensions] to [clients, dimensions] float64; norms and inner products stay.

        A row that is not finite becomes another that is not, and nothing is said of it: that is as private as what it was made of.

        Raises:
            ModelError: another shape.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimensions:
            raise ModelError(f"vectors have shape {vectors.shape}; expected [clients, {self.dimensions}]")
        rotated = vectors.astype(np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            for row in rotated:
                _turn(row[: self.block], self._first)
                if self.block < self.dimensions:
                    _turn(row[-self.block :], self._last)
        return rotated

    def backward(self, total: NDArray[np.int64] | NDArray[np.float64]) -> Vectors:
        """The vector, or the sum of vectors, that was rotated: [dimensions] to [dimensions] float64.

        Raises:
            ModelError: another shape.
        """
        if total.shape != (self.dimensions,):
            raise ModelError(f"the sum has shape {total.shape}; expected [{self.dimensions}]")
        restored = total.astype(np.float64)
        if self.block < self.dimensions:
            _turn_back(restored[-self.block :], self._last)
        _turn_back(restored[: self.block], self._first)
        return restored


def mixed_entries(dimensions: int) -> int:
    """How many entries each rotated coordinate mixes: the largest power of two that is at most `dimensions`."""
    return 1 << (dimensions.bit_length() - 1)


def _turn(entries: Vectors, signs: Vectors) -> None:
    entries *= signs
    _walsh_hadamard(entries)


def _turn_back(entries: Vectors, signs: Vectors) -> None:
    _walsh_hadamard(entries)
    entries *= signs


def _walsh_hadamard(entries: Vectors) -> None:
    """entries <- H·entries in place, H the Hadamard matrix of ±1 (Sylvester), a power of two on a side.

    Sums and differences in a fixed order, whatever the number of threads: the same bits for everyone. Half of the
    factors are taken after transposing, so that the inner loops always run along many contiguous entries.
    """
    size = len(entries)
    row = 1 << (size.bit_length() // 2)
    spare = np.empty(size // 2)
    _butterflies(entries, spare, row)
    turned = np.ascontiguousarray(entries.reshape(-1, row).T).reshape(-1)
    _butterflies(turned, spare, size // row)
    entries.reshape(-1, row)[:] = turned.reshape(row, -1).T


def _butterflies(entries: Vectors, spare: Vectors, start: int) -> None:
    """The factors of H whose two partners lie `start`, 2·`start`, … apart."""
    width = start
    while width < len(entries):
        pairs = entries.reshape(-1, 2, width)
        difference = spare.reshape(-1, width)
        np.subtract(pairs[:, 0], pairs[:, 1], out=difference)
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        width *= 2


def signal_reach(dimensions: int, sensitivity_squared: int, clients: int, *, rotated: bool, chance: float) -> int:
    """The largest magnitude of any coordinate of a sum of so many clients' integer vectors, each of squared norm at most
    `sensitivity_squared`: for certain without rotation, with it but for `chance`.

    The vectors are rotated before they are rounded to integers. A rotated coordinate is Σ ±y_k/√b over b entries y of a vector of
    norm at most S = √sensitivity_squared, with fair independent signs that the seed gives. For fixed signs of the other stage y is
    fixed, and Hoeffding's inequality says that |coordinate| > z·S/√b has a chance of at most 2·exp(-z²/2); the union over all
    clients and coordinates gives z = √(2·log(2·clients·d/chance)). Rounding moves it by less than one. As every client's entries
    are bounded, whoever drops out, the sums are. All clients' vectors may point the same way.

    The seed must be independent of the vectors: drawn fresh for the round, and read by no one before its updates are made.
    A client that chooses its vector by the seed can spoil the sum, as it can anyway; it reveals nothing by it.

    Raises:
        InvalidPrivacy: a number that is not whole and positive, or a chance outside (0, 1).

    >>> signal_reach(100_000, 25_625_000, 50, rotated=False, chance=1e-9)
    253100
    >>> signal_reach(100_000, 25_625_000, 50, rotated=True, chance=1e-9)
    8500
    """
    for name, value in (("dimensions", dimensions), ("sensitivity_squared", sensitivity_squared), ("clients", clients)):
        if type(value) is not int or value < 1:
            raise InvalidPrivacy(f"{name} is {value}; accepted: a whole number >= 1", given=value)
    check_chance(chance)
    certain = clients * math.isqrt(sensitivity_squared)
    if not rotated:
        return certain
    z = math.sqrt(2 * math.log(2 * clients * dimensions / chance))
    entry = math.floor(z * math.sqrt(sensitivity_squared / mixed_entries(dimensions)) * _SLACK) + 1
    return min(certain, clients * entry)


def ring_bits(signal: int, noise: int) -> int:
    """The least k from 16 to 32 at which sums of magnitude at most signal + noise do not wrap modulo 2^k.

    Raises:
        InvalidPrivacy: no such ring is large enough.

    >>> ring_bits(signal=253_100, noise=40_000), ring_bits(signal=8_500, noise=40_000)
    (20, 17)
    """
    bits = max(RING_BITS[0], (2 * (signal + noise) + 1).bit_length())
    if bits not in RING_BITS:
        most = 2 ** (RING_BITS[-1] - 1) - 1
        raise InvalidPrivacy(
            f"a sum may reach {signal + noise} grid units, more than a ring of {RING_BITS[-1]} bits holds; accepted: at most {most}; "
            "fewer clients in a group, less noise or a rotation reach less far",
            given=signal + noise,
            accepted=most,
        )
    return bits


def rotation_pays(dimensions: int, sensitivity_squared: int, clients: int, noise: int, *, chance: float) -> bool:
    """Whether a rotated vector takes fewer bits on the wire; nothing is padded, so a single bit of the ring decides.

    noise: the noise's reach, as `noise_reach` gives it; chance: of the rotated signal's wrapping.

    Raises:
        InvalidPrivacy: as `signal_reach`, or no ring is large enough even with it.
    """
    rotated = ring_bits(signal_reach(dimensions, sensitivity_squared, clients, rotated=True, chance=chance), noise)
    certain = signal_reach(dimensions, sensitivity_squared, clients, rotated=False, chance=chance)
    return 2 * (certain + noise) + 1 >= 1 << rotated
