"""How a cohort is split into groups, each with secure sums of its own, and which thresholds protect its members.

With n members, a threshold of t shares and c members that may collude with the server, t and c must satisfy (Bonawitz et al., "Practical
secure aggregation for privacy-preserving machine learning", CCS 2017, section 6, with colluders counted apart)

- against a malicious server, 2t > n + c: an honest member signs one set of survivors, so that two sets with t signatures each would take
  2t <= (n - c) + 2c;
- against one that is honest but curious, t > c;
- t - c >= 2 either way: in every sum that is opened there are two members at least who hide each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qedge.errors import InvalidPrivacy

MALICIOUS, CURIOUS = "malicious", "honest-but-curious"
SERVERS = (MALICIOUS, CURIOUS)
LEAST_HIDDEN = 2
LEAST_MEMBERS = 3


@dataclass(frozen=True)
class Group:
    """How many members, how many of them open a sum, how many may collude, of how many at least a sum is opened."""

    members: int
    threshold: int
    colluders: int
    survivors: int

    @property
    def honest(self) -> int:
        """The fewest members in an opened sum that do not collude: what noise may be counted on."""
        return self.survivors - self.colluders


def groups_of(members: int, most: int, threshold: float, colluders: float, survivors: float, server: str) -> list[Group]:
    """As few groups as `most` allows, their sizes at most one apart, larger ones first; the other numbers are shares of a group.

    Raises:
        InvalidPrivacy: a group in which nobody is hidden, with the threshold that would do.
    """
    count = max(1, -(-members // most))
    groups = []
    for place in range(count):
        size = members // count + (place < members % count)
        group = Group(size, threshold_of(size, threshold), colluders_of(size, colluders), threshold_of(size, survivors))
        refuse_unsafe(size, group.threshold, group.colluders, server)
        groups.append(group)
    return groups


def threshold_of(members: int, share: float) -> int:
    """The fewest members that are no less than this share of all."""
    return math.ceil(round(share * members, 9))


def colluders_of(members: int, share: float) -> int:
    """How many members may collude where this share of all may; rounded up."""
    return math.ceil(round(share * members, 9))


def refuse_unsafe(members: int, threshold: int, colluders: int, server: str) -> None:
    """Refuse a threshold that does not protect.

    Raises:
        InvalidPrivacy: with the least threshold that would do, if any does.
    """
    if _safe(members, threshold, colluders, server):
        return
    would_do = next((t for t in range(1, members + 1) if _safe(members, t, colluders, server)), None)
    rule = "2t > n + c" if server == MALICIOUS else "t > c"
    offer = (
        f"t = {would_do}, a threshold of {math.ceil(1000 * would_do / members) / 1000:g}"
        if would_do is not None and threshold <= members
        else f"no threshold would do for a group of {members}: fewer colluders, or a larger group"
    )
    raise InvalidPrivacy(
        f"secure aggregation of n = {members} members with a threshold of t = {threshold} and c = {colluders} colluders is refused: "
        f"against a {server} server it takes {rule}, t - c >= {LEAST_HIDDEN} and t <= n; accepted: {offer}",
        given=threshold,
        accepted=would_do,
    )


def _safe(members: int, threshold: int, colluders: int, server: str) -> bool:
    agreed = 2 * threshold > members + colluders if server == MALICIOUS else threshold > colluders
    return agreed and threshold - colluders >= LEAST_HIDDEN and threshold <= members and members >= LEAST_MEMBERS
