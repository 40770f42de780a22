"""The rows a job trains on: whose they are, how they are scaled and split, and how the ledger will know them again.

Neighbouring relation: zero-out (one client's rows emptied, the roster of clients public). So nothing here that touches one
client's rows may move another's: the test share is drawn from a generator of the client's own, and `scale: local` uses the
client's own training rows. What does look across clients is named: the label set found in a table that declares none
(`Schema.labels_declared` is False).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from qedge.data import built_in, fingerprint, table_fingerprint, tables
from qedge.errors import DataError, DataNotFound, InvalidValue, UnknownKey, nearest
from qedge.job import BUILT_IN, Data, Partition

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Schema:
    """What a model of these rows is given and answers.

    The model's input is (raw - center) / spread, both float32 [features]. They are 0 and 1 unless `scale` is given: under
    `local` whoever calls the model standardises first.
    """

    features: tuple[str, ...]
    labels: tuple[str, ...] | tuple[int, ...]
    scale: Literal["none", "local", "given"]
    center: Floats
    spread: Floats
    labels_declared: bool


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows grouped by client, as a model takes them: those of client k are `offsets[k]:offsets[k + 1]`.

    `features`: float32 [rows, F], contiguous, scaled. `labels`: int64 [rows], places in `Schema.labels`. `offsets`: int64
    [clients + 1]; [0, rows] for a file of public test rows, which are nobody's.
    """

    features: Floats
    labels: Indices
    offsets: Indices

    def of(self, k: int) -> tuple[Floats, Indices]:
        """The rows of client `k`: (features [n, F], labels [n]), views."""
        rows = slice(self.offsets[k], self.offsets[k + 1])
        return self.features[rows], self.labels[rows]


@dataclass(frozen=True, eq=False)
class Federation:
    """All clients' rows. `clients`: ids, sorted. `test_raw`: float32 [test rows, F], what a caller of the served model sends.

    `identity` holds the unkeyed messages behind `fingerprints`; they are as private as the rows.
    """

    schema: Schema
    clients: tuple[str, ...]
    train: Rows
    test: Rows | None
    test_raw: Floats
    test_public_file: bool
    source: str
    identity: tuple[bytes, ...] = field(default=(), repr=False)

    def client(self, k: int) -> tuple[Floats, Indices]:
        """The training rows of client `k`: (features [n, F], labels [n]), views."""
        return self.train.of(k)


def load(data: Data, seed: int) -> Federation:
    """The federation that `data` describes. `seed` draws the partition of a built-in data set and the test share, nothing else.

    Raises:
        DataNotFound: a file, column or range that is not there. UnknownKey: a range for a feature that is not there.
        InvalidValue: NaN, infinite or missing values, or a range too narrow for float32.
        LabelMismatch: fewer than two labels, labels of mixed kinds, or a label that is not declared.
        DataError: an unreadable or empty file, a column that is not numeric, no numeric column.
    """
    return _load_built_in(data, seed) if data.built_in else _load_table(data, seed)


def default_scope(data: Data) -> str:
    """The budget scope of data that name none: the built-in's name, or the file's stem in the letters a scope may have."""
    stem = data.source if data.built_in else Path(data.source).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:100] or "data"


def fingerprints(federation: Federation, mac: Callable[[bytes], bytes]) -> frozenset[str]:
    """Hex MACs by which a ledger sees that two jobs touch the same data, whatever the order, scaling or split.

    One of all rows, one of each client's rows, and for a table one of each client's id in its column, and those that do not
    depend on the columns a job takes: of the whole content, of particular columns and of particular ids. `mac` is keyed:
    without the key they tell nothing, not even about rows one can guess.

    Raises:
        DataError: a federation that was not made by `load`, so that overlap could not be seen.
    """
    if not federation.identity:
        raise DataError("these data carry no identity, so no ledger could know them again; accepted: what qedge.data.federation.load gives")
    return frozenset(mac(message).hex() for message in federation.identity)


def _load_built_in(data: Data, seed: int) -> Federation:
    if isinstance(data.test, str):
        raise DataError(f"data.test: '{data.source}' has no file of test rows; accepted: a share between 0 and 1", given=data.test)
    known = built_in.read(data.source)
    partition = data.partition or Partition()
    owner = built_in.deal(known.labels, partition.clients, partition.dirichlet, np.random.default_rng(seed))
    width = len(str(partition.clients - 1))
    clients = tuple(f"client-{k:0{width}d}" for k in range(partition.clients))
    raw = _Raw(known.features, known.labels, owner, clients).grouped()
    center, spread = _affine(list(known.ranges.values()))
    schema = Schema(tuple(known.ranges), known.vocabulary, "given", center, spread, labels_declared=True)
    return _federation(data, schema, raw, _rows_messages(raw, schema), seed)


