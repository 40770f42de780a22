"""Reads a table (parquet, CSV or npz) and turns its columns into features, labels and client ids.

Every message names the column and says what would be accepted. None carries a value, a row or a count: those are private,
and so is the text of a parser's own error, which quotes the row it stumbled on.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from qedge.errors import DataError, DataNotFound, InvalidValue, LabelMismatch, nearest

Labels: TypeAlias = tuple[str, ...] | tuple[int, ...]
FORMATS = (".parquet", ".pq", ".csv", ".npz")
_LARGEST_BLOCK = 2**31 - 1


def read(path: Path, text: Collection[str] = ()) -> pa.Table:
    """The table in `path`, by its suffix; columns in `text` are read from a CSV as written ("007" is not 7).

    Raises:
        DataNotFound: no such file.
        DataError: an unknown format, a file that cannot be read as what its suffix says, no rows, a column name twice.
    """
    suffix = refuse_unreadable(path)
    with reading(path):
        table = _read_npz(path) if suffix == ".npz" else _read_csv(path, text) if suffix == ".csv" else _read_parquet(path)
        table.validate(full=True)  # offsets, dictionary indices and UTF-8, which damaged parquet may bring in wrong
        names = table.column_names  # decoded only here
    refuse_unfit(path, names, table.num_rows)
    return table


def refuse_unreadable(path: Path) -> str:
    """The suffix of a file that is there, of a known format, and may be opened.

    Raises:
        DataNotFound, DataError: as `read`.
    """
    if not path.is_file():
        raise DataNotFound(f"data file {path} is not there, or is not a file", path=str(path))
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"data file {path}: '{suffix}' is not a known format; accepted: {', '.join(FORMATS)}", path=str(path))
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"data file {path} cannot be opened: {error.strerror}", path=str(path)) from None
    return suffix


def refuse_unfit(path: Path, names: Sequence[str], rows: int) -> None:
    """Refuse a table without rows, or whose columns cannot be told apart by their names.

    Raises:
        DataError: one of these.
    """
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"data file {path} has the column '{twice[0]}' twice; give each its own name", column=twice[0])
    if "" in names:
        raise DataError(f"data file {path} has a column without a name, perhaps row numbers; name it or leave it out", path=str(path))
    if rows == 0:
        raise DataError(f"data file {path} has no rows", path=str(path))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises: DataError: what is read within cannot be read as what the suffix says."""
    try:
        yield
    except _UNREADABLE:
        suffix = path.suffix.lower()
        raise DataError(
            f"data file {path} cannot be read as {suffix[1:]}: it is corrupt, cut short or {_SUSPECT[suffix]}", path=str(path)
        ) from None


# What pyarrow, zipfile and numpy raise on damaged bytes; numpy asks for as much memory as a damaged header says.
_UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_SUSPECT = {
    ".csv": "not a UTF-8 table with a header and as many fields in every row",
    ".npz": "holds arrays of Python objects; accepted: arrays of numbers or text",
    ".parquet": "not parquet",
    ".pq": "not parquet",
}


def _read_parquet(path: Path) -> pa.Table:
    with pa.parquet.ParquetFile(path) as file:
        table = file.read()
    return table.drop_columns([name for name in table.column_names if is_row_index(name)])


def is_row_index(name: str) -> bool:
    """Whether pandas keeps its row index in a parquet column of this name; as a feature it would tell rows apart by their number."""
    return name.startswith("__index_level_")


def written(path: Path, name: str) -> set[str]:
    """What the column `name` of a CSV holds, as it is written there.

    Raises:
        DataError: the file cannot be read as a CSV.
    """
    with reading(path):
        return set(_read_csv(path, (name,), only=[name]).column(name).unique().to_pylist())


def _read_csv(path: Path, text: Collection[str], only: Sequence[str] = ()) -> pa.Table:
    # One block, so that a column's type is inferred from all of its rows and not from the first megabyte.
    block = min(path.stat().st_size + 1, _LARGEST_BLOCK)
    return pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=max(block, 2**20)),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), include_columns=list(only)),
    )


