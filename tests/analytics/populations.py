"""Made-up clients for the tests of federated statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from qedge.analytics.encoding import Encoder, Scale
from qedge.analytics.measurements import Bins, Categories, Continuations, Measurement, Moment, Occurrences, RowCount
from qedge.data.client_columns import ClientColumns, ClientRows
from qedge.federated.randomness import RunKey
from qedge.job import Query

WORDS = [b"a", b"ab", b"abc", b"b", b"maps", b"mail", b"\xff\xfe", b"mapsmaps"]
MEASUREMENTS: list[Measurement] = [
    RowCount(),
    Moment("x", -1.0, 3.0, 1),
    Moment("x", 0.1, 0.7, 2),
    Bins("x", -2.0, 2.0, 7),
    Categories("word", (b"ab", b"maps")),
    Continuations("word", (b"",), 0),
    Continuations("word", (b"ab", b"ma"), 2),
    Occurrences("word", (b"a", b"maps"), 4),
]


def rows_of(numbers: list[float], words: list[bytes]) -> ClientRows:
    """One client's rows with a column of numbers, x, and one of text, word."""
    return ClientRows(len(numbers), {"x": np.array(numbers, np.float64)}, {"word": np.array(words, "S9")})


@st.composite
def clients_rows(draw: st.DrawFn, most: int = 12) -> ClientRows:
    """At most so many rows of anything finite."""
    count = draw(st.integers(0, most))
    numbers = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-4, 4)
    return rows_of(
        draw(st.lists(numbers, min_size=count, max_size=count)), draw(st.lists(st.sampled_from(WORDS), min_size=count, max_size=count))
    )


def columns_of(sizes: np.ndarray, numbers: np.ndarray, words: np.ndarray) -> ClientColumns:
    """So many rows of each client."""
    return ClientColumns(np.concatenate([[0], np.cumsum(sizes)]), {"x": numbers}, {"word": words})


def encoder_of(measurements: list[Measurement], bounds: list[int | None], max_rows: int, seed: int = 0) -> Encoder:
    """What clients are asked, with rounding by a seed."""
    scales = tuple(Scale(one, bound) for one, bound in zip(measurements, bounds, strict=True))
    return Encoder(scales, max_rows, RunKey.from_seed(seed))


def query_of(*statistics: dict[str, Any], **changes: Any) -> Query:
    """A query of the wines, with changes."""
    values = {
        "name": "wines",
        "data": {"source": "wine", "partition": {"clients": 40}},
        "privacy": {"epsilon": 8, "delta": 1e-3},
        "max_rows": 10,
    }
    return Query.parse(values | {"statistics": list(statistics or [{"kind": "count"}])} | changes)