def _load_table(data: Data, seed: int) -> Federation:
    path = Path(data.source).expanduser()
    client, label = data.client or "", data.label or ""
    if not path.exists() and path.suffix == "":
        raise DataNotFound(f"'{data.source}' is neither a file nor a built-in data set; {nearest(path.name, BUILT_IN)}", source=data.source)
    declared = _declared(data.labels)
    table = tables.read(path, _as_text(client, label, declared))
    for name in data.drop:
        tables.column(table, name, "data.drop")
    owner, clients = tables.client_ids(table, client)
    places, vocabulary = tables.labels(table, label, declared)
    names = tables.feature_names(table, {client, label, *data.drop})
    ranges = [(0.0, 1.0)] * len(names) if data.ranges is None else _declared_ranges(data.ranges, names)
    schema = Schema(names, vocabulary, data.scale, *_affine(ranges), labels_declared=declared is not None)
    raw = _Raw(tables.features(table, names), places, owner, clients).grouped()
    messages = _rows_messages(raw, schema) + fingerprint.id_messages(client, clients)
    messages += table_fingerprint.table_messages(table) + table_fingerprint.particular_id_messages(clients)
    return _federation(data, schema, raw, messages, seed)


def _rows_messages(raw: _Raw, schema: Schema) -> tuple[bytes, ...]:
    return fingerprint.rows_messages(raw.features, raw.labels, raw.offsets, schema.features, schema.labels)


def _as_text(client: str, label: str, declared: tables.Labels | None) -> tuple[str, ...]:
    return (client, label) if declared and isinstance(declared[0], str) else (client,)


def _declared(given: tuple[str | int, ...] | None) -> tables.Labels | None:
    """The declared labels, which a job has checked to be all text or all whole numbers."""
    if given is None:
        return None
    return tuple(label for label in given if isinstance(label, str)) or tuple(label for label in given if isinstance(label, int))


@dataclass(frozen=True, eq=False)
class _Raw:
    """Unscaled rows, float32 [rows, F], and whose they are, int64 [rows]."""

    features: Floats
    labels: Indices
    owner: Indices
    clients: tuple[str, ...]

    def grouped(self) -> _Raw:
        """The same rows, client by client, in the order in which each client had them."""
        if (np.diff(self.owner) >= 0).all():
            return self
        order = np.argsort(self.owner, kind="stable")
        return _Raw(self.features[order], self.labels[order], self.owner[order], self.clients)

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Raw:
        """The rows that are chosen, bool [rows]."""
        return _Raw(self.features[chosen], self.labels[chosen], self.owner[chosen], self.clients)

    @property
    def offsets(self) -> Indices:
        """Where each client's rows begin, int64 [clients + 1]."""
        return np.searchsorted(self.owner, np.arange(len(self.clients) + 1)).astype(np.int64)


def _federation(data: Data, schema: Schema, raw: _Raw, messages: tuple[bytes, ...], seed: int) -> Federation:
    """Splits, then scales: a client's own statistics come from its training rows only."""
    train, test = raw, None
    if isinstance(data.test, float):
        in_test = _test_share(raw, data.test, seed)
        train, test = raw.where(~in_test), raw.where(in_test)
    elif data.test is not None:
        test = _public_rows(data, schema)
    public = isinstance(data.test, str)
    affine = test_affine = (schema.center, schema.spread)
    if data.scale == "local":
        affine = _standard(train)
        # Public rows are standardised by themselves: by the clients' statistics they would carry private ones out.
        test_affine = _standard(test) if public and test else affine
    test_rows = _scaled(test, *test_affine, schema.scale) if test else None
    test_raw = test.features if test else np.empty((0, len(schema.features)), np.float32)
    return Federation(
        schema=schema,
        clients=raw.clients,
        train=_scaled(train, *affine, schema.scale),
        test=test_rows,
        test_raw=test_rows.features if test_rows and data.scale == "local" else test_raw,
        test_public_file=public,
        source=data.source if data.built_in else Path(data.source).name,
        identity=messages,
    )


