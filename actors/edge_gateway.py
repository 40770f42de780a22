"""An edge gateway on Ray: an edge node whose models follow a registry.

As the gateway that is a process of its own, but asked through Ray: it caches ladders on its node's disk, serves them while the registry
is away, and picks up a new champion when it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.actor import ActorHandle

from actors.edge_node import THREADS, EdgeNode, started
from qedge.config import Settings, ensure_home
from qedge.registry.following import EVERY_S, Followed, Follower, Standing
from qedge.registry.ladder_cache import FOLDER, Cached, LadderCache
from qedge.registry.registry import Registry


class EdgeGateway(EdgeNode):
    """An `EdgeNode` that adds models by itself, by what a registry says of them."""

    def __init__(
        self, name: str, budget_bytes: int, settings: Settings, followed: Sequence[Followed], key: bytes, every_s: float = EVERY_S
    ) -> None:
        super().__init__(name, budget_bytes, ensure_home(settings.home), covered_only=settings.edge.covered_only)
        cache = LadderCache(Registry(settings), settings.home / FOLDER, key)
        self._follower = Follower(cache, followed, self._serve)
        self._follower.begin()
        self._follower.start(every_s)

    def standing(self) -> list[Standing]:
        """What is served for each reference; errors in words."""
        return self._follower.standing

    def look(self) -> list[Standing]:
        """Ask the registry now, rather than when it is time."""
        return self._follower.look()

    def _serve(self, one: Followed, found: Cached) -> None:
        self.add(one.name, found.ladder.folder, one.requirement)


EdgeGatewayActor = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=THREADS)(EdgeGateway)


def start_gateway(
    name: str,
    budget_bytes: int,
    settings: Settings,
    followed: Sequence[Followed],
    key: bytes,
    *,
    every_s: float = EVERY_S,
    resources: dict[str, float] | None = None,
) -> ActorHandle:
    """A gateway of that name; `actors.edge_node.node` finds it and `beats` hears it.

    settings: of its node: the home where it keeps what it fetches, and the registry. key: public, of whoever signs receipts.

    Raises:
        InvalidConfig: there is a node of that name. EdgeError: a budget or models that will not do.
    """
    Follower.refuse(followed)
    return started(EdgeGatewayActor, name, resources, budget_bytes, settings, list(followed), key, every_s)
