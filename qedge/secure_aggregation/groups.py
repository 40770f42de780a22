"""How a cohort is split into groups, each with secure sums of its own: within one everybody masks for everybody else."""

from __future__ import annotations

from dataclasses import dataclass

from qedge.secure_aggregation.terms import colluders_of, refuse_unsafe, threshold_of


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