def _read_npz(path: Path) -> pa.Table:
    columns: dict[str, npt.NDArray[np.generic]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            if array.ndim == 2:
                columns |= {f"{name}_{place}": np.ascontiguousarray(array[:, place]) for place in range(array.shape[1])}
            elif array.ndim == 1:
                columns[name] = array
            else:
                raise DataError(f"data file {path}: '{name}' must be a column [rows] or a matrix [rows, columns]", column=name)
    lengths = [len(column) for column in columns.values()]
    uneven = [name for name, column in columns.items() if len(column) != lengths[0]]
    if uneven:
        raise DataError(f"data file {path}: '{uneven[0]}' and '{next(iter(columns))}' are not of the same length", column=uneven[0])
    return pa.table(columns)


def column(table: pa.Table, name: str, role: str) -> pa.ChunkedArray:
    """The column called `name`, which the job wants as its `role`, dictionaries decoded.

    Raises:
        DataNotFound: no such column; the nearest is offered.
    """
    names = table.column_names
    if name not in names:
        only = len(names) == 1 and next((mark for mark in (";", "\t", "|") if mark in names[0]), None)
        hint = f"is the file separated by {only!r}? accepted: commas" if only else nearest(name, names)
        raise DataNotFound(f"{role} '{name}' is not a column of the table; {hint}", column=name)
    found = table.column(name)
    return found.cast(found.type.value_type) if pa.types.is_dictionary(found.type) else found


def client_ids(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Whose each row is: (indices int64 [rows] into the ids, ids sorted as text).

    Raises:
        DataNotFound: no such column. InvalidValue: it is neither text nor whole numbers, or rows have no client.
    """
    indices, values = categories(column(table, name, "client column"), name, "client column")
    texts = [str(value) for value in values]
    clients = tuple(sorted(texts))
    return _places(texts, clients)[indices], clients


def labels(table: pa.Table, name: str, declared: Labels | None) -> tuple[npt.NDArray[np.int64], Labels]:
    """What each row is labelled: (indices int64 [rows] into the vocabulary, vocabulary).

    The vocabulary is `declared` in its own order, else the sorted set of what the table holds.

    Raises:
        DataNotFound: no such column. InvalidValue: it is neither text nor whole numbers, or rows have no label.
        LabelMismatch: fewer than two labels, or a label that is not declared.
    """
    indices, values = categories(column(table, name, "label column"), name, "label column")
    places, vocabulary = among(values, declared, name)
    return places[indices], vocabulary


def among(values: Sequence[str] | Sequence[int], declared: Labels | None, name: str) -> tuple[npt.NDArray[np.int64], Labels]:
    """Where each label that the column `name` holds stands in the vocabulary, int64 [values], and the vocabulary, as `labels` has it.

    Raises:
        LabelMismatch: as `labels`.
    """
    if declared is None:
        if len(values) < 2:
            raise LabelMismatch(f"label column '{name}' holds fewer than two labels; there is nothing to tell apart", column=name)
        declared = _sorted(values)
    elif not set(values) <= set(declared):
        hint = "" if type(values[0]) is type(declared[0]) else "; one is text and the other numbers (quote them, or do not)"
        raise LabelMismatch(f"label column '{name}' holds a label outside the label set; data.labels must list each{hint}", column=name)
    return _places(values, declared), declared


def _sorted(values: Sequence[str] | Sequence[int]) -> Labels:
    return tuple(sorted(value for value in values if isinstance(value, str))) or tuple(
        sorted(value for value in values if isinstance(value, int))
    )


def _places(values: Sequence[str | int], vocabulary: Sequence[str | int]) -> npt.NDArray[np.int64]:
    """Where each value stands in the vocabulary, int64 [values]."""
    place = {value: index for index, value in enumerate(vocabulary)}
    return np.array([place[value] for value in values], np.int64)


def categories(values: pa.ChunkedArray, name: str, role: str) -> tuple[npt.NDArray[np.int64], list[str] | list[int]]:
    """For every row the index of its value, int64 [rows], and the distinct values: text, or whole numbers.

    Raises:
        InvalidValue: it is neither, or is empty in some rows.
    """
    kind = values.type
    accepted = f"{role} '{name}' must hold text or whole numbers"
    try:
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            values = pc.cast(values, pa.int64())
        elif any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)):
            values = pc.cast(values, pa.large_string())
        else:
            raise InvalidValue(f"{accepted}; it holds {kind}", column=name)
    except pa.ArrowInvalid:
        raise InvalidValue(f"{accepted}; some of it is neither", column=name) from None
    encoded = values.combine_chunks().dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    if encoded.null_count or "" in distinct:
        raise InvalidValue(f"{role} '{name}' is empty in some rows; fill them or leave those rows out", column=name)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), distinct


def features(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float32]:
    """The columns `names` as float32 [rows, features].

    Raises:
        DataNotFound: one is not there. InvalidValue: one has missing, NaN or infinite values.
    """
    matrix = np.empty((table.num_rows, len(names)), np.float32)
    for place, name in enumerate(names):
        values = column(table, name, "feature")
        if not is_numeric(values.type):
            raise InvalidValue(f"column '{name}' must hold numbers; it holds {values.type}", column=name)
        if values.null_count:
            raise InvalidValue(f"column '{name}' has missing values; fill them, leave those rows out, or list it in data.drop", column=name)
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite and is refused just below
            matrix[:, place] = numbers(values)
        if not np.isfinite(matrix[:, place]).all():
            raise InvalidValue(f"column '{name}' has NaN or infinite values (as float32); mend it or list it in data.drop", column=name)
    return matrix


def feature_names(table: pa.Table, leave_out: Collection[str]) -> tuple[str, ...]:
    """The numeric columns that are not in `leave_out`, in the table's order; booleans count as numbers.

    Raises:
        DataError: a column that is not numeric and not left out, or no column at all.
    """
    kinds = {field.name: field.type for field in table.schema if field.name not in leave_out}
    wrong = [name for name, kind in kinds.items() if not is_numeric(kind)]
    if wrong:
        quoted = ", ".join(f"'{name}'" for name in wrong)
        raise DataError(f"not numeric, so not features: {quoted}; make them numbers or list them in data.drop", columns=wrong)
    if not kinds:
        raise DataError("the table has no numeric column left to learn from, besides client, label and data.drop")
    return tuple(kinds)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a feature."""
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal))


def numbers(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A numeric column as float64 [rows], NaN where a value is missing."""
    if not pa.types.is_floating(values.type):
        values = pc.cast(values, pa.float64(), safe=False)
    return np.asarray(values.to_numpy(), np.float64)
