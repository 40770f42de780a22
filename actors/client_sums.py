"""Federated statistics on Ray: actors hold clients' columns and sum what these send; a share lost with its actor is done by another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.client_workers import ATTEMPTS, LOST
from actors.enrolment_authority import EnrolmentAuthorityActor, roster_of
from actors.federated_client import told
from actors.reservation import CPUS_OF_AN_ACTOR
from actors.secure_calls import SecureCalls
from qedge.analytics.encoding import Encoder
from qedge.data.client_columns import ClientColumns
from qedge.errors import RoundFailed
from qedge.federated.secure_node import Said, SecureNode, Session
from qedge.job import SecureAggregation
from qedge.privacy.clipping import add_exactly
from qedge.privacy.noise_share import NoiseShare
from qedge.secure_aggregation.identity import Provision, Roster

Integers = npt.NDArray[np.int64]


@ray.remote(num_cpus=CPUS_OF_AN_ACTOR, max_restarts=0)
class ClientSumsActor:
    """Stands for every client whose columns it was given."""

    def __init__(self, columns: ClientColumns, secure: SecureAggregation | None, provision: Provision | None) -> None:
        self.columns = columns
        self.node = None if secure is None or provision is None else SecureNode(provision, secure)

    def secure_open(self, encoder: Encoder, clients: list[int], sessions: Sequence[Session], share: NoiseShare | None) -> list[Said]:
        """See `VectorSums.secure_open`, of some clients."""
        return self.node.open(encoder.each(self.columns, clients), sessions, share)

    def secure_step(self, name: str, messages: Mapping[int, bytes]) -> list[Said]:
        """See `SecureNode.step`."""
        return self.node.step(name, messages)

    def total(self, encoder: Encoder, clients: Integers) -> Integers:
        """See `Encoder.total`."""
        return encoder.total(self.columns, clients.tolist())


class RaySums:
    """The `VectorSums` of a query on Ray: an actor for each bundle of CPUs set aside for it, the columns once in the object store."""

    def __init__(self, columns: ClientColumns, reserved: PlacementGroup, secure: SecureAggregation | None = None) -> None:
        self.clients = np.arange(len(columns.offsets) - 1)
        members = len(self.clients)
        self.authority = None if secure is None else EnrolmentAuthorityActor.remote("simulated", members, secure.signatures)
        provision = None if self.authority is None else self.authority.provision.remote()
        self.standing_for, self.reserved = (ray.put(columns), secure, provision), reserved
        self.actors = [self._start(slot) for slot in range(reserved.bundle_count)]
        self.secure = SecureCalls(self.actors, self._replace, lambda reference, what: _answer(reference))

    def roster(self, clients: Sequence[int]) -> Roster:
        """See `SecureParty.roster`."""
        return roster_of(self.authority, clients)

    def secure_open(self, encoder: Encoder, sessions: Sequence[Session], share: NoiseShare | None, deadline_s: float) -> list[Said]:
        """See `VectorSums.secure_open`; who dies, or is not done by the deadline, says nothing, then and in all that follows."""
        standing = {slot: part.tolist() for slot, part in enumerate(np.array_split(self.clients, len(self.actors)))}

        def begin(slot: int) -> ray.ObjectRef:
            return self.actors[slot].secure_open.remote(encoder, standing[slot], sessions, share)

        return [one for said in self.secure.open(standing, begin, deadline_s, "a query's round") for one in said]

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `SecureParty.secure_step`."""
        return self.secure.step(name, messages, deadline_s)

    def vector_sum(self, encoder: Encoder, deadline_s: float) -> Integers:
        """See `VectorSums.vector_sum`: what misses the deadline, or is lost with an actor, is shared out anew, to another actor too."""
        left, parts = self.clients, [np.zeros(encoder.dimensions, np.int64)]
        for _ in range(ATTEMPTS):
            shares = np.array_split(left, len(self.actors))
            waiting = {self.actors[slot].total.remote(encoder, share): slot for slot, share in enumerate(shares) if len(share)}
            lost, end = [], time.monotonic() + deadline_s
            while waiting and (ready := ray.wait(list(waiting), timeout=max(0.0, end - time.monotonic()))[0]):
                slot = waiting.pop(ready[0])
                answer = _answer(ready[0])
                if answer is None:
                    lost.append(slot)
                else:
                    parts.append(answer)
            for slot in (lost := [*lost, *waiting.values()]):
                self._replace(slot)
            if not lost:
                return add_exactly(parts)
            left = np.concatenate([shares[slot] for slot in lost])
        raise RoundFailed(
            f"a round: in {ATTEMPTS} attempts actors died, or were not done in {deadline_s:g} s each, before all clients were asked",
            attempts=ATTEMPTS,
        )

    def _replace(self, slot: int) -> None:
        ray.kill(self.actors[slot])
        self.actors[slot] = self._start(slot)

    def _start(self, slot: int) -> ActorHandle:
        bundle = PlacementGroupSchedulingStrategy(self.reserved, placement_group_bundle_index=slot)
        return ClientSumsActor.options(scheduling_strategy=bundle).remote(*self.standing_for)


def _answer(reference: ray.ObjectRef) -> Any:
    """What an actor answered, or None where that is lost with it; raises what it raised, without the text of what is not ours."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise told(error.cause, "a query's round") from None
    except LOST:
        return None
