"""The ledger's chain as far as this process has read it: verified event by event, folded into the books.

What other processes append is read and verified before every answer and every change. The signature of the last event read
vouches for all before it, because each hash covers the signature of its event.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from qedge.audit.witness import GENESIS, Head
from qedge.errors import InvalidPrivacy, LedgerTampered, RolledBack
from qedge.privacy.ledger_events import DOMAIN, Books, Event, hash_of
from qedge.privacy.ledger_store import EventStore
from qedge.security.keys import Keys


class EventChain:
    """The verified events of one store. head: of the last; log: the audit log's head that it carries; books: what follows."""

    def __init__(self, store: EventStore, keys: Keys) -> None:
        self.store = store
        self._keys = keys
        self.start_over()

    @property
    def path(self) -> Path:
        """Of the database."""
        return self.store.path

    def start_over(self) -> None:
        """Forget everything: `follow` then reads from the first event."""
        self.head = GENESIS
        self.log = GENESIS
        self.books = Books()
        self._hashes = [GENESIS.hash]
        self._bound = 0

    def contains(self, head: Head) -> bool:
        """Whether the chain went through this head."""
        return 0 <= head.seq < len(self._hashes) and self._hashes[head.seq] == head.hash

    def follow(self) -> None:
        """Read, verify and fold the events that are new. To be called within a transaction of the store.

        Raises:
            LedgerTampered: an event, its fingerprints or the signature does not hold.
            RolledBack: the last event read before is gone.
        """
        try:
            self._follow()
        except (LedgerTampered, RolledBack):
            self.start_over()
            raise

    def check_tables(self) -> None:
        """Whether the store holds what the events say and nothing else.

        Raises:
            LedgerTampered: it does not.
        """
        self.store.check()
        said = {(name, number, digest) for name, run in self.books.runs.items() for number, digest in run.releases.items()}
        if self.store.releases() != said:
            raise LedgerTampered(f"{self.path}: the table of releases is not what the events say", path=str(self.path))
        if self.store.bound() != self._bound:
            raise LedgerTampered(f"{self.path}: fingerprints were put in or taken out", path=str(self.path))

    def bound(self, macs: list[bytes]) -> dict[str, JsonValue]:
        """What an event says of the fingerprints it brings in (sorted, 32 bytes each): how many, and their digest.

        The digest is keyed as they are: under another silo key, all data would look new and have a budget again.
        """
        return {"count": len(macs), "digest": self._keys.mac("bound", b"".join(macs)).hex()}

    def _follow(self) -> None:
        rows = self.store.events(max(1, self.head.seq))
        if self.head.seq:
            if not rows or not _is(rows[0], self.head):
                raise RolledBack(f"{self.path} no longer ends in event {self.head.seq}, which was seen", path=str(self.path))
            rows = rows[1:]
        events, head = [], self.head
        for row in rows:
            event = _read(row)
            if event.seq != head.seq + 1 or event.previous != head.hash:
                raise LedgerTampered(f"ledger event {row[0]} does not follow from the one before", event=row[0])
            head = event.head
            events.append(event)
        if events and not self._keys.verify(DOMAIN, events[-1].body, events[-1].signature):
            raise LedgerTampered(f"ledger event {head.seq}: its signature does not hold under key {self._keys.key_id}", event=head.seq)
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        if "bound" in event.facts:
            macs = self.store.macs(event.seq)
            if self.bound(macs) != event.facts["bound"]:
                raise LedgerTampered(f"ledger event {event.seq}: its fingerprints were altered, or the silo key exchanged", event=event.seq)
            self._bound += len(macs)
        try:
            self.books.apply(event)
        except (ValueError, KeyError, InvalidPrivacy) as error:
            raise LedgerTampered(f"ledger event {event.seq} does not follow from the ones before: {error}", event=event.seq) from None
        self.head, self.log = event.head, event.log
        self._hashes.append(event.head.hash)


def _is(row: tuple[int, bytes, bytes], head: Head) -> bool:
    seq, body, signature = row
    return isinstance(body, bytes) and isinstance(signature, bytes) and head == Head(seq, hash_of(body, signature))


def _read(row: tuple[int, bytes, bytes]) -> Event:
    seq, body, signature = row
    try:
        if not isinstance(body, bytes) or not isinstance(signature, bytes):
            raise ValueError("it is not bytes")
        event = Event.read(body, signature)
        if event.seq != seq:
            raise ValueError("it has another number")
    except ValueError as error:
        raise LedgerTampered(f"ledger event {seq} was altered: {error}", event=seq) from None
    return event
