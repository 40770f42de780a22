"""What a malicious server tries, with and without puppets. Each attack is made on clients of any kind, the real or a broken one.

It gives what was opened: for every session of a round, each set of honest members whose sum was computed. Harmless is at most one set,
of as many honest members as the least survivors less the colluders promises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.identity import Identity
from qedge.secure_aggregation.member_secrets import SECRET_BYTES
from qedge.secure_aggregation.messages import keys_statement
from qedge.secure_aggregation.terms import Memory, Policy
from tests.secure_aggregation.coalition import Coalition, Opened, Unchecked, opened
from tests.secure_aggregation.sessions import Session, federation, policy_of, refused, terms_of

MOVED = np.arange(24).reshape(8, 3) ** 2


@dataclass(frozen=True)
class Loot:
    """What was opened, by session; fewest: honest members that the protocol promises in a sum."""

    opened: tuple[frozenset[Opened], ...]
    fewest: int

    @property
    def harmless(self) -> bool:
        every = [some for of_session in self.opened for some in of_session]
        return len(every) <= 1 and all(len(some) >= self.fewest for some in every)


def loot(*coalitions: Coalition) -> Loot:
    terms = coalitions[0].terms
    return Loot(tuple(frozenset(one.opens()) for one in coalitions), terms.survivors - terms.colluders)


def masked(coalition: Coalition) -> Coalition:
    """As an honest server would come to have all masked vectors."""
    directory = coalition.join().directory()
    return coalition.seal(dict.fromkeys(coalition.members, directory)).mask(coalition.honest)


def honest_server(kind: type[SecureClient]) -> Loot:
    """No attack: everything in order, one member lost; the sum of all others is all that follows."""
    coalition = masked(Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind))
    kept = [0, 1, 2, 4]
    return loot(coalition.agree(dict.fromkeys([0, 1, 2], kept)).reveal([0, 1, 2]))


def two_survivor_sets(kind: type[SecureClient], threshold: int = 5, policy: type[Policy] = Policy) -> Loot:
    """Half of the honest members hear that everybody's vector came, the others that member 0's did not."""
    coalition = masked(Coalition(terms_of(6, colluders=2, threshold=threshold), [4, 5], kind=kind, policy=policy))
    everybody, but_one = coalition.members, coalition.members[1:]
    return loot(coalition.agree({0: everybody, 1: everybody, 2: but_one, 3: but_one}).reveal(coalition.honest))


def many_survivor_sets(kind: type[SecureClient]) -> Loot:
    """Each hears of two lost members, not the same two: three are opened as lost though each list was long enough."""
    coalition = masked(Coalition(terms_of(7, colluders=1, threshold=5), [6], kind=kind))
    lost = {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {0, 1}, 4: {1, 2}, 5: {0, 2}}
    views = {place: set(coalition.members) - gone for place, gone in lost.items()}
    return loot(coalition.agree(views, signing=views.values()).reveal(coalition.honest))


def only_two_left(kind: type[SecureClient]) -> Loot:
    """Each hears that only its own vector and member 0's came."""
    coalition = masked(Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind))
    return loot(coalition.agree({place: {0, place} for place in coalition.honest}).reveal(coalition.honest))


def fewer_than_planned(kind: type[SecureClient]) -> Loot:
    """As many vectors came as open a sum, fewer than the noise in them is sized for."""
    coalition = masked(Coalition(terms_of(6, colluders=1, threshold=4, survivors=5), [5], kind=kind))
    kept = (0, 1, 2, 5)
    return loot(coalition.agree(dict.fromkeys([0, 1, 2], kept)).reveal([0, 1, 2]))


def asked_twice(kind: type[SecureClient]) -> Loot:
    """All survived; and when shares for that are there, all but member 0 did."""
    coalition = masked(Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind))
    for survivors in (coalition.members, coalition.members[1:]):
        coalition.agree(dict.fromkeys(coalition.honest, survivors)).reveal(coalition.honest)
    return loot(coalition)


def late_vector(kind: type[SecureClient]) -> Loot:
    """Member 0's vector came, and the server says that it did not: its root is opened."""
    coalition = masked(Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind))
    others = [1, 2, 3]
    return loot(coalition.agree(dict.fromkeys(others, coalition.members[1:])).reveal(others))


def altered_entries(kind: type[SecureClient]) -> Loot:
    """Everybody but member 0 is shown with a key that the server made."""
    coalition = Coalition(terms_of(5), kind=kind).join()
    directory = coalition.directory(fakes=[1, 2, 3, 4])
    coalition.seal(dict.fromkeys(coalition.members, directory))
    return loot(coalition.mask([0]))


def two_directories(kind: type[SecureClient], threshold: int = 5, policy: type[Policy] = Policy) -> Loot:
    """Two halves, each with the puppets, are shown true keys of their own and false ones of the other half."""
    coalition = Coalition(terms_of(6, colluders=2, threshold=threshold), [4, 5], kind=kind, policy=policy).join()
    first, second = coalition.directory(fakes=[2, 3]), coalition.directory(fakes=[0, 1])
    coalition.seal({0: first, 1: first, 2: second, 3: second})
    across = [(one, other) for one in range(4) for other in range(4) if (one < 2) != (other < 2)]
    coalition.forged = {pair: coalition.given[pair] for pair in across}  # sealed again, to keys that open it
    coalition.mask(range(4), members=range(6))
    return loot(coalition.agree(dict.fromkeys(range(4), range(6))).reveal(range(4)))


