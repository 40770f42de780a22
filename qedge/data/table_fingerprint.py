"""What a ledger recognises a table by, whichever of its columns a job takes as client, label and features.

Digests of rows change with the columns that a job selects (`qedge.data.fingerprint`); these do not. Four kinds of message,
each with its own domain, each to be keyed before it leaves the process:

- the whole content: every row as the bag of its values, whatever the order of rows and columns and the columns' names;
- how the rows are dealt to clients, whatever these are called: it alone depends on which column names the client, so that of two jobs on
  one content it says whether they protect the same;
- each numeric or text column that is particular: its sorted values, as often as they occur, without its name;
- the id of each client without its column's name, where the id is particular.

One message in common makes two jobs touch the same data, so what unrelated tables share by chance must leave none. A column
is particular when it has 50 distinct values or more and does not count: evenly spaced numbers (after a beginning that all
values share, for text), each no more frequent than the one before, are row numbers, codes or ticks. Dates and times are
calendars, which unrelated tables share too. An id is particular when it has nine digits or sixteen letters and digits
outside the beginning that all ids share: the numbers 1 to n, "phone-7" or the name of a town are anybody's.

Who reads a table without knowing of clients asks by each column that could name them (`owner_messages`), so that a part of a table is known
by the ids in it.

What passes unseen: a copy of a table with some rows taken out or added, or with each particular column changed (units,
rounding beyond float32), read with other columns than before and without the ids, or with others; and that such a copy is dealt
to others than the table was. Unrelated tables that carry the same public column, value for value, are taken for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qedge.data import tables
from qedge.data.columns import Columns
from qedge.data.fingerprint import counted, id_messages
from qedge.errors import QEdgeError

_CONTENT = b"qedge/1 fingerprint of a table's content\0"
_DEALT = b"qedge/1 fingerprint of how a table's rows are dealt\0"
_COLUMN = b"qedge/1 fingerprint of a column\0"
_PARTICULAR_ID = b"qedge/1 fingerprint of a particular id\0"

DISTINCT = 50  # fewer values than this are ages, codes or grades, whose counts a small unrelated table may share
DIGITS = 9  # of random ids with eight digits two tables of 10,000 clients would share one
CHARACTERS = 16
_EVEN = 1e-3  # relative; ticks of 0.1 in float32 stray by 1e-4

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.float64]


def table_messages(table: pa.Table | Columns, owner: npt.NDArray[np.int64] | None) -> tuple[bytes, ...]:
    """One message for the whole content, one for how it is dealt, and one for each particular column, equal columns once; one column at a
    time is looked at.

    owner: whose each row is, [rows] places among the clients; None where nothing is dealt to any. Numbers count as float32, text that is
    all numbers as numbers: as which of the two a CSV is read depends on the job.
    """
    rows = np.zeros(table.num_rows, np.uint64)
    columns: dict[bytes, None] = {}
    for name in table.column_names:
        values = tables.column(table, name, "column")
        for words, message in _column(values):
            rows += _mixed(words)
            if message is not None:
                columns[_COLUMN + message] = None
    dealt = () if owner is None else (_DEALT + _digest(np.sort(_of_owners(rows, owner))),)
    return (_CONTENT + _digest(np.sort(rows)), *dealt, *columns)


def content_and_dealing(identity: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """Of the messages of a table the one of its content and the one of how it is dealt; None where they are not of a table."""
    found = {kind: message for message in identity for kind in (_CONTENT, _DEALT) if message.startswith(kind)}
    return (found[_CONTENT], found[_DEALT]) if len(found) == 2 else None


def _of_owners(rows: Words, owner: npt.NDArray[np.int64]) -> Words:
    """A word for the rows of each owner together, in whatever order."""
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.unique(owner))
    return _mixed(np.add.reduceat(_mixed(rows[order]), starts))


def particular_id_messages(clients: Sequence[str]) -> tuple[bytes, ...]:
    """One message for each id that unrelated tables would not share by chance."""
    shared = _shared(clients)
    return tuple(_PARTICULAR_ID + counted(client) for client in clients if _is_particular(client[shared:]))


def owner_messages(path: Path, table: pa.Table) -> tuple[bytes, ...]:
    """What a job would know the clients of a table by, for a reader that knows none: of every column that could say whose a row is.

    path: of the table, read again for those columns, as text where a job would read them so. A part of a table with a budget is known by
    the ids that it still has.
    """
    names = [name for name in table.column_names if _could_name(table.schema.field(name).type)]
    if not names:
        return ()
    again, found = tables.read(path, names), list[bytes]()
    for name in names:
        with suppress(QEdgeError):  # a column with gaps is no column of clients
            _, clients = tables.client_ids(again, name)
            found += [*id_messages(name, clients), *particular_id_messages(clients)]
    return tuple(found)


def _could_name(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string))


def _shared(texts: Sequence[str]) -> int:
    """How many characters all texts begin with in common: as many as the first and the last of them in order."""
    first, last = min(texts), max(texts)
    return next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _is_particular(text: str) -> bool:
    return sum(map(str.isdigit, text)) >= DIGITS or sum(map(str.isalnum, text)) >= CHARACTERS


def _column(values: pa.ChunkedArray) -> Iterator[tuple[Words, bytes | None]]:
    """A column's values as words, uint64 [rows], and its digest if it is particular; nothing for kinds that no job can use."""
    kind = values.type
    if tables.is_numeric(kind):
        yield _of_numbers(tables.numbers(values))
    elif pa.types.is_temporal(kind):
        yield _of_text(values.cast(pa.string()))[0], None
    elif any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)):
        yield _of_text(values)


