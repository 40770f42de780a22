"""The calls of a secure session: which actor stands for which clients from its beginning to its end, and who of them is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from qedge.federated.secure_node import Said

Answer = Callable[[ray.ObjectRef, str], Any]


class SecureCalls:
    """A client's secrets are where it was trained: with an actor that dies or is late the session loses its clients.

    actors: by slot, whoever stands there now; replace: puts another in a slot; answer: what a call came to, None where it is lost.
    """

    def __init__(self, actors: Sequence[ActorHandle], replace: Callable[[int], None], answer: Answer) -> None:
        self.actors, self.replace, self.answer = actors, replace, answer
        self.lost: set[int] = set()
        self.standing: dict[int, list[int]] = {}

    def open(self, standing: Mapping[int, list[int]], begin: Callable[[int], ray.ObjectRef], deadline_s: float, what: str) -> list[Any]:
        """Begin a session, and what came of it; standing: the clients of each slot; begin: the call that begins it there."""
        self.lost, self.standing = set(), {slot: clients for slot, clients in standing.items() if clients}
        return self._of_those_left({begin(slot): slot for slot in self.standing}, deadline_s, what)

    def step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """What clients of the actors that are left say to a message each."""
        submitted = {}
        for slot, clients in self.standing.items():
            if slot not in self.lost and (theirs := {client: messages[client] for client in clients if client in messages}):
                submitted[self.actors[slot].secure_step.remote(name, theirs)] = slot
        return [one for said in self._of_those_left(submitted, deadline_s, f"step '{name}' of a secure sum") for one in said]

    def _of_those_left(self, submitted: dict[ray.ObjectRef, int], deadline_s: float, what: str) -> list[Any]:
        """What came in by the deadline; others are put in the place of whoever died or is late."""
        answers, waiting, end = [], dict(submitted), time.monotonic() + deadline_s
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                break
            slot = waiting.pop(ready[0])
            if (answer := self.answer(ready[0], what)) is not None:
                answers.append(answer)
            else:
                self._lose(slot)
        for slot in waiting.values():
            self._lose(slot)
        return answers

    def _lose(self, slot: int) -> None:
        self.lost.add(slot)
        self.replace(slot)
