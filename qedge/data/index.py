"""The index of a table: a folder in which each client's rows lie together, to be read when they are asked for.

    index.json      what it was made of, and a digest of every other file; of itself, too
    features.npy    float32 [rows, F], unscaled, client by client, in the order in which each client had them
    labels.npy      int32 [rows], places in index.json's `labels`
    offsets.npy     int64 [clients + 1]: the rows of client k are offsets[k]:offsets[k + 1]
    digests.npy     uint8 [clients, 16]: BLAKE2b of each client's features
    clients.json    the clients' ids, sorted
    identity        the unkeyed messages by which a ledger knows the table again

All of it is as private as the rows: the folder is 0700, its files 0600. Features are read, not mapped: a file that is cut short while it
is mapped ends the process. They are checked against their client's digest whenever they are read, so that nobody trains on rows that were
changed or damaged since, on whichever node they are; opening checks the rest. The digests are no signature: whoever may write the folder
may make another of it, as whoever may write a table may write another.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from qedge.data.rows import Floats, Indices
from qedge.data.tables import Labels
from qedge.errors import DataError, DataNotFound

FORMAT = "qedge index 1"
MANIFEST, CLIENTS, IDENTITY = "index.json", "clients.json", "identity"
FEATURES, LABELS, OFFSETS, DIGESTS = "features.npy", "labels.npy", "offsets.npy", "digests.npy"
DIGEST_BYTES = 16
BLOCK_ROWS = 1 << 14
Digests = npt.NDArray[np.uint8]


class Manifest(BaseModel):
    """What an index was made of.

    as_text: of a CSV, whether its labels are written as they were read, so that "1" and 1 are the same; None of other tables, whose labels
    are of one kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: str
    label: str
    dropped: tuple[str, ...]
    features: tuple[str, ...]
    labels: Labels
    as_text: bool | None


def is_index(path: Path) -> bool:
    """Whether a folder, whatever its name, holds the index of a table."""
    return (path / MANIFEST).is_file()


class Index:
    """An index as it lies on the disk, its features unread.

    `manifest`; `clients`: ids, sorted; `offsets`: int64 [clients + 1]; `labels`: int32 [rows]; `identity`: the messages of
    `qedge.data.fingerprint` and `qedge.data.table_fingerprint`.
    """

    def __init__(self, path: Path) -> None:
        """Open it, and check everything but the features.

        Raises:
            DataNotFound: a file is not there. DataError: it is not as it was made, or cannot be read.
        """
        self.path = path.absolute()
        with _reading(self.path):
            described = json.loads((self.path / MANIFEST).read_bytes())
            digest = described.pop("digest")
            if described["format"] != FORMAT or digest != digest_of(described):
                _refuse(self.path)
            self.manifest = Manifest.model_validate(described["made of"])
            files = {name: self._checked(name, expected) for name, expected in described["files"].items()}
            self.clients = tuple(str(client) for client in json.loads(files[CLIENTS]))
            self.identity = tuple(_messages(files[IDENTITY]))
            self.labels: npt.NDArray[np.int32] = _array(files[LABELS])
            self.offsets: Indices = _array(files[OFFSETS])
            self.features = FeatureFile(self.path, len(self.manifest.features), self.offsets, _array(files[DIGESTS]))

    def _checked(self, name: str, expected: str) -> bytes:
        content = (self.path / name).read_bytes()
        if hashlib.blake2b(content, digest_size=32).hexdigest() != expected:
            _refuse(self.path)
        return content

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Clients (first, last + 1) whose rows are some 16,384 together, or one with more: all clients, in order."""
        starts = [0]
        for client in range(1, len(self.clients)):
            if self.offsets[client + 1] - self.offsets[starts[-1]] > BLOCK_ROWS:
                starts.append(client)
        yield from pairwise([*starts, len(self.clients)])


class FeatureFile:
    """The features of an index. It travels to other processes as a path and what they are checked by: each opens the file itself."""

    def __init__(self, path: Path, width: int, offsets: Indices, digests: Digests) -> None:
        """path: of the index; width: how many features; offsets: int64 [clients + 1]; digests: uint8 [clients, 16]."""
        self.path, self.width, self.offsets, self.digests = path, width, offsets, digests
        self.opened: tuple[io.FileIO, int] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return FeatureFile, (self.path, self.width, self.offsets, self.digests)

    def read(self, start: int, stop: int) -> Floats:
        """Those of clients `start` up to `stop`, unscaled, float32 [rows, F].

        Raises:
            DataNotFound: the index is not on this node. DataError: they are not as they were when it was made.
        """
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        values = np.empty((last - first, self.width), "<f4")
        with _reading(self.path):
            file, begin = self.opened = self.opened or self._open()
            left, at = memoryview(values.reshape(-1).view(np.uint8).data), begin + first * self.width * 4
            while left:
                got = os.pread(file.fileno(), len(left), at)
                if not got:
                    _refuse(self.path)
                left[: len(got)] = got
                left, at = left[len(got) :], at + len(got)
        bounds = self.offsets[start : stop + 1].tolist()
        for client, (low, high) in enumerate(pairwise(bounds), start):
            if client_digest(values[low - first : high - first]) != self.digests[client].tobytes():
                _refuse(self.path)
        return values

    def _open(self) -> tuple[io.FileIO, int]:
        """The file, and where its values begin."""
        file = (self.path / FEATURES).open("rb", buffering=0)
        shape = int(self.offsets[-1]), self.width
        if np.lib.format.read_magic(file) != (1, 0) or np.lib.format.read_array_header_1_0(file) != (shape, False, np.dtype("<f4")):
            _refuse(self.path)
        return file, file.tell()


def client_digest(features: Floats) -> bytes:
    """Of one client's features, contiguous and little-endian; 16 bytes."""
    return hashlib.blake2b(features.data, digest_size=DIGEST_BYTES).digest()


def digest_of(described: Mapping[str, object]) -> str:
    """Of what index.json says besides, hex."""
    return hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=32).hexdigest()


def _array(content: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file, of whatever type."""
    found: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def _messages(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "little")
        yield content[at + 4 : at + 4 + size]
        at += 4 + size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataNotFound(
            f"data index {path}: {Path(error.filename).name} is not on this node ({platform.node()}); put it back, copy the folder here or "
            "keep it where every node sees it, and go on; or name the table itself, whose rows travel",
            path=str(path),
        ) from None
    except OSError as error:
        raise DataError(f"data index {path} cannot be read: {error.strerror}", path=str(path)) from None
    except (ValueError, EOFError, KeyError, TypeError, AttributeError, SyntaxError, tokenize.TokenError):  # numpy parses headers as Python
        _refuse(path)


def _refuse(path: Path) -> NoReturn:
    raise DataError(
        f"data index {path} is not as it was made: it is damaged, cut short or changed; put it back, or index the table anew",
        path=str(path),
    )
