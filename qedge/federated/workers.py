"""Where clients run: the coordinator's view of whoever trains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from qedge.federated.client import FederatedClient, PartialSum


class Workers(Protocol):
    """Trains chunks of clients somewhere and sums their integers; the sum is the same for any number of workers."""

    def partial_sum(self, round_number: int, weights: np.ndarray, chunks: Sequence[np.ndarray], deadline_s: float) -> PartialSum:
        """The sum over all chunks.

        Raises:
            RoundFailed: it could not be had by the deadline, however often the lost part was run again.
        """

    def prepare(self, round_number: int, chunks: Sequence[np.ndarray]) -> None:
        """Say what the next `partial_sum` will ask for, so that it can be made ready meanwhile; nobody waits for it."""

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int, deadline_s: float) -> np.ndarray:
        """See `FederatedClient.correct_counts`."""


class LocalWorkers:
    """One node, in this process, no Ray."""

    def __init__(self, client: FederatedClient) -> None:
        self.client = client

    def partial_sum(self, round_number: int, weights: np.ndarray, chunks: Sequence[np.ndarray], deadline_s: float) -> PartialSum:
        """See `Workers.partial_sum`; a process that trains by itself has nobody to wait for, so the deadline does not bind."""
        return self.client.partial_sum(round_number, weights, chunks)

    def prepare(self, round_number: int, chunks: Sequence[np.ndarray]) -> None:
        """See `Workers.prepare`; done here and now, while another thread waits for the disk."""
        self.client.prepare(round_number, chunks)

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int, deadline_s: float) -> np.ndarray:
        """See `Workers.correct_counts`."""
        return self.client.correct_counts(weights, clients, cap)


def make_chunks(cohort: np.ndarray, rows: np.ndarray | None, size: int) -> list[np.ndarray]:
    """The cohort in chunks of at most `size` clients, [clients] int64 each: of similar length by `rows`, else in the cohort's order.

    The chunks never depend on how many workers there are: a chunk is the unit whose bits are fixed.
    rows: [clients of the federation] rows of each, or None where chunks must not depend on them.
    """
    order = cohort if rows is None else cohort[np.lexsort((cohort, -rows[cohort]))]
    return [order[start : start + size] for start in range(0, len(order), size)]


def share_out(chunks: Sequence[np.ndarray], rows: np.ndarray, workers: int) -> list[list[np.ndarray]]:
    """Chunks for each worker, longest first to whoever has least (Graham 1969); some may get none."""
    shares: list[list[np.ndarray]] = [[] for _ in range(workers)]
    load = [0] * workers
    for chunk in sorted(chunks, key=lambda chunk: -int(rows[chunk].sum())):
        least = load.index(min(load))
        shares[least].append(chunk)
        load[least] += int(rows[chunk].sum())
    return shares
