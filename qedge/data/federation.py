"""The rows a job trains on: whose they are, how they are scaled and split, and how the ledger will know them again.

A table is read whole, or through an index of it (`qedge.data.index`), from which a client's rows are read when they are asked for; either
way they are the same rows, and known to the ledger as the same.

What is done to one client's rows never moves another's (`qedge.data.rows`). What does look across clients is named: the label set found in
a table that declares none (`Schema.labels_declared` is False).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qedge.data import built_in, fingerprint, table_fingerprint, tables
from qedge.data.columns import Columns, fill
from qedge.data.index import Index, Manifest, is_index
from qedge.data.indexed_rows import open_rows
from qedge.data.memory import give_back
from qedge.data.rows import Affine, Floats, Indices, Raw, Rows, Scale, Treatment, standardised
from qedge.errors import DataError, DataNotFound, InvalidJob, InvalidValue, UnknownKey, nearest
from qedge.job import BUILT_IN, Data, Partition

__all__ = ["Federation", "Rows", "Schema", "default_scope", "fingerprints", "load", "standardised"]


@dataclass(frozen=True, eq=False)
class Schema:
    """What a model of these rows is given and answers.

    The model's input is (raw - center) / spread, both float32 [features]. They are 0 and 1 unless `scale` is given: under
    `local` whoever calls the model standardises first.
    """

    features: tuple[str, ...]
    labels: tuple[str, ...] | tuple[int, ...]
    scale: Scale
    center: Floats
    spread: Floats
    labels_declared: bool


@dataclass(frozen=True, eq=False)
class Federation:
    """All clients' rows. `clients`: ids, sorted. `test_unscaled`: the rows of `test` before they were scaled, where the model scales.

    `identity` holds the unkeyed messages behind `fingerprints`; they are as private as the rows.
    """

    schema: Schema
    clients: tuple[str, ...]
    train: Rows
    test: Rows | None
    test_public_file: bool
    source: str
    identity: tuple[bytes, ...] = field(default=(), repr=False)
    test_unscaled: Rows | None = None

    @property
    def test_raw(self) -> Floats:
        """What a caller of the served model sends for `test`, float32 [test rows, F]."""
        sent = self.test_unscaled or self.test
        return np.empty((0, len(self.schema.features)), np.float32) if sent is None else sent.features

    def without_training_rows(self) -> Federation:
        """The same for somebody who need not have them: how many rows each client trains on is kept."""
        none = np.empty((0, len(self.schema.features)), np.float32)
        return replace(self, train=Rows(none, np.empty(0, np.int64), self.train.offsets))

    def client(self, k: int) -> tuple[Floats, Indices]:
        """The training rows of client `k`: (features [n, F], labels [n]), views."""
        return self.train.of(k)


def load(data: Data, seed: int, affine: Affine | None = None) -> Federation:
    """The federation that `data` describes. `seed` draws the partition of a built-in data set and the test share, nothing else.

    affine: center and spread, float32 [F] each, of rows whose scale is private, once they were released; until then rows are as they are.

    Raises:
        DataNotFound: a file, column or range that is not there. UnknownKey: a range for a feature that is not there.
        InvalidJob: a table whose client's column or label's is not named; an index knows its own.
        InvalidValue: NaN, infinite or missing values, or a range too narrow for float32.
        LabelMismatch: fewer than two labels, labels of mixed kinds, or a label that is not declared.
        DataError: an unreadable or empty file, a column that is not numeric, no numeric column; an index that is not as it was made, or was
            made with other columns.
    """
    if data.built_in:
        return _load_built_in(data, seed)
    path = Path(data.source).expanduser()
    return _load_index(data, path, seed, affine) if is_index(path) else _load_table(data, path, seed, affine)


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
    raw = deal_built_in(data, known, seed)
    center, spread = _affine(list(known.ranges.values()))
    schema = Schema(tuple(known.ranges), known.vocabulary, "given", center, spread, labels_declared=True)
    return _federation(data, schema, raw, _rows_messages(raw, schema), seed)


def deal_built_in(data: Data, known: built_in.BuiltIn, seed: int) -> Raw:
    """The rows of a built-in data set, unscaled, dealt to its synthetic clients."""
    partition = data.partition or Partition()
    owner = built_in.deal(known.labels, partition.clients, partition.dirichlet, np.random.default_rng(seed))
    width = len(str(partition.clients - 1))
    clients = tuple(f"client-{k:0{width}d}" for k in range(partition.clients))
    return Raw(known.features, known.labels, owner, clients).grouped()


def _load_table(data: Data, path: Path, seed: int, affine: Affine | None) -> Federation:
    if not path.exists() and path.suffix == "":
        raise DataNotFound(f"'{data.source}' is neither a file nor a built-in data set; {nearest(path.name, BUILT_IN)}", source=data.source)
    if data.client is None or data.label is None:
        raise InvalidJob("data: a table needs 'client', the column that says whose row it is, and 'label', the column to predict")
    declared = _declared(data.labels)
    table = Columns(path, _as_text(data.client, data.label, declared))
    for name in data.drop:
        tables.column(table, name, "data.drop")
    owner, clients = tables.client_ids(table, data.client)
    places, vocabulary = tables.labels(table, data.label, declared)
    names = tables.feature_names(table, {data.client, data.label, *data.drop})
    schema = _schema(data, names, vocabulary, affine)
    order = np.argsort(owner, kind="stable")
    features = np.empty((table.num_rows, len(names)), np.float32)
    fill(lambda: features, table, names, order)
    raw = Raw(features, places[order], owner[order], clients)
    messages = _rows_messages(raw, schema) + fingerprint.id_messages(data.client, clients)
    messages += table_fingerprint.table_messages(table, owner) + table_fingerprint.particular_id_messages(clients)
    del table
    give_back()
    return _federation(data, schema, raw, messages, seed)


def _load_index(data: Data, path: Path, seed: int, affine: Affine | None) -> Federation:
    index = Index(path)
    made_of = index.manifest
    _refuse_others(data, made_of)
    data = data.model_copy(update={"client": made_of.client, "label": made_of.label})
    declared = _declared(data.labels)
    places, vocabulary = tables.among(_as_declared(made_of, declared), declared, made_of.label)
    schema = _schema(data, made_of.features, vocabulary, affine)
    train, test, test_unscaled = open_rows(index, places, _treatment(data, schema, seed))
    if isinstance(data.test, str):
        test, test_unscaled = _public_rows(data, schema)
    return Federation(schema, index.clients, train, test, isinstance(data.test, str), path.name, index.identity, test_unscaled)


def _refuse_others(data: Data, made_of: Manifest) -> None:
    """Refuse a job that takes other columns than an index holds.

    Raises:
        DataNotFound: a column that the table did not have; DataError: one that it had, for another purpose.
    """
    known = (made_of.client, made_of.label, *made_of.features, *made_of.dropped)
    asked = [("client", data.client), ("label", data.label), *(("drop", name) for name in data.drop)]
    for role, name in asked:
        if name is not None and name not in known:
            raise DataNotFound(f"data.{role} '{name}' is not a column of the indexed table; {nearest(name, known)}", column=name)
    for role, name, own in (("client", data.client, made_of.client), ("label", data.label, made_of.label)):
        if name not in (None, own):
            raise DataError(f"data.{role} is '{name}', and the index was made with '{own}'; name that, or index the table anew", given=name)
    if data.drop and set(data.drop) != set(made_of.dropped):
        kept = "', '".join(made_of.dropped)
        what = f"without '{kept}'" if kept else "with all columns"
        raise DataError(f"data.drop is {list(data.drop)}, and the index was made {what}; leave it out, or index the table anew")


def _as_declared(made_of: Manifest, declared: tables.Labels | None) -> tables.Labels:
    """An index's labels, as text where a job declares text and the table would have been read so."""
    if declared is None or made_of.as_text is None or isinstance(declared[0], int) or isinstance(made_of.labels[0], str):
        return made_of.labels
    if not made_of.as_text:
        raise DataError(
            f"label column '{made_of.label}' was read as whole numbers, and its text is not just these; give data.labels as numbers, or "
            "name the table itself",
            column=made_of.label,
        )
    return tuple(map(str, made_of.labels))


