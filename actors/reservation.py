"""CPUs of the cluster set aside for one run, all of them or none: a run that finds them taken waits in line.

Runs that each held a part of what they need and waited for the rest would wait for each other; Ray's placement groups are had
whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from qedge.errors import RoundFailed

CPUS_OF_AN_ACTOR = 0.5  # a client actor waits for its coordinator half of the time: two runs share a CPU
_PROMPT_S = 2.0
_LOOK_AGAIN_S = 10.0


def reserve(name: str, waits: Callable[[], None]) -> PlacementGroup:
    """The CPUs of `name`, one bundle for each CPU of the cluster; those it has already, where it was restarted.

    Returns when they are free, however long that takes; where nodes have left meanwhile, with what there is. waits: called once,
    when they are not free now.

    Raises:
        RoundFailed: the cluster has no CPU.
    """
    try:
        group = get_placement_group(name)
    except ValueError:
        group = _ask(name)
    patience_s = _PROMPT_S
    while not group.wait(patience_s):
        if not _cpus():
            raise RoundFailed("the cluster has no CPU to train on; resume the run when it has")
        if group.bundle_count > max(1, int(_cpus())):  # more than it will ever get
            remove_placement_group(group)
            group = _ask(name)
        elif patience_s == _PROMPT_S:
            waits()
            patience_s = _LOOK_AGAIN_S
    return group


def give_back(name: str) -> None:
    """Free the CPUs of `name`, and end what still runs on them; harmless where there are none."""
    try:
        group = get_placement_group(name)
    except ValueError:
        return
    remove_placement_group(group)


def _ask(name: str) -> PlacementGroup:
    return placement_group([{"CPU": CPUS_OF_AN_ACTOR}] * max(1, int(_cpus())), strategy="SPREAD", name=name)


def _cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 0.0))
