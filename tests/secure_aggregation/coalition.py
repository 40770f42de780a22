"""The adversary: a server that says what it likes to whom it likes, and members that tell it everything and sign anything.

It drives real honest clients, gathers what they let out, and computes every sum of honest members' vectors that follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from qedge.errors import MessageRefused
from qedge.secure_aggregation.channel import ChannelKey, seal
from qedge.secure_aggregation.client import SEALED_BYTES, SecureClient
from qedge.secure_aggregation.identity import Roster
from qedge.secure_aggregation.masks import add_masks
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
    sealed_tree,
    survivors_statement,
)
from qedge.secure_aggregation.sharing import SHARE_BYTES, Interpolation
from qedge.secure_aggregation.terms import Memory, Policy, Terms
from qedge.secure_aggregation.wire import decode, encode
from tests.secure_aggregation.sessions import client_of, federation, vectors_of

Opened = frozenset[int]


class Unchecked(Policy):
    """Of a client that joins whatever it is told, whether or not its numbers protect."""

    def check(self, terms: Terms, roster: Roster) -> None: ...


class Puppet(SecureClient):
    """A colluding member: it checks nothing, signs anything, and the server has all that it has."""

    def _check_own_entry(self, directory: Directory) -> None: ...

    def _check_sealed(self, peer: int, root: bytes, signature: bytes) -> None: ...

    def _check_absent(self, peer: int, signature: bytes) -> None: ...

    def sealed_for(self, directory: Directory) -> Sealed:
        """For whatever directory, as often as it is asked."""
        self._made = getattr(self, "_made", {})
        content = encode(directory)
        if content not in self._made:
            self._made[content] = decode(Sealed, self._seal(content))
        return self._made[content]

    def contribution(self, peer: int) -> bytes:
        return contribution(self._secrets.root, self._session, peer)

    def opened(self, sealed: bytes, sender: int) -> bytes:
        return self._channel.open(sealed, self._session, sender, self._me)

    def sign(self, purpose: str, statement: bytes) -> bytes:
        return self._identity.sign(purpose, statement)


class Coalition:
    """A server and its puppets in one session with honest clients; kind: of the honest ones."""

    def __init__(
        self,
        terms: Terms,
        puppets: Sequence[int] = (),
        *,
        kind: type[SecureClient] = SecureClient,
        policy: type[Policy] = Policy,
        memories: Mapping[int, Memory] | None = None,
    ) -> None:
        self.terms, self.session = terms, terms.session()
        self.puppets = {place: client_of(place, terms, kind=Puppet, policy=Unchecked) for place in puppets}
        self.honest = {
            place: client_of(place, terms, (memories or {}).get(place), kind=kind, policy=policy)
            for place in range(terms.members)
            if place not in self.puppets
        }
        self.vectors = vectors_of(terms, seed=terms.round)
        self.refusals: list[str] = []
        self.keys: dict[int, Keys] = {}
        self.sealed: dict[int, tuple[Sealed, Directory]] = {}
        self.masked: dict[int, Masked] = {}
        self.seen: dict[int, tuple[int, ...]] = {}
        self.signed: dict[tuple[int, ...], dict[int, bytes]] = {}
        self.asked: dict[int, tuple[int, ...]] = {}
        self.root_shares: dict[int, dict[int, bytes]] = {}
        self.mask_shares: dict[int, dict[int, bytes]] = {}
        self.roots: dict[int, bytes] = {}
        self.masks: dict[int, bytes] = {}
        self.given: dict[tuple[int, int], bytes] = {}
        self.forged: dict[tuple[int, int], bytes] = {}
        self.fakes: dict[int, ChannelKey] = {}
        self.read_escrow: Callable[[int, int], bytes | None] = lambda place, peer: None

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(range(self.terms.members))

    # What it says, and what it learns from the answers.

    def join(self) -> Coalition:
        content = encode(Announcement(self.terms, federation(self.terms.members).roster()))
        for place, client in {**self.honest, **self.puppets}.items():
            if (answer := self._ask(client, "join", content)) is not None:
                self.keys[place] = decode(Keys, answer)
                self.session = self.keys[place].session  # as its members have it
        for place, puppet in self.puppets.items():
            self.given |= {(place, peer): puppet.contribution(peer) for peer in self.members}
        return self

    def directory(self, fakes: Iterable[int] = (), members: Iterable[int] | None = None) -> Directory:
        """With keys of its own in the place of some members'."""
        named = tuple(sorted(self.keys if members is None else members))
        channels = {place: self.keys[place].channel if place in self.keys else b"" for place in named}
        for place in fakes:
            channels[place] = self.fakes.setdefault(place, ChannelKey()).public
        commitments = {place: self.keys[place].commitments if place in self.keys else bytes(32) for place in named}
        return Directory(self.session, named, b"".join(channels[place] for place in named), b"".join(commitments[place] for place in named))

    def seal(self, directories: Mapping[int, Directory]) -> Coalition:
        """Each member gets a directory; what is sealed to a key it knows is opened."""
        for place, directory in directories.items():
            if place in self.puppets:
                self.sealed[place] = self.puppets[place].sealed_for(directory), directory
            elif (answer := self._ask(self.honest[place], "seal", encode(directory))) is not None:
                self.sealed[place] = decode(Sealed, answer), directory
        for sender, (sealed, directory) in self.sealed.items():
            for receiver in directory.members:
                faked = receiver in self.fakes and self.fakes[receiver].public in directory.channels
                if receiver != sender and (faked or receiver in self.puppets):
                    self._open(sender, receiver, _sealed_for(sealed, directory, sender, receiver))
        return self

    def mask(
        self,
        receivers: Iterable[int],
        members: Iterable[int] | None = None,
        absent: Mapping[int, bytes] | None = None,
        *,
        bare: bool = False,
    ) -> Coalition:
        """Deliver what these members have sealed, or forged contributions in its place; absent: signatures; bare: roots for proofs."""
        for place in receivers:
            directory = self.sealed[place][1]
            named = tuple(sorted(self.sealed if members is None else members))
            delivery = self._delivery(place, directory, named, absent or {}, bare)
            if (answer := self._ask(self.honest[place], "mask", encode(delivery), self.vectors[place])) is not None:
                self.masked[place], self.seen[place] = decode(Masked, answer), named
        return self

    def agree(self, views: Mapping[int, Iterable[int]], signing: Iterable[Iterable[int]] = ()) -> Coalition:
        """Tell each honest member whose vectors came, then ask all of them to sign these others too; puppets sign whatever is told."""
        for place, view in [*views.items(), *((place, other) for other in signing for place in views)]:
            survivors = Survivors(self.session, tuple(sorted(view)))
            signatures = self.signed.setdefault(survivors.members, {})
            for puppet, client in self.puppets.items():
                signatures[puppet] = client.sign("survivors", survivors_statement(survivors))
            if (answer := self._ask(self.honest[place], "agree", encode(survivors))) is not None:
                signatures[place] = decode(Agreement, answer).signature
                if view is views[place]:
                    self.asked[place] = survivors.members
        return self

    def reveal(self, places: Iterable[int]) -> Coalition:
        """Show each all the signatures that there are of what it was told first."""
        for place in places:
            view = self.asked.get(place, ())
            signatures = self.signed.get(view, {})
            signers = tuple(sorted(signatures))
            message = Agreements(self.session, signers, b"".join(signatures[signer] for signer in signers))
            if (answer := self._ask(self.honest[place], "reveal", encode(message))) is not None:
                revealed = decode(Shares, answer).shares
                for at, member in enumerate(self.seen[place]):
                    share = revealed[SHARE_BYTES * at : SHARE_BYTES * (at + 1)]
                    (self.mask_shares if member in view else self.root_shares).setdefault(member, {}).setdefault(place, share)
        return self

    def _ask(self, client: SecureClient, step: str, *what: object) -> bytes | None:
        try:
            return getattr(client, step)(*what)
        except MessageRefused as error:
            self.refusals.append(error.message)
            return None

    def _delivery(self, place: int, directory: Directory, named: tuple[int, ...], absent: Mapping[int, bytes], bare: bool) -> Delivery:
        sealed, proofs, signatures = b"", b"", b""
        for peer in named:
            if peer == place:
                continue
            message, seen = (self.puppets[peer].sealed_for(directory), directory) if peer in self.puppets else self.sealed[peer]
            tree, at = sealed_tree(message.sealed, SEALED_BYTES), seen.members.index(place) - (peer < place)
            if (peer, place) in self.forged:
                plain = bytes(2 * SHARE_BYTES) + self.forged[peer, place]
                sealed += seal(plain, self.keys[place].channel, self.session, peer, place)
            else:
                sealed += _sealed_for(message, seen, peer, place)
            path = tree.path(at)
            proofs += tree.root * len(path) if bare else b"".join(path)
            signatures += message.signature
        missing = tuple(absent.get(peer, b"") for peer in directory.members if peer not in named)
        return Delivery(self.session, named, sealed, proofs, signatures, missing)

    def _open(self, sender: int, receiver: int, sealed: bytes) -> None:
        if receiver not in self.puppets:
            plain = self.fakes[receiver].open(sealed, self.session, sender, receiver)
        else:
            plain = self.puppets[receiver].opened(sealed, sender)
        self.root_shares.setdefault(sender, {})[receiver] = plain[:SHARE_BYTES]
        self.mask_shares.setdefault(sender, {})[receiver] = plain[SHARE_BYTES : 2 * SHARE_BYTES]
        self.given[sender, receiver] = plain[2 * SHARE_BYTES :]

    # What follows from it.

    def opens(self) -> set[Opened]:
        """Every set of honest members whose sum it computes; each compared with the sum as it is."""
        self.recover()
        came = [place for place in self.honest if place in self.masked]
        sets = [frozenset(some) for size in range(1, len(came) + 1) for some in combinations(came, size)]
        return {some for some in sets if any(self._sum(some, own) == self._truth(some) for own in (True, False))}

    def left_of(self, place: int, among: Iterable[int], *, own: bool = True) -> np.ndarray | None:
        """A member's vector under the masks that it shares with `among`: all others are taken off, where they are known."""
        if own and place not in self.masks:
            return None
        seeds = [(own_seed(self.masks[place], self.session), -1)] if own else []
        for peer in set(self.seen[place]) - set(among) - {place}:
            seed = self.seed_of(place, peer)
            if seed is None:
                return None
            seeds.append((seed, -sign_of(place, peer)))
        total = self.terms.ring.unpack(self.masked[place].vector, self.terms.length).copy()
        add_masks(total, self.terms.ring, seeds)
        return total

    def seed_of(self, place: int, peer: int) -> bytes | None:
        """Of the mask that a member put on for a peer, if it follows."""
        mine, theirs = self.given.get((place, peer)), self.forged.get((peer, place), self.given.get((peer, place)))
        part = self._part(place, peer, mine, theirs) or self.read_escrow(place, peer)
        other = self._part(peer, place, theirs, mine) or self.read_escrow(peer, place)
        return None if part is None or other is None else pair_seed(self.session, place, part, peer, other)

    def _part(self, place: int, peer: int, mine: bytes | None, theirs: bytes | None) -> bytes | None:
        """A member's part of a mask: from its contribution, or from what it left in escrow and the peer's contribution."""
        return part_of_mask(mine) if mine is not None else opened(self.left_by(place, peer), theirs)

    def recover(self) -> Coalition:
        """Every secret of which there are enough shares."""
        for place in self.honest:
            self._recover(place)
        return self

    def _recover(self, place: int) -> None:
        for name, shares, secrets in (("root", self.root_shares, self.roots), ("mask", self.mask_shares, self.masks)):
            its = shares.get(place, {})
            if place not in secrets and len(its) >= self.terms.threshold:
                some = dict(list(its.items())[: self.terms.threshold])
                secret = Interpolation(list(some)).secret(some)
                if secret is not None and commitment(name, self.session, place, secret) == getattr(self.keys[place], name):
                    secrets[place] = secret
        if place in self.roots:
            for peer in self.members:
                self.given[place, peer] = contribution(self.roots[place], self.session, peer)

    def left_by(self, place: int, peer: int) -> bytes | None:
        if place not in self.masked or peer not in self.seen[place]:
            return None
        at = [one for one in self.seen[place] if one != place].index(peer)
        return self.masked[place].escrow[SECRET_BYTES * at : SECRET_BYTES * (at + 1)]

    def _sum(self, some: Opened, own: bool) -> list[int] | None:
        total = np.zeros(self.terms.length, self.terms.ring.dtype)
        for place in some:
            hidden = {peer for peer in some - {place} if self.seed_of(place, peer) is None or self.seed_of(peer, place) is None}
            left = self.left_of(place, hidden, own=own)
            if left is None:
                return None
            total += left
        return self.terms.ring.centred(total).tolist()

    def _truth(self, some: Opened) -> list[int]:
        return self.vectors[sorted(some)].sum(axis=0).tolist()


def _sealed_for(message: Sealed, directory: Directory, sender: int, receiver: int) -> bytes:
    at = directory.members.index(receiver) - (sender < receiver)
    return message.sealed[SEALED_BYTES * at : SEALED_BYTES * (at + 1)]


def opened(left: bytes | None, by: bytes | None) -> bytes | None:
    """What was left in escrow, by the contribution whose pad it is thought to be under."""
    return None if left is None or by is None else escrow(left, by)
