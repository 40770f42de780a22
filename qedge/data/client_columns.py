"""The columns that a query asks about, client by client, no more rows of each than its public cap.

Missing, NaN and infinite values are refused, as in a job: what would be left out of one statistic and not of another could not be told
from the answers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qedge.data import built_in, fingerprint, table_fingerprint, tables
from qedge.data.columns import Columns
from qedge.data.federation import deal_built_in, load
from qedge.data.index import Index, is_index
from qedge.data.rows import Indices
from qedge.errors import DataNotFound, InvalidJob, InvalidValue, nearest
from qedge.job.data import BUILT_IN, Data
from qedge.job.query import QueryData

Numbers = npt.NDArray[np.float64]
Texts = npt.NDArray[np.bytes_]
LABEL = "label"


@dataclass(frozen=True, eq=False, repr=False)
class ClientRows:
    """One client's rows: `count` of them; `numbers`: float64 [count] by column; `texts`: bytes [count] by column, cut to a width."""

    count: int
    numbers: Mapping[str, Numbers]
    texts: Mapping[str, Texts]


@dataclass(frozen=True, eq=False, repr=False)
class ClientColumns:
    """All clients' rows, of which those of client k are `offsets[k]:offsets[k + 1]`; `offsets`: int64 [clients + 1]."""

    offsets: Indices
    numbers: Mapping[str, Numbers]
    texts: Mapping[str, Texts]

    def of(self, client: int) -> ClientRows:
        """The rows of one client, views."""
        start, stop = int(self.offsets[client]), int(self.offsets[client + 1])
        numbers = {name: values[start:stop] for name, values in self.numbers.items()}
        return ClientRows(stop - start, numbers, {name: values[start:stop] for name, values in self.texts.items()})


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """Who is asked: `clients`, ids, sorted; `identity`: the unkeyed messages by which a ledger knows the data, as private as the rows."""

    clients: tuple[str, ...]
    columns: ClientColumns
    source: str
    identity: tuple[bytes, ...]


def read_columns(data: QueryData, numbers: Collection[str], texts: Mapping[str, int], cap: int, seed: int) -> Population:
    """The columns `numbers` as float64, and `texts` as bytes of at most the widths given, of each client's first `cap` rows.

    Raises:
        DataNotFound: a file or column that is not there; the nearest is offered. InvalidJob: a table without its client column.
        InvalidValue: a number that is missing, NaN or infinite, a number asked of text, text asked of neither text nor whole numbers.
        DataError: as `qedge.data.federation.load`.
    """
    if data.built_in:
        return _of_built_in(data, numbers, texts, cap, seed)
    path = Path(data.source).expanduser()
    return _of_index(data, path, numbers, texts, cap) if is_index(path) else _of_table(data, path, numbers, texts, cap)


def _of_table(data: QueryData, path: Path, numbers: Collection[str], texts: Mapping[str, int], cap: int) -> Population:
    if not path.exists() and path.suffix == "":
        raise DataNotFound(f"'{data.source}' is neither a file nor a built-in data set; {nearest(path.name, BUILT_IN)}", source=data.source)
    if data.client is None:
        raise InvalidJob("data: a table needs 'client', the column that says whose row it is")
    table = Columns(path, {data.client, *texts} - set(numbers))
    if data.label is not None:
        tables.column(table, data.label, "data.label")
    owner, clients = tables.client_ids(table, data.client)
    order, offsets = _first_rows(owner, len(clients), cap)
    columns = ClientColumns(
        offsets,
        {name: _finite(tables.column(table, name, "column"), name)[order] for name in sorted(numbers)},
        {name: _text(table, name, width)[order] for name, width in sorted(texts.items())},
    )
    identity = fingerprint.id_messages(data.client, clients) + table_fingerprint.table_messages(table, owner)
    return Population(clients, columns, path.name, identity + table_fingerprint.particular_id_messages(clients))


