"""Merkle trees: one digest that stands for many values, and short proofs that some are among them.

Leaves and nodes are hashed apart, so that no node can be shown as a leaf (RFC 6962, section 2.1). A proof is for any set of places at
once: it brings the nodes that cannot be computed from the leaves that are shown, level by level, from left to right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

DIGEST_BYTES = 32


def leaf(content: bytes) -> bytes:
    """The digest of a leaf."""
    return hashlib.sha256(b"\0" + content).digest()


class MerkleTree:
    """The tree over leaves' digests, one at least, in their order."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.levels = [list(leaves)]
        while len(self.levels[-1]) > 1:
            below = self.levels[-1]
            above = [_node(below[place], below[place + 1]) for place in range(0, len(below) - 1, 2)]
            self.levels.append(above + below[2 * len(above) :])  # the odd one out moves up as it is

    @property
    def root(self) -> bytes:
        """The digest of all."""
        return self.levels[-1][0]

    def path(self, place: int) -> tuple[bytes, ...]:
        """`proof` for one place."""
        path = []
        for level in self.levels[:-1]:
            if place ^ 1 < len(level):
                path.append(level[place ^ 1])
            place //= 2
        return tuple(path)

    def proof(self, places: Sequence[int]) -> tuple[bytes, ...]:
        """What `root_of` needs beside the leaves at these places."""
        known, proof = sorted(set(places)), []
        for level in self.levels[:-1]:
            proof += [level[place ^ 1] for place in known if place ^ 1 < len(level) and place ^ 1 not in known]
            known = sorted({place // 2 for place in known})
        return tuple(proof)


def path_length(place: int, count: int) -> int:
    """How many digests the path of a leaf has, in a tree of `count` leaves."""
    length = 0
    while count > 1:
        length += place ^ 1 < count
        place, count = place // 2, (count + 1) // 2
    return length


def root_of(leaves: Mapping[int, bytes], count: int, proof: Sequence[bytes]) -> bytes | None:
    """The root of a tree of `count` leaves with these digests at these places, or None where the proof does not fit the places.

    Whoever compares it with a root that can be trusted knows that these leaves are at these places.
    """
    if not leaves or min(leaves) < 0 or max(leaves) >= count:
        return None
    known, given = dict(leaves), iter(proof)
    while count > 1:
        above: dict[int, bytes] = {}
        for place in sorted(known):
            if place // 2 in above:
                continue
            pair = known.get(place ^ 1)
            if pair is None and place ^ 1 < count:
                pair = next(given, None)
                if pair is None:
                    return None
            above[place // 2] = known[place] if pair is None else _node(known[place], pair) if place % 2 == 0 else _node(pair, known[place])
        known, count = above, (count + 1) // 2
    return known[0] if next(given, None) is None else None


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
