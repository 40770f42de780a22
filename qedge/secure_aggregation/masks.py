"""Masks: a 32-byte seed stretched to a vector of ring elements by AES-256 in counter mode (NIST SP 800-38A), added or taken away.

A seed serves one mask, so that the counter begins at zero. Many masks go through the cache together, a block of entries at a time; the
cipher and the sums leave Python's lock, so that threads share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qedge.secure_aggregation.ring import Elements, Ring

SEED_BYTES = 32
_BLOCK = 1 << 17  # bytes: the block of the sum, that of the mask and the zeros it is made of stay in a core's cache
_ZEROS = memoryview(bytes(_BLOCK))
_TOGETHER = 64  # masks: more streams at once gain nothing

SignedSeed = tuple[bytes, int]  # a seed, and +1 or -1


def add_masks(total: Elements, ring: Ring, seeds: Sequence[SignedSeed]) -> None:
    """Add the masks of these seeds, each with its sign, to `total` in place."""
    for start in range(0, len(seeds), _TOGETHER):
        _add_some(total, ring, seeds[start : start + _TOGETHER])


def add_masks_beside(total: Elements, ring: Ring, seeds: Sequence[SignedSeed], threads: int) -> None:
    """`add_masks` on so many threads."""
    shares = [seeds[first::threads] for first in range(threads)]
    sums = [total, *(np.zeros_like(total) for _ in shares[1:])]
    with ThreadPoolExecutor(threads, thread_name_prefix="unmask") as pool:
        for done in [pool.submit(add_masks, part, ring, share) for part, share in zip(sums, shares, strict=True)]:
            done.result()
    for part in sums[1:]:
        np.add(total, part, out=total)


def _add_some(total: Elements, ring: Ring, seeds: Sequence[SignedSeed]) -> None:
    streams = [
        (Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor(), np.add if sign > 0 else np.subtract) for seed, sign in seeds
    ]
    room = bytearray(_BLOCK + 15)  # as much as the cipher asks for
    block = np.frombuffer(room, np.uint8, _BLOCK).view(ring.dtype)
    entries = len(block)
    for start in range(0, len(total), entries):
        part = total[start : start + entries]
        zeros, mask = _ZEROS[: part.nbytes], block[: len(part)]
        for stream, apply in streams:
            stream.update_into(zeros, room)
            apply(part, mask, out=part)
