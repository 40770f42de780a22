"""The secrets of one member in one session, and what follows from them.

Everything that a member contributes to its masks with others follows from one root, and its own mask from another secret: the first is
opened if the member is lost, the second if it is not, never both.

    x(u→v) = PRF(root_u, session, v)                       u seals it for v
    r(u→v) = PRF(x(u→v), mask)                             u's part of the mask that u and v share
    k(u→v) = PRF(x(u→v), escrow)
    seed(u, v) = PRF(r(u→v) || r(v→u), session, u, v)      u < v: u adds the mask, v takes it away
    escrow(u, v) = r(u→v) xor k(v→u)                       u sends it with its masked vector; root_v opens it

The PRF is HMAC-SHA256 (RFC 2104), each use under its own name.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass

SECRET_BYTES = 32


@dataclass(frozen=True, repr=False)
class MemberSecrets:
    """Fresh for each attempt, never used again."""

    root: bytes
    mask: bytes

    @classmethod
    def draw(cls, random: Callable[[int], bytes] = os.urandom) -> MemberSecrets:
        """Two independent secrets."""
        return cls(random(SECRET_BYTES), random(SECRET_BYTES))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a member's secrets are not pickled")


def commitment(name: str, session: bytes, member: int, secret: bytes) -> bytes:
    """A binding and, for 32 random bytes, hiding commitment to a secret."""
    return hashlib.sha256(b"qedge/secure-aggregation " + name.encode() + b"\0" + session + member.to_bytes(4, "big") + secret).digest()


def contribution(root: bytes, session: bytes, peer: int) -> bytes:
    """x(u→v) of the member whose root it is."""
    return _prf(root, b"contribution", session + peer.to_bytes(4, "big"))


def part_of_mask(given: bytes) -> bytes:
    """r(u→v) of a contribution x(u→v)."""
    return _prf(given, b"mask")


def escrow(part: bytes, peers: bytes) -> bytes:
    """A member's part of a mask, as only the root of the peer whose contribution `peers` is opens it; the same function opens it."""
    pad = _prf(peers, b"escrow")
    return (int.from_bytes(part, "big") ^ int.from_bytes(pad, "big")).to_bytes(SECRET_BYTES, "big")


def pair_seed(session: bytes, one: int, part_of_one: bytes, other: int, part_of_other: bytes) -> bytes:
    """The seed of the mask that two members share; the same from both sides."""
    if one > other:
        one, part_of_one, other, part_of_other = other, part_of_other, one, part_of_one
    return _prf(part_of_one + part_of_other, b"seed", session + one.to_bytes(4, "big") + other.to_bytes(4, "big"))


def own_seed(mask: bytes, session: bytes) -> bytes:
    """The seed of a member's own mask."""
    return _prf(mask, b"own", session)


def sign_of(member: int, peer: int) -> int:
    """+1 for the member of a pair that adds the mask they share, -1 for the one that takes it away."""
    return 1 if member < peer else -1


def _prf(key: bytes, purpose: bytes, message: bytes = b"") -> bytes:
    return hmac.digest(key, purpose + b"\0" + message, "sha256")
