"""The clients of one node in a secure sum: each with keys and secrets of its own, which never leave the node.

One object stands for all clients that were trained there. What it gives back is what each of them says, for the server of its group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qedge.errors import MessageRefused
from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk
from qedge.privacy.mechanisms import NoiseSource, SystemNoise
from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.identity import Identity, Provision
from qedge.secure_aggregation.terms import Memory, Policy


@dataclass(frozen=True)
class Session:
    """A group of an attempt: its clients by their places in the federation, ascending, and what each of them is sent first."""

    group: int
    clients: tuple[int, ...]
    announcement: bytes


@dataclass(frozen=True)
class Said:
    """What a client of a group says, or why it says nothing."""

    group: int
    client: int
    message: bytes = b""
    refused: str = ""


class SecureNode:
    """Stands for the clients of one node, in one session each at a time."""

    def __init__(self, client: FederatedClient, provision: Provision, noise: NoiseSource | None = None) -> None:
        self.client, self.provision = client, provision
        self.noise = noise or SystemNoise()
        self.memories: dict[int, Memory] = {}
        self.identities: dict[int, Identity] = {}
        self.at_work: dict[int, tuple[int, SecureClient]] = {}
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
        here = {client for chunk in chunks for client in chunk.clients.tolist()}
        self.at_work, said = {}, []
        for session in sessions:
            for place in here.intersection(session.clients):
                self.at_work[place] = session.group, SecureClient(self._identity(place), self._policy(), self._memory(place))
                said.append(self._say("join", place, session.announcement))
        return said, failed

    def step(self, name: str, messages: Mapping[int, bytes]) -> list[Said]:
        """What clients say to a message each, by client; name: of `SecureClient`'s steps."""
        return [self._say(name, place, message) for place, message in messages.items() if place in self.at_work]

    def _say(self, name: str, place: int, message: bytes) -> Said:
        group, member = self.at_work[place]
        try:
            if name == "mask":
                return Said(group, place, member.mask(message, self._noised(place)))
            return Said(group, place, getattr(member, name)(message))
        except MessageRefused as error:
            del self.at_work[place]
            return Said(group, place, refused=error.message)

    def _noised(self, place: int) -> np.ndarray:
        vector, share = self.trained[1][place], self.client.spec.share
        return vector if share is None else vector + share.sample(len(vector), self.noise)

    def _identity(self, place: int) -> Identity:
        if place not in self.identities:
            self.identities[place] = self.provision.identity(place)
        return self.identities[place]

    def _memory(self, place: int) -> Memory:
        return self.memories.setdefault(place, Memory())

    def _policy(self) -> Policy:
        secure, share = self.client.spec.secure, self.client.spec.share
        if secure is None:
            raise TypeError("a job without secure aggregation has no secure sums")
        return Policy(self.provision.authority, secure.threshold, secure.colluders, secure.server, noise=share.words if share else "")
