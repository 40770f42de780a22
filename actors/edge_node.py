"""An edge node on Ray: the engine of one node, its cards, and a heartbeat that says how it fares.

A node is an actor with a name, so that whoever is connected to the cluster finds it; one that does not answer in time is silent, and
said to be. It takes no logical CPU: answering must not wait for a round of training to end.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorClass, ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from actors.metrics import record
from actors.session import NAMESPACE
from qedge.edge.card import Card
from qedge.edge.engine import Answer, EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.node import own_card
from qedge.edge.pss import pss_bytes
from qedge.edge.rung import Rows
from qedge.edge.selector import Requirement
from qedge.errors import InvalidConfig

_PREFIX = "edge-"
BEAT_TIMEOUT_S = 5.0
THREADS = 4  # calls that a node answers at once


@dataclass(frozen=True)
class Beat:
    """How a node fares. at: Unix seconds; loaded: bytes charged, by model and rung; cpu: load average of its machine by core."""

    node: str
    at: float
    pid: int
    budget_bytes: int
    charged_bytes: int
    pss_bytes: int
    loaded: dict[str, dict[str, int]]
    cpu: float


class EdgeNode:
    """An `EdgeEngine` on some node of the cluster. Ladders lie in folders of that node."""

    def __init__(self, name: str, budget_bytes: int, home: Path | None = None, *, covered_only: bool = False) -> None:
        self._name, self._budget, self._home = name, budget_bytes, home
        self._engine = EdgeEngine(budget_bytes, home=home, record=record, covered_only=covered_only)
        self._cards: dict[str, Card] = {}

    def add(self, name: str, ladder: Path, requirement: Requirement | None = None, card: Card | None = None) -> str:
        """As `EdgeEngine.add`; in words, which rung answers and why no other does."""
        opened = Ladder.open(ladder)
        filled = own_card(opened, self._home, card)
        said = str(self._engine.add(name, opened, requirement, card=filled))
        self._cards[name] = filled
        return said

    def remove(self, name: str) -> None:
        """As `EdgeEngine.remove`."""
        self._engine.remove(name)
        self._cards.pop(name, None)

    def infer(self, name: str, rows: Rows) -> Answer:
        """As `EdgeEngine.infer`."""
        return self._engine.infer(name, rows)

    def cards(self) -> dict[str, Card]:
        """What each model's rungs cost on this node."""
        return dict(self._cards)

    def beat(self) -> Beat:
        """How the node fares now."""
        loaded = {model: {str(rung): took for rung, took in rungs.items()} for model, rungs in self._engine.loaded.items()}
        cpu = os.getloadavg()[0] / (os.cpu_count() or 1)
        return Beat(self._name, time.time(), os.getpid(), self._budget, self._engine.charged_bytes, pss_bytes(), loaded, cpu)


EdgeNodeActor = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=THREADS)(EdgeNode)


def start_node(name: str, budget_bytes: int, *, home: Path | None = None, resources: dict[str, float] | None = None) -> ActorHandle:
    """A node of that name, which outlives nobody: it ends with whoever started it.

    home: where measured cards are kept on it; resources: that its machine must have, such as a label of the cluster's file.

    Raises:
        InvalidConfig: there is one of that name. EdgeError: a budget that is no number of bytes over 0.
    """
    return started(EdgeNodeActor, name, resources, budget_bytes, home)


def started(kind: ActorClass, name: str, resources: dict[str, float] | None, *arguments: object) -> ActorHandle:
    """A named actor of that kind, which answers: its first argument is its name.

    Raises:
        InvalidConfig: there is one of that name. What its constructor raises.
    """
    options = {"name": _PREFIX + name, "namespace": NAMESPACE, "resources": resources or {}}
    try:
        handle = kind.options(**options).remote(name, *arguments)
    except ValueError:  # Ray's word for a name that is taken
        raise InvalidConfig(f"there is an edge node '{name}' already; give another name, or end that one", given=name) from None
    ray.get(handle.beat.remote())
    return handle


def node(name: str) -> ActorHandle | None:
    """The node of that name, or None."""
    try:
        return ray.get_actor(_PREFIX + name, namespace=NAMESPACE)
    except ValueError:
        return None


def beats(timeout_s: float = BEAT_TIMEOUT_S) -> dict[str, Beat | None]:
    """How every edge node of the cluster fares; None for one that is silent for so many seconds, or just died."""
    named = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
    asked = {}
    for name in sorted(one.removeprefix(_PREFIX) for one in named if one.startswith(_PREFIX)):
        handle = node(name)
        if handle is not None:
            asked[name] = handle.beat.remote()
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s) if asked else None
    return {name: _said(answer) for name, answer in asked.items()}


def _said(answer: ray.ObjectRef) -> Beat | None:
    try:
        found: Beat = ray.get(answer, timeout=0)
    except (GetTimeoutError, RayActorError):
        return None
    return found
