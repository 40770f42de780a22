"""Clients with one thing left out or done wrong each, to show that the tests would notice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.identity import Identity
from qedge.secure_aggregation.masks import SignedSeed
from qedge.secure_aggregation.member_secrets import escrow, part_of_mask
from qedge.secure_aggregation.messages import Agreement, Directory, Survivors, survivors_statement
from qedge.secure_aggregation.terms import Memory, Policy, Terms
from qedge.secure_aggregation.wire import decode, encode


class NoOwnEntryCheck(SecureClient):
    def _check_own_entry(self, directory: Directory) -> None: ...


class NoSealedSignatureCheck(SecureClient):
    def _check_sealed(self, peer: int, root: bytes, signature: bytes) -> None: ...


class NoMerkleProof(SecureClient):
    """Believes that a peer's root stands for what is delivered."""

    def _root_of(self, peer: int, sealed: bytes, proof: bytes) -> bytes:
        return proof[:32]


class NoAbsentCheck(SecureClient):
    def _check_absent(self, peer: int, signature: bytes) -> None: ...


class SignsAnySurvivors(SecureClient):
    """Signs a second set, and a third."""

    def agree(self, survivors: bytes) -> bytes:
        if "agree" not in self._answers:
            return super().agree(survivors)
        statement = survivors_statement(decode(Survivors, survivors))
        return encode(Agreement(self._session, self._me, self._identity.sign("survivors", statement)))


class RevealsAgain(SecureClient):
    """Once more for a second set of survivors: both shares of whoever is in one of them only."""

    def agree(self, survivors: bytes) -> bytes:
        self._answers.pop("agree", None)
        self._step = "agree"
        return super().agree(survivors)

    def reveal(self, agreements: bytes) -> bytes:
        self._answers.pop("reveal", None)
        self._step = "reveal"
        return super().reveal(agreements)

    def _shares(self) -> bytes:
        kept = dict(self._received), self._secrets, self._channel
        shares = super()._shares()
        self._received, self._secrets, self._channel = kept
        return shares


class TooFewSigners(SecureClient):
    def _fewest_signers(self) -> int:
        return 1


class TooFewSurvivors(SecureClient):
    def _fewest_survivors(self) -> int:
        return 1


class BelowThreshold(TooFewSigners, TooFewSurvivors):
    """Agrees to any set, with any number of others."""


class NoOwnMask(SecureClient):
    def _seeds(self, contributions: Mapping[int, bytes]) -> list[SignedSeed]:
        return super()._seeds(contributions)[1:]


class EscrowInTheClear(SecureClient):
    def _escrow(self, contributions: Mapping[int, bytes]) -> bytes:
        return b"".join(self._part_for(peer) for peer in contributions)


class EscrowUnderThePart(SecureClient):
    """Pads its part of a mask with the peer's part of the same mask, in place of a key for that."""

    def _escrow(self, contributions: Mapping[int, bytes]) -> bytes:
        parts = ((self._part_for(peer), part_of_mask(given)) for peer, given in contributions.items())
        return b"".join(bytes(one ^ other for one, other in zip(mine, theirs, strict=True)) for mine, theirs in parts)


class EscrowReused(SecureClient):
    """The same pad for all peers."""

    def _escrow(self, contributions: Mapping[int, bytes]) -> bytes:
        first = next(iter(contributions.values()))
        return b"".join(escrow(self._part_for(peer), first) for peer in contributions)


class ReusesSecrets(SecureClient):
    """Draws the same secrets in every session, as after a snapshot that was put back."""

    def __init__(self, identity: Identity, policy: Policy, memory: Memory, **_: Any) -> None:
        super().__init__(identity, policy, memory, random=_repeating(identity.public))


class BoundToNoSession(ReusesSecrets):
    """And derives the same from them in every session."""

    _session = property(lambda self: bytes(32), lambda self, name: None)


class OpensAnAbandonedAttempt(Memory):
    def reveal(self, terms: Terms) -> None:
        self.revealed[terms.run] = terms.round


class JoinsWithOthers(Memory):
    """Takes part in another attempt whoever is in it."""

    def join(self, terms: Terms) -> None:
        self.rosters.clear()
        super().join(terms)


class JoinsAfterRevealing(Memory):
    def join(self, terms: Terms) -> None:
        self.joined[terms.run] = terms.round, terms.attempt


def _repeating(seed: bytes) -> Callable[[int], bytes]:
    drawn = 0

    def draw(size: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(b"%d" % drawn + seed).digest(size)

    return draw
