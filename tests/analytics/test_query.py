"""Queries: read back equal, or refused with an error that says what would be accepted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from qedge.data.client_columns import read_columns
from qedge.data.indexing import make_index
from qedge.errors import DataError, DataNotFound, InvalidJob, InvalidPrivacy, InvalidValue, Refused, UnknownKey
from qedge.job import Query
from qedge.job.query import QueryData
from qedge.runs.query_preparation import population_of
from tests.analytics.populations import query_of

X = {"column": "x", "range": [0, 1]}
EVERY_KIND = [
    {"kind": "count"},
    {"kind": "sum", **X},
    {"kind": "mean", **X},
    {"kind": "variance", **X},
    {"kind": "quantile", **X, "quantiles": [0.25]},
    {"kind": "histogram", **X, "bins": 3},
    {"kind": "histogram", "column": "w", "categories": ["a", "b"]},
    {"kind": "heavy-hitters", "column": "w"},
]


def test_a_query_is_read_back_equal_and_travels():
    query = query_of(*EVERY_KIND)
    assert Query.parse(query.plain()) == query
    assert pickle.loads(pickle.dumps(query)) == query
    assert query_of(privacy="none").plain()["privacy"] == "none"


@pytest.mark.parametrize(
    ("statistic", "error", "said"),
    [
        ({"kind": "mean", "column": "x"}, InvalidJob, "'range' is missing"),
        ({"kind": "mean", "column": "x", "range": [3, 1]}, InvalidJob, "low < high"),
        ({"kind": "mean", "column": "x", "range": [1, 1]}, InvalidJob, "low < high"),
        ({"kind": "mean", "column": "x", "range": [0, float("inf")]}, InvalidJob, "finite number"),
        ({"kind": "mean", "column": "x", "range": [0, float("nan")]}, InvalidJob, "finite number"),
        ({"kind": "mean", "column": "x", "range": [-1.7e308, 1.7e308]}, InvalidJob, "finite"),
        ({"kind": "mean", "column": "x", "range": 3}, InvalidJob, "range"),
        ({"kind": "mean", "range": [0, 1]}, InvalidJob, "'column' is missing"),
        ({"kind": "histogram", **X, "bins": 0}, InvalidJob, "greater than or equal to 1"),
        ({"kind": "histogram", **X}, InvalidJob, "'range' and 'bins', or 'categories'"),
        ({"kind": "histogram", **X, "bins": 2, "categories": ["a"]}, InvalidJob, "'range' and 'bins', or 'categories'"),
        ({"kind": "histogram", "column": "w", "categories": []}, InvalidJob, "at least one"),
        ({"kind": "histogram", "column": "w", "categories": ["a", "a"]}, InvalidJob, "each once"),
        ({"kind": "histogram", "column": "w", "categories": ["a", 1]}, InvalidJob, "all text or all whole numbers"),
        ({"kind": "histogram", "column": "w", "categories": ["a", ""]}, InvalidJob, "neither empty"),
        ({"kind": "quantile", **X, "quantiles": [0.5, 1.0]}, InvalidJob, "above 0 and below 1"),
        ({"kind": "quantile", **X, "quantiles": [0]}, InvalidJob, "above 0 and below 1"),
        ({"kind": "quantile", **X, "quantiles": []}, InvalidJob, "at least 1"),
        ({"kind": "quantile", **X, "depth": 0}, InvalidJob, "greater than or equal to 1"),
        ({"kind": "heavy-hitters", "column": "w", "length": 0}, InvalidJob, "greater than or equal to 1"),
        ({"kind": "heavy-hitters", "column": "w", "false_positive": 1}, InvalidJob, "less than 1"),
        ({"kind": "median", **X}, UnknownKey, "quantiles: .0.5."),
        ({"kind": "histogramm", **X}, UnknownKey, "did you mean 'histogram'?"),
        ({"kind": "mean", **X, "rang": [0, 1]}, UnknownKey, "did you mean 'range'?"),
        ({"kind": "mean", "column": "x", "range": [False, True]}, InvalidJob, "number"),
        ({"column": "x"}, InvalidJob, "with a 'kind'"),
        ("count", InvalidJob, "with a 'kind'"),
    ],
)
def test_a_statistic_that_makes_no_sense_is_refused(statistic: Any, error: type[Refused], said: str):
    with pytest.raises(error, match=said):
        query_of(statistic)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"statistics": []}, InvalidJob, "one at least"),
        ({"statistics": {"kind": "count"}}, InvalidJob, "list"),
        (
            {"statistics": [{"kind": "mean", **X}, {"kind": "mean", "column": "x", "range": [0.0, 1.0]}]},
            InvalidJob,
            "'mean x' is asked",
        ),
        ({"max_rows": 0}, InvalidPrivacy, "greater than or equal to 1"),
        ({"max_rows": 2.5}, InvalidPrivacy, "integer"),
        ({"privacy": None}, InvalidJob, "privacy: none"),
        ({"privacy": {"epsilon": 0, "delta": 1e-4}}, InvalidPrivacy, "greater than 0"),
        ({"privacy": {"epsilon": 1, "delta": 1}}, InvalidPrivacy, "less than 1"),
        ({"privacy": {"epsilon": 1, "delta": 1e-4, "unit": "example"}}, InvalidPrivacy, "accepted: client"),
        ({"privacy": {"epsilon": 1, "delta": 1e-4, "clipping": {"bound": 1}}}, UnknownKey, "clipping"),
        ({"data": {"source": "wine", "client": "c"}}, InvalidJob, "brings its own"),
        ({"data": {"source": "t.csv", "client": "c", "partition": {"clients": 3}}}, InvalidJob, "built-in"),
        ({"rounds": 3}, UnknownKey, "rounds"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(change: dict[str, Any], error: type[Refused], said: str):
    with pytest.raises(error, match=said):
        query_of(**change)
    with pytest.raises(InvalidJob, match="mapping"):
        Query.parse([change])


def test_a_file_is_read_and_its_source_is_taken_from_where_it_lies(tmp_path: Path):
    (tmp_path / "q.yaml").write_text(
        "name: q\ndata: {source: t.csv, client: c}\nprivacy: none\nmax_rows: 3\nstatistics: [{kind: count}]\n", encoding="utf-8"
    )
    assert Query.load(tmp_path / "q.yaml").data.source == str(tmp_path / "t.csv")
    with pytest.raises(InvalidJob, match="cannot be read"):
        Query.load(tmp_path / "none.yaml")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three clients, their rows mixed."""
    columns = {
        "c": ["b", "a", "b", "c", "b"],
        "x": [1.5, 2.5, 3.5, 4.5, 5.5],
        "hole": [1.0, float("nan"), 1.0, 1.0, 1.0],
        "whole": [7, 7, 123456, 8, 9],
        "word": ["maps", "mail", "mapsmaps", "x", "maps"],
        "gap": ["u", None, "u", "u", "u"],
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    pa.csv.write_csv(pa.table({name: columns[name] for name in ("c", "x", "whole", "word")}), tmp_path / "t.csv")
    return tmp_path / "t.parquet"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_each_clients_first_rows_are_read_in_the_tables_order(table: Path, suffix: str):
    data = QueryData(source=str(table.with_suffix(suffix)), client="c")
    found = read_columns(data, ["x", "whole"], {"word": 5, "whole": 3}, 2, 0)
    assert found.clients == ("a", "b", "c")
    assert found.columns.offsets.tolist() == [0, 1, 3, 4]
    assert found.columns.numbers["x"].tolist() == [2.5, 1.5, 3.5, 4.5]
    assert found.columns.numbers["whole"].tolist() == [7, 7, 123456, 8]
    assert found.columns.texts["word"].tolist() == [b"mail", b"maps", b"mapsm", b"x"]
    assert found.columns.texts["whole"].tolist() == [b"7", b"7", b"123", b"8"]
    assert found.columns.of(1).numbers["x"].tolist() == [1.5, 3.5]


@pytest.mark.parametrize(
    ("statistic", "error", "said"),
    [
        ({"kind": "mean", "column": "xx", "range": [0, 1]}, DataNotFound, "did you mean 'x'"),
        ({"kind": "mean", "column": "hole", "range": [0, 1]}, InvalidValue, "NaN"),
        ({"kind": "mean", "column": "word", "range": [0, 1]}, InvalidValue, "must hold numbers; it holds string: accepted"),
        ({"kind": "heavy-hitters", "column": "gap"}, InvalidValue, "empty in some rows"),
        ({"kind": "heavy-hitters", "column": "x"}, InvalidValue, "text or whole numbers"),
        ({"kind": "histogram", "column": "wrd", "categories": ["maps"]}, DataNotFound, "did you mean 'word'"),
    ],
)
def test_a_column_that_cannot_be_asked_about_is_refused(table: Path, statistic: dict[str, Any], error: type[DataError], said: str):
    with pytest.raises(error, match=said):
        population_of(query_of(statistic, data={"source": str(table), "client": "c"}))


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ({"client": "d"}, DataNotFound, "client column 'd'"),
        ({}, InvalidJob, "needs 'client'"),
        ({"client": "c", "label": "wrod"}, DataNotFound, "did you mean 'word'"),
        ({"client": "c", "source": "elsewhere.csv"}, DataNotFound, "not there"),
        ({"source": "wines", "client": "c"}, DataNotFound, "did you mean 'wine'"),
    ],
)
def test_data_that_are_not_there_are_refused(table: Path, data: dict[str, Any], error: type[Refused], said: str):
    with pytest.raises(error, match=said):
        population_of(query_of(data={"source": str(table)} | data))


