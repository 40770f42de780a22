"""Keeps what a node serves in step with what a registry says: a new champion is picked up, and while nobody answers the last one stays.

What the node has on disk is served at once; the registry is asked beside that, in a thread, again and again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qedge.edge.selector import Requirement
from qedge.errors import EdgeError, QEdgeError
from qedge.registry.ladder_cache import Cached, LadderCache
from qedge.registry.registry import split_reference

EVERY_S = 10.0
_IDLE_S = 600.0  # a ladder that another process of this node has just fetched is left to it


@dataclass(frozen=True)
class Followed:
    """A model that a node serves. reference: `NAME`, `NAME@alias` or `NAME/3`."""

    reference: str
    requirement: Requirement = field(default_factory=Requirement)

    @classmethod
    def parse(cls, text: str) -> Followed:
        """From `digits@champion` or `digits@champion:accuracy=0.96,p95_ms=5`.

        Raises:
            UnknownModel: a reference that is none. EdgeError: a requirement that is none.
        """
        reference, _, required = text.partition(":")
        split_reference(reference)
        return cls(reference, Requirement.parse(required))

    @property
    def name(self) -> str:
        """The model's."""
        return split_reference(self.reference)[0]


@dataclass(frozen=True)
class Standing:
    """What is served for a reference. fresh: whether the registry said so when it was last asked; at: then, Unix seconds.

    version, ladder: None while nothing is; error: why what was last found is not served.
    """

    reference: str
    version: str | None
    ladder: str | None
    fresh: bool
    at: float
    error: QEdgeError | None = None


class Follower:
    """Asks the registry, and hands what is new to `serve`, which raises where it will not do.

    Raises:
        EdgeError: as `refuse`.
    """

    def __init__(self, cache: LadderCache, followed: Sequence[Followed], serve: Callable[[Followed, Cached], None]) -> None:
        self.refuse(followed)
        self._cache, self._followed, self._serve = cache, followed, serve
        self._standing = {one.reference: Standing(one.reference, None, None, False, time.time()) for one in followed}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @staticmethod
    def refuse(followed: Sequence[Followed]) -> None:
        """Refuse what cannot be followed.

        Raises:
            EdgeError: a model is named twice, or none is.
        """
        names = [one.name for one in followed]
        twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
        if twice is not None or not names:
            said = f"{twice} is named twice; a name is answered by one version" if twice else "no model is named"
            raise EdgeError(f"{said}; accepted: one reference for each model", given=[one.reference for one in followed])

    @property
    def standing(self) -> list[Standing]:
        """Of each reference, in the order in which they were given."""
        return [self._standing[one.reference] for one in self._followed]

    def begin(self) -> None:
        """Serve what is on this node's disk already."""
        for one in self._followed:
            found = self._cache.cached(one.reference)
            if found is not None:
                self._take(one, found)

    def look(self) -> list[Standing]:
        """Ask the registry once for every model; whatever fails leaves what is served as it is."""
        for one in self._followed:
            try:
                found = self._cache.get(one.reference, keep=False)
            except QEdgeError as error:
                before = self._standing[one.reference]
                self._standing[one.reference] = Standing(one.reference, before.version, before.ladder, False, time.time(), error)
            else:
                self._take(one, found)
        if all(one.error is None for one in self.standing):  # else an older one goes on answering
            self._cache.prune(_IDLE_S)
        return self.standing

    def start(self, every_s: float = EVERY_S) -> None:
        """Ask now, and every so many seconds until `close`, in a thread."""
        self._thread = threading.Thread(target=self._run, args=(every_s,), daemon=True, name="follower")
        self._thread.start()

    def close(self) -> None:
        """Ask no more; a look that has begun ends by itself."""
        self._ended.set()

    def _run(self, every_s: float) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(every_s)

    def _take(self, one: Followed, found: Cached) -> None:
        before = self._standing[one.reference]
        said = Standing(one.reference, found.version, found.ladder.id, found.fresh, time.time())
        if (before.version, before.ladder) != (said.version, said.ladder):
            try:
                self._serve(one, found)
                self._cache.keep(one.reference, found)
            except QEdgeError as error:
                said = Standing(one.reference, before.version, before.ladder, found.fresh, time.time(), error)
        self._standing[one.reference] = said
