"""The server's side of a session: it carries messages, adds masked vectors, and opens their sum when enough members agreed on whose it is.

It is fed with whatever arrives (`take`) and asked, when the time for a step is over, for what comes next. A message that is refused
counts as one that did not arrive. Nothing here is trusted by clients: they check what they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qedge.errors import MessageRefused, SumAborted
from qedge.secure_aggregation.channel import refuse_useless
from qedge.secure_aggregation.client import SEALED_BYTES
from qedge.secure_aggregation.groups import MALICIOUS
from qedge.secure_aggregation.identity import Roster, signed
from qedge.secure_aggregation.masks import SignedSeed, add_masks_beside
from qedge.secure_aggregation.member_secrets import (
    SECRET_BYTES,
    commitment,
    contribution,
    escrow,
    own_seed,
    pair_seed,
    part_of_mask,
    sign_of,
)
from qedge.secure_aggregation.merkle import MerkleTree
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
from qedge.secure_aggregation.sharing import SHARE_BYTES, Interpolation
from qedge.secure_aggregation.terms import Terms
from qedge.secure_aggregation.wire import decode, encode


class SecureServer:
    """One group in one session; steps: keys, sealed, masked, agreements (of a malicious server), shares."""

    def __init__(self, terms: Terms, roster: Roster) -> None:
        self.terms, self.roster = terms, roster
        self.session = terms.session()
        self._step = "keys"
        self._came: dict[str, dict[int, bytes]] = {}
        self._keys: dict[int, Keys] = {}
        self._sealed: dict[int, Sealed] = {}
        self._trees: dict[int, MerkleTree] = {}
        self._escrows: dict[int, bytes] = {}
        self._agreed: dict[int, bytes] = {}
        self._shares: dict[int, bytes] = {}
        self._total = np.zeros(terms.length, terms.ring.dtype)
        self._take: dict[str, Callable[[bytes], int]] = {
            "keys": self._take_keys,
            "sealed": self._take_sealed,
            "masked": self._take_masked,
            "agreements": self._take_agreement,
            "shares": self._take_shares,
        }

    def announcement(self) -> bytes:
        """What every member is sent first."""
        return encode(Announcement(self.terms, self.roster))

    def take(self, message: bytes) -> int:
        """A message of the step that is under way; whose it was. The same one again changes nothing.

        Raises:
            MessageRefused: of another step, session or member, not signed by its sender, or another than its sender sent before.
        """
        if self._step not in self._take:
            raise MessageRefused("the session is over")
        return self._take[self._step](message)

    def directory(self) -> bytes:
        """What every member whose keys came is sent; closes that step.

        Raises:
            SumAborted: as all of these, fewer members came than it takes.
        """
        members = self._close("keys", "sealed", self._keys)
        channels, commitments = (
            b"".join(parts) for parts in zip(*((k.channel, k.commitments) for k in self._in_order(members)), strict=True)
        )
        self._directory = Directory(self.session, members, channels, commitments)
        self._seen = self._directory.digest()
        return encode(self._directory)

    def deliveries(self) -> dict[int, bytes]:
        """What each member that sealed is sent."""
        members = self._close("sealed", "masked", self._sealed)
        absent = tuple(self._keys[member].signature for member in self._directory.members if member not in self._sealed)
        return {member: self._delivery(member, members, absent) for member in members}

    def survivors(self) -> bytes:
        """What each member whose vector came is sent."""
        following = "agreements" if self.terms.server == MALICIOUS else "shares"
        self._survivors = Survivors(self.session, self._close("masked", following, self._escrows, self.terms.survivors))
        return encode(self._survivors)

    def agreements(self) -> bytes:
        """What each survivor is sent: no more signatures than it takes."""
        members = self._close("agreements", "shares", self._agreed)[: self.terms.threshold]
        return encode(Agreements(self.session, members, b"".join(self._agreed[member] for member in members)))

    def total(self, threads: int = 1) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """The sum of the survivors' vectors, [length] int64, and who they are.

        Raises:
            SumAborted: too few shares came, or what they give is not what was committed to.
        """
        members = self._close("shares", "done", self._shares)
        secrets = self._opened(members)
        survivors = self._survivors.members
        seeds: list[SignedSeed] = [(own_seed(secrets[member], self.session), -1) for member in survivors]
        places = {member: place for place, member in enumerate(sorted(self._sealed))}
        for lost in (member for member in places if member not in self._escrows):
            for member in survivors:
                left = self._escrows[member][SECRET_BYTES * (places[lost] - (member < lost)) :][:SECRET_BYTES]
                seeds.append((self._seed(lost, secrets[lost], member, left), -sign_of(member, lost)))
        add_masks_beside(self._total, self.terms.ring, seeds, threads)
        return self.terms.ring.centred(self._total), survivors

    def _take_keys(self, content: bytes) -> int:
        message = decode(Keys, content)

        def check() -> bool:
            statement = keys_statement(self.session, message.sender, message.channel, message.commitments)
            if not self._signed_by(message.sender, "keys", statement, message.signature):
                return False
            refuse_useless(message.channel, message.sender)
            return True

        if self._new(message, content, range(self.terms.members), check):
            self._keys[message.sender] = message
        return message.sender

    def _take_sealed(self, content: bytes) -> int:
        message = decode(Sealed, content)
        if len(message.sealed) != SEALED_BYTES * (len(self._keys) - 1):
            raise MessageRefused("not one sealed message for each other member of the directory, of the length that they have")
        tree = sealed_tree(message.sealed, SEALED_BYTES)

        def check() -> bool:
            statement = sealed_statement(self.session, message.sender, self._seen, tree.root)
            return self._signed_by(message.sender, "sealed", statement, message.signature)

        if self._new(message, content, self._keys, check):
            self._sealed[message.sender], self._trees[message.sender] = message, tree
        return message.sender

    def _take_masked(self, content: bytes) -> int:
        message, ring = decode(Masked, content), self.terms.ring
        if len(message.vector) != ring.wire_bytes(self.terms.length) or len(message.escrow) != SECRET_BYTES * (len(self._sealed) - 1):
            raise MessageRefused("a masked vector of another length")

        def check() -> bool:
            return self._signed_by(message.sender, "masked", masked_statement(message), message.signature)

        if self._new(message, content, self._sealed, check):
            ring.add_packed(self._total, message.vector)
            self._escrows[message.sender] = message.escrow
        return message.sender

    def _take_agreement(self, content: bytes) -> int:
        message, statement = decode(Agreement, content), survivors_statement(self._survivors)
        if self._new(message, content, self._escrows, lambda: self._signed_by(message.sender, "survivors", statement, message.signature)):
            self._agreed[message.sender] = message.signature
        return message.sender

    def _take_shares(self, content: bytes) -> int:
        message = decode(Shares, content)
        if len(message.shares) != SHARE_BYTES * len(self._sealed):
            raise MessageRefused("not one share for each member that sealed")

        def check() -> bool:
            return self._signed_by(message.sender, "shares", shares_statement(message), message.signature)

        if self._new(message, content, self._escrows, check):
            self._shares[message.sender] = message.shares
        return message.sender

    def _new(
        self,
        message: Keys | Sealed | Masked | Agreement | Shares,
        content: bytes,
        among: Collection[int],
        check: Callable[[], bool],
    ) -> bool:
        """Whether this is a sender's first of the step; refuse what is not its own."""
        came = self._came.setdefault(self._step, {})
        if message.session != self.session:
            raise MessageRefused("a message of another session")
        if message.sender not in among:
            raise MessageRefused(f"member {message.sender} is not among those who came this far", sender=message.sender)
        if message.sender in came:
            if came[message.sender] != content:
                raise MessageRefused(f"member {message.sender} sent something else before", sender=message.sender)
            return False
        if not check():
            raise MessageRefused(f"not signed by member {message.sender}", sender=message.sender)
        came[message.sender] = content
        return True

    def _close(self, step: str, following: str, came: Mapping[int, object], least: int = 0) -> tuple[int, ...]:
        """Who came through a step, ascending; the next one begins."""
        if self._step != step:
            raise MessageRefused(f"the step '{step}' is not under way, '{self._step}' is")
        least = max(least, self.terms.threshold)
        if len(came) < least:
            self._step = "aborted"
            raise SumAborted(
                f"round {self.terms.round}, group {self.terms.group}: {len(came)} of {self.terms.members} members came through step "
                f"'{step}', it takes {least}; nothing was opened",
                came=len(came),
                least=least,
            )
        self._step = following
        self._came.pop(step, None)
        return tuple(sorted(came))

    def _delivery(self, receiver: int, members: tuple[int, ...], absent: tuple[bytes, ...]) -> bytes:
        peers, place = [member for member in members if member != receiver], self._directory.members.index(receiver)
        places = {peer: place - (peer < receiver) for peer in peers}
        sealed = b"".join(self._sealed[peer].sealed[SEALED_BYTES * at : SEALED_BYTES * (at + 1)] for peer, at in places.items())
        proofs = b"".join(part for peer, at in places.items() for part in self._trees[peer].path(at))
        signatures = b"".join(self._sealed[peer].signature for peer in peers)
        return encode(Delivery(self.session, members, sealed, proofs, signatures, absent))

    def _opened(self, members: Sequence[int]) -> dict[int, bytes]:
        """The secret of each member that sealed: a survivor's own mask, a lost one's root; each is what it committed to.

        Who reveals a false share spoils what is computed from it: then the shares of others are taken, as many in a row as it takes.
        """
        sealers, threshold = sorted(self._sealed), self.terms.threshold
        shares = {
            member: [self._shares[member][start : start + SHARE_BYTES] for start in range(0, len(self._shares[member]), SHARE_BYTES)]
            for member in members
        }
        wrong: set[int] = set()
        for first in range(len(members)):
            some = [members[(first + step) % len(members)] for step in range(threshold)]
            interpolation, found = Interpolation(some), {}
            for place, sealer in enumerate(sealers):
                secret = interpolation.secret({member: shares[member][place] for member in some})
                if secret is None or not self._committed(sealer, secret):
                    wrong.add(sealer)
                    break
                found[sealer] = secret
            else:
                return found
        raise SumAborted(
            f"round {self.terms.round}, group {self.terms.group}: what was revealed of members {sorted(wrong)} is not what they committed "
            "to",
            members=sorted(wrong),
        )

    def _committed(self, member: int, secret: bytes) -> bool:
        keys = self._keys[member]
        if member in self._escrows:
            return commitment("mask", self.session, member, secret) == keys.mask
        return commitment("root", self.session, member, secret) == keys.root

    def _seed(self, lost: int, root: bytes, survivor: int, left: bytes) -> bytes:
        """The seed of the mask between a lost member, by its root, and a survivor, by what that one left in escrow."""
        given = contribution(root, self.session, survivor)
        return pair_seed(self.session, lost, part_of_mask(given), survivor, escrow(left, given))

    def _in_order(self, members: Sequence[int]) -> list[Keys]:
        return [self._keys[member] for member in members]

    def _signed_by(self, member: int, purpose: str, statement: bytes, signature: bytes) -> bool:
        return signed(self.roster.enrolment.kind, self.roster.keys[member], purpose, statement, signature)