def _schema(data: Data, names: tuple[str, ...], vocabulary: tables.Labels, affine: Affine | None) -> Schema:
    unscaled = [(0.0, 1.0)] * len(names)
    ranges = unscaled if data.ranges is None else _declared_ranges(data.ranges, names)
    if data.scale != "private":
        return Schema(names, vocabulary, data.scale, *_affine(ranges), labels_declared=data.labels is not None)
    scale: Scale = "none" if affine is None else "given"
    return Schema(names, vocabulary, scale, *(affine or _affine(unscaled)), labels_declared=data.labels is not None)


def _rows_messages(raw: Raw, schema: Schema) -> tuple[bytes, ...]:
    return fingerprint.rows_messages(raw.features, raw.labels, raw.offsets, schema.features, schema.labels)


def _as_text(client: str, label: str, declared: tables.Labels | None) -> tuple[str, ...]:
    return (client, label) if declared and isinstance(declared[0], str) else (client,)


def _declared(given: tuple[str | int, ...] | None) -> tables.Labels | None:
    """The declared labels, which a job has checked to be all text or all whole numbers."""
    if given is None:
        return None
    return tuple(label for label in given if isinstance(label, str)) or tuple(label for label in given if isinstance(label, int))


def _federation(data: Data, schema: Schema, raw: Raw, messages: tuple[bytes, ...], seed: int) -> Federation:
    """Splits, then scales: a client's own statistics come from its training rows only."""
    treatment = _treatment(data, schema, seed)
    train, held_out = treatment.split(raw)
    affine = treatment.affine_of(train)
    test, test_unscaled = _public_rows(data, schema)
    if held_out is not None:
        test = treatment.scaled(held_out, affine)
        test_unscaled = Rows(held_out.features, held_out.labels, held_out.offsets) if schema.scale == "given" else None
    return Federation(
        schema=schema,
        clients=raw.clients,
        train=treatment.scaled(train, affine),
        test=test,
        test_public_file=isinstance(data.test, str),
        source=data.source if data.built_in else Path(data.source).name,
        identity=messages,
        test_unscaled=test_unscaled,
    )


