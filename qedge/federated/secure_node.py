"""The clients of one node in a secure sum: each with keys and secrets of its own, which never leave the node.

One object stands for all of them. What it gives back is what each of them says, for the server of its group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qedge.errors import MessageRefused
from qedge.job import SecureAggregation
from qedge.privacy.mechanisms import NoiseSource, SystemNoise
from qedge.privacy.noise_share import NoiseShare
from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.identity import Identity, Provision, Roster
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


STEPS = ("seal", "mask", "agree", "reveal")  # what clients that have joined may be asked


class SecureParty(Protocol):
    """Whoever stands for the clients of secure sums, wherever they are."""

    def roster(self, clients: Sequence[int]) -> Roster:
        """The roster of some clients, by places ascending, as the enrolment authority vouches for it."""

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `SecureNode.step`; who dies, or is not done by the deadline, says nothing."""


class SecureNode:
    """Stands for the clients of one node, in one session each at a time; run, rounds: see `Policy`."""

    def __init__(
        self,
        provision: Provision,
        secure: SecureAggregation,
        noise: NoiseSource | None = None,
        *,
        run: str | None = None,
        rounds: int | None = None,
    ) -> None:
        self.provision, self.secure, self.run, self.rounds = provision, secure, run, rounds
        self.noise = noise or SystemNoise()
        self.memories: dict[int, Memory] = {}
        self.identities: dict[int, Identity] = {}
        self.at_work: dict[int, tuple[int, SecureClient]] = {}
        self.vectors: Mapping[int, np.ndarray] = {}
        self.share: NoiseShare | None = None

    def open(self, vectors: Mapping[int, np.ndarray], sessions: Sequence[Session], share: NoiseShare | None) -> list[Said]:
        """Have each client join its group's session; vectors: what it will give, [length] int64, to which it adds its share of noise."""
        self.vectors, self.share, self.at_work = vectors, share, {}
        policy = Policy(
            self.provision.authority,
            self.secure.threshold,
            self.secure.colluders,
            self.secure.server,
            noise=share.words if share is not None else "",
            survivors=self.secure.survivors or self.secure.threshold,
            honest=share.honest if share is not None else 0,
            run=self.run,
            rounds=self.rounds,
        )
        said = []
        for session in sessions:
            for place in vectors.keys() & set(session.clients):
                memory = self.memories.setdefault(place, Memory())
                self.at_work[place] = session.group, SecureClient(self._identity(place), policy, memory)
                said.append(self._say("join", place, session.announcement))
        return said

    def step(self, name: str, messages: Mapping[int, bytes]) -> list[Said]:
        """What clients say to a message each, by client; name: of `SecureClient`'s steps.

        Raises:
            MessageRefused: there is no such step: whoever asks must not reach anything else of a client.
        """
        if name not in STEPS:
            raise MessageRefused(f"there is no step '{name}'; accepted: {', '.join(STEPS)}", given=name)
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
        vector = self.vectors[place]
        return vector if self.share is None else vector + self.share.sample(len(vector), self.noise)

    def _identity(self, place: int) -> Identity:
        if place not in self.identities:
            self.identities[place] = self.provision.identity(place)
        return self.identities[place]
