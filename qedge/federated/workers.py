"""Where clients run: the coordinator's view of whoever trains them."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, PartialSum
from qedge.federated.secure_node import Said, SecureParty, Session
from qedge.federated.secure_training import SecureTraining
from qedge.job import Personalisation, SecureAggregation
from qedge.secure_aggregation.identity import EnrolmentAuthority, Roster

CACHE_BYTES = 1 << 20  # of weights that a stacked kernel goes through in every step: what a core's own cache holds
LEAST_STACKED, WORTH_SENDING = 4, 32


class Workers(SecureParty, Protocol):
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

    def secure_open(
        self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session], deadline_s: float
    ) -> tuple[list[Said], dict[int, str]]:
        """See `SecureTraining.open`; who dies, or is not done by the deadline, says nothing, then and in all that follows."""

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
        self.secure = None if client.spec.secure is None else LocalTraining(client, client.spec.secure)
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
        """See `SecureParty.roster`."""
        return self._secure.authority.roster(clients)

    def secure_open(
        self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session], deadline_s: float
    ) -> tuple[list[Said], dict[int, str]]:
        """See `Workers.secure_open`."""
        return self._secure.training.open(broadcast, chunks, sessions)

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `SecureParty.secure_step`."""
        return self._secure.training.node.step(name, messages)

    @property
    def _secure(self) -> LocalTraining:
        if self.secure is None:
            raise TypeError("a job without secure aggregation has no secure sums")
        return self.secure

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


class LocalTraining:
    """The clients of this process in secure sums, and the authority that enrols them."""

    def __init__(self, client: FederatedClient, secure: SecureAggregation) -> None:
        self.authority = EnrolmentAuthority("simulated", os.urandom(32), kind=secure.signatures)
        self.authority.enrol_simulated(len(client.train.offsets) - 1)
        self.training = SecureTraining(client, secure, self.authority.provision())


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