def _of_index(data: QueryData, path: Path, numbers: Collection[str], texts: Mapping[str, int], cap: int) -> Population:
    index = Index(path)
    made_of = index.manifest
    for role, name, own in (("client", data.client, made_of.client), ("label", data.label, made_of.label)):
        if name not in (None, own):
            raise DataNotFound(f"data.{role} is '{name}', and the index was made with '{own}'; name that, or the table itself", column=name)
    held = (*made_of.features, made_of.label)
    _refuse_unknown([*numbers, *texts], held, "the index")
    _refuse_text([name for name in numbers if name == made_of.label and not isinstance(made_of.labels[0], int)])
    owner = np.repeat(np.arange(len(index.clients)), np.diff(index.offsets))
    order, offsets = _first_rows(owner, len(index.clients), cap)
    wanted = sorted({*numbers, *texts} - {made_of.label})
    places = [made_of.features.index(name) for name in wanted]
    blocks = [index.features.read(start, stop)[:, places] for start, stop in index.blocks()]
    taken = np.concatenate(blocks)[order].astype(np.float64)
    labels = np.array(made_of.labels, object)[index.labels[order]]
    whole = dict(zip(wanted, taken.T, strict=True)) | {made_of.label: labels}
    columns = ClientColumns(
        offsets,
        {name: np.ascontiguousarray(whole[name], np.float64) for name in sorted(numbers)},
        {name: _as_text(whole[name], name, width) for name, width in sorted(texts.items())},
    )
    return Population(index.clients, columns, path.name, index.identity)


def _of_built_in(data: QueryData, numbers: Collection[str], texts: Mapping[str, int], cap: int, seed: int) -> Population:
    known = built_in.read(data.source)
    _refuse_unknown([*numbers, *texts], (*known.ranges, LABEL), f"'{data.source}'")
    _refuse_text([name for name in numbers if name == LABEL and not isinstance(known.vocabulary[0], int)])
    as_job = Data(source=data.source, partition=data.partition)
    raw = deal_built_in(as_job, known, seed)
    order, offsets = _first_rows(raw.owner, len(raw.clients), cap)
    whole: dict[str, npt.NDArray[Any]] = {name: raw.features[order, place] for place, name in enumerate(known.ranges)}
    whole[LABEL] = np.array(known.vocabulary, object)[raw.labels[order]]
    columns = ClientColumns(
        offsets,
        {name: whole[name].astype(np.float64) for name in sorted(numbers)},
        {name: _as_text(whole[name], name, width) for name, width in sorted(texts.items())},
    )
    return Population(raw.clients, columns, data.source, load(as_job, seed).identity)


def _first_rows(owner: Indices, clients: int, cap: int) -> tuple[Indices, Indices]:
    """Which rows count, client by client, each one's first `cap`, int64 [rows]; and where each client's begin, int64 [clients + 1]."""
    order = np.argsort(owner, kind="stable")
    offsets = np.searchsorted(owner[order], np.arange(clients + 1))
    within = np.arange(len(order)) - np.repeat(offsets[:-1], np.diff(offsets))
    kept = np.minimum(np.diff(offsets), cap)
    return order[within < cap], np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)


def _finite(values: Any, name: str) -> Numbers:
    if not tables.is_numeric(values.type):
        raise InvalidValue(
            f"column '{name}' must hold numbers; it holds {values.type}: accepted for that are a histogram of categories, heavy-hitters",
            column=name,
        )
    found = tables.numbers(values)
    if values.null_count or not np.isfinite(found).all():
        raise InvalidValue(f"column '{name}' has missing, NaN or infinite values; fill them, or leave those rows out", column=name)
    return found


def _text(table: Columns, name: str, width: int) -> Texts:
    places, values = tables.categories(tables.column(table, name, "column"), name, "column")
    if _are_decimals(values):  # as numbers they would have been refused, and nobody shares them anyway
        raise InvalidValue(f"column '{name}' must hold text or whole numbers; it holds decimals: ask for its quantiles", column=name)
    return _cut([str(value).encode() for value in values], width)[places]


def _are_decimals(values: Sequence[str] | Sequence[int]) -> bool:
    """Whether all are numbers and some are not whole."""
    try:
        return any(float(value) != math.floor(float(value)) for value in values)
    except (ValueError, OverflowError):
        return False


def _as_text(values: npt.NDArray[Any], name: str, width: int) -> Texts:
    """Numbers or labels that are not read from a table, as text."""
    if values.dtype != object:
        if (values != np.floor(values)).any():
            raise InvalidValue(f"column '{name}' must hold text or whole numbers; some of it is neither", column=name)
        values = values.astype(np.int64)
    distinct, places = np.unique(values.astype(str), return_inverse=True)
    return _cut([str(value).encode() for value in distinct], width)[places]


def _cut(values: list[bytes], width: int) -> Texts:
    return np.array([value[:width] for value in values], dtype=f"S{width}")


def _refuse_unknown(names: Collection[str], known: Collection[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise DataNotFound(f"'{name}' is not a column of {where}; {nearest(name, known)}", column=name)


def _refuse_text(names: Collection[str]) -> None:
    for name in names:
        raise InvalidValue(f"column '{name}' must hold numbers; it holds text", column=name)
