"""The ledger's events in SQLite: appended, never changed, one immediate transaction a change.

Write-ahead journal with `synchronous=FULL`: a change that returned survives a power cut. The tables refuse updates and
deletes by trigger, a second event of one number and a second release of one round by primary key: a lock behind the rules of
the ledger, not instead of them. Whoever can write the file can take the triggers out; `check` and the chain show it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qedge.errors import Failed, HomeUnusable, LedgerTampered, QEdgeError, StorageFull
from qedge.storage import storage_errors

_BUSY_TIMEOUT_S = 60.0
_PAGE_BYTES = 4096
_MAKING = threading.Lock()  # no thread opens a database that another is about to close
_AT_ONCE = 500  # values in one query
_TABLES = {
    "events": "CREATE TABLE events (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, signature BLOB NOT NULL)",
    "bindings": "CREATE TABLE bindings (event INTEGER, mac BLOB, PRIMARY KEY (event, mac)) WITHOUT ROWID",
    "releases": "CREATE TABLE releases (run TEXT, round INTEGER, digest TEXT NOT NULL, PRIMARY KEY (run, round)) WITHOUT ROWID",
}
_SCHEMA = {
    **_TABLES,
    "bindings_by_mac": "CREATE INDEX bindings_by_mac ON bindings (mac)",
    **{
        f"{table}_no_{change}": f"CREATE TRIGGER {table}_no_{change} BEFORE {change.upper()} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END"
        for table in _TABLES
        for change in ("update", "delete")
    },
}


class EventStore:
    """The database of one ledger. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        """Open it, made (0600) when missing.

        Raises:
            LedgerTampered: it is not a database of ours. StorageFull, HomeUnusable: it cannot be written.
        """
        self.path = path
        with storage_errors(path):
            _make_if_missing(path)
        with self._errors():
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            self._db.execute("PRAGMA cell_size_check=ON")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        with self.transaction(write=True):
            empty = not self._db.execute("SELECT 1 FROM sqlite_schema").fetchone()
            if empty and path.stat().st_size <= _PAGE_BYTES:  # a larger file without tables is damaged: left as it is
                for statement in _SCHEMA.values():
                    self._db.execute(statement)

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """All or nothing, against one state of the database.

        Raises:
            StorageFull: nothing was changed. LedgerTampered: the file is damaged. Failed: another program keeps it locked.
        """
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def append(self, seq: int, body: bytes, signature: bytes) -> None:
        """One more event."""
        self._db.execute("INSERT INTO events VALUES (?, ?, ?)", (seq, body, signature))

    def bind(self, event: int, macs: Iterable[bytes]) -> None:
        """The fingerprints that an event brought in."""
        self._db.executemany("INSERT INTO bindings VALUES (?, ?)", [(event, mac) for mac in macs])

    def release(self, run: str, number: int, digest: str) -> None:
        """The one release of a round."""
        self._db.execute("INSERT INTO releases VALUES (?, ?, ?)", (run, number, digest))

    def events(self, first: int) -> list[tuple[int, bytes, bytes]]:
        """(seq, body, signature) of the events from number `first` on."""
        return self._db.execute("SELECT seq, body, signature FROM events WHERE seq >= ? ORDER BY seq", (first,)).fetchall()

    def macs(self, event: int) -> list[bytes]:
        """The fingerprints that an event brought in, in order."""
        return [bytes(mac) for (mac,) in self._db.execute("SELECT CAST(mac AS BLOB) FROM bindings WHERE event = ? ORDER BY mac", (event,))]

    def bound(self) -> int:
        """How many fingerprints there are in all."""
        return int(self._db.execute("SELECT count(*) FROM bindings").fetchone()[0])

    def releases(self) -> set[tuple[str, int, str]]:
        """(run, round, digest) of every release."""
        return set(self._db.execute("SELECT run, round, digest FROM releases"))

    def bringers(self, macs: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """(fingerprint, event that brought it in) for those that are known."""
        wanted, found = list(macs), []
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            query = f"SELECT mac, event FROM bindings WHERE mac IN ({','.join('?' * len(some))})"  # noqa: S608 - question marks only
            found += self._db.execute(query, some).fetchall()
        return found

    def check(self) -> None:
        """SQLite's own check of every page and index, and that the tables are the ones made here.

        Raises:
            LedgerTampered: they are not.
        """
        found = dict(self._db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
        if found != _SCHEMA:
            raise LedgerTampered(f"{self.path}: its tables are not the ledger's", path=str(self.path))
        (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise LedgerTampered(f"{self.path} is damaged: {verdict}", path=str(self.path))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _typed(error, self.path) from error
        except UnicodeDecodeError as error:  # SQLite quotes a damaged schema in its message
            raise LedgerTampered(f"{self.path} is damaged: its tables cannot be read", path=str(self.path)) from error


def _make_if_missing(path: Path) -> None:
    """An empty file (0600), unless there is one: closing a descriptor on a database that is open here would drop every lock this process
    has on it (POSIX); the next process to close it would take itself for the last one, and delete the journal that is being written.
    """
    with _MAKING, suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _typed(error: sqlite3.Error, path: Path) -> QEdgeError:
    """SQLite's error as ours, by its primary result code (the low byte)."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM):
        return StorageFull(f"{path} could not be written: {error}; what was acknowledged is whole", path=str(path))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Failed(f"{path} has been locked by another program for {_BUSY_TIMEOUT_S:g} s", path=str(path))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return HomeUnusable(f"{path} cannot be used: {error}", path=str(path))
    return LedgerTampered(f"{path} is damaged: {error}", path=str(path))
