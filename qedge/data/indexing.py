"""Makes the index of a table (`qedge.data.index`): whole, or not at all.

Parquet is gone through a column, or some rows of some columns, at a time: that takes some 200 bytes a row, however wide the table, and what
the system caches of the features' file. A CSV or an npz is in memory whole, as it is when a job names the table itself.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

from qedge.data import fingerprint, index, table_fingerprint, tables
from qedge.data.columns import Columns, fill
from qedge.errors import DataError
from qedge.storage import storage_errors, sync_folder


@dataclass(frozen=True)
class Made:
    """What `make_index` made."""

    path: Path
    clients: int
    rows: int
    features: int


def make_index(source: Path, client: str, label: str, drop: Collection[str] = (), out: Path | None = None) -> Made:
    """Make the index of the table `source` in the folder `out`: by default beside it, named for it with the ending `.index`.

    Raises:
        DataNotFound: a file or column that is not there. InvalidValue: NaN, infinite or missing values.
        LabelMismatch: fewer than two labels.
        DataError: `out` is there already, one column is to serve two purposes, or as `qedge.data.tables.read`.
        StorageFull, HomeUnusable: the folder cannot be written.
    """
    out = source.with_suffix(".index") if out is None else out
    if client == label or {client, label} & set(drop):
        raise DataError("the client's column, the label's and those that are dropped must differ", client=client, label=label)
    columns = Columns(source, (client,))
    if os.path.lexists(out):
        raise DataError(f"{out} is there already, perhaps in use; remove it, or give the index another name", path=str(out))
    making = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    with storage_errors(out):
        making.mkdir(mode=0o700)
        try:
            made = _write(columns, client, label, sorted(drop), making)
            for file in making.iterdir():
                _settle(file)
            sync_folder(making)
            making.rename(out)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        sync_folder(out.parent)
    return Made(out, *made)


def _write(columns: Columns, client: str, label: str, drop: Sequence[str], folder: Path) -> tuple[int, int, int]:
    """All files of an index; how many clients, rows and features it has."""
    for name in drop:
        tables.column(columns, name, "drop")
    owner, clients = tables.client_ids(columns, client)
    places, vocabulary = tables.labels(columns, label, None)
    names = tables.feature_names(columns, {client, label, *drop})
    order = np.argsort(owner, kind="stable")
    offsets = np.searchsorted(owner[order], np.arange(len(clients) + 1)).astype("<i8")
    places = places[order]
    np.lib.format.open_memmap(folder / index.FEATURES, "w+", "<f4", (len(order), len(names)))
    # Mapped anew for some rows at a time: what is written is then the disk's to keep, not this process's.
    fill(lambda: np.lib.format.open_memmap(folder / index.FEATURES, "r+"), columns, names, order)
    features = np.lib.format.open_memmap(folder / index.FEATURES, "r")
    messages = fingerprint.rows_messages(features, places, offsets, names, vocabulary) + fingerprint.id_messages(client, clients)
    messages += table_fingerprint.table_messages(columns, owner) + table_fingerprint.particular_id_messages(clients)
    digests = b"".join(index.client_digest(features[first:last]) for first, last in pairwise(offsets.tolist()))
    as_text = _as_text(columns, label, vocabulary)
    made_of = index.Manifest(client=client, label=label, dropped=tuple(drop), features=names, labels=vocabulary, as_text=as_text)
    files = {
        index.LABELS: _npy(places.astype("<i4")),
        index.OFFSETS: _npy(offsets),
        index.DIGESTS: _npy(np.frombuffer(digests, np.uint8).reshape(-1, index.DIGEST_BYTES)),
        index.CLIENTS: json.dumps(clients).encode(),
        index.IDENTITY: b"".join(len(message).to_bytes(4, "little") + message for message in messages),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    digests_of = {name: blake2b(content, digest_size=32).hexdigest() for name, content in files.items()}
    described = {"format": index.FORMAT, "made of": made_of.model_dump(mode="json"), "files": digests_of}
    text = json.dumps(described | {"digest": index.digest_of(described)}, indent=1)
    (folder / index.MANIFEST).write_text(text, encoding="utf-8")
    return len(clients), len(owner), len(names)


def _as_text(columns: Columns, label: str, vocabulary: tables.Labels) -> bool | None:
    """Of a CSV, whether its labels as written are those that were read; None of other tables."""
    if columns.suffix != ".csv":
        return None
    return tables.written(columns.path, label) == {str(value) for value in vocabulary}


def _npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def _settle(file: Path) -> None:
    """Put a file on the disk, for its owner alone."""
    with file.open("rb") as opened:
        os.fchmod(opened.fileno(), 0o600)
        os.fsync(opened.fileno())
