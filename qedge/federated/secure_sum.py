"""A round's sum under secure aggregation: groups of the cohort, each with a server's side of the protocol here.

An attempt that too few clients come through before anything is opened is given up, and all begin anew with fresh keys and secrets. Once a
share was asked for there is no other attempt: the round is charged, and where its sums cannot be had it is lost.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qedge.errors import InvalidPrivacy, MessageRefused, RoundFailed, SumAborted
from qedge.federated.guarantee import Guarantee
from qedge.federated.messages import Broadcast, Chunk, PartialSum
from qedge.federated.randomness import RunKey
from qedge.federated.secure_node import Said, SecureParty, Session
from qedge.federated.workers import Workers
from qedge.job import SecureAggregation, TrainingJob
from qedge.privacy.clipping import add_exactly
from qedge.secure_aggregation.groups import MALICIOUS
from qedge.secure_aggregation.ring import WHOLE_BITS, Ring
from qedge.secure_aggregation.server import SecureServer
from qedge.secure_aggregation.terms import Terms

ATTEMPTS = 3
Charge = Callable[[str], None]
Begin = Callable[[Sequence[Session]], tuple[list[Said], dict[int, str]]]


@dataclass(frozen=True)
class SecureSum:
    """What does not change from round to round. epoch: the coordinator's, so that no attempt of a later one is named as an earlier one's;
    length: entries of a client's vector; noise: what each adds, in words."""

    secure: SecureAggregation
    run: str
    key: RunKey
    epoch: int
    ring: Ring
    length: int
    noise: str

    def of_round(
        self, broadcast: Broadcast, chunks: Sequence[Chunk], workers: Workers, deadline_s: float, charge: Charge | None = None
    ) -> PartialSum:
        """`of` for the clients of a training round; without privacy its weight is what they count for, their vectors' last entry."""
        clients = np.concatenate([chunk.clients for chunk in chunks]) if chunks else np.empty(0, dtype=np.int64)

        def begin(sessions: Sequence[Session]) -> tuple[list[Said], dict[int, str]]:
            return workers.secure_open(broadcast, chunks, sessions, deadline_s)

        partial = self.of(broadcast.round, clients, workers, begin, deadline_s, charge)
        return partial if charge is not None else replace(partial, total=partial.total[:-1], weight=int(partial.total[-1]))

    def of(
        self, number: int, clients: np.ndarray, party: SecureParty, begin: Begin, deadline_s: float, charge: Charge | None = None
    ) -> PartialSum:
        """The sum over the survivors of all groups of these clients; its weight is how many they are.

        begin: has the clients make their vectors, if they have not, and join sessions, and tells what the user's code raised; charge:
        called with the attempt's name, hex, before any share is asked for; what it raises goes through, nothing was opened.

        Raises:
            RoundFailed: too few clients came through, in each attempt; SumAborted: after the round was charged.
        """
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(attempt, number, clients, party, begin, deadline_s, charge)
            except _NotOpened as error:
                reason = error.reason
        raise RoundFailed(f"round {number}: {reason}, in {ATTEMPTS} attempts", attempts=ATTEMPTS)

    def _attempt(
        self, attempt: int, number: int, clients: np.ndarray, party: SecureParty, begin: Begin, deadline_s: float, charge: Charge | None
    ) -> PartialSum:
        exchange = _Exchange(party, deadline_s, self._groups(attempt, number, clients, party))
        if not exchange.groups:
            return PartialSum(np.zeros(self.length, dtype=np.int64), 0)
        try:
            failed = exchange.open(begin)
            exchange.broadcast("seal", SecureServer.directory)
            exchange.step("mask", [group.each(group.server.deliveries()) for group in exchange.groups])
            survivors = [group.survivors(group.server.survivors()) for group in exchange.groups]
            if self.secure.server == MALICIOUS:
                exchange.step("agree", survivors)
                survivors = [group.survivors(group.server.agreements()) for group in exchange.groups]
        except SumAborted as error:
            raise _NotOpened(error.message + exchange.said_no()) from None
        if charge is not None:
            charge(hashlib.sha256(b"".join(group.server.session for group in exchange.groups)).hexdigest())
        exchange.step("reveal" if self.secure.server == MALICIOUS else "agree", survivors)
        parts = [group.server.total(threads=len(os.sched_getaffinity(0))) for group in exchange.groups]
        return PartialSum(
            add_exactly([part for part, _ in parts]), sum(len(members) for _, members in parts), failed, carried=exchange.carried
        )

    def _groups(self, attempt: int, number: int, clients: np.ndarray, party: SecureParty) -> list[_Group]:
        """The clients in groups drawn anew for each round, wherever they are."""
        cohort = np.sort(clients)
        if not len(cohort):
            return []
        order = cohort[np.argsort(self.key.derive("groups", number).uniform_words(len(cohort)), kind="stable")]
        groups, start = [], 0
        try:
            plans = self.secure.groups(len(cohort))
        except InvalidPrivacy as error:  # clients whose code raises are drawn no more, and the others are too few
            raise RoundFailed(f"round {number}: {error.message}", round=number) from None
        for place, plan in enumerate(plans):
            members = tuple(np.sort(order[start : start + plan.members]).tolist())
            start += plan.members
            roster = party.roster(members)
            terms = Terms(
                run=self.run,
                round=number,
                attempt=self.epoch * ATTEMPTS + attempt,
                group=place,
                roster=roster.digest(),
                members=plan.members,
                threshold=plan.threshold,
                colluders=plan.colluders,
                server=self.secure.server,
                bits=self.ring.bits,
                length=self.length,
                survivors=plan.survivors,
                noise=self.noise,
            )
            groups.append(_Group(members, SecureServer(terms, roster)))
        return groups


