"""A client's side of a session: five answers, each to one message of the server, and no other.

A message that is refused changes nothing: the right one may still come. A message that was answered gets the same bytes when it is
repeated, and a different one in its place is refused. What each check is for stands in SECURITY.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qedge.errors import MessageRefused
from qedge.secure_aggregation.channel import KEY_BYTES, OVERHEAD_BYTES, ChannelKey, seal
from qedge.secure_aggregation.groups import CURIOUS
from qedge.secure_aggregation.identity import SIGNATURES, Identity, signed
from qedge.secure_aggregation.masks import SignedSeed, add_masks
from qedge.secure_aggregation.member_secrets import (
    SECRET_BYTES,
    MemberSecrets,
    commitment,
    contribution,
    escrow,
    own_seed,
    pair_seed,
    part_of_mask,
    sign_of,
)
from qedge.secure_aggregation.merkle import DIGEST_BYTES, leaf, path_length, root_of
from qedge.secure_aggregation.messages import (
    Agreement,
    Agreements,
    Announcement,
    Delivery,
    Directory,
    Keys,
    Masked,
    Sealed,
    Shares,
    Survivors,
    keys_statement,
    masked_statement,
    sealed_statement,
    sealed_tree,
    shares_statement,
    survivors_statement,
)
from qedge.secure_aggregation.sharing import SHARE_BYTES, split
from qedge.secure_aggregation.terms import Memory, Policy
from qedge.secure_aggregation.wire import decode, encode

SEALED_BYTES = 2 * SHARE_BYTES + SECRET_BYTES + OVERHEAD_BYTES
_OfSession = TypeVar("_OfSession", Directory, Delivery, Survivors, Agreements)
_STEPS = ("join", "seal", "mask", "agree", "reveal", "done")


@dataclass(frozen=True, repr=False)
class _Received:
    """What a peer sealed for this member: shares of its root and of its mask's secret, and its contribution."""

    root: bytes
    mask: bytes
    contribution: bytes