def _test_share(raw: _Raw, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows are for testing, bool [rows]: share * rows of each client, rounded at random by a generator of its own.

    Rounding at random lets small clients be tested as often as large ones. One row at least trains.
    """
    chosen = np.zeros(len(raw.features), np.bool_)
    bounds = raw.offsets.tolist()
    for client, start, stop in zip(raw.clients, bounds[:-1], bounds[1:], strict=True):
        own = int.from_bytes(hashlib.blake2b(client.encode(), digest_size=16).digest(), "little")
        generator = np.random.default_rng([seed, own])
        size = min(int(share * (stop - start) + generator.random()), stop - start - 1)
        if size > 0:
            chosen[start + generator.choice(stop - start, size, replace=False)] = True
    return chosen


def _public_rows(data: Data, schema: Schema) -> _Raw:
    """The rows of the file `data.test`: the same columns, of which the client's may be missing; in the file's order."""
    path, client, label = Path(str(data.test)), data.client or "", data.label or ""
    table = tables.read(path, _as_text(client, label, schema.labels))
    places, _ = tables.labels(table, label, schema.labels)
    features = tables.features(table, schema.features)
    clients: tuple[str, ...] = ("",)
    owner = np.zeros(len(features), np.int64)
    if data.scale == "local" and client in table.column_names:
        owner, clients = tables.client_ids(table, client)
    return _Raw(features, places, owner, clients).grouped()


def _scaled(raw: _Raw, center: Floats, spread: Floats, scale: str) -> Rows:
    """Rows as a model takes them; `center` and `spread` are [F], or [clients, F]."""
    if scale == "none":
        return Rows(raw.features, raw.labels, raw.offsets)
    if center.ndim == 2:
        center, spread = center[raw.owner], spread[raw.owner]
    with np.errstate(over="ignore"):
        features = (raw.features - center) / spread
    if not np.isfinite(features).all():
        raise InvalidValue("scaling left the range of float32; the columns or data.ranges differ by more than 1e38")
    return Rows(features, raw.labels, raw.offsets)


def standardised(features: Floats, owner: Indices) -> Floats:
    """Rows as `scale: local` makes them: each by the mean and standard deviation of all given rows of its client.

    `features`: [rows, F] unscaled; `owner`: [rows], 0 to clients - 1, each of which has a row. The order of rows is kept.

    Raises:
        InvalidValue: the result leaves the range of float32.
    """
    order = np.argsort(owner, kind="stable")
    grouped = _Raw(features[order], np.zeros_like(owner), owner[order], ("",) * (int(owner.max()) + 1))
    result = np.empty_like(features)
    result[order] = _scaled(grouped, *_standard(grouped), "local").features
    return result


def _standard(raw: _Raw) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each client's rows, float32 [clients, F]; 1 where a client's values are all the same."""
    starts, sizes = raw.offsets[:-1], np.diff(raw.offsets)[:, None]
    low, high = (extreme.reduceat(raw.features, starts, axis=0) for extreme in (np.minimum, np.maximum))
    constant = low == high
    mean = np.add.reduceat(raw.features, starts, axis=0, dtype=np.float64) / sizes
    center = np.where(constant, low, mean.astype(np.float32))
    squares = np.square(raw.features.astype(np.float64) - center[raw.owner])
    variance = np.add.reduceat(squares, starts, axis=0) / sizes - np.square(mean - center)
    spread = np.sqrt(np.maximum(variance, 0)).astype(np.float32)
    return center, np.where(constant | (spread == 0), np.float32(1), spread)


def _affine(ranges: list[built_in.Range]) -> tuple[Floats, Floats]:
    """Center and spread that take each [low, high] to [0, 1]."""
    bounds = np.array(ranges, np.float64)
    return bounds[:, 0].astype(np.float32), (bounds[:, 1] - bounds[:, 0]).astype(np.float32)


def _declared_ranges(ranges: dict[str, built_in.Range], names: tuple[str, ...]) -> list[built_in.Range]:
    """The ranges in the order of the features."""
    unknown = [name for name in ranges if name not in names]
    if unknown:
        raise UnknownKey(f"data.ranges: '{unknown[0]}' is not a feature; {nearest(unknown[0], names)}", given=unknown[0])
    missing = [name for name in names if name not in ranges]
    if missing:
        raise DataNotFound(f"data.ranges has no range for the feature '{missing[0]}'; scale: given needs one for each", column=missing[0])
    ordered = [ranges[name] for name in names]
    with np.errstate(over="ignore"):
        low, spread = _affine(ordered)
    wrong = np.flatnonzero(~np.isfinite(low) | ~np.isfinite(spread) | (spread < np.finfo(np.float32).tiny))
    if wrong.size:
        raise InvalidValue(f"data.ranges: the range of '{names[wrong[0]]}' is too wide or too narrow for float32", column=names[wrong[0]])
    return ordered
