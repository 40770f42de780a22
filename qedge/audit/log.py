"""The audit log: every change of state and every refusal, one JSON line each, chained by hash, its checkpoints signed.

An entry holds the hash of the one before, so that none can be altered, put in or taken out (Schneier & Kelsey 1999). Every
64th entry is a checkpoint, an Ed25519 signature over the head before it: anyone with the public key can verify a copy up to
its last checkpoint (`verify`). The entries after it, and a shortened log, are covered by the witness of the home.
No record of a client, no update, key or token belongs in a fact.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from qedge.audit import canonical
from qedge.audit.witness import GENESIS, Head, Witness
from qedge.errors import LogTampered, RolledBack
from qedge.security.keys import Keys
from qedge.security.keys import verify as verify_signature
from qedge.storage import locked, storage_errors

CHECKPOINT_EVERY = 64
_DOMAIN = "audit-log"
_FIELDS = {"seq", "time", "actor", "event", "facts", "previous", "hash"}


@dataclass(frozen=True)
class Entry:
    """One line of the log. time: UTC, ISO 8601; previous, hash: 64 hex digits."""

    seq: int
    time: str
    actor: str
    event: str
    facts: dict[str, JsonValue]
    previous: str
    hash: str

    @classmethod
    def read(cls, line: bytes) -> Entry:
        """An entry from its line, its own hash checked.

        Raises:
            ValueError: not canonical JSON, not an entry, or the hash is not its own.
        """
        value = canonical.parse(line)
        if not isinstance(value, dict) or set(value) != _FIELDS:
            raise ValueError("it is not an entry")
        seq, facts = value["seq"], value["facts"]
        if not isinstance(seq, int) or not isinstance(facts, dict):
            raise ValueError("it is not an entry")
        entry = cls(seq, str(value["time"]), str(value["actor"]), str(value["event"]), facts, str(value["previous"]), str(value["hash"]))
        if entry.line() != line or entry.hash != canonical.digest(entry.body()):
            raise ValueError("its hash does not hold")
        return entry

    def body(self) -> dict[str, object]:
        """What the hash is taken over."""
        return {name: value for name, value in vars(self).items() if name != "hash"}

    def line(self) -> bytes:
        """The entry as it stands in the file, without the newline."""
        return canonical.canonical(vars(self))


@dataclass(frozen=True)
class Report:
    """What a verification saw. signed: the last entry that a signature covers; what follows is chained but could be rewritten."""

    entries: int
    head: Head
    checkpoints: int
    signed: int


def verify(path: Path, public: bytes) -> Report:
    """Verify a copy of a log with nothing but the public key.

    Raises:
        LogTampered: names the first line that does not hold.
        HomeUnusable: it cannot be read.
    """
    chain = _Chain(public)
    with storage_errors(path):
        content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        chain.accept(line)
    return chain.report()


class AuditLog:
    """The log of one home. Several processes and threads may append at once; each line is on the disk when `append` returns."""

    def __init__(self, home: Path, keys: Keys, *, actor: str | None = None, clock: Callable[[], datetime] | None = None) -> None:
        """Open or begin the log, verified whole; a line torn by a crash is cut off, and an entry says so.

        actor: who acts through this object; default: the user of the process.

        Raises:
            LogTampered: an entry, a checkpoint or the witness was altered.
            RolledBack: the log ends before what the witness has seen.
        """
        self.path = home / "audit.log"
        self.actor = actor or _user()
        self._home, self._keys = home, keys
        self._clock = clock or (lambda: datetime.now(UTC))
        self._thread = threading.RLock()
        self._chain = _Chain(keys.public)
        with self._open():
            self._check_witness()

    def append(self, event: str, *, actor: str | None = None, ledger: Head | None = None, **facts: JsonValue) -> Entry:
        """Add one entry. ledger: the head of the ledger that the entry speaks of.

        Raises:
            TypeError: a fact that canonical JSON does not have (a float: give a decimal string).
            StorageFull: nothing was added.
            LogTampered, RolledBack: what another process appended does not hold.
        """
        if ledger is not None:
            facts["ledger"] = ledger.plain()
        with self._open() as file:
            entry = self._add(file, event, actor or self.actor, facts)
            self._flush(file)
            self._bear_witness()
        return entry

    def repeat(self, events: Sequence[tuple[str, str, Head, dict[str, JsonValue]]]) -> None:
        """Add what the ledger has on disk already, as (event, actor, the ledger's head, facts), flushed once for all.

        Raises:
            StorageFull: some were not added; repeating them later loses nothing.
        """
        with self._open() as file:
            for event, actor, ledger, facts in events:
                self._add(file, event, actor, {**facts, "ledger": ledger.plain()})
            self._flush(file)
            self._bear_witness()

    def checkpoint(self) -> Head:
        """Sign the head now, so that a copy of the log can be verified whole with the public key alone."""
        with self._open() as file:
            self._write_checkpoint(file)
            self._flush(file)
            self._bear_witness()
            return self._chain.head

    def verify(self) -> Report:
        """Verify all of it from the first line, against the witness too.

        Raises:
            LogTampered: names the first line that does not hold.
            RolledBack: the log ends before what the witness has seen.
        """
        with self._thread:
            self._chain = _Chain(self._keys.public)
            with self._open():
                self._check_witness()
                return self._chain.report()

    def now(self) -> str:
        """The time that an entry would carry: UTC, ISO 8601."""
        return self._clock().astimezone(UTC).isoformat(timespec="microseconds")

    def head(self) -> Head:
        """The end of the log, with what other processes have appended."""
        with self._open():
            return self._chain.head

    def ledger_head(self) -> Head:
        """The highest head of the ledger that any entry speaks of."""
        with self._open():
            return self._chain.ledger

    def contains(self, head: Head) -> bool:
        """Whether the log went through this head."""
        with self._open():
            return self._chain.contains(head)

    def entries(self) -> list[Entry]:
        """All entries, oldest first, verified."""
        with self._open() as file:
            chain = _Chain(self._keys.public)
            return [chain.accept(line) for line in _read(file, 0, self._chain.size).splitlines(keepends=True)]

    def witness(self) -> Witness:
        """The highest heads that were seen.

        Raises:
            LogTampered: the witness was altered. RolledBack: it is gone.
        """
        with self._open():
            return self._read_witness()

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The log's file, locked, everything in it read and verified."""
        with self._thread, locked(self.path) as file:
            self._follow(file)
            yield file

    def _follow(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._chain.size:
            raise RolledBack(f"{self.path} is shorter than it was ({size} bytes, {self._chain.size} seen)", path=str(self.path))
        new = _read(file, self._chain.size, size)
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            self._chain.accept(line)
        if len(whole) < len(new):
            self._cut_torn_line(file, len(new) - len(whole))

    def _cut_torn_line(self, file: int, torn: int) -> None:
        """A crash in mid-append leaves a last line without newline. It was never acknowledged, unless the witness knows it."""
        self._check_witness()
        with storage_errors(self.path):
            os.ftruncate(file, self._chain.size)
        self._write(file, "log.torn-line-cut", self.actor, {"bytes": torn})
        self._bear_witness()

    def _check_witness(self) -> None:
        if self._chain.head == GENESIS and Witness.read(self._home, self._keys) is None:
            Witness(GENESIS, GENESIS).create(self._home, self._keys)
        seen = self._read_witness().log
        if seen.seq > self._chain.head.seq:
            raise RolledBack(f"{self.path} ends at entry {self._chain.head.seq}; {seen.seq} entries were seen", path=str(self.path))
        if not self._chain.contains(seen):
            raise LogTampered(f"{self.path}, line {seen.seq}: it is not the entry that was seen", path=str(self.path), line=seen.seq)
        self._chain.signed = max(self._chain.signed, seen.seq)

    def _read_witness(self) -> Witness:
        found = Witness.read(self._home, self._keys)
        if found is None:
            raise RolledBack(f"the witness of {self.path} (keys/heads.json) is gone", path=str(self.path))
        return found

    def _bear_witness(self) -> None:
        self._chain.signed = self._chain.head.seq
        Witness(self._chain.head, self._chain.ledger).update(self._home, self._keys)

    def _write_checkpoint(self, file: int) -> None:
        head = self._chain.head
        signature = self._keys.sign(_DOMAIN, canonical.canonical(head.plain()))
        facts: dict[str, JsonValue] = {"key": self._keys.key_id, "signature": signature.hex()}
        self._write(file, "checkpoint", self.actor, facts)

    def _add(self, file: int, event: str, actor: str, facts: dict[str, JsonValue]) -> Entry:
        if (self._chain.head.seq + 1) % CHECKPOINT_EVERY == 0:
            self._write_checkpoint(file)
        return self._write(file, event, actor, facts)

    def _flush(self, file: int) -> None:
        with storage_errors(self.path):
            os.fsync(file)

    def _write(self, file: int, event: str, actor: str, facts: dict[str, JsonValue]) -> Entry:
        head = self._chain.head
        body = {"seq": head.seq + 1, "time": self.now(), "actor": actor, "event": event, "facts": facts, "previous": head.hash}
        line = canonical.canonical(body | {"hash": canonical.digest(body)}) + b"\n"
        with storage_errors(self.path):
            try:
                written = 0
                while written < len(line):
                    written += os.write(file, line[written:])
            except OSError:
                os.ftruncate(file, self._chain.size)
                raise
        return self._chain.accept(line)


class _Chain:
    """The log as far as it was read: each line must follow from the one before."""

    def __init__(self, public: bytes) -> None:
        self.public = public
        self.head = GENESIS
        self.ledger = GENESIS
        self.size = 0
        self.checkpoints = 0
        self.signed = 0
        self._hashes = [GENESIS.hash]

    def accept(self, line: bytes) -> Entry:
        """Take the next line.

        Raises:
            LogTampered: it does not follow; nothing is taken.
        """
        number = self.head.seq + 1
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it is incomplete")
            entry = Entry.read(line[:-1])
            if entry.seq != number or entry.previous != self.head.hash:
                raise ValueError("it does not follow from the line before")
            if entry.event == "checkpoint":
                self._check_signature(entry)
            elif number % CHECKPOINT_EVERY == 0:
                raise ValueError("a checkpoint belongs here")
            ledger = Head.read(entry.facts["ledger"]) if "ledger" in entry.facts else GENESIS
        except ValueError as error:
            raise LogTampered(f"audit log, line {number}: {error}", line=number) from None
        if entry.event == "checkpoint":
            self.checkpoints += 1
            self.signed = self.head.seq
        self.ledger = max(self.ledger, ledger, key=lambda head: head.seq)
        self.head = Head(entry.seq, entry.hash)
        self._hashes.append(entry.hash)
        self.size += len(line)
        return entry

    def contains(self, head: Head) -> bool:
        return 0 <= head.seq < len(self._hashes) and self._hashes[head.seq] == head.hash

    def report(self) -> Report:
        return Report(self.head.seq, self.head, self.checkpoints, self.signed)

    def _check_signature(self, entry: Entry) -> None:
        signature = bytes.fromhex(str(entry.facts.get("signature")))
        if not verify_signature(_DOMAIN, canonical.canonical(self.head.plain()), signature, self.public):
            raise ValueError("the checkpoint's signature does not hold under this key")


def _read(file: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(file, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
