"""CPUs of the cluster set aside for one run, all of them or none: a run that finds them taken waits in line.

Runs that each held a part of what they need and waited for the rest would wait for each other; Ray's placement groups are had
whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

CPUS_OF_AN_ACTOR = 0.5  # a client actor waits for its coordinator half of the time: two runs share a CPU
_PROMPT_S = 2.0
_LOOK_AGAIN_S = 60.0


def reserve(name: str, waits: Callable[[], None]) -> PlacementGroup:
    """The CPUs of `name`, one bundle for each CPU of the cluster; those it has already, where it was restarted.

    Returns when they are free, however long that takes. waits: called once, when they are not free now.
    """
    try:
        group = get_placement_group(name)
    except ValueError:
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        group = placement_group([{"CPU": CPUS_OF_AN_ACTOR}] * count, strategy="SPREAD", name=name)
    if not group.wait(_PROMPT_S):
        waits()
        while not group.wait(_LOOK_AGAIN_S):
            pass
    return group


def give_back(name: str) -> None:
    """Free the CPUs of `name`, and end what still runs on them; harmless where there are none."""
    try:
        group = get_placement_group(name)
    except ValueError:
        return
    remove_placement_group(group)
