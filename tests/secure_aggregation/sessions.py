"""Whole sessions between real clients and a real server, in which a schedule may spoil any message on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from qedge.errors import MessageRefused
from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.groups import MALICIOUS
from qedge.secure_aggregation.identity import EnrolmentAuthority, Identity, Roster
from qedge.secure_aggregation.server import SecureServer
from qedge.secure_aggregation.terms import Memory, Policy, Terms

STEPS = ("join", "seal", "mask", "agree", "reveal")


@dataclass(frozen=True)
class Federation:
    """Members with keys of their own, all enrolled by one authority."""

    authority: EnrolmentAuthority
    identities: tuple[Identity, ...]

    def roster(self, places: Iterable[int] | None = None) -> Roster:
        return self.authority.roster(list(places) if places is not None else range(len(self.identities)))


@lru_cache
def federation(members: int, kind: str = "ed25519", name: str = "wards") -> Federation:
    identities = tuple(Identity(kind, hashlib.sha256(f"{name}/{place}".encode()).digest()) for place in range(members))
    authority = EnrolmentAuthority(name, hashlib.sha256(name.encode()).digest(), kind=kind)
    authority.enrol([identity.public for identity in identities])
    return Federation(authority, identities)


def safe_threshold(members: int, colluders: int, server: str = MALICIOUS) -> int:
    """The least that protects."""
    least = (members + colluders) // 2 + 1 if server == MALICIOUS else colluders + 1
    return max(least, colluders + 2)


def terms_of(members: int, **changes: Any) -> Terms:
    """Of a session of all members of a federation, with changes."""
    colluders, server = changes.get("colluders", 0), changes.get("server", MALICIOUS)
    threshold = changes.get("threshold", safe_threshold(members, colluders, server))
    plain = Terms(
        run="run",
        round=1,
        attempt=1,
        group=0,
        roster=federation(members).roster().digest(),
        members=members,
        threshold=threshold,
        colluders=colluders,
        server=server,
        bits=24,
        length=3,
        survivors=threshold,
        noise="",
    )
    return replace(plain, **changes)


def policy_of(terms: Terms, authority: bytes | None = None, kind: type[Policy] = Policy) -> Policy:
    """That asks exactly these terms."""
    return kind(
        federation(terms.members).authority.public if authority is None else authority,
        terms.threshold / terms.members,
        terms.colluders / terms.members,
        terms.server,
        noise=terms.noise,
        survivors=terms.survivors / terms.members,
    )


def client_of(
    place: int,
    terms: Terms,
    memory: Memory | None = None,
    *,
    kind: type[SecureClient] = SecureClient,
    policy: type[Policy] = Policy,
    **options: Any,
) -> SecureClient:
    return kind(
        federation(terms.members).identities[place],
        policy_of(terms, kind=policy),
        memory if memory is not None else Memory(),
        **options,
    )


def vectors_of(terms: Terms, seed: int = 0) -> np.ndarray:
    """[members, length] int64, with a sum that fits."""
    reach = 2 ** (min(terms.bits, 62) - 1) // terms.members - 1
    return np.random.default_rng(seed).integers(-reach, reach, (terms.members, terms.length), endpoint=True)


Answer = Callable[[bytes], bytes]


@dataclass
class Session:
    """One server, its clients and their vectors."""

    terms: Terms
    clients: Sequence[SecureClient]
    vectors: np.ndarray
    roster: Roster
    server: SecureServer = field(init=False)
    said: dict[str, dict[int, bytes]] = field(default_factory=dict)
    sent: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = SecureServer(self.terms, self.roster)

    @classmethod
    def of(cls, terms: Terms, seed: int = 0, kind_of_keys: str = "ed25519") -> Session:
        """Of fresh members."""
        enrolled = federation(terms.members, kind_of_keys)
        terms = replace(terms, roster=enrolled.roster().digest())
        policy = policy_of(terms, enrolled.authority.public)
        clients = [SecureClient(identity, policy, Memory()) for identity in enrolled.identities]
        return cls(terms, clients, vectors_of(terms, seed), enrolled.roster())

    @property
    def steps(self) -> tuple[str, ...]:
        """What clients are asked, in order."""
        return STEPS if self.terms.server == MALICIOUS else STEPS[:-1]

    def answer(self, step: str, member: int, message: bytes) -> bytes:
        """What a client says to a message."""
        client = self.clients[member]
        return client.mask(message, self.vectors[member]) if step == "mask" else getattr(client, step)(message)

    def asked(self, step: str) -> dict[int, bytes]:
        """What the server sends each member at a step, which ends the step before."""
        if step == "mask":
            messages = self.server.deliveries()
        else:
            of_step = {"join": "announcement", "seal": "directory", "agree": "survivors", "reveal": "agreements"}
            messages = dict.fromkeys(range(self.terms.members), getattr(self.server, of_step[step])())
        self.sent[step] = messages
        return messages

    def run(self, until: str = "", lost: Mapping[str, Iterable[int]] | None = None) -> Session:
        """Everything that honest members and an honest server do, up to a step; lost: who says nothing from which step on."""
        gone: set[int] = set()
        for step in self.steps:
            gone |= set((lost or {}).get(step, ()))
            self.said[step] = {}
            for member, message in self.asked(step).items():
                if member not in gone and (step == "join" or member in self.said[self.steps[self.steps.index(step) - 1]]):
                    self.said[step][member] = self.answer(step, member, message)
                    self.server.take(self.said[step][member])
            if step == until:
                break
        return self

    def total(self) -> tuple[np.ndarray, tuple[int, ...]]:
        return self.server.total()


def refused(call: Callable[[], object]) -> bool:
    """Whether it raises MessageRefused; anything else that it raises goes through."""
    try:
        call()
    except MessageRefused:
        return True
    return False


def fields(message: bytes) -> list[Any]:
    """A message as a list that can be changed: version, kind, fields."""
    return list(msgpack.unpackb(message, use_list=False))


def packed(values: Sequence[Any]) -> bytes:
    return bytes(msgpack.packb(list(values)))
