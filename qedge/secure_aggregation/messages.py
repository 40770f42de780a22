"""What a server and its clients say to each other in a session, in the order in which it is said, and what they sign.

Members go by their position in the roster. Everything belongs to one session by its name, which stands for all that was agreed to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from qedge.secure_aggregation.identity import Roster
from qedge.secure_aggregation.merkle import MerkleTree, leaf
from qedge.secure_aggregation.terms import Terms


@dataclass(frozen=True)
class Announcement:
    """Server: what is to be summed, and by whom."""

    terms: Terms
    roster: Roster


@dataclass(frozen=True)
class Keys:
    """Client: the key that others seal to in this session, and commitments to its root and to its own mask's secret."""

    session: bytes
    sender: int
    channel: bytes
    root: bytes
    mask: bytes
    signature: bytes

    @property
    def commitments(self) -> bytes:
        """Both commitments in one."""
        return hashlib.sha256(self.root + self.mask).digest()


@dataclass(frozen=True)
class Directory:
    """Server: whose keys have come, and those keys and commitments one after another."""

    session: bytes
    members: tuple[int, ...]
    channels: bytes
    commitments: bytes

    def digest(self) -> bytes:
        """What clients sign that they have seen."""
        places = b"".join(member.to_bytes(4, "big") for member in self.members)
        parts = (self.session, len(self.members).to_bytes(4, "big"), places, self.channels, self.commitments)
        return hashlib.sha256(b"".join(parts)).digest()


@dataclass(frozen=True)
class Sealed:
    """Client: its shares for each other member of the directory, sealed, one after another; signed with the directory it has seen."""

    session: bytes
    sender: int
    sealed: bytes
    signature: bytes


@dataclass(frozen=True)
class Delivery:
    """Server: who has sealed, and for each but the receiver what is sealed for it, the proof that it is, and the signature.

    sealed, proofs, signatures: one after another; absent: for each member of the directory that has not sealed, the
    signature of its keys.
    """

    session: bytes
    members: tuple[int, ...]
    sealed: bytes
    proofs: bytes
    signatures: bytes
    absent: tuple[bytes, ...]


@dataclass(frozen=True)
class Masked:
    """Client: its vector under its masks; escrow: what opens its part in the mask with each other member, should that one be lost."""

    session: bytes
    sender: int
    vector: bytes
    escrow: bytes
    signature: bytes


@dataclass(frozen=True)
class Survivors:
    """Server: whose vectors have come."""

    session: bytes
    members: tuple[int, ...]


@dataclass(frozen=True)
class Agreement:
    """Client: its signature of the survivors."""

    session: bytes
    sender: int
    signature: bytes


@dataclass(frozen=True)
class Agreements:
    """Server: signatures of the survivors, one after another."""

    session: bytes
    signers: tuple[int, ...]
    signatures: bytes


@dataclass(frozen=True)
class Shares:
    """Client: for each member that sealed, in order, one share: of a survivor's mask, of a lost one's root."""

    session: bytes
    sender: int
    shares: bytes
    signature: bytes


def keys_statement(session: bytes, sender: int, channel: bytes, commitments: bytes) -> bytes:
    """What a client signs of its keys."""
    return session + sender.to_bytes(4, "big") + hashlib.sha256(channel).digest() + commitments


def sealed_statement(session: bytes, sender: int, directory: bytes, root: bytes) -> bytes:
    """What a client signs of what it sealed; directory: the digest of the one it has seen; root: of the tree over what it sealed."""
    return session + sender.to_bytes(4, "big") + directory + root


def sealed_tree(sealed: bytes, size: int) -> MerkleTree:
    """The tree over what a client sealed, one after another, each of so many bytes."""
    return MerkleTree([leaf(sealed[start : start + size]) for start in range(0, len(sealed), size)])


def masked_statement(message: Masked) -> bytes:
    """What a client signs of its masked vector."""
    content = hashlib.sha256(message.vector).digest() + hashlib.sha256(message.escrow).digest()
    return message.session + message.sender.to_bytes(4, "big") + content


def survivors_statement(survivors: Survivors) -> bytes:
    """What clients sign of the survivors."""
    places = b"".join(member.to_bytes(4, "big") for member in survivors.members)
    return survivors.session + len(survivors.members).to_bytes(4, "big") + places


def shares_statement(message: Shares) -> bytes:
    """What a client signs of the shares that it reveals."""
    return message.session + message.sender.to_bytes(4, "big") + hashlib.sha256(message.shares).digest()
