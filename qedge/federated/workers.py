"""Where clients run: the coordinator's view of whoever trains them."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, ClientSpec, PartialSum
from qedge.federated.secure_node import Said, SecureNode, Session
from qedge.job import Personalisation
from qedge.secure_aggregation.identity import EnrolmentAuthority, Roster

CACHE_BYTES = 1 << 20  # of weights that a stacked kernel goes through in every step: what a core's own cache holds
LEAST_STACKED, WORTH_SENDING = 4, 32


class Workers(Protocol):
    """Trains chunks of clients somewhere and sums their integers; the sum is the same for any number of workers."""

    def partial_sum(self, broadcast: Broadcast, chunks: Sequence[Chunk], deadline_s: float, ahead: Sequence[Chunk] = ()) -> PartialSum:
        """The sum over all chunks; its seconds are those of the worker that took longest.

        ahead: what the next round will ask for, so that it can be made ready by whoever is done with this one; nobody waits for it.

        Raises:
            RoundFailed: it could not be had by the deadline, however often the lost part was run again.
        """

    def send(self, broadcast: Broadcast, chunks: Sequence[Chunk]) -> None:
        """Have chunks trained behind what was sent before; nobody waits for them but `next_sum`."""

    def next_sum(self, deadline_s: float) -> tuple[int, Chunk, PartialSum]:
        """Of the chunks that were sent, one at least, the next that is done: the round of its broadcast, the chunk, its sum.

        deadline_s: binds each chunk by itself.

        Raises:
            RoundFailed: a chunk could not be had, however often it was run again.
        """

    def roster(self, clients: Sequence[int]) -> Roster:
        """The roster of some clients, by places ascending, as the enrolment authority vouches for it."""

    def secure_open(
        self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session], deadline_s: float
    ) -> tuple[list[Said], dict[int, str]]:
        """See `SecureNode.open`; who dies, or is not done by the deadline, says nothing, then and in all that follows."""

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `SecureNode.step`; who dies, or is not done by the deadline, says nothing."""

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int, deadline_s: float) -> np.ndarray:
        """See `ClientEvaluation.correct_counts`."""

    def losses(self, broadcast: Broadcast, clients: np.ndarray, deadline_s: float) -> np.ndarray:
        """See `ClientEvaluation.losses`; clients: ascending."""

    def accuracies(self, weights: np.ndarray, clients: np.ndarray, own: Personalisation | None, deadline_s: float) -> np.ndarray:
        """See `ClientEvaluation.accuracies`; clients: ascending."""

    def kernel_difference(self) -> float | None:
        """How far some worker's kernel is from the oracle; None where all agree. See `FederatedClient.kernel_difference`."""

    def use_kernel(self, name: str) -> None:
        """Have every worker, and those that will stand in for it, train with that kernel."""


class LocalWorkers:
    """One node, in this process, no Ray."""

    def __init__(self, client: FederatedClient) -> None:
        self.client = client
        self.authority = EnrolmentAuthority("simulated", os.urandom(32), kind=signatures(client.spec))
        self.node = SecureNode(client, self.authority.provision())
        self.sent: deque[tuple[Broadcast, Chunk]] = deque()

    def partial_sum(self, broadcast: Broadcast, chunks: Sequence[Chunk], deadline_s: float, ahead: Sequence[Chunk] = ()) -> PartialSum:
        """See `Workers.partial_sum`; who trains by itself waits for nobody: the deadline does not bind, nothing is made ready."""
        return self.client.partial_sum(broadcast, chunks)

    def send(self, broadcast: Broadcast, chunks: Sequence[Chunk]) -> None:
        """See `Workers.send`."""
        self.sent.extend((broadcast, chunk) for chunk in chunks)

    def next_sum(self, deadline_s: float) -> tuple[int, Chunk, PartialSum]:
        """See `Workers.next_sum`; trained here and now, first what was sent first."""
        broadcast, chunk = self.sent.popleft()
        return broadcast.round, chunk, self.client.partial_sum(broadcast, [chunk])

    def roster(self, clients: Sequence[int]) -> Roster:
        """See `Workers.roster`."""
        if self.authority.tree is None:
            self.authority.enrol_simulated(len(self.client.train.offsets) - 1)
        return self.authority.roster(clients)

    def secure_open(
        self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session], deadline_s: float
    ) -> tuple[list[Said], dict[int, str]]:
        """See `Workers.secure_open`."""
        return self.node.open(broadcast, chunks, sessions)

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `Workers.secure_step`."""
        return self.node.step(name, messages)

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int, deadline_s: float) -> np.ndarray:
        """See `Workers.correct_counts`."""
        return self.client.evaluation.correct_counts(weights, clients, cap)

    def losses(self, broadcast: Broadcast, clients: np.ndarray, deadline_s: float) -> np.ndarray:
        """See `Workers.losses`."""
        return self.client.evaluation.losses(broadcast, clients)

    def accuracies(self, weights: np.ndarray, clients: np.ndarray, own: Personalisation | None, deadline_s: float) -> np.ndarray:
        """See `Workers.accuracies`."""
        return self.client.evaluation.accuracies(weights, clients, own)

    def kernel_difference(self) -> float | None:
        """See `Workers.kernel_difference`."""
        return self.client.kernel_difference()

    def use_kernel(self, name: str) -> None:
        """See `Workers.use_kernel`."""
        self.client.use_kernel(name)


def signatures(spec: ClientSpec) -> str:
    """The kind of signatures that clients' identities make."""
    return "ed25519" if spec.secure is None else spec.secure.signatures


def chunk_size(expected_cohort: float, params: int, *, stacked: bool) -> int:
    """Clients trained as one piece of work.

    Two pieces at least, so that two workers share them, and no more than 32 clients in one, so that many do. A kernel that stacks clients
    goes through all of their weights in every step: no more of them than a core's cache holds.
    """
    pieces = max(2, math.ceil(expected_cohort / WORTH_SENDING))
    size = max(1, math.ceil(expected_cohort / pieces))
    return min(size, max(LEAST_STACKED, CACHE_BYTES // (4 * params))) if stacked else size


def make_chunks(cohort: np.ndarray, rows: np.ndarray | None, size: int) -> list[np.ndarray]:
    """The cohort in chunks of at most `size` clients, [clients] int64 each: of similar length by `rows`, else in the cohort's order.

    The chunks never depend on how many workers there are: a chunk is the unit whose bits are fixed.
    rows: [clients of the federation] rows of each, or None where chunks must not depend on them.
    """
    order = cohort if rows is None else cohort[np.lexsort((cohort, -rows[cohort]))]
    return [order[start : start + size] for start in range(0, len(order), size)]


def share_out(chunks: Sequence[Chunk], rows: np.ndarray, workers: int) -> list[list[Chunk]]:
    """Chunks for each worker, longest first to whoever has least (Graham 1969); some may get none."""
    shares: list[list[Chunk]] = [[] for _ in range(workers)]
    load = [0] * workers
    sizes = [int(rows[chunk.clients].sum()) for chunk in chunks]
    for place in sorted(range(len(chunks)), key=lambda place: -sizes[place]):
        least = load.index(min(load))
        shares[least].append(chunks[place])
        load[least] += sizes[place]
    return shares
