"""Batches of circuits spread over quantum workers on Ray; the answers are those of one process, whoever dies.

A batch is cut as it goes: a piece is so long that handing it out costs little of it, by the round trip and the seconds of a circuit that
were measured, and so short that all workers end together (guided self-scheduling: C. Polychronopoulos, D. Kuck, IEEE Trans. Computers
36 (1987)) and that little is lost with a worker. Seeds belong to circuits, so no answer depends on the cuts. A piece that is lost with
its worker goes to another; the worker is replaced, and while its successor starts, the others go on.
"""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
from pennylane.tape import QuantumScript
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.client_workers import ATTEMPTS, HANDED_AHEAD, LOST, START_TIMEOUT_S
from actors.cluster import connect
from actors.quantum_worker import QuantumWorkerActor
from actors.reservation import give_back, reserve
from qedge.config import Settings
from qedge.errors import QEdgeError, WorkersLost
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Answer, refuse

DEADLINE_S = 600.0
ROUND_TRIPS = 20.0  # that a piece takes at least: handing out is then a twentieth of the work, and goes on beside it
MOST_S = 2.0  # of work in a piece: no more is lost with a worker
_TRIAL = 4  # circuits of a first piece, of which nothing is known
_PINGS = 5
_LOOK_EVERY_S = 10.0


@dataclass
class _Piece:
    """Circuits first to stop of a batch. losses: how often a worker died over it or was late."""

    first: int
    stop: int
    losses: int = 0


@dataclass
class _Lane:
    """A worker and the pieces that it has, in the order in which it does them; since: when it could begin with the first.

    starting: answers once a new worker has started.
    """

    worker: ActorHandle
    starting: ray.ObjectRef | None
    since: float = field(default_factory=time.monotonic)
    sent: deque[tuple[ray.ObjectRef, _Piece]] = field(default_factory=deque)

    @property
    def next(self) -> ray.ObjectRef | None:
        """What is waited for from this worker."""
        return self.starting or (self.sent[0][0] if self.sent else None)

    def due(self, deadline_s: float) -> float:
        """When it is late."""
        return self.since + (START_TIMEOUT_S if self.starting else deadline_s)


class RayExecutor:
    """The `Executor` on Ray: a worker for each bundle of CPUs that is set aside, or as many of them as are asked for; with none set aside
    as many, which take no CPU from others by Ray's count.

    deadline_s: for one piece; a worker that takes longer is given up.
    """

    def __init__(self, reserved: PlacementGroup | None, *, workers: int | None = None, deadline_s: float = DEADLINE_S) -> None:
        self.reserved, self.deadline_s = reserved, deadline_s
        most = reserved.bundle_count if reserved is not None else workers or 1
        count = most if workers is None else min(workers, most)
        self.lanes = [self._start(slot) for slot in range(count)]
        self.deaths = 0  # one after another, of workers that had just started
        self.round_trip_s: float | None = None
        self.looked_at = -math.inf

    def run(self, circuits: Sequence[QuantumScript], backend: Backend, *, stream: int = 0) -> list[Answer]:
        """As `Executor.run`.

        Raises:
            UnknownBackend, BackendUnavailable, TooManyQubits, InvalidCircuit: as `LocalExecutor.run` does.
            WorkersLost: a piece of the batch was lost with its worker so many times, or no worker lives, or they were ended.
        """
        refuse(circuits, backend)
        if not self.lanes:
            raise WorkersLost("the quantum workers were ended; ask again")
        batch = Batch(circuits, backend, stream)
        for lane in self.lanes:  # who is starting since the last batch was not waited for
            lane.since = time.monotonic()
        try:
            while batch.left:
                self._hand_out(batch)
                self._await_one(batch)
        except BaseException:
            self._abandon()
            raise
        self._look_at(batch)
        return batch.answers

    def close(self) -> None:
        """End the workers; harmless when repeated."""
        for lane in self.lanes:
            ray.kill(lane.worker)
        self.lanes = []

    def pids(self) -> list[int]:
        """The processes of the workers."""
        return [ray.get(lane.worker.ready.remote()) for lane in self.lanes]

    def _hand_out(self, batch: Batch) -> None:
        """What waits, to whoever has started and has least."""
        while True:
            lane = min(self.lanes, key=lambda lane: (lane.starting is not None, len(lane.sent)))
            if lane.starting is not None or len(lane.sent) == HANDED_AHEAD:
                return
            piece = batch.piece(len(self.lanes), self.round_trip_s or 0.0)
            if piece is None:
                return
            if not lane.sent:
                lane.since = time.monotonic()
            part = batch.circuits[piece.first : piece.stop]
            lane.sent.append((lane.worker.run.remote(part, batch.backend, batch.stream, piece.first), piece))

    def _await_one(self, batch: Batch) -> None:
        """Wait for a worker that has started or is done with its first piece; replace one that is lost or late."""
        waiting = {lane.next: slot for slot, lane in enumerate(self.lanes) if lane.next is not None}
        late = min(waiting.values(), key=lambda slot: self.lanes[slot].due(self.deadline_s))
        patience_s = self.lanes[late].due(self.deadline_s) - time.monotonic()
        ready, _ = ray.wait(list(waiting), timeout=max(0.0, patience_s))
        if not ready:
            self._replace(late, batch)
            return
        slot = waiting[ready[0]]
        lane = self.lanes[slot]
        try:
            said = ray.get(ready[0])
        except RayTaskError as error:
            raise _told(error.cause) from None
        except LOST:
            self._replace(slot, batch)
            return
        lane.since = time.monotonic()
        if lane.starting is not None:
            lane.starting = None
            self._measure_round_trip(lane)
            return
        self.deaths = 0
        _, piece = lane.sent.popleft()
        batch.put(piece, *said)

    def _replace(self, slot: int, batch: Batch) -> None:
        """Another worker in place of one that died or is late; what that one had goes to whoever is free first."""
        lane = self.lanes[slot]
        lost = [piece for _, piece in lane.sent]
        if lost:
            lost[0].losses += 1  # with the others it had not begun
        else:
            self.deaths += 1
        ray.kill(lane.worker)
        self.lanes[slot] = self._start(slot)
        batch.lost.extendleft(reversed(lost))
        if self.deaths >= ATTEMPTS:
            raise WorkersLost(
                f"{self.deaths} quantum workers in a row died, or did not come up in {START_TIMEOUT_S:g} s", deaths=self.deaths
            )
        if lost and lost[0].losses == ATTEMPTS:
            raise WorkersLost(
                f"circuits {lost[0].first} to {lost[0].stop - 1} of the batch: in {ATTEMPTS} attempts their worker died (out of memory?), "
                f"or was not done in {self.deadline_s:g} s",
                attempts=ATTEMPTS,
                first=lost[0].first,
                last=lost[0].stop - 1,
            )

    def _measure_round_trip(self, lane: _Lane) -> None:
        """The seconds of a call, once, while nothing else is under way with that worker."""
        if self.round_trip_s is not None:
            return
        taken = []
        for _ in range(_PINGS):
            begun = time.monotonic()
            try:
                ray.get(lane.worker.ready.remote(), timeout=START_TIMEOUT_S)
            except (*LOST, TimeoutError):
                return  # found out when it is given something
            taken.append(time.monotonic() - begun)
        self.round_trip_s = statistics.median(taken)

    def _abandon(self) -> None:
        """Let go of a batch that has failed: who still has pieces of it is replaced, and so has time for the next."""
        for slot, lane in enumerate(self.lanes):
            if lane.sent:
                ray.kill(lane.worker)
                self.lanes[slot] = self._start(slot)

    def _look_at(self, batch: Batch) -> None:
        """Have one worker record the sizes of the longest circuit, now and then, when nobody waits."""
        idle = [lane for lane in self.lanes if lane.starting is None]
        if idle and batch.circuits and time.monotonic() - self.looked_at > _LOOK_EVERY_S:
            self.looked_at = time.monotonic()
            idle[0].worker.look_at.remote(max(batch.circuits, key=lambda circuit: len(circuit.operations)), batch.backend)

    def _start(self, slot: int) -> _Lane:
        if self.reserved is None:
            worker = QuantumWorkerActor.options(num_cpus=0).remote()
        else:
            bundle = PlacementGroupSchedulingStrategy(self.reserved, placement_group_bundle_index=slot)
            worker = QuantumWorkerActor.options(scheduling_strategy=bundle).remote()
        return _Lane(worker, worker.ready.remote())


