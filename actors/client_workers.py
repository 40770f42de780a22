"""Federated clients on Ray: one actor a core stands for many clients; a chunk lost with its actor is run again by another.

Ray restarts no actor here: an actor that dies wherever it is put would be restarted for ever. Each is replaced, so many times.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from typing import Any, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.direct_line import BROKEN, DirectLine, Errand
from actors.enrolment_authority import EnrolmentAuthorityActor, roster_of
from actors.federated_client import FederatedClientActor, told
from actors.secure_calls import SecureCalls
from qedge.data.federation import Rows
from qedge.errors import QEdgeError, RoundFailed
from qedge.federated.messages import Broadcast, Chunk, ClientSpec, PartialSum, nobody
from qedge.federated.secure_node import Said, Session
from qedge.federated.workers import share_out
from qedge.job import Personalisation
from qedge.secure_aggregation.identity import Roster

ATTEMPTS = 3
START_TIMEOUT_S = 120.0
LOST = (RayActorError, OutOfMemoryError, ActorUnschedulableError, ObjectLostError)  # an actor, or its answer with its node
WORTH_A_CALL_S = 2e-3
MOST_PARAMS_ON_LINES = 1_000_000  # with more a round takes so long that calls make no difference
HANDED_AHEAD = 2  # chunks that an actor has at once: one to train, one to go on with; a slow actor keeps no more from others
NEARLY_DONE_S = 0.5  # far less than an actor takes to start
_INLINE_BYTES = 64 * 1024  # Ray sends smaller arguments with the call itself
Piece = TypeVar("Piece")


@dataclass
class _Sent:
    """A chunk to be trained by itself, and how often an actor died over it or was late."""

    round: int
    sent: Broadcast | ray.ObjectRef
    chunk: Chunk
    answer: ray.ObjectRef | None = None
    losses: int = 0


@dataclass
class _Lane:
    """What an actor was handed, in the order in which it does it; since: when it could begin with the first, monotonic seconds."""

    errands: deque[_Sent] = field(default_factory=deque)
    since: float = 0.0


class RayWorkers:
    """The `Workers` of a run on Ray: an actor for each bundle of CPUs that is set aside for it, the rows once in the object store."""

    def __init__(self, spec: ClientSpec, train: Rows, test: Rows | None, reserved: PlacementGroup) -> None:
        self.rows = np.diff(train.offsets)
        self.authority = (
            None if spec.secure is None else EnrolmentAuthorityActor.remote("simulated", len(self.rows), spec.secure.signatures)
        )
        # Whoever stands for clients is told by the authority itself who they are: the coordinator is not.
        provision = None if self.authority is None else self.authority.provision.remote()
        self.standing_for = ray.put(spec), ray.put(train), ray.put(test), provision
        self.spec, self.reserved = spec, reserved
        self.difference: float | None = None
        self.gather_s = WORTH_A_CALL_S  # of the actor that took longest over it in the last round
        self.waiting: deque[_Sent] = deque()
        self.lanes = [_Lane() for _ in range(reserved.bundle_count)]
        self.lines: list[DirectLine | None] = [None] * reserved.bundle_count
        self.tellers = [ThreadPoolExecutor(1, thread_name_prefix="tell") for _ in range(reserved.bundle_count)]
        self.told: list[Future[None] | None] = [None] * reserved.bundle_count  # a line has one writer at a time
        self.actors = [self._start(slot) for slot in range(reserved.bundle_count)]
        self.secure = SecureCalls(self.actors, self._replace, _answer)
        self._await_start()

    def partial_sum(self, broadcast: Broadcast, chunks: Sequence[Chunk], deadline_s: float, ahead: Sequence[Chunk] = ()) -> PartialSum:
        """See `Workers.partial_sum`."""
        if not chunks:
            return nobody(broadcast, self.spec)
        self._leave_broken_lines()
        lines = [line for line in self.lines if line is not None]
        parts: list[PartialSum] = []
        left = list(chunks)
        if len(lines) == len(self.actors) and broadcast.control is None and broadcast.weights.size <= MOST_PARAMS_ON_LINES:
            parts, left = self._through_lines(lines, broadcast, chunks, deadline_s, ahead)
            ahead = ()
        if left:
            parts += self._through_calls(broadcast, left, deadline_s, ahead)
        slowest = max(parts, key=lambda part: sum(part.seconds.values())).seconds
        self.gather_s = max(part.gather_s for part in parts)
        return replace(PartialSum.of(parts), seconds=slowest)

    def _through_lines(
        self, lines: Sequence[DirectLine], broadcast: Broadcast, chunks: Sequence[Chunk], deadline_s: float, ahead: Sequence[Chunk]
    ) -> tuple[list[PartialSum], list[Chunk]]:
        """The sums that came in by the deadline, and the chunks of actors that died or are late; others stand in for those."""
        shares, following = self._shares(chunks), self._shares(ahead)
        waiting, done, lost = {}, [], []
        for slot, line in enumerate(lines):
            errands = [Errand(broadcast.round, shares[slot], broadcast)] if shares[slot] else []
            errands += [Errand(broadcast.round + 1, following[slot])] if following[slot] else []
            small = broadcast.weights.nbytes + sum(8 * len(chunk.clients) for errand in errands for chunk in errand.chunks) <= _INLINE_BYTES
            self._tell(slot, line, deadline_s, errands, wait=small)
            if shares[slot]:
                waiting[line] = slot
        end = time.monotonic() + deadline_s
        while waiting and (ready := connection.wait(list(waiting), max(0.0, end - time.monotonic()))):
            for line in ready:
                slot = waiting.pop(line)
                try:
                    answer = line.answer()
                except BROKEN:
                    lost.append(slot)
                    continue
                if isinstance(answer, QEdgeError):
                    self._hang_up()  # what others answer is not for the next round
                    raise answer
                done.append(answer)
        lost += waiting.values()
        for slot in lost:
            self._replace(slot)
        if lost:
            self._await_start()
        return done, [chunk for slot in lost for chunk in shares[slot]]

    def _tell(self, slot: int, line: DirectLine, deadline_s: float, errands: Sequence[Errand], *, wait: bool) -> None:
        """Send errands; who is still making a round ready takes a long one only then, and others should not wait for that."""

        def tell() -> None:
            with suppress(*BROKEN):  # then it has no answer either
                line.tell(deadline_s, *errands)

        before = self.told[slot]
        if wait and (before is None or before.done()):
            tell()
        else:
            self.told[slot] = self.tellers[slot].submit(tell)

    def _leave_broken_lines(self) -> None:
        """New lines for those on which something was not sent whole, though the actor answered what was sent before."""
        broken = [slot for slot, line in enumerate(self.lines) if line is not None and line.broken]
        for slot in broken:
            self._close_line(slot)
        if broken:
            self._open_lines()

    def _close_line(self, slot: int) -> None:
        if (line := self.lines[slot]) is not None:
            line.close()
        self.lines[slot] = None

    def _hang_up(self) -> None:
        for slot in range(len(self.lines)):
            self._close_line(slot)

    def _through_calls(self, broadcast: Broadcast, chunks: list[Chunk], deadline_s: float, ahead: Sequence[Chunk]) -> list[PartialSum]:
        """The sums of shares of the chunks; nothing is made ready where gathering takes less than a call does."""
        sent = _to_send(broadcast)
        next_of = dict(zip(self.actors, self._shares(ahead), strict=True)) if self.gather_s >= WORTH_A_CALL_S else {}

        def submit(actor: ActorHandle, share: list[Chunk]) -> ray.ObjectRef:
            answer = actor.partial_sum.remote(sent, share)
            if following := next_of.pop(actor, []):
                actor.prepare.remote(broadcast.round + 1, following)
            return answer

        def share(lost: list[Chunk], workers: int) -> list[list[Chunk]]:
            return share_out(lost, self.rows, workers)

        return self._gather(chunks, share, submit, deadline_s, f"round {broadcast.round}")

    def _shares(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        return share_out(chunks, self.rows, len(self.actors))

    def send(self, broadcast: Broadcast, chunks: Sequence[Chunk]) -> None:
        """See `Workers.send`."""
        sent = _to_send(broadcast)
        self.waiting.extend(_Sent(broadcast.round, sent, chunk) for chunk in chunks)

    def next_sum(self, deadline_s: float) -> tuple[int, Chunk, PartialSum]:
        """See `Workers.next_sum`: of whoever is done, the one that was longest over it."""
        while True:
            self._hand_out()
            busy = sorted((slot for slot, lane in enumerate(self.lanes) if lane.errands), key=lambda slot: self.lanes[slot].since)
            firsts = {self.lanes[slot].errands[0].answer: slot for slot in busy}
            due = self.lanes[busy[0]].since + deadline_s
            ready, _ = ray.wait(list(firsts), timeout=max(0.0, due - time.monotonic()))
            slot = firsts[ready[0]] if ready else busy[0]
            errand = self.lanes[slot].errands[0]
            partial = _answer(ready[0], f"round {errand.round}") if ready else None
            if partial is None:
                self._give_up(slot, deadline_s)
                continue
            self.lanes[slot].errands.popleft()
            self.lanes[slot].since = time.monotonic()
            return errand.round, errand.chunk, partial

    def _hand_out(self) -> None:
        """What waits, first come first, to whoever has least."""
        while self.waiting:
            slot = min(range(len(self.lanes)), key=lambda slot: len(self.lanes[slot].errands))
            lane = self.lanes[slot]
            if len(lane.errands) == HANDED_AHEAD:
                return
            errand = self.waiting.popleft()
            errand.answer = self.actors[slot].partial_sum.remote(errand.sent, [errand.chunk])
            if not lane.errands:
                lane.since = max(lane.since, time.monotonic())
            lane.errands.append(errand)

    def _give_up(self, slot: int, deadline_s: float) -> None:
        """Have another actor stand in for one that died or is late; what that one had is handed out before all else."""
        lost = self.lanes[slot].errands
        lost[0].losses += 1  # with the others it had not begun
        if lost[0].losses == ATTEMPTS:
            raise _given_up(f"round {lost[0].round}", deadline_s)
        self.waiting.extendleft(reversed(lost))
        self._replace(slot)
        # Starting a process is not part of a round; whoever has work meanwhile does not wait for it.
        self.lanes[slot] = _Lane(since=time.monotonic() + START_TIMEOUT_S)

    def roster(self, clients: Sequence[int]) -> Roster:
        """See `Workers.roster`."""
        return roster_of(self.authority, clients)

    def secure_open(
        self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session], deadline_s: float
    ) -> tuple[list[Said], dict[int, str]]:
        """See `Workers.secure_open`."""
        self._free()
        if self.secure.lost:
            self._await_start()
        sent, shares = _to_send(broadcast), self._shares(chunks)
        standing = {slot: [client for chunk in share for client in chunk.clients.tolist()] for slot, share in enumerate(shares)}

        def begin(slot: int) -> ray.ObjectRef:
            return self.actors[slot].secure_open.remote(sent, shares[slot], sessions)

        answers = self.secure.open(standing, begin, deadline_s, f"round {broadcast.round}")
        said = [one for of_actor, _ in answers for one in of_actor]
        return said, {client: reason for _, failed in answers for client, reason in failed.items()}

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `Workers.secure_step`."""
        return self.secure.step(name, messages, deadline_s)

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int, deadline_s: float) -> np.ndarray:
        """See `Workers.correct_counts`."""

        def submit(actor: ActorHandle, share: list[np.ndarray]) -> ray.ObjectRef:
            return actor.correct_counts.remote(weights, np.concatenate(share), cap)

        pieces = np.array_split(clients, len(self.actors))
        parts = self._gather(list(pieces), lambda lost, n: [lost[i::n] for i in range(n)], submit, deadline_s, "the evaluation")
        return np.sum(parts, axis=0)

    def losses(self, broadcast: Broadcast, clients: np.ndarray, deadline_s: float) -> np.ndarray:
        """See `Workers.losses`."""
        sent = _to_send(broadcast)

        def submit(actor: ActorHandle, share: list[np.ndarray]) -> ray.ObjectRef:
            return actor.losses.remote(sent, np.concatenate(share))

        return self._of_each(clients, 2, submit, deadline_s, f"the losses of round {broadcast.round}")

    def accuracies(self, weights: np.ndarray, clients: np.ndarray, own: Personalisation | None, deadline_s: float) -> np.ndarray:
        """See `Workers.accuracies`."""
        sent = ray.put(weights)

        def submit(actor: ActorHandle, share: list[np.ndarray]) -> ray.ObjectRef:
            return actor.accuracies.remote(sent, np.concatenate(share), own)

        return self._of_each(clients, 3, submit, deadline_s, "the evaluation of each client")

    def _of_each(
        self,
        clients: np.ndarray,
        width: int,
        submit: Callable[[ActorHandle, list[np.ndarray]], ray.ObjectRef],
        deadline_s: float,
        what: str,
    ) -> np.ndarray:
        """So many numbers of each client, [clients, width] float64; `submit` has them answered with whose they are."""
        pieces = [piece for piece in np.array_split(clients, len(self.actors)) if len(piece)]
        parts = self._gather(pieces, lambda lost, n: [lost[i::n] for i in range(n)], submit, deadline_s, what)
        found = np.empty((len(clients), width))
        for whose, numbers in parts:
            found[np.searchsorted(clients, whose)] = numbers
        return found

    def kernel_difference(self) -> float | None:
        """See `Workers.kernel_difference`."""
        return self.difference

    def use_kernel(self, name: str) -> None:
        """See `Workers.use_kernel`."""
        self.spec = replace(self.spec, kernel=name)
        self.standing_for = (ray.put(self.spec), *self.standing_for[1:])
        for slot in range(len(self.actors)):
            self._replace(slot)
        self._await_start()

    def _gather(
        self,
        work: list[Piece],
        share: Callable[[list[Piece], int], list[list[Piece]]],
        submit: Callable[[ActorHandle, list[Piece]], ray.ObjectRef],
        deadline_s: float,
        what: str,
    ) -> list:
        """Every piece of work done once: what misses the deadline, or dies for good, is shared out anew.

        An actor that is late is given up and another stands in for it, so that a node that hangs costs one deadline, not one a
        round. An attempt has its own references: an answer that comes too late is never looked at.
        """
        done: list = []
        self._free()
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
                if (answer := _answer(ready[0], what)) is not None:
                    done.append(answer)
                else:
                    work += shares[slot]
                    self._replace(slot)
            for slot in waiting.values():
                work += shares[slot]
                self._replace(slot)
            if not work:
                return done
            self._await_start()
        raise _given_up(what, deadline_s)

    def _free(self) -> None:
        """Drop what was sent one by one and is not done: after the last step nobody waits for it, nor for who is slow over it."""
        last = {lane.errands[-1].answer: slot for slot, lane in enumerate(self.lanes) if lane.errands}
        if not last:
            return
        _, busy = ray.wait(list(last), num_returns=len(last), timeout=NEARLY_DONE_S)
        for answer in busy:
            self._replace(last[answer])
        self.waiting.clear()
        self.lanes = [_Lane() for _ in self.actors]
        if busy:
            self._await_start()

    def _await_start(self) -> None:
        """Starting a process is not part of a round: deadlines begin when every actor answers. One that dies is started again."""
        waiting = {actor.ready.remote(): slot for slot, actor in enumerate(self.actors)}
        deaths, end, self.difference = 0, time.monotonic() + START_TIMEOUT_S, None
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                raise RoundFailed(
                    f"{len(waiting)} of {len(self.actors)} client actors did not start in {START_TIMEOUT_S:g} s", seconds=START_TIMEOUT_S
                )
            slot = waiting.pop(ready[0])
            try:
                self.difference = ray.get(ready[0]) or self.difference
            except LOST as error:
                deaths += 1
                if deaths >= ATTEMPTS:
                    how = type(error).__name__  # what its constructor raised, Ray would put in the text
                    raise RoundFailed(f"{deaths} client actors died as they started (Ray: {how})", deaths=deaths) from None
                self._replace(slot)
                waiting[self.actors[slot].ready.remote()] = slot
        self._open_lines()

    def _open_lines(self) -> None:
        """A direct line to each actor on this node that has none; whoever dies meanwhile is found out later."""
        here = ray.get_runtime_context().get_node_id()
        listening = {slot: self.actors[slot].listen.remote(here) for slot, line in enumerate(self.lines) if line is None}
        for slot, place in listening.items():
            with suppress(*LOST, GetTimeoutError, OSError):
                if (there := ray.get(place, timeout=START_TIMEOUT_S)) is not None:
                    self.lines[slot] = DirectLine(there)

    def _replace(self, slot: int) -> None:
        self._close_line(slot)
        ray.kill(self.actors[slot])
        self.actors[slot] = self._start(slot)

    def _start(self, slot: int) -> ActorHandle:
        bundle = PlacementGroupSchedulingStrategy(self.reserved, placement_group_bundle_index=slot)
        return FederatedClientActor.options(scheduling_strategy=bundle).remote(*self.standing_for)


def _to_send(broadcast: Broadcast) -> Broadcast | ray.ObjectRef:
    """Sent with each call while small, else once for all through the object store, from which actors read it where it lies."""
    return ray.put(broadcast) if broadcast.weights.nbytes > _INLINE_BYTES else broadcast


def _answer(reference: ray.ObjectRef, what: str) -> Any:
    """What an actor answered, or None where that is lost with it; raises what it raised."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise told(error.cause, what) from None
    except LOST:
        return None


def _given_up(what: str, deadline_s: float) -> RoundFailed:
    return RoundFailed(
        f"{what}: in {ATTEMPTS} attempts actors died, or were not done in {deadline_s:g} s each, before all clients had taken part",
        attempts=ATTEMPTS,
    )
