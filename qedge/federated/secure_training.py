"""The clients of one node in the secure sum of a round: trained once, however many attempts at its sum there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk
from qedge.federated.secure_node import Said, SecureNode, Session
from qedge.job import SecureAggregation
from qedge.secure_aggregation.identity import Provision


class SecureTraining:
    """Stands for every client whose rows a `FederatedClient` was given."""

    def __init__(self, client: FederatedClient, secure: SecureAggregation, provision: Provision) -> None:
        self.client, self.node = client, SecureNode(provision, secure, run=client.spec.run, rounds=client.spec.rounds)
        self.trained: tuple[int, dict[int, np.ndarray]] = (0, {})

    def open(self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session]) -> tuple[list[Said], dict[int, str]]:
        """Train the clients of some chunks, unless this round's were, and have each join its group's session.

        Also what the user's code raised, without privacy: such a client takes part with zeros, which count for nothing.

        Raises:
            Diverged: without privacy, an update that is not finite, or too large.
        """
        number, vectors = self.trained
        if number != broadcast.round:
            vectors = {}
            self.trained = broadcast.round, vectors
        failed: dict[int, str] = {}
        for chunk in chunks:
            if any(client not in vectors for client in chunk.clients.tolist()):
                integers, reasons = self.client.integers(broadcast, chunk)
                vectors |= zip(chunk.clients.tolist(), integers, strict=True)
                failed |= reasons
        here = {client: vectors[client] for chunk in chunks for client in chunk.clients.tolist()}
        return self.node.open(here, sessions, self.client.spec.share), failed
