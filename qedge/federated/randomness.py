"""One key a run, and every random choice of the run derived from it.

A run under privacy has a secret key from the operating system's generator, kept 0600: whoever could predict the cohorts
would undo the amplification that the accountant counts on. A run without privacy derives its key from the job's seed, so
that it can be repeated bit for bit. Released noise never comes from here: it is always fresh (`privacy.mechanisms`).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, repr=False)
class RunKey:
    """A 32-byte key and the streams derived from it by HMAC-SHA256 (RFC 2104), one for each purpose and place."""

    secret: bytes

    @classmethod
    def from_seed(cls, seed: int) -> RunKey:
        """The public key of a run without privacy."""
        return cls(hashlib.sha256(b"qedge run seed\0" + str(seed).encode()).digest())

    def derive(self, purpose: str, *place: int) -> RunKey:
        """The key for one purpose; it says nothing about this key or its other children."""
        message = "/".join([purpose, *map(str, place)]).encode()
        return RunKey(hmac.new(self.secret, message, hashlib.sha256).digest())

    def uniform_words(self, count: int) -> np.ndarray:
        """`count` independent uniform 64-bit words, [count] uint64, as a SHAKE-256 stream (FIPS 202): unpredictable without the key."""
        return np.frombuffer(hashlib.shake_256(self.secret).digest(8 * count), dtype="<u8")

    def generator(self) -> np.random.Generator:
        """A fast generator for choices that need not be secret once the key is (shuffling, rounding)."""
        return np.random.Generator(np.random.Philox(key=np.frombuffer(self.secret[:16], dtype="<u8")))
