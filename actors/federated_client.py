"""Federated clients on Ray: one actor a core stands for many clients; a chunk lost with its actor is run again elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from qedge.data.federation import Rows
from qedge.errors import QEdgeError, RoundFailed
from qedge.federated.client import ClientSpec, FederatedClient, PartialSum
from qedge.federated.workers import share_out

ATTEMPTS = 3
START_TIMEOUT_S = 120.0
_INLINE_BYTES = 64 * 1024  # Ray sends smaller arguments with the call itself


@ray.remote(num_cpus=0.5, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
class FederatedClientActor:
    """A `FederatedClient` on some node."""

    def __init__(self, spec: ClientSpec, train: Rows, test: Rows | None) -> None:
        self.client = FederatedClient(spec, train, test)

    def ready(self) -> bool:
        """Answers once the actor has started."""
        return True

    def partial_sum(self, round_number: int, weights: np.ndarray, chunks: Sequence[np.ndarray]) -> PartialSum:
        """See `FederatedClient.partial_sum`."""
        return self.client.partial_sum(round_number, weights, chunks)

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int) -> int:
        """See `FederatedClient.correct_counts`."""
        return self.client.correct_counts(weights, clients, cap)


class RayWorkers:
    """The `Workers` of a run on Ray: as many actors as the cluster has CPUs, the rows once in the object store."""

    def __init__(self, spec: ClientSpec, train: Rows, test: Rows | None) -> None:
        self.rows = np.diff(train.offsets)
        self.standing_for = ray.put(spec), ray.put(train), ray.put(test)
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.actors = [FederatedClientActor.remote(*self.standing_for) for _ in range(count)]
        self._await_start(self.actors)

    def partial_sum(self, round_number: int, weights: np.ndarray, chunks: Sequence[np.ndarray], deadline_s: float) -> PartialSum:
        """See `Workers.partial_sum`."""
        if not chunks:
            return PartialSum(np.zeros(len(weights), dtype=np.int64), 0)
        sent = ray.put(weights) if weights.nbytes > _INLINE_BYTES else weights

        def submit(actor: ActorHandle, share: list[np.ndarray]) -> ray.ObjectRef:
            return actor.partial_sum.remote(round_number, sent, share)

        parts = self._gather(list(chunks), lambda lost, n: share_out(lost, self.rows, n), submit, deadline_s, f"round {round_number}")
        return sum(parts[1:], start=parts[0])

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int, deadline_s: float) -> int:
        """See `Workers.correct_counts`."""

        def submit(actor: ActorHandle, share: list[np.ndarray]) -> ray.ObjectRef:
            return actor.correct_counts.remote(weights, np.concatenate(share), cap)

        pieces = np.array_split(clients, len(self.actors))
        return sum(self._gather(pieces, lambda lost, n: [lost[i::n] for i in range(n)], submit, deadline_s, "the evaluation"))

    def _gather(
        self,
        work: list[np.ndarray],
        share: Callable[[list[np.ndarray], int], list[list[np.ndarray]]],
        submit: Callable[[ActorHandle, list[np.ndarray]], ray.ObjectRef],
        deadline_s: float,
        what: str,
    ) -> list:
        """Every piece of work done once: what misses the deadline, or dies for good, is shared out anew.

        An actor that is late is given up and another stands in for it, so that a node that hangs costs one deadline, not one a
        round. An attempt has its own references: an answer that comes too late is never looked at.
        """
        done: list = []
        for _ in range(ATTEMPTS):
            shares = share(work, len(self.actors))
            waiting = {submit(self.actors[slot], part): slot for slot, part in enumerate(shares) if part}
            work = []
            end = time.monotonic() + deadline_s
            while waiting:
                ready, _rest = ray.wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
                if not ready:
                    break
                slot = waiting.pop(ready[0])
                try:
                    done.append(ray.get(ready[0]))
                except RayTaskError as error:
                    raise error.cause if isinstance(error.cause, QEdgeError) else error from None
                except RayActorError:
                    work += shares[slot]
                    self._replace(slot)
            for slot in waiting.values():
                work += shares[slot]
                self._replace(slot)
            if not work:
                return done
            self._await_start(self.actors)
        raise RoundFailed(f"{what}: {ATTEMPTS} attempts of {deadline_s:g} s each passed without all of its clients", attempts=ATTEMPTS)

    def _await_start(self, actors: list[ActorHandle]) -> None:
        """Starting a process is not part of a round: deadlines begin when every actor answers."""
        answers = [actor.ready.remote() for actor in actors]
        ready, late = ray.wait(answers, num_returns=len(answers), timeout=START_TIMEOUT_S)
        try:
            ray.get(ready)
        except RayActorError as error:
            raise RoundFailed(f"a client actor could not start: {error}") from error
        if late:
            raise RoundFailed(f"{len(late)} of {len(actors)} client actors did not start in {START_TIMEOUT_S:g} s", seconds=START_TIMEOUT_S)

    def _replace(self, slot: int) -> None:
        ray.kill(self.actors[slot])
        self.actors[slot] = FederatedClientActor.remote(*self.standing_for)
