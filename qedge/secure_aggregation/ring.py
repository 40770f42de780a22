"""The integers modulo a power of two, in which vectors are masked and summed.

A ring of b bits holds every sum in (-2^(b-1), 2^(b-1)): it is chosen so that no sum leaves that range. On the wire an entry takes b bits:
the low 16 of all entries, then those above them, plane by plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidPrivacy

LEAST_BITS, MOST_BITS, WHOLE_BITS = 16, 32, 64
Elements = NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^bits: from 16 to 32 bits, or 64.

    Raises:
        InvalidPrivacy: another number of bits.
    """

    bits: int

    def __post_init__(self) -> None:
        if not (LEAST_BITS <= self.bits <= MOST_BITS or self.bits == WHOLE_BITS):
            raise InvalidPrivacy(f"a ring of {self.bits} bits; accepted: {LEAST_BITS} to {MOST_BITS}, or {WHOLE_BITS}", given=self.bits)

    @classmethod
    def holding(cls, reach: int, *, most_bits: int = MOST_BITS) -> Ring:
        """The smallest ring in which a sum with entries of magnitude up to `reach` cannot wrap.

        Raises:
            InvalidPrivacy: it would take more than `most_bits`.
        """
        bits = max(LEAST_BITS, (2 * reach + 1).bit_length())
        if bits > most_bits:
            raise InvalidPrivacy(
                f"sums of magnitude up to {reach} would wrap in a ring of {most_bits} bits; accepted: at most {2 ** (most_bits - 1) - 1}: "
                "smaller groups, or less noise",
                given=reach,
                accepted=2 ** (most_bits - 1) - 1,
            )
        return cls(bits)

    @property
    def reach(self) -> int:
        """The largest magnitude that it holds."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """In what it is computed: a type that wraps at a multiple of the ring's size."""
        return np.dtype("<u2" if self.bits == LEAST_BITS else "<u4" if self.bits <= MOST_BITS else "<u8")

    def elements(self, vector: NDArray[np.int64]) -> Elements:
        """Integers as elements, in `dtype`; not reduced."""
        reduced: Elements = vector.astype(self.dtype)
        return reduced

    def centred(self, elements: Elements) -> NDArray[np.int64]:
        """The integers of least magnitude that they stand for, [entries] int64."""
        shift = np.uint64(WHOLE_BITS - self.bits)
        return (elements.astype(np.uint64) << shift).view(np.int64) >> np.int64(shift)

    def wire_bytes(self, entries: int) -> int:
        """Length of so many entries on the wire."""
        if self.bits == WHOLE_BITS:
            return 8 * entries
        whole, planes = divmod(self.bits - LEAST_BITS, 8)
        return entries * (2 + whole) + planes * -(-entries // 8)

    def pack(self, elements: Elements) -> bytes:
        """Elements on the wire, reduced."""
        if self.bits in (LEAST_BITS, WHOLE_BITS):
            return elements.tobytes()
        whole, planes = divmod(self.bits - LEAST_BITS, 8)
        parts = [elements.astype("<u2").tobytes()]
        parts += [(elements >> (LEAST_BITS + 8 * byte)).astype(np.uint8).tobytes() for byte in range(whole)]
        if planes:
            rest = (elements >> (LEAST_BITS + 8 * whole)).astype(np.uint8)
            parts += [np.packbits((rest >> bit) & 1).tobytes() for bit in range(planes)]
        return b"".join(parts)

    def add_packed(self, total: Elements, content: bytes) -> None:
        """Add to `total`, in place, what `pack` put on the wire: `wire_bytes` of as many entries."""
        if self.bits in (LEAST_BITS, WHOLE_BITS):
            np.add(total, np.frombuffer(content, self.dtype), out=total)
            return
        entries, at = len(total), 2 * len(total)
        whole, planes = divmod(self.bits - LEAST_BITS, 8)
        np.add(total, np.frombuffer(content, "<u2", entries), out=total)
        for byte in range(whole):
            np.add(total, np.left_shift(np.frombuffer(content, np.uint8, entries, at), LEAST_BITS + 8 * byte, dtype=self.dtype), out=total)
            at += entries
        wide = -(-entries // 8)
        for plane in range(planes):
            bits = np.unpackbits(np.frombuffer(content, np.uint8, wide, at), count=entries)
            np.add(total, np.left_shift(bits, LEAST_BITS + 8 * whole + plane, dtype=self.dtype), out=total)
            at += wide

    def unpack(self, content: bytes, entries: int) -> Elements:
        """The elements that `pack` put on the wire, reduced."""
        elements: Elements = np.zeros(entries, self.dtype)
        self.add_packed(elements, content)
        return elements