def secure_sum(job: TrainingJob, run: str, key: RunKey, epoch: int, params: int, guarantee: Guarantee | None) -> SecureSum | None:
    """How a job's rounds are summed; None where it does not ask for secure aggregation.

    Without privacy nothing bounds an update, and the ring is one in which no plain sum wraps either.
    """
    if job.secure_aggregation is None:
        return None
    if guarantee is None or guarantee.share is None:
        return SecureSum(job.secure_aggregation, run, key, epoch, Ring(WHOLE_BITS), params + 1, "")
    return SecureSum(job.secure_aggregation, run, key, epoch, Ring(guarantee.ring_bits), guarantee.length, guarantee.share.words)


class _NotOpened(Exception):
    """An attempt that ended before anything was opened."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class _Group:
    clients: tuple[int, ...]
    server: SecureServer

    def each(self, messages: dict[int, bytes]) -> dict[int, bytes]:
        """Messages by member as messages by client."""
        return {self.clients[member]: message for member, message in messages.items()}

    def survivors(self, message: bytes) -> dict[int, bytes]:
        """One message for every member."""
        return dict.fromkeys(self.clients, message)


@dataclass
class _Exchange:
    """Carries what the servers of some groups and their clients say to each other."""

    party: SecureParty
    deadline_s: float
    groups: list[_Group]
    refusals: list[str] = field(default_factory=list)
    carried: tuple[int, int] = (0, 0)

    def open(self, begin: Begin) -> dict[int, str]:
        """Have every client bring its keys; what the user's code raised."""
        sessions = [Session(place, group.clients, group.server.announcement()) for place, group in enumerate(self.groups)]
        said, failed = begin(sessions)
        self._take(said, down=sum(len(session.announcement) * len(session.clients) for session in sessions))
        return failed

    def broadcast(self, name: str, message: Callable[[SecureServer], bytes]) -> None:
        """A step in which all members of a group are sent the same."""
        self.step(name, [group.survivors(message(group.server)) for group in self.groups])

    def step(self, name: str, messages: Sequence[dict[int, bytes]]) -> None:
        """Send each client its message, and have the servers take what they answer."""
        to_all = {client: message for of_group in messages for client, message in of_group.items()}
        self._take(self.party.secure_step(name, to_all, self.deadline_s), down=sum(map(len, to_all.values())))

    def said_no(self) -> str:
        """Why clients refused, where they did."""
        return f"; a client said: {self.refusals[0]}" if self.refusals else ""

    def _take(self, said: Sequence[Said], down: int) -> None:
        self.carried = self.carried[0] + down, self.carried[1] + sum(len(one.message) for one in said)
        for one in said:
            if one.refused:
                self.refusals.append(one.refused)
                continue
            try:
                self.groups[one.group].server.take(one.message)
            except MessageRefused as error:
                self.refusals.append(error.message)
