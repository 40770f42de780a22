"""What a session of secure aggregation is about, and what each client demands of it: its own policy, whatever the server announces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from qedge.errors import InvalidPrivacy, MessageRefused
from qedge.secure_aggregation import wire
from qedge.secure_aggregation.groups import LEAST_MEMBERS, MALICIOUS, SERVERS, colluders_of, refuse_unsafe, threshold_of
from qedge.secure_aggregation.identity import Roster
from qedge.secure_aggregation.ring import Ring


@dataclass(frozen=True)
class Terms:
    """What members of one group agree to sum, once.

    roster: its digest; server: what it is taken for; bits: of the ring; length: entries of a vector; survivors: the fewest members whose
    sum may be opened, t at least; noise: what each adds to its own vector, in words, or nothing.
    """

    run: str
    round: int
    attempt: int
    group: int
    roster: bytes
    members: int
    threshold: int
    colluders: int
    server: str
    bits: int
    length: int
    survivors: int
    noise: str

    def session(self) -> bytes:
        """The name of the session, 32 bytes: another for whatever differs in what is agreed to."""
        return hashlib.sha256(b"qedge/secure-aggregation session\0" + wire.encode(self)).digest()

    @property
    def ring(self) -> Ring:
        """In which the sum is computed."""
        return Ring(self.bits)


@dataclass(frozen=True)
class Policy:
    """What a client insists on; threshold and colluders: shares of the group's members.

    authority: the enrolment authority's public key, known from elsewhere; noise: what it will add to its vector; survivors: of how large a
    share of the members a sum must be at least; honest: of how many members that do not collude, for whose noise together it is sized;
    run, rounds: the only run it takes part in, and how many rounds of it there are, where it was told.
    """

    authority: bytes
    threshold: float
    colluders: float
    server: str = MALICIOUS
    least_members: int = LEAST_MEMBERS
    noise: str = ""
    survivors: float = 0.0
    honest: int = 0
    run: str | None = None
    rounds: int | None = None

    def check(self, terms: Terms, roster: Roster) -> None:
        """Refuse a session below this policy.

        Raises:
            MessageRefused: with what was announced and what would be accepted.
        """
        roster.check(self.authority)
        if terms.roster != roster.digest() or terms.members != len(roster.places):
            raise MessageRefused("the roster is not the one that the session names")
        if self.run is not None and terms.run != self.run:
            raise MessageRefused(f"run: '{terms.run}' announced; this client takes part in '{self.run}'", given=terms.run)
        if self.rounds is not None and terms.round > self.rounds:
            raise MessageRefused(f"round {terms.round} announced; this client takes part in {self.rounds}", given=terms.round)
        colluders = colluders_of(terms.members, self.colluders)
        least = {
            "members": (terms.members, self.least_members),
            "threshold": (terms.threshold, threshold_of(terms.members, self.threshold)),
            "colluders": (terms.colluders, colluders),
            "survivors": (terms.survivors, max(terms.threshold, threshold_of(terms.members, self.survivors))),
            "survivors that do not collude": (terms.survivors - colluders, self.honest),
        }
        for name, (given, accepted) in least.items():
            if given < accepted:
                raise MessageRefused(f"{name}: {given} announced; this client's policy accepts {accepted} at least", given=given)
        if terms.server not in SERVERS or (self.server == MALICIOUS and terms.server != MALICIOUS):
            raise MessageRefused(f"server: '{terms.server}' announced; this client's policy accepts '{self.server}'", given=terms.server)
        if terms.noise != self.noise:
            raise MessageRefused(f"noise: '{terms.noise}' announced; this client adds '{self.noise}'", given=terms.noise)
        try:
            refuse_unsafe(terms.members, terms.threshold, terms.colluders, terms.server)
            Ring(terms.bits)
        except InvalidPrivacy as error:
            raise MessageRefused(error.message, **error.facts) from None


@dataclass
class Memory:
    """What a client remembers of the sessions it was in, by run: the last one it joined, with whom, and the last round that it revealed."""

    joined: dict[str, tuple[int, int]] = field(default_factory=dict)
    revealed: dict[str, int] = field(default_factory=dict)
    rosters: dict[str, bytes] = field(default_factory=dict)

    def join(self, terms: Terms) -> None:
        """Refuse a session that was used, an older one, and another attempt at a round with others, or once its sum was opened.

        Those who were not asked for shares do not know whether a sum was opened that has their vector in it. That it takes t of the same
        members each time is what keeps it from being in another.

        Raises:
            MessageRefused: the four.
        """
        here = (terms.round, terms.attempt)
        if here <= self.joined.get(terms.run, (0, 0)):
            raise MessageRefused(f"round {terms.round}, attempt {terms.attempt} is no later than what this client took part in")
        if terms.round <= self.revealed.get(terms.run, 0):
            raise MessageRefused(f"shares of round {terms.round} were revealed; there is no other attempt at it", round=terms.round)
        if terms.round == self.joined.get(terms.run, (0, 0))[0] and terms.roster != self.rosters.get(terms.run, terms.roster):
            raise MessageRefused(f"another attempt at round {terms.round} names other members", round=terms.round)
        self.joined[terms.run], self.rosters[terms.run] = here, terms.roster

    def reveal(self, terms: Terms) -> None:
        """Remember that shares of this round leave; refuse it for a session that was left for a later one.

        Nobody thus opens two sums of one round, nor takes part in a later session of a round of which it opened a sum.

        Raises:
            MessageRefused: a later session was joined.
        """
        here = (terms.round, terms.attempt)
        if here != self.joined.get(terms.run):
            raise MessageRefused(f"round {terms.round}, attempt {terms.attempt} was left for a later session; nothing of it is revealed")
        self.revealed[terms.run] = terms.round