class SecureClient:
    """One member in one session. memory: what it keeps from session to session."""

    def __init__(self, identity: Identity, policy: Policy, memory: Memory, random: Callable[[int], bytes] = os.urandom) -> None:
        self._identity, self._policy, self._memory, self._random = identity, policy, memory, random
        self._step = _STEPS[0]
        self._answers: dict[str, tuple[bytes, bytes]] = {}
        self._received: dict[int, _Received] = {}

    def join(self, announcement: bytes) -> bytes:
        """`Keys`, for an `Announcement` that satisfies this client's policy.

        Raises:
            MessageRefused: as all five: a message that the protocol or the policy does not allow; nothing has changed.
        """
        return self._once("join", announcement, self._join)

    def seal(self, directory: bytes) -> bytes:
        """`Sealed`, for a `Directory` that has this client's own keys unaltered."""
        return self._once("seal", directory, self._seal)

    def mask(self, delivery: bytes, vector: NDArray[np.int64]) -> bytes:
        """`Masked`, for a `Delivery` in which everybody has seen the same directory; vector: [length] int64, whatever noise is due in it.

        The vector of the first call is the session's only one.
        """
        return self._once("mask", delivery, lambda content: self._mask(content, vector))

    def agree(self, survivors: bytes) -> bytes:
        """`Agreement`, for `Survivors` that are enough, this client among them; signed once. Of an honest server: `Shares`."""
        return self._once("agree", survivors, self._agree)

    def reveal(self, agreements: bytes) -> bytes:
        """`Shares`, for `Agreements` of at least t members to the survivors that this client has signed."""
        return self._once("reveal", agreements, self._reveal)

    @property
    def step(self) -> str:
        """What it waits for: join, seal, mask, agree, reveal; or done."""
        return self._step

    def _once(self, step: str, content: bytes, answer: Callable[[bytes], bytes]) -> bytes:
        seen = hashlib.sha256(content).digest()
        if step in self._answers:
            before, given = self._answers[step]
            if before != seen:
                raise MessageRefused(f"'{step}' was asked for before, by another message")
            return given
        if step != self._step:
            raise MessageRefused(f"'{step}' was asked for where '{self._step}' comes next")
        given = answer(content)
        self._answers[step] = seen, given
        if self._step == step:
            self._step = _STEPS[_STEPS.index(step) + 1]
        return given

    def _join(self, content: bytes) -> bytes:
        announcement = decode(Announcement, content)
        terms, roster = announcement.terms, announcement.roster
        self._policy.check(terms, roster)
        if self._identity.kind != roster.enrolment.kind or self._identity.public not in roster.keys:
            raise MessageRefused("this client is not in the roster, or under another key")
        self._memory.join(terms)
        self._terms, self._roster = terms, roster
        self._session, self._me = terms.session(), roster.keys.index(self._identity.public)
        self._channel, self._secrets = ChannelKey(), MemberSecrets.draw(self._random)
        root = commitment("root", self._session, self._me, self._secrets.root)
        mask = commitment("mask", self._session, self._me, self._secrets.mask)
        unsigned = Keys(self._session, self._me, self._channel.public, root, mask, b"")
        statement = keys_statement(self._session, self._me, unsigned.channel, unsigned.commitments)
        self._commitments = unsigned.commitments
        return encode(Keys(self._session, self._me, unsigned.channel, root, mask, self._identity.sign("keys", statement)))

    def _seal(self, content: bytes) -> bytes:
        directory = self._of_this_session(decode(Directory, content))
        _members(directory.members, range(self._terms.members), self._terms.threshold)
        count = len(directory.members)
        if len(directory.channels) != KEY_BYTES * count or len(directory.commitments) != DIGEST_BYTES * count:
            raise MessageRefused("the directory has not one key and one commitment for each of its members")
        if self._me not in directory.members:
            raise MessageRefused("the directory leaves this client out")
        self._check_own_entry(directory)
        threshold, members, mine = self._terms.threshold, directory.members, directory.members.index(self._me)
        roots = split(self._secrets.root, threshold, members, self._random)
        masks = split(self._secrets.mask, threshold, members, self._random)
        self._received[self._me] = _Received(roots[mine], masks[mine], b"")
        sealed = b""
        for place, member in enumerate(members):
            if member != self._me:
                plain = roots[place] + masks[place] + contribution(self._secrets.root, self._session, member)
                sealed += seal(plain, _part(directory.channels, KEY_BYTES, place), self._session, self._me, member)
        self._directory, self._seen = directory, directory.digest()
        statement = sealed_statement(self._session, self._me, self._seen, sealed_tree(sealed, SEALED_BYTES).root)
        return encode(Sealed(self._session, self._me, sealed, self._identity.sign("sealed", statement)))

    def _check_own_entry(self, directory: Directory) -> None:
        if _entry(directory, self._me) != (self._channel.public, self._commitments):
            raise MessageRefused("the directory has other keys for this client than its own")

    def _mask(self, content: bytes, vector: NDArray[np.int64]) -> bytes:
        terms = self._terms
        if vector.shape != (terms.length,) or vector.dtype != np.int64:
            raise MessageRefused(f"a vector of shape {vector.shape} and {vector.dtype}; accepted: ({terms.length},) int64")
        delivery = self._of_this_session(decode(Delivery, content))
        peers = self._check_delivery(delivery)
        received = {}
        for place, peer in enumerate(peers):
            plain = self._channel.open(_part(delivery.sealed, SEALED_BYTES, place), self._session, peer, self._me)
            received[peer] = _Received(plain[:SHARE_BYTES], plain[SHARE_BYTES : 2 * SHARE_BYTES], plain[2 * SHARE_BYTES :])
        contributions = {peer: its.contribution for peer, its in received.items()}
        total = terms.ring.elements(vector)
        add_masks(total, terms.ring, self._seeds(contributions))
        self._received |= received
        self._members = delivery.members
        unsigned = Masked(self._session, self._me, terms.ring.pack(total), self._escrow(contributions), b"")
        signature = self._identity.sign("masked", masked_statement(unsigned))
        return encode(Masked(self._session, self._me, unsigned.vector, unsigned.escrow, signature))

    def _seeds(self, contributions: Mapping[int, bytes]) -> list[SignedSeed]:
        """Of its own mask, and of the one it shares with each peer, by the peers' contributions."""
        seeds = [(own_seed(self._secrets.mask, self._session), 1)]
        for peer, given in contributions.items():
            seed = pair_seed(self._session, self._me, self._part_for(peer), peer, part_of_mask(given))
            seeds.append((seed, sign_of(self._me, peer)))
        return seeds

    def _escrow(self, contributions: Mapping[int, bytes]) -> bytes:
        """Its part of each of these masks, as only the peer's root opens it."""
        return b"".join(escrow(self._part_for(peer), given) for peer, given in contributions.items())

    def _part_for(self, peer: int) -> bytes:
        return part_of_mask(contribution(self._secrets.root, self._session, peer))

    def _check_delivery(self, delivery: Delivery) -> list[int]:
        """The peers that have sealed, all of whom have signed that they saw the directory that this client saw."""
        _members(delivery.members, self._directory.members, self._terms.threshold)
        if self._me not in delivery.members:
            raise MessageRefused("what this client sealed was left out")
        peers = [member for member in delivery.members if member != self._me]
        absent = [member for member in self._directory.members if member not in delivery.members]
        each = SIGNATURES[self._identity.kind][1]
        steps = [path_length(self._place_for(peer), len(self._directory.members) - 1) * DIGEST_BYTES for peer in peers]
        given = (len(delivery.sealed), len(delivery.proofs), len(delivery.signatures), len(delivery.absent))
        if given != (len(peers) * SEALED_BYTES, sum(steps), len(peers) * each, len(absent)):
            raise MessageRefused("the delivery has not one sealed message, proof and signature for each of its members")
        start = 0
        for place, peer in enumerate(peers):
            proof = delivery.proofs[start : start + steps[place]]
            root = self._root_of(peer, _part(delivery.sealed, SEALED_BYTES, place), proof)
            self._check_sealed(peer, root, _part(delivery.signatures, each, place))
            start += steps[place]
        for peer, signature in zip(absent, delivery.absent, strict=True):
            self._check_absent(peer, signature)
        return peers

    def _check_sealed(self, peer: int, root: bytes, signature: bytes) -> None:
        if not self._signed_by(peer, "sealed", sealed_statement(self._session, peer, self._seen, root), signature):
            raise MessageRefused(f"member {peer} has not signed this for this directory", sender=peer)

    def _check_absent(self, peer: int, signature: bytes) -> None:
        if not self._signed_by(peer, "keys", keys_statement(self._session, peer, *_entry(self._directory, peer)), signature):
            raise MessageRefused(f"the keys of member {peer} are not its own", sender=peer)

    def _root_of(self, peer: int, sealed: bytes, proof: bytes) -> bytes:
        """The root of all that a peer sealed, by what it sealed for this member; "" where the proof is none."""
        steps = [proof[start : start + DIGEST_BYTES] for start in range(0, len(proof), DIGEST_BYTES)]
        return root_of({self._place_for(peer): leaf(sealed)}, len(self._directory.members) - 1, steps) or b""

    def _place_for(self, peer: int) -> int:
        """Which of all that a peer sealed is for this member."""
        return self._directory.members.index(self._me) - (peer < self._me)

    def _agree(self, content: bytes) -> bytes:
        survivors = self._of_this_session(decode(Survivors, content))
        _members(survivors.members, self._members, self._fewest_survivors())
        if self._me not in survivors.members:
            raise MessageRefused("this client's vector was left out; it reveals nothing")
        self._survivors = survivors
        if self._terms.server == CURIOUS:
            self._step = _STEPS[-1]
            return self._shares()
        signature = self._identity.sign("survivors", survivors_statement(survivors))
        return encode(Agreement(self._session, self._me, signature))

    def _reveal(self, content: bytes) -> bytes:
        agreements = self._of_this_session(decode(Agreements, content))
        _members(agreements.signers, self._members, self._fewest_signers())
        statement, each = survivors_statement(self._survivors), SIGNATURES[self._identity.kind][1]
        if len(agreements.signatures) != each * len(agreements.signers) or not all(
            self._signed_by(signer, "survivors", statement, _part(agreements.signatures, each, place))
            for place, signer in enumerate(agreements.signers)
        ):
            raise MessageRefused("not all of these members have signed the survivors that this client has signed")
        return self._shares()

    def _fewest_survivors(self) -> int:
        return max(self._terms.threshold, self._terms.survivors)

    def _fewest_signers(self) -> int:
        return self._terms.threshold

    def _shares(self) -> bytes:
        """One share of each member that sealed; what the session was about is then forgotten."""
        self._memory.reveal(self._terms)
        shares = b"".join(
            self._received[member].mask if member in self._survivors.members else self._received[member].root for member in self._members
        )
        signature = self._identity.sign("shares", shares_statement(Shares(self._session, self._me, shares, b"")))
        del self._secrets, self._channel
        self._received.clear()
        return encode(Shares(self._session, self._me, shares, signature))

    def _of_this_session(self, message: _OfSession) -> _OfSession:
        if message.session != self._session:
            raise MessageRefused("a message of another session")
        return message

    def _signed_by(self, member: int, purpose: str, statement: bytes, signature: bytes) -> bool:
        return signed(self._identity.kind, self._roster.keys[member], purpose, statement, signature)


def _members(given: tuple[int, ...], among: Sequence[int], least: int) -> None:
    """Refuse members that are named twice, are not of those, or are too few."""
    if list(given) != sorted(set(given)) or not set(given) <= set(among):
        raise MessageRefused("members are named twice, not in order, or are not of those who came this far")
    if len(given) < least:
        raise MessageRefused(f"{len(given)} members are left; accepted: {least} at least", given=len(given), accepted=least)


def _entry(directory: Directory, member: int) -> tuple[bytes, bytes]:
    """A member's channel key and its commitments."""
    place = directory.members.index(member)
    return _part(directory.channels, KEY_BYTES, place), _part(directory.commitments, DIGEST_BYTES, place)


def _part(content: bytes, size: int, place: int) -> bytes:
    return content[size * place : size * (place + 1)]