def test_an_index_answers_as_its_table_does_and_is_known_as_the_same_data(tmp_path: Path):
    generator = np.random.default_rng(0)
    columns = {
        "c": [f"p{k}" for k in generator.integers(0, 9, 80)],
        "x": generator.normal(size=80).astype(np.float32),
        "y": np.arange(80) % 3,
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    index = make_index(tmp_path / "t.parquet", "c", "y", (), None).path
    by_table, by_index = (
        read_columns(QueryData(source=str(source), client="c"), ["x", "y"], {"y": 4}, 5, 0) for source in (tmp_path / "t.parquet", index)
    )
    assert by_table.clients == by_index.clients
    assert by_table.columns.offsets.tolist() == by_index.columns.offsets.tolist()
    for name in ("x", "y"):
        assert by_table.columns.numbers[name].tolist() == by_index.columns.numbers[name].tolist()
    assert by_table.columns.texts["y"].tolist() == by_index.columns.texts["y"].tolist()
    assert set(by_table.identity) < set(by_index.identity)
    with pytest.raises(DataNotFound, match="not a column of the index"):
        read_columns(QueryData(source=str(index)), ["z"], {}, 5, 0)
    with pytest.raises(DataNotFound, match="was made with 'c'"):
        read_columns(QueryData(source=str(index), client="d"), ["x"], {}, 5, 0)


def test_built_in_data_have_their_columns_and_their_label():
    population = population_of(
        query_of({"kind": "mean", "column": "alcohol", "range": [10, 16]}, {"kind": "heavy-hitters", "column": "label"})
    )
    assert len(population.clients) == 40
    assert set(population.columns.texts["label"].tolist()) == {b"class_0", b"class_1", b"class_2"}
    assert 11 < population.columns.numbers["alcohol"].min() < population.columns.numbers["alcohol"].max() < 15
    with pytest.raises(DataNotFound, match="did you mean 'alcohol'"):
        population_of(query_of({"kind": "mean", "column": "alcohl", "range": [10, 16]}))
    with pytest.raises(InvalidValue, match="holds text"):
        population_of(query_of({"kind": "mean", "column": "label", "range": [10, 16]}))
