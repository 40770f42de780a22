"""Federated statistics on Ray: actors hold clients' columns and sum what these send; a share lost with its actor is done by another."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.client_workers import ATTEMPTS, LOST
from actors.federated_client import told
from actors.reservation import CPUS_OF_AN_ACTOR
from qedge.analytics.encoding import Encoder
from qedge.data.client_columns import ClientColumns
from qedge.errors import RoundFailed
from qedge.privacy.clipping import add_exactly

Integers = npt.NDArray[np.int64]


@ray.remote(num_cpus=CPUS_OF_AN_ACTOR, max_restarts=0)
class ClientSumsActor:
    """Stands for every client whose columns it was given."""

    def __init__(self, columns: ClientColumns) -> None:
        self.columns = columns

    def total(self, encoder: Encoder, clients: Integers) -> Integers:
        """See `Encoder.total`."""
        return encoder.total(self.columns, clients.tolist())


class RaySums:
    """The `VectorSums` of a query on Ray: an actor for each bundle of CPUs set aside for it, the columns once in the object store."""

    def __init__(self, columns: ClientColumns, reserved: PlacementGroup) -> None:
        self.clients = np.arange(len(columns.offsets) - 1)
        self.columns, self.reserved = ray.put(columns), reserved
        self.actors = [self._start(slot) for slot in range(reserved.bundle_count)]

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
                ray.kill(self.actors[slot])
                self.actors[slot] = self._start(slot)
            if not lost:
                return add_exactly(parts)
            left = np.concatenate([shares[slot] for slot in lost])
        raise RoundFailed(
            f"a round: in {ATTEMPTS} attempts actors died, or were not done in {deadline_s:g} s each, before all clients were asked",
            attempts=ATTEMPTS,
        )

    def _start(self, slot: int) -> ActorHandle:
        bundle = PlacementGroupSchedulingStrategy(self.reserved, placement_group_bundle_index=slot)
        return ClientSumsActor.options(scheduling_strategy=bundle).remote(self.columns)


def _answer(reference: ray.ObjectRef) -> Integers | None:
    """What an actor answered, or None where that is lost with it; raises what it raised, without the text of what is not ours."""
    try:
        answer: Integers = ray.get(reference)
    except RayTaskError as error:
        raise told(error.cause, "a query's round") from None
    except LOST:
        return None
    return answer