def _of_numbers(numbers: Numbers) -> tuple[Words, bytes | None]:
    ordered = np.sort(numbers)  # NaN last
    told = _tells(ordered[np.isfinite(ordered)])
    return _single(numbers).view("<u4").astype(np.uint64), _digest(_single(ordered)) if told else None


def _single(numbers: Numbers) -> npt.NDArray[np.float32]:
    """As float32, in the same order: with one zero and one of the many NaN."""
    with np.errstate(over="ignore"):
        single = numbers.astype("<f4") + np.float32(0)  # -0 + 0 is 0
    single[np.isnan(single)] = np.nan
    return single


def _of_text(values: pa.ChunkedArray) -> tuple[Words, bytes | None]:
    encoded = values.cast(pa.large_binary()).combine_chunks().dictionary_encode()
    places = encoded.indices.fill_null(-1).to_numpy()
    numbers = _parsed(encoded.dictionary)
    if numbers is not None:
        return _of_numbers(np.append(numbers, np.nan)[places])
    texts: list[bytes] = encoded.dictionary.to_pylist()
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    words = np.append(np.frombuffer(digests, "<u8"), np.uint64(0))[places]  # 0 for what is missing
    return words, _digest(np.sort(words)) if _text_tells(texts, places) else None


def _parsed(distinct: pa.Array) -> Numbers | None:
    """Texts as the numbers they spell, or None if one of them is no number."""
    try:
        return np.asarray(pc.cast(pc.cast(distinct, pa.large_string()), pa.float64()).to_numpy(), np.float64)
    except pa.ArrowInvalid:
        return None


def _text_tells(texts: list[bytes], places: npt.NDArray[np.int32]) -> bool:
    if len(texts) < DISTINCT:
        return False
    shared = _shared([text.decode("latin-1") for text in texts])
    ends = [text[shared:] for text in texts]
    if not all(end.isdigit() or not end for end in ends):
        return True
    return _tells(np.sort(np.array([float(end or 0) for end in ends])[places[places >= 0]]))


def _tells(ordered: Numbers) -> bool:
    """Whether sorted finite numbers have enough distinct values and do not count."""
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if len(edges) + 1 < DISTINCT:
        return False
    starts = np.concatenate([[0], edges])
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(ordered[starts])
        even = bool(np.ptp(steps) <= _EVEN * steps[0])
    return not (even and bool((np.diff(np.append(starts, len(ordered)), n=2) <= 0).all()))


def _mixed(words: Words) -> Words:
    """Words spread over 64 bits, so that sums of a row's words differ (Steele, Lea, Flood, OOPSLA 2014: splitmix64's finaliser)."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _digest(ordered: Words | npt.NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(ordered.astype(ordered.dtype.newbyteorder("<"), copy=False).data, digest_size=32).digest()