def false_keys(kind: type[SecureClient], *, replayed: bool = False, policy: type[Policy] = Unchecked) -> Loot:
    """Half of the members never joined; the server shows keys of its own for them, signed as well as it can.

    replayed: with what they signed in an attempt before, whose secret halves it has got meanwhile. Where 2t > n + c these would be too few
    to open anything; the client's check is to hold without that.
    """
    terms, absent = terms_of(8, attempt=2, colluders=1, threshold=4), (3, 4, 5, 6)
    before = Coalition(replace(terms, attempt=1), kind=kind, policy=policy).join()
    coalition = Coalition(terms, [7], kind=kind, policy=policy)
    for place in absent:
        coalition.honest.pop(place)
    if replayed:
        coalition.fakes = {place: before.honest[place]._channel for place in absent}
    directory = coalition.join().directory(fakes=absent, members=range(8))
    coalition.seal(dict.fromkeys((0, 1, 2, 7), directory))
    stranger = Identity("ed25519", hashlib.sha256(b"server").digest())
    made = {
        place: stranger.sign("keys", keys_statement(coalition.session, place, coalition.fakes[place].public, bytes(32))) for place in absent
    }
    signatures = {place: before.keys[place].signature for place in absent} if replayed else made
    return loot(coalition.mask([0, 1, 2], absent=signatures))


def forged_seeds(kind: type[SecureClient], *, bare: bool = False) -> Loot:
    """Member 0 is sent other contributions than its peers sealed for it; then everything goes on as it should."""
    coalition = Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind).join()
    directory = coalition.directory()
    coalition.seal(dict.fromkeys(coalition.members, directory))
    coalition.forged = {(peer, 0): hashlib.sha256(b"%d" % peer).digest()[:SECRET_BYTES] for peer in (1, 2, 3)}
    coalition.mask(coalition.honest, bare=bare)
    return loot(coalition.agree(dict.fromkeys(coalition.honest, coalition.members)).reveal(coalition.honest))


def clear_escrow(kind: type[SecureClient]) -> Loot:
    """What members leave in escrow is taken for their parts of the masks; everything else is in order."""
    coalition = masked(Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind))
    coalition.read_escrow = coalition.left_by
    return loot(coalition.agree(dict.fromkeys(coalition.honest, coalition.members)).reveal(coalition.honest))


def one_pad_for_all(kind: type[SecureClient]) -> Loot:
    """Member 0 is called lost; what its root opens is tried on what the others left in escrow for each other."""
    coalition = masked(Coalition(terms_of(5, colluders=1, threshold=4), [4], kind=kind))
    coalition.read_escrow = lambda place, peer: opened(coalition.left_by(place, peer), coalition.given.get((0, place)))
    others = [1, 2, 3]
    return loot(coalition.agree(dict.fromkeys(others, coalition.members[1:])).reveal(others))


def attempts(kind: type[SecureClient], memory: Callable[[], Memory] = Memory, *, opened_first: bool = False) -> Loot:
    """Two attempts at a round, the second without member 0, both to be opened.

    The first is given up when all its vectors are there and opened last; or opened_first: at once.
    """
    memories = {place: memory() for place in range(5)}
    first, second = (Coalition(terms_of(5, attempt=attempt), kind=kind, memories=memories) for attempt in (1, 2))
    masked(first)
    if opened_first:
        first.agree(dict.fromkeys(range(5), range(5))).reveal(range(5))
    second.honest.pop(0)
    second.join()
    if len(second.keys) >= second.terms.threshold:
        second.seal(dict.fromkeys(second.keys, second.directory())).mask(second.honest)
        second.agree(dict.fromkeys(range(1, 5), range(1, 5))).reveal(range(1, 5))
    if not opened_first:
        first.agree(dict.fromkeys(range(5), range(5))).reveal(range(5))
    return loot(first, second)


def attempt_with_others(memory: Callable[[], Memory] = Memory) -> list[np.ndarray]:
    """A round's sum is opened of members 0 to 4, of whom 3 and 4 are asked for no shares; then one of 3 to 7; what was opened."""
    enrolled, memories = federation(8), [memory() for _ in range(8)]
    sums: list[np.ndarray] = []
    for attempt, places in ((1, range(5)), (2, range(3, 8))):
        roster = enrolled.roster(places)
        terms = replace(terms_of(5, attempt=attempt), roster=roster.digest())
        policy = policy_of(terms, enrolled.authority.public)
        clients = [SecureClient(enrolled.identities[place], policy, memories[place]) for place in places]
        session = Session(terms, clients, MOVED[places.start : places.stop], roster)
        refusing = [place for place, client in enumerate(clients) if refused(partial(client.join, session.server.announcement()))]
        session.run(lost={"join": refusing, "agree": [3, 4] if attempt == 1 else []})
        sums.append(session.total()[0])
    return sums


def secrets_of_later_rounds(kind: type[SecureClient]) -> Loot:
    """Member 0 is called lost in the second round and survives the third; what that reveals is tried on the vectors of the first."""
    memories = {place: Memory() for place in range(5)}
    first = masked(Coalition(terms_of(5), kind=kind, memories=memories))
    for number, survivors in ((2, range(1, 5)), (3, range(5))):
        later = masked(Coalition(terms_of(5, round=number), kind=kind, memories=memories))
        later.agree(dict.fromkeys(survivors, survivors)).reveal(survivors)
        first.root_shares |= later.root_shares
        first.mask_shares |= later.mask_shares
    return loot(first)


def masks_repeat(kind: type[SecureClient]) -> bool:
    """Whether the masked vectors of a member in two rounds differ by no more than its vectors do."""
    memories = {place: Memory() for place in range(3)}
    one, other = (masked(Coalition(terms_of(3, round=number), kind=kind, memories=memories)) for number in (1, 2))
    ring = one.terms.ring
    seen = [ring.unpack(session.masked[0].vector, session.terms.length) for session in (one, other)]
    return (ring.centred(seen[0] - seen[1]) == ring.centred(ring.elements(one.vectors[0] - other.vectors[0]))).all()
