"""The write-ahead record of a run's releases: what a round publishes is on disk before anybody sees it.

One append-only file. A record is a header (magic, lengths), JSON naming run, round and epoch, the noised sum as little-endian int64 (and
the exact one where noise is correlated over rounds: the file is 0600 and then as secret as the rows), and an HMAC-SHA256 over all of it.
A record is appended and flushed to disk, then its digest is committed in the ledger, and only then is the sum used: after a crash the
record is taken up again instead of drawing new noise, so a round is never released twice. A torn record at the end, which no ledger
knows, has released nothing and is cut off.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qedge.errors import CheckpointTampered
from qedge.storage import storage_errors, sync_folder

_MAGIC = b"QEWA\x01\x00\x00\x00"
_HEADER = struct.Struct("<8sQQ")
_MAC_BYTES = 32

Mac = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Release:
    """One round's noised sum.

    total: [params] int64; kept: what the run needs to go on after it, [params] int64, as secret as the clients' rows and no part of
    what is released; session: of a secure sum its name, hex: such a sum is charged before it is known, and its total is empty until then
    (for good, if it never is); digest: what the ledger commits.
    """

    run: str
    round: int
    epoch: int
    total: np.ndarray
    kept: np.ndarray | None = None
    session: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over run, round and sum, or the session that opens it, hex."""
        head = json.dumps([self.run, self.round]).encode()
        if self.session:
            return hashlib.sha256(head + b"\0session\0" + self.session.encode()).hexdigest()
        return hashlib.sha256(head + b"\0" + self.total.astype("<i8").tobytes()).hexdigest()


class WriteAhead:
    """The file of releases of one run; `mac` is keyed, so that a record cannot be altered unnoticed."""

    def __init__(self, path: Path, mac: Mac) -> None:
        self.path = path
        self.mac = mac

    def append(self, release: Release) -> None:
        """Write one record and flush it to disk.

        Raises:
            StorageFull: it could not be written whole; what was written of it is cut off again.
        """
        known = {"epoch": release.epoch, "round": release.round, "run": release.run, "kept": release.kept is not None}
        facts = json.dumps(known | {"session": release.session}).encode()
        vectors = [release.total] if release.kept is None else [release.total, release.kept]
        body = b"".join(vector.astype("<i8").tobytes() for vector in vectors)
        record = _HEADER.pack(_MAGIC, len(facts), len(body)) + facts + body
        record += self.mac(record)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            whole = os.fstat(descriptor).st_size
            with storage_errors(self.path):
                try:
                    written = 0
                    while written < len(record):
                        written += os.write(descriptor, record[written:])
                    os.fdatasync(descriptor)
                    if whole == 0:
                        sync_folder(self.path.parent)
                except OSError:
                    os.ftruncate(descriptor, whole)
                    raise
        finally:
            os.close(descriptor)

    def read(self, committed: dict[int, str]) -> dict[int, Release]:
        """The records that count, by round: the one the ledger committed, else the last one written.

        committed: digests by round, as the ledger has them.

        Raises:
            CheckpointTampered: a record was altered, or one that the ledger committed is not what it was.
        """
        found: dict[int, Release] = {}
        if self.path.exists():
            content = self.path.read_bytes()
            at = 0
            while at < len(content):
                parsed = self._parse(content, at)
                if parsed is None:
                    self._cut(at)
                    break
                release, at = parsed
                if committed.get(release.round, release.digest) == release.digest:
                    found[release.round] = release
        return found

    def forget(self) -> None:
        """Drop all records, after a checkpoint that covers them is on disk."""
        self.path.unlink(missing_ok=True)

    def _parse(self, content: bytes, at: int) -> tuple[Release, int] | None:
        """The record at `at` and where the next begins; None when the rest is torn."""
        if len(content) - at < _HEADER.size:
            return None
        magic, facts_length, body_length = _HEADER.unpack_from(content, at)
        end = at + _HEADER.size + facts_length + body_length + _MAC_BYTES
        if magic != _MAGIC:
            raise CheckpointTampered(f"{self.path}: the record at byte {at} is not a release record", path=str(self.path), byte=at)
        if end > len(content):
            return None
        record, mac = content[at : end - _MAC_BYTES], content[end - _MAC_BYTES : end]
        if not hmac.compare_digest(self.mac(record), mac):
            raise CheckpointTampered(f"{self.path}: the record at byte {at} was altered", path=str(self.path), byte=at)
        facts = json.loads(record[_HEADER.size : _HEADER.size + facts_length])
        body = np.frombuffer(record[_HEADER.size + facts_length :], dtype="<i8").astype(np.int64)
        total, kept = np.split(body, 2) if facts["kept"] else (body, None)
        return Release(facts["run"], facts["round"], facts["epoch"], total, kept, facts["session"]), end

    def _cut(self, at: int) -> None:
        # Whether a torn end hides a committed round is for the caller to see: that round is then missing from what was read.
        os.truncate(self.path, at)
