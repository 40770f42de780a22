"""What a ledger recognises data by: digests of rows that do not depend on their order, their scaling or their split.

Three kinds of message, each with its own domain, each to be keyed before it leaves the process (unkeyed, a digest of few
possible rows can be guessed): all rows; the rows of one client; the id of one client in its column. Renamed clients are
known by their rows, changed rows by their clients' ids. All three depend on the columns that a job selects, so a table has
further ones that do not (`qedge.data.table_fingerprint`).

Row bytes: features ordered by name, float32 little-endian with one zero, then 8 bytes of BLAKE2b of the label as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_ALL_ROWS = b"qedge/1 fingerprint of all rows\0"
_CLIENT_ROWS = b"qedge/1 fingerprint of a client's rows\0"
_CLIENT_ID = b"qedge/1 fingerprint of a client's id\0"

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]


def rows_messages(
    features: npt.NDArray[np.float32], labels: Indices, offsets: Indices, names: Sequence[str], vocabulary: Sequence[str | int]
) -> tuple[bytes, ...]:
    """One message for all rows and one for every client that has any.

    `features`: [rows, F] unscaled; `labels`: [rows] places in `vocabulary`; `offsets`: [clients + 1]; `names`: [F].
    """
    head = hashlib.blake2b(b"\0".join(counted(name) for name in sorted(names)), digest_size=32).digest()
    rows = _Rows(features, labels, names, vocabulary)
    key = np.concatenate([rows.sort_key(block) for block in _blocks(np.arange(len(labels)))] or [np.empty(0, np.uint64)])
    messages = [_ALL_ROWS + head + rows.digest(np.argsort(key))]
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((key, owner))
    for start, stop in pairwise(offsets.tolist()):
        if stop > start:  # clients without rows would all look the same
            messages.append(_CLIENT_ROWS + head + rows.digest(order[start:stop]))
    return tuple(messages)


def id_messages(column: str, clients: Sequence[str]) -> tuple[bytes, ...]:
    """One message for each client's id in its column."""
    return tuple(_CLIENT_ID + counted(column) + counted(client) for client in clients)


class _Rows:
    """Rows as bytes, made a block at a time: a block stays in the cache, all of them would double the memory."""

    def __init__(self, features: npt.NDArray[np.float32], labels: Indices, names: Sequence[str], vocabulary: Sequence[str | int]) -> None:
        self.features = features
        self.labels = labels
        self.order = sorted(range(len(names)), key=lambda place: names[place])
        digests = b"".join(hashlib.blake2b(str(label).encode(), digest_size=8).digest() for label in vocabulary)
        self.label_words = np.frombuffer(digests, "<u4").reshape(-1, 2)
        self.weights = np.frombuffer(hashlib.shake_256(b"qedge/1 row order").digest(8 * (len(names) + 2)), "<u8") | np.uint64(1)

    def words(self, rows: Indices) -> Words:
        """The bytes of some rows as uint32 [rows, F + 2]."""
        words = np.empty((len(rows), len(self.order) + 2), "<u4")
        np.add(self.features[rows].take(self.order, axis=1), np.float32(0), out=words[:, :-2].view("<f4"))  # -0 + 0 is 0
        words[:, -2:] = self.label_words[self.labels[rows]]
        return words

    def sort_key(self, rows: Indices) -> npt.NDArray[np.uint64]:
        """A number for each row that depends on its content only; equal for two distinct rows with chance 2^-32 at most."""
        return np.asarray(self.words(rows).astype(np.uint64) @ self.weights)

    def digest(self, rows: Indices) -> bytes:
        """Of some rows, in the order given."""
        state = hashlib.blake2b(digest_size=32)
        for block in _blocks(rows):
            state.update(self.words(block).data)
        return state.digest()


def _blocks(rows: Indices) -> Iterator[Indices]:
    return (rows[start : start + 4096] for start in range(0, len(rows), 4096))


def counted(text: str) -> bytes:
    """Text as bytes after their number, so that no two sequences of texts have the same bytes."""
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded
