"""Who the members of a federation are: long-lived signing keys, enrolled by an authority that is not the server.

The authority signs the root of a Merkle tree over all members' keys. A roster names those of one group and proves that they are enrolled:
a server can put no key of its own in it. Ed25519 (RFC 8032), or ML-DSA-65 (FIPS 204) where signatures must hold against a quantum computer
while the round runs; confidentiality is post-quantum either way (`channel`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from qedge.errors import InvalidKey, MessageRefused, nearest
from qedge.secure_aggregation.merkle import MerkleTree, leaf, root_of

SIGNATURES = {"ed25519": (32, 64), "ml-dsa-65": (1952, 3309)}  # kind: bytes of a public key, of a signature
_DOMAIN = b"qedge/secure-aggregation\0"


class Identity:
    """A member's signing key, from a 32-byte seed."""

    def __init__(self, kind: str, seed: bytes) -> None:
        if kind not in SIGNATURES:
            raise InvalidKey(f"unknown kind of signature '{kind}'; {nearest(kind, SIGNATURES)}", given=kind)
        self.kind = kind
        self._key = Ed25519PrivateKey.from_private_bytes(seed) if kind == "ed25519" else MLDSA65PrivateKey.from_seed_bytes(seed)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def sign(self, purpose: str, message: bytes) -> bytes:
        """A signature of a message for one purpose: it can never be shown as one for another."""
        return self._key.sign(_separated(purpose, message))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an identity is not pickled; it stays where it was made")


def signed(kind: str, public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether the signature of that message for that purpose was made with the private half of `public`."""
    try:
        _public_key(kind, public).verify(signature, _separated(purpose, message))
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Enrolment:
    """All members of a federation: how many, the root of the tree over their keys, and the authority's Ed25519 signature of both."""

    federation: str
    kind: str
    count: int
    root: bytes
    signature: bytes

    def content(self) -> bytes:
        """What is signed."""
        return b"\0".join([self.federation.encode(), self.kind.encode(), str(self.count).encode(), self.root])


@dataclass(frozen=True)
class Roster:
    """The members of one group: their places among those enrolled, ascending, their keys, and the proof that they are."""

    enrolment: Enrolment
    places: tuple[int, ...]
    keys: tuple[bytes, ...]
    proof: tuple[bytes, ...]

    def digest(self) -> bytes:
        """What a session names it by."""
        hashed = hashlib.sha256(self.enrolment.content())
        for place, key in zip(self.places, self.keys, strict=True):
            hashed.update(b"%d\0" % place + key)
        return hashed.digest()

    def check(self, authority: bytes) -> None:
        """Refuse a roster that the authority's enrolment does not cover.

        Raises:
            MessageRefused: a signature or a proof that does not hold, a member or a key twice, or a key that is none.
        """
        enrolment = self.enrolment
        if len(self.places) != len(self.keys) or list(self.places) != sorted(set(self.places)):
            raise MessageRefused("the roster names a member twice, or not in order, or without a key")
        if len(set(self.keys)) != len(self.keys):
            raise MessageRefused("the roster has the same key for two members")
        if not _enrolled(enrolment, authority):
            raise MessageRefused(f"the enrolment of '{enrolment.federation}' is not signed by the authority that this client knows")
        leaves = {place: member_leaf(place, key) for place, key in zip(self.places, self.keys, strict=True)}
        if root_of(leaves, enrolment.count, self.proof) != enrolment.root:
            raise MessageRefused("the roster has a key that is not enrolled")


@dataclass(frozen=True, repr=False)
class Provision:
    """What a node is given that stands for simulated members: the authority's public key, and what their identities are made from."""

    authority: bytes
    kind: str
    seed: bytes

    def identity(self, place: int) -> Identity:
        """The identity of one of them."""
        return Identity(self.kind, hmac.digest(self.seed, b"member/%d" % place, "sha256"))


class EnrolmentAuthority:
    """Enrols members and signs for them; simulated members are given their identities by it (`provision`)."""

    def __init__(self, federation: str, secret: bytes, *, kind: str = "ed25519") -> None:
        """secret: 32 bytes, from which everything is derived."""
        self.federation, self.kind, self.secret = federation, kind, secret
        self._signing = Ed25519PrivateKey.from_private_bytes(self._derive(b"authority"))
        self.public: bytes = self._signing.public_key().public_bytes_raw()
        self.keys: list[bytes] = []
        self.tree: MerkleTree | None = None

    def provision(self) -> Provision:
        """For nodes that stand for simulated members."""
        return Provision(self.public, self.kind, self._derive(b"members"))

    def enrol_simulated(self, members: int) -> None:
        """Take the keys of so many simulated members."""
        provision = self.provision()
        self.enrol([provision.identity(place).public for place in range(members)])

    def enrol(self, keys: Sequence[bytes]) -> None:
        """Take these public keys, one a member, one at least."""
        self.keys = list(keys)
        self.tree = MerkleTree([member_leaf(place, key) for place, key in enumerate(self.keys)])
        unsigned = Enrolment(self.federation, self.kind, len(self.keys), self.tree.root, b"")
        signature = self._signing.sign(_separated("enrolment", unsigned.content()))
        self.enrolment = Enrolment(self.federation, self.kind, len(self.keys), self.tree.root, signature)

    def roster(self, places: Sequence[int]) -> Roster:
        """The roster of some of its members."""
        if self.tree is None:
            raise InvalidKey("nobody is enrolled yet")
        ordered = tuple(sorted(places))
        return Roster(self.enrolment, ordered, tuple(self.keys[place] for place in ordered), self.tree.proof(ordered))

    def _derive(self, purpose: bytes) -> bytes:
        return hmac.digest(self.secret, purpose, "sha256")


def member_leaf(place: int, key: bytes) -> bytes:
    """The leaf of a member in the enrolment's tree."""
    return leaf(b"%d\0" % place + key)


@lru_cache(maxsize=8)
def _enrolled(enrolment: Enrolment, authority: bytes) -> bool:
    return enrolment.kind in SIGNATURES and signed("ed25519", authority, "enrolment", enrolment.content(), enrolment.signature)


@lru_cache(maxsize=4096)
def _public_key(kind: str, public: bytes) -> Ed25519PublicKey | MLDSA65PublicKey:
    return Ed25519PublicKey.from_public_bytes(public) if kind == "ed25519" else MLDSA65PublicKey.from_public_bytes(public)


def _separated(purpose: str, message: bytes) -> bytes:
    name = purpose.encode()
    return _DOMAIN + bytes([len(name)]) + name + message