class Batch:
    """A batch under way: what was not handed out yet, what was lost, and the answers."""

    def __init__(self, circuits: Sequence[QuantumScript], backend: Backend, stream: int) -> None:
        self.circuits, self.backend, self.stream = list(circuits), backend, stream
        self.answers: list[Answer] = [0.0] * len(circuits)
        self.left = len(circuits)
        self.begun = 0  # handed out once, or lost
        self.lost: deque[_Piece] = deque()
        self.done, self.seconds = 0, 0.0

    def piece(self, workers: int, round_trip_s: float) -> _Piece | None:
        """The next to be handed out, lost ones first; None when there is none."""
        if self.lost:
            return self.lost.popleft()
        waiting = len(self.circuits) - self.begun
        if not waiting:
            return None
        length = piece_length(waiting, workers, round_trip_s, self.seconds / self.done if self.done else None)
        self.begun += length
        return _Piece(self.begun - length, self.begun)

    def put(self, piece: _Piece, answers: list[Answer], seconds: float) -> None:
        """Keep the answers of a piece."""
        self.answers[piece.first : piece.stop] = answers
        self.left -= len(answers)
        self.done, self.seconds = self.done + len(answers), self.seconds + seconds


def piece_length(waiting: int, workers: int, round_trip_s: float, circuit_s: float | None) -> int:
    """How many of so many waiting circuits to hand out at once. circuit_s: seconds of one, as far as is known.

    A share of what waits, but not less than is worth a round trip, nor more than `MOST_S` of work.
    """
    share = math.ceil(waiting / (HANDED_AHEAD * workers))
    if circuit_s is None or circuit_s <= 0:
        return min(_TRIAL, share)
    worth = math.ceil(min(waiting, ROUND_TRIPS * round_trip_s / circuit_s))
    return max(1, math.floor(min(max(share, worth), MOST_S / circuit_s)))


@contextmanager
def quantum_workers(
    settings: Settings, *, workers: int | None = None, deadline_s: float = DEADLINE_S, waits: Callable[[], None] = lambda: None
) -> Iterator[RayExecutor]:
    """An executor on the cluster that the settings name, the home's own, or one of this command's own; its CPUs are given back.

    waits: called once, when the cluster's CPUs are taken and this stands in line.

    Raises:
        AddressUnreachable, InvalidConfig, Failed: as `connect` does.
        RoundFailed: the cluster has no CPU.
    """
    with connect(settings, start=True):
        name = f"quantum-{secrets.token_hex(4)}"
        try:
            executor = RayExecutor(reserve(name, waits), workers=workers, deadline_s=deadline_s)
            try:
                yield executor
            finally:
                executor.close()
        finally:
            give_back(name)


def _told(cause: BaseException) -> QEdgeError:
    """What a worker raised as the job hears it."""
    if isinstance(cause, QEdgeError):
        return cause
    return WorkersLost(f"a quantum worker raised {type(cause).__name__}: {cause}", cause=type(cause).__name__)
