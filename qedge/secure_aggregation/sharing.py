"""Shamir's secret sharing of 32-byte secrets: any `threshold` shares give the secret, fewer tell nothing of it.

Over the integers modulo the least prime above 2^256, so that a secret is an element; a share is 33 bytes.

Source: A. Shamir, "How to share a secret", Communications of the ACM 22 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33
_SPARE = 16  # bytes: a draw of so many more than the prime's is uniform modulo it within 2^-128

RandomBytes = Callable[[int], bytes]


def split(secret: bytes, threshold: int, places: Sequence[int], random: RandomBytes) -> list[bytes]:
    """Shares of a 32-byte secret for these places (a place p holds the polynomial's value at p + 1), 33 bytes each."""
    wide = SHARE_BYTES + _SPARE
    drawn = random(wide * (threshold - 1))
    coefficients = [int.from_bytes(drawn[start : start + wide], "big") % PRIME for start in range(0, len(drawn), wide)]
    shares = []
    for place in places:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * (place + 1)
        shares.append(((value + int.from_bytes(secret, "big")) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return shares


class Interpolation:
    """Secrets from the shares of the same places, as many as the threshold."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = tuple(places)
        self.weights = [_weight(place + 1, [other + 1 for other in self.places]) for place in self.places]

    def secret(self, shares: Mapping[int, bytes]) -> bytes | None:
        """The secret of which these are shares, by place; None where what comes out is no secret of 32 bytes."""
        parts = zip(self.places, self.weights, strict=True)
        value = sum(weight * int.from_bytes(shares[place], "big") for place, weight in parts) % PRIME
        return value.to_bytes(32, "big") if value < 2**256 else None


def _weight(at: int, points: Sequence[int]) -> int:
    """Lagrange's coefficient of a point for the value at zero."""
    above = below = 1
    for other in points:
        if other != at:
            above, below = above * other % PRIME, below * (other - at) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