def _treatment(data: Data, schema: Schema, seed: int) -> Treatment:
    return Treatment(schema.scale, (schema.center, schema.spread), data.test if isinstance(data.test, float) else None, seed)


def _public_rows(data: Data, schema: Schema) -> tuple[Rows | None, Rows | None]:
    """The rows of the file `data.test` in its order, and unscaled where the scale is given; of its columns the client's may be missing."""
    if not isinstance(data.test, str):
        return None, None
    path, client, label = Path(data.test), data.client or "", data.label or ""
    table = tables.read(path, _as_text(client, label, schema.labels))
    places, _ = tables.labels(table, label, schema.labels)
    features = tables.features(table, schema.features)
    clients: tuple[str, ...] = ("",)
    owner = np.zeros(len(features), np.int64)
    if schema.scale == "local" and client in table.column_names:
        owner, clients = tables.client_ids(table, client)
    raw = Raw(features, places, owner, clients).grouped()
    # By themselves: by the clients' statistics they would carry private ones out.
    treatment = Treatment(schema.scale, (schema.center, schema.spread), None, 0)
    unscaled = Rows(raw.features, raw.labels, raw.offsets) if schema.scale == "given" else None
    return treatment.scaled(raw, treatment.affine_of(raw)), unscaled


def _affine(ranges: list[built_in.Range]) -> Affine:
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
