"""Rows: read as they are, grouped by client, split and scaled without one client moving another, and known again."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qedge.data.federation import Federation, built_in, default_scope, fingerprints, load, standardised
from qedge.data.table_fingerprint import content_and_dealing
from qedge.errors import DataError, DataNotFound, InvalidValue, LabelMismatch, UnknownKey
from qedge.job import Data

BASE: dict[str, list[Any]] = {
    "client": ["b", "a", "b", "c", "a", "b", "a", "b"],
    "x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "y": [0, 1, 0, 1, 1, 0, 0, 1],
    "kind": ["sit", "walk", "sit", "run", "walk", "sit", "run", "walk"],
}


def save(path: Path, columns: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(values) for name, values in columns.items()})
        return path
    table = pa.table(columns)
    writer = pa.csv.write_csv if path.suffix == ".csv" else pa.parquet.write_table
    writer(table, path)
    return path


def read(path: Path, seed: int = 0, **options: Any) -> Federation:
    return load(Data(**{"source": str(path), "client": "client", "label": "kind", **options}), seed)


def prints(federation: Federation) -> frozenset[str]:
    return fingerprints(federation, lambda message: hmac.digest(b"key", message, "sha256"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return save(tmp_path / "table.parquet", BASE)


# reading


@pytest.mark.parametrize("suffix", [".parquet", ".pq", ".csv", ".npz"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    federation = read(save(tmp_path / f"t{suffix}", BASE))
    assert federation.clients == ("a", "b", "c")
    assert federation.schema.features == ("x", "y")
    assert federation.schema.labels == ("run", "sit", "walk")
    assert not federation.schema.labels_declared
    assert federation.train.offsets.tolist() == [0, 3, 7, 8]
    features, labels = federation.client(1)
    assert features.tolist() == [[1, 0], [3, 0], [6, 0], [8, 1]]
    assert [federation.schema.labels[label] for label in labels] == ["sit", "sit", "sit", "walk"]
    assert features.dtype == np.float32
    assert labels.dtype == np.int64
    assert np.shares_memory(features, federation.train.features)
    assert federation.train.features.flags.c_contiguous
    assert federation.test is None
    assert federation.test_raw.shape == (0, 2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=4),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.sampled_from(["p", "q", "r"]),
        ),
        min_size=2,
        max_size=20,
    ).filter(lambda rows: len({row[2] for row in rows}) > 1),
    suffix=st.sampled_from([".parquet", ".csv", ".npz"]),
)
def test_every_row_comes_back_once_under_its_own_client(tmp_path: Path, rows: list[tuple[str, float, str]], suffix: str) -> None:
    clients, values, kinds = (list(column) for column in zip(*rows, strict=True))
    columns = {"client": clients, "x": np.array(values, np.float32), "kind": kinds}
    federation = read(save(tmp_path / f"t{suffix}", columns), scale="none")
    found = []
    for k, client in enumerate(federation.clients):
        features, labels = federation.client(k)
        found += [(client, float(value), federation.schema.labels[label]) for value, label in zip(features[:, 0], labels, strict=True)]
    order = {client: place for place, client in enumerate(sorted(set(clients)))}
    assert found == sorted(rows, key=lambda row: order[row[0]])


def test_what_the_folders_are_called_and_the_row_index_of_pandas_are_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "site=1"
    folder.mkdir()
    federation = read(save(folder / "t.parquet", BASE | {"__index_level_0__": list(range(8))}))
    assert federation.schema.features == ("x", "y")


def test_a_matrix_in_an_npz_becomes_one_column_per_feature(tmp_path: Path) -> None:
    matrix = np.arange(12).reshape(4, 3).astype(">f4")
    federation = read(save(tmp_path / "t.npz", {"features": matrix, "client": [1, 1, 2, 2], "kind": ["a", "b", "a", "b"]}))
    assert federation.schema.features == ("features_0", "features_1", "features_2")
    assert (federation.train.features == matrix).all()


def test_client_ids_in_a_csv_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("client,x,kind\n007,1,0\n7,2,1\n")
    assert read(path).clients == ("007", "7")


def test_the_same_ids_as_numbers_and_as_text_are_the_same_clients(tmp_path: Path) -> None:
    ids = [10, 9, 10, 9]
    several = [np.array(ids), np.array(ids, float), np.array(list(map(str, ids))), pa.array(map(str, ids)).dictionary_encode()]
    found = []
    for number, column in enumerate(several):
        path = save(tmp_path / f"{number}.parquet", {"client": column, "x": [1, 2, 3, 4], "kind": [0, 1, 0, 1]})
        found.append((read(path).clients, prints(read(path))))
    assert found[0][0] == ("10", "9")
    assert all(one == found[0] for one in found)


def test_whole_number_labels_stay_numbers_and_truth_values_become_them(tmp_path: Path) -> None:
    for values in ([3, 1], [3.0, 1.0]):
        path = save(tmp_path / "t.parquet", {"client": ["a", "b"], "x": [0, 1], "kind": values})
        assert read(path).schema.labels == (1, 3)
    path = save(tmp_path / "t.parquet", {"client": ["a", "b"], "x": [0, 1], "kind": [True, False]})
    assert read(path).schema.labels == (0, 1)


def test_a_csv_column_that_turns_to_fractions_late_is_one_column_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("client,x,kind\n" + "a,1,0\n" * 300_000 + "b,1.5,1\n")
    assert read(path).train.features[-1, 0] == 1.5


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.decimal128(5, 2)])
def test_every_numeric_type_is_a_feature(tmp_path: Path, kind: pa.DataType) -> None:
    path = save(tmp_path / "t.parquet", {"client": ["a", "b"], "x": pa.array([0, 1], pa.int8()).cast(kind), "kind": ["s", "t"]})
    assert read(path).train.features.tolist() == [[0], [1]]


# labels


def test_declared_labels_keep_their_order(table: Path) -> None:
    schema = read(table, labels=["walk", "fly", "sit", "run"]).schema
    assert schema.labels == ("walk", "fly", "sit", "run")
    assert schema.labels_declared


def test_numbers_declared_as_text_are_read_from_a_csv_as_text(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", {"client": ["a", "b"], "x": [0, 1], "kind": [1, 2]})
    assert read(path, labels=["2", "1"]).train.labels.tolist() == [1, 0]


@pytest.mark.parametrize("labels", [["walk", "sit"], [0, 1]])
def test_a_label_that_is_not_declared_is_refused_without_being_told(table: Path, labels: list[Any]) -> None:
    with pytest.raises(LabelMismatch, match=r"'kind'.*data\.labels") as caught:
        read(table, labels=labels)
    assert "run" not in str(caught.value)


def test_one_label_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(LabelMismatch, match="'kind'"):
        read(save(tmp_path / "t.parquet", BASE | {"kind": ["sit"] * 8}))


# the test share and the test file


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=8), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**63 - 1))
def test_a_share_of_each_client_is_held_out_and_one_row_always_trains(tmp_path: Path, sizes: list[int], share: float, seed: int) -> None:
    owner = np.repeat(np.arange(len(sizes)), sizes)
    path = save(tmp_path / "t.npz", {"client": owner, "x": np.arange(len(owner)), "kind": owner % 2})
    federation = read(path, seed, test=share)
    assert federation.test is not None
    for k, size in enumerate(sizes):
        train, test = federation.train.of(k)[0], federation.test.of(k)[0]
        assert len(test) in {min(math.floor(share * size), size - 1), min(math.ceil(share * size), size - 1)}
        assert sorted([*train[:, 0], *test[:, 0]]) == np.flatnonzero(owner == k).tolist()
    assert (federation.test_raw == federation.test.features).all()
    assert not federation.test_public_file


def test_small_clients_are_held_out_as_often_as_large_ones(tmp_path: Path) -> None:
    """2,000 clients of two rows at a share of 0.2: binomial(2000, 0.4) held out; false alarm 1e-6."""
    owner = np.repeat(np.arange(2000), 2)
    path = save(tmp_path / "t.npz", {"client": owner, "x": np.arange(4000), "kind": owner % 2})
    held_out = len(read(path, 7, test=0.2).test_raw)
    assert abs(held_out - 800) <= 4.9 * math.sqrt(2000 * 0.4 * 0.6)


def test_emptying_one_client_moves_no_row_of_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    owner, values = rng.integers(0, 6, 200), rng.normal(size=200)
    columns = {"client": owner, "x": values, "kind": np.arange(200) % 2}
    for scale in ("none", "local"):
        whole = read(save(tmp_path / "whole.npz", columns), test=0.3, scale=scale)
        without = {name: column[owner != 2] for name, column in columns.items()}
        less = read(save(tmp_path / "less.npz", without), test=0.3, scale=scale)
        for k, client in enumerate(less.clients):
            same = whole.clients.index(client)
            for one, other in ((whole.train, less.train), (whole.test, less.test)):
                assert one is not None
                assert other is not None
                assert (one.of(same)[0] == other.of(k)[0]).all()


def test_the_seed_draws_the_test_share(table: Path) -> None:
    draws = {read(table, seed, test=0.5).test_raw.tobytes() for seed in range(20)}
    assert len(draws) > 5
    assert read(table, 3, test=0.5).test_raw.tobytes() == read(table, 3, test=0.5).test_raw.tobytes()


def test_a_file_of_public_rows_needs_no_clients_and_keeps_its_order(table: Path, tmp_path: Path) -> None:
    public = save(tmp_path / "public.csv", {"y": [5, 6], "x": [9, 8], "kind": ["walk", "sit"]})
    federation = read(table, test=str(public))
    assert federation.test is not None
    assert federation.test_public_file
    assert federation.test.features.tolist() == [[9, 5], [8, 6]]
    assert federation.test.labels.tolist() == [2, 1]
    assert federation.test.offsets.tolist() == [0, 2]
    assert len(federation.train.labels) == 8


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": None}, DataNotFound, "'x'"),
        ({"kind": None}, DataNotFound, "'kind'"),
        ({"kind": ["walk", "fly"]}, LabelMismatch, "'kind'"),
        ({"x": [1.0, float("nan")]}, InvalidValue, "'x'"),
        ({"x": ["1", "one"]}, InvalidValue, "'x'"),
    ],
)
def test_a_file_of_public_rows_that_does_not_fit_is_refused(
    table: Path, tmp_path: Path, change: dict[str, Any], error: type[DataError], says: str
) -> None:
    columns = {"x": [9.0, 8.0], "y": [5, 6], "kind": ["walk", "sit"]} | change
    public = save(tmp_path / "public.parquet", {name: values for name, values in columns.items() if values is not None})
    with pytest.raises(error, match=says):
        read(table, test=str(public))


# scaling


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), test=st.sampled_from([None, 0.25]), shift=st.sampled_from([0.0, 1e4]))
def test_local_scaling_standardises_each_client_by_its_own_training_rows(
    tmp_path: Path, seed: int, test: float | None, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 4, 60)
    columns = {"client": owner, "x": (rng.normal(size=60) * 3 + shift).astype(np.float32), "c": 0.1 * owner, "kind": np.arange(60) % 2}
    path = save(tmp_path / "t.npz", columns)
    plain, scaled = read(path, seed, test=test), read(path, seed, test=test, scale="local")
    for k in range(len(scaled.clients)):
        raw, ours = plain.client(k)[0].astype(np.float64), scaled.client(k)[0]
        spread = np.where(np.ptp(raw, axis=0) == 0, 1, raw.std(axis=0))
        assert np.allclose(ours, (raw - raw.mean(axis=0)) / spread, atol=2e-3 if shift else 1e-4)
        assert (ours[:, 1] == 0).all()
        if plain.test is not None and scaled.test is not None:
            held_out = (plain.test.of(k)[0] - raw.mean(axis=0)) / spread
            assert np.allclose(scaled.test.of(k)[0], held_out, atol=2e-3 if shift else 1e-4)
    if scaled.test is not None:
        assert (scaled.test_raw == scaled.test.features).all()
    assert (scaled.schema.center == 0).all()
    assert (scaled.schema.spread == 1).all()


def test_public_rows_are_standardised_without_the_clients_statistics(table: Path, tmp_path: Path) -> None:
    public = save(
        tmp_path / "public.parquet", {"client": ["a", "a", "z", "z"], "x": [1, 3, 10, 30], "y": [0, 1, 0, 1], "kind": ["run"] * 4}
    )
    federation = read(table, test=str(public), scale="local")
    assert federation.test is not None
    assert np.allclose(federation.test.features, [[-1, -1], [1, 1], [-1, -1], [1, 1]])


def test_given_ranges_become_zero_to_one_and_the_raw_test_rows_stay_raw(table: Path) -> None:
    plain = read(table, test=0.5)
    federation = read(table, test=0.5, scale="given", ranges={"y": [0, 1], "x": [0, 8]})
    assert np.allclose(federation.train.features * [8, 1], plain.train.features)
    assert (federation.test_raw == plain.test_raw).all()
    assert federation.test is not None
    schema = federation.schema
    assert (federation.test.features == (federation.test_raw - schema.center) / schema.spread).all()


@pytest.mark.parametrize(
    ("ranges", "error", "says"),
    [
        ({"x": [0, 8]}, DataNotFound, "'y'"),
        ({"x": [0, 8], "y": [0, 1], "Y": [0, 1]}, UnknownKey, "'Y'"),
        ({"x": [0, 1e-42], "y": [0, 1]}, InvalidValue, "'x'"),
        ({"x": [-1e300, 1e300], "y": [0, 1]}, InvalidValue, "'x'"),
        ({"x": [1e-38, 2.2e-38], "y": [0, 1]}, InvalidValue, "float32"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(table: Path, ranges: dict[str, list[float]], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read(table, scale="given", ranges=ranges)


# what is refused


@pytest.mark.parametrize(
    ("change", "options", "error", "says"),
    [
        ({}, {"client": "cleint"}, DataNotFound, "did you mean 'client'"),
        ({}, {"label": "knid"}, DataNotFound, "did you mean 'kind'"),
        ({}, {"drop": ["yy"]}, DataNotFound, "'yy'"),
        ({"x": [1.0] * 7 + [float("nan")]}, {}, InvalidValue, "'x'"),
        ({"x": [1.0] * 7 + [float("inf")]}, {}, InvalidValue, "'x'"),
        ({"x": [1.0] * 7 + [1e39]}, {}, InvalidValue, "'x'"),
        ({"x": pa.array([1] * 7 + [None])}, {}, InvalidValue, "'x'"),
        ({"note": ["n"] * 8}, {}, DataError, r"'note'.*data\.drop"),
        ({"when": pa.array([0] * 8).cast(pa.timestamp("s"))}, {}, DataError, "'when'"),
        ({"list": [[1]] * 8}, {}, DataError, "'list'"),
        ({"none": pa.nulls(8)}, {}, DataError, "'none'"),
        ({}, {"drop": ["x", "y"]}, DataError, "no numeric column"),
        ({"client": [1.0] * 7 + [float("nan")]}, {}, InvalidValue, "'client'"),
        ({"client": [1.5] * 8}, {}, InvalidValue, "'client'"),
        ({"client": pa.array(["a"] * 7 + [None])}, {}, InvalidValue, "'client'"),
        ({"client": ["a"] * 7 + [""]}, {}, InvalidValue, "'client'"),
        ({"client": pa.array([0] * 8, pa.int32()).cast(pa.date32())}, {}, InvalidValue, "'client'"),
        ({"client": [{"id": 1}] * 8}, {}, InvalidValue, "'client'"),
        ({"client": [b"\xff"] * 8}, {}, InvalidValue, "'client'"),
        ({"kind": [0.5] * 8}, {}, InvalidValue, "'kind'"),
        ({"kind": pa.array(["a"] * 7 + [None])}, {}, InvalidValue, "'kind'"),
        ({"kind": pa.array([2**63] * 8, pa.uint64())}, {}, InvalidValue, "'kind'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], error: type[DataError], says: str
) -> None:
    with pytest.raises(error, match=says):
        read(save(tmp_path / "t.parquet", BASE | change), **options)


def test_values_that_scaling_takes_out_of_float32_are_refused(tmp_path: Path) -> None:
    columns = {"client": ["a", "a"], "x": [-3e38, 3e38], "kind": [0, 1]}
    with pytest.raises(InvalidValue, match="float32"):
        read(save(tmp_path / "t.npz", columns), scale="given", ranges={"x": [0, 1e-5]})
    assert np.allclose(read(tmp_path / "t.npz", scale="local").train.features, [[-1], [1]])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.parquet", b"PAR1 but no more"),
        ("t.parquet", b""),
        ("t.npz", b"PK\x03\x04 cut short"),
        ("t.npz", b""),
        ("t.csv", b""),
        ("t.csv", b"client,x,kind\na,1\n"),
        ("t.csv", b"client,x,kind\n\xff\xfe,1,walk\n"),
        ("t.csv", b"client,x,kind\n"),
        ("t.csv", b"client,x,x,kind\na,1,1,0\nb,1,1,1\n"),
        ("t.csv", b",client,x,kind\n0,a,1,0\n1,b,1,1\n"),
        ("t.xlsx", b"x"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_and_its_rows_are_not_quoted(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert "a,1" not in str(caught.value)
    assert not isinstance(caught.value, DataNotFound)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".parquet", ".csv", ".npz"]))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    path = save(tmp_path / f"t{suffix}", BASE)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"damaged{suffix}").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        federation = read(tmp_path / f"damaged{suffix}")
    except DataError:
        return
    assert np.isfinite(federation.train.features).all()


def test_an_npz_with_python_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (ran,)

    np.savez(tmp_path / "t.npz", client=np.array([Trap(), Trap()], dtype=object), x=[1, 2], kind=[0, 1])
    with pytest.raises(DataError, match="Python objects"):
        read(tmp_path / "t.npz")
    assert not ran.exists()


@pytest.mark.parametrize("extra", [{"z": [1, 2]}, {"z": np.zeros((2, 2, 2))}, {"z": np.float32(1)}, {"z": [1j] * 8}])
def test_an_npz_array_that_is_no_column_is_refused_by_name(tmp_path: Path, extra: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        read(save(tmp_path / "t.npz", BASE | extra))


def test_a_missing_file_offers_the_built_in_it_may_have_meant(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="did you mean 'digits'"):
        load(Data(source="digit", client="c", label="l"), 0)
    with pytest.raises(DataNotFound, match=r"t\.csv"):
        read(tmp_path / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataNotFound, match=r"folder\.csv"):
        read(tmp_path / "folder.csv")


def test_a_csv_with_semicolons_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("client;x;kind\na;1;0\nb;1;1\n")
    with pytest.raises(DataNotFound, match="commas"):
        read(tmp_path / "t.csv")


def test_rows_standardised_without_a_job_are_those_of_training_in_their_own_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    owner, values = rng.permutation(np.arange(60) % 4), (rng.normal(size=(60, 2)) * 3 + 1000).astype(np.float32)
    trained = read(save(tmp_path / "t.npz", {"client": owner, "x": values, "kind": np.arange(60) % 2}), scale="local")
    ours = standardised(values, owner)
    for k in range(4):
        assert (ours[owner == k] == trained.client(k)[0]).all()


# built-in data sets


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"), [("digits", 1797, 64, 10), ("breast-cancer", 569, 30, 2), ("wine", 178, 13, 3)]
)
def test_a_built_in_is_dealt_whole_and_scaled_by_ranges_that_hold_it(name: str, rows: int, features: int, classes: int) -> None:
    federation = load(Data(source=name, partition={"clients": 20}, test=0.2), 0)
    assert federation.test is not None
    together = np.concatenate([federation.train.features, federation.test.features])
    assert together.shape == (rows, features)
    assert together.min() >= 0
    assert together.max() <= 1
    assert federation.schema.scale == "given"
    assert federation.schema.labels_declared
    assert len(federation.schema.labels) == classes
    assert len(federation.clients) == 20
    assert list(federation.clients) == sorted(federation.clients)
    assert (np.diff(federation.train.offsets) >= 1).all()


def test_built_in_rows_are_scikit_learns() -> None:
    from sklearn import datasets

    for name, loader in (("digits", datasets.load_digits), ("wine", datasets.load_wine), ("breast-cancer", datasets.load_breast_cancer)):
        ours, theirs = built_in.read(name), loader()
        assert np.allclose(ours.features, theirs.data.astype(np.float32))
        assert (ours.labels == theirs.target).all()
        assert list(ours.ranges) == [str(feature) for feature in theirs.feature_names]
        assert [str(label) for label in ours.vocabulary] == [str(label) for label in theirs.target_names]


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64)),
    clients=st.integers(1, 80),
    concentration=st.sampled_from([1e-300, 1e-3, 0.5, 10.0, 1e300]),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_is_dealt_and_every_client_has_one_where_rows_suffice(
    labels: np.ndarray, clients: int, concentration: float, seed: int
) -> None:
    owner = built_in.deal(labels, clients, concentration, np.random.default_rng(seed))
    assert owner.shape == labels.shape
    sizes = np.bincount(owner, minlength=clients)
    assert len(sizes) == clients
    assert sizes.min() >= (1 if len(labels) >= clients else 0)
    assert (owner == built_in.deal(labels, clients, concentration, np.random.default_rng(seed))).all()


def test_a_small_concentration_gives_clients_fewer_labels() -> None:
    """Mean share of a client's commonest digit: fixed seeds, so no false alarm."""
    shares = []
    for concentration in (0.1, 100.0):
        federation = load(Data(source="digits", partition={"clients": 40, "dirichlet": concentration}), 0)
        shares.append(np.mean([np.bincount(labels).max() / len(labels) for labels in (federation.client(k)[1] for k in range(40))]))
    assert shares[0] > 0.55
    assert shares[1] < 0.3


@pytest.mark.slow
def test_the_seed_deals_and_a_million_clients_share_what_there_is() -> None:
    first, again, other = (load(Data(source="wine", partition={"clients": 9}), seed) for seed in (1, 1, 2))
    assert (first.train.features == again.train.features).all()
    assert not np.array_equal(first.train.features, other.train.features)
    crowd = load(Data(source="wine", partition={"clients": 1_000_000}, test=0.5), 0)
    assert np.diff(crowd.train.offsets).sum() == 178
    assert crowd.clients[-1] == "client-999999"


def test_a_built_in_has_no_file_of_test_rows(table: Path) -> None:
    with pytest.raises(DataError, match="share"):
        load(Data(source="wine", test=str(table)), 0)


# fingerprints


def test_rows_and_clients_are_known_again_whatever_the_order_the_scale_and_the_split(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", BASE)
    wanted = prints(read(path))
    assert len(wanted) == 1 + 3 + 3 + 2
    order = [5, 3, 0, 7, 1, 6, 2, 4]
    columns = dict(reversed(list(BASE.items())))
    shuffled = save(tmp_path / "other name.csv", {name: [values[place] for place in order] for name, values in columns.items()})
    for options in (
        {},
        {"test": 0.5},
        {"scale": "local"},
        {"scale": "given", "ranges": {"x": [0, 8], "y": [0, 1]}},
        {"labels": ["walk", "sit", "run", "fly"]},
    ):
        assert prints(read(shuffled, seed=7, **options)) == wanted
    signed = BASE | {"y": [-0.0 if value == 0 else 1.0 for value in BASE["y"]]}
    assert prints(read(save(tmp_path / "signed.parquet", signed))) == wanted


def test_renamed_clients_are_known_by_their_rows_and_changed_rows_by_their_clients(tmp_path: Path) -> None:
    wanted = prints(read(save(tmp_path / "t.parquet", BASE)))
    assert len(wanted & prints(read(tmp_path / "t.parquet", drop=["y"]))) == 3 + 2
    renamed = BASE | {"client": [f"hospital {client}" for client in BASE["client"]]}
    assert len(wanted & prints(read(save(tmp_path / "renamed.parquet", renamed)))) == 1 + 3
    changed = BASE | {"x": [value + 1 for value in BASE["x"]]}
    assert len(wanted & prints(read(save(tmp_path / "changed.parquet", changed)))) == 3
    one_row = BASE | {"x": [BASE["x"][0] + 1, *BASE["x"][1:]]}
    assert len(wanted & prints(read(save(tmp_path / "one.parquet", one_row)))) == 3 + 2
    relabelled = BASE | {"kind": ["run", *BASE["kind"][1:]]}
    assert len(wanted & prints(read(save(tmp_path / "relabelled.parquet", relabelled)))) == 3 + 2
    part = {name: [value for value, client in zip(values, BASE["client"], strict=True) if client != "c"] for name, values in BASE.items()}
    assert len(wanted & prints(read(save(tmp_path / "part.parquet", part)))) == 2 + 2


def test_other_data_share_no_fingerprint(tmp_path: Path) -> None:
    other = {"patient": BASE["client"], "x": [value + 1 for value in BASE["x"]], "kind": BASE["kind"]}
    path = save(tmp_path / "other.parquet", other)
    assert not prints(read(save(tmp_path / "t.parquet", BASE))) & prints(read(path, client="patient"))


def _households(rows: int, seed: int) -> dict[str, Any]:
    """People who live in households, both plain numbers, and two measured columns."""
    rng = np.random.default_rng(seed)
    person = rng.integers(0, 8, rows)
    measured = {"a": rng.normal(size=rows), "c": rng.normal(size=rows)}
    return {"person": person, "household": person // 2, **measured, "kind": rng.integers(0, 2, rows)}


def test_the_same_file_is_known_again_under_another_client_column_and_fewer_features(tmp_path: Path) -> None:
    for rows in (20, 200):  # too few for any column to be particular, and enough
        for suffix in (".csv", ".parquet", ".npz"):
            path = save(tmp_path / f"{rows}{suffix}", _households(rows, 0))
            one, other = read(path, client="person"), read(path, client="household", drop=["person", "c"])
            assert prints(one) & prints(other)
            numbers, texts = read(path, client="person"), read(path, client="person", labels=["0", "1"] if suffix == ".csv" else [0, 1])
            assert prints(numbers) == prints(texts)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_how_a_table_is_dealt_depends_on_who_has_which_rows_and_on_nothing_else(tmp_path: Path, suffix: str) -> None:
    columns, order = _households(200, 0), np.random.default_rng(1).permutation(200)
    columns["partner"] = 7 - columns["person"]  # the same rows together as by person
    path, shuffled = save(tmp_path / f"t{suffix}", columns), {name: values[order] for name, values in reversed(list(columns.items()))}
    person, partner, household = (content_and_dealing(read(path, client=name).identity) for name in ("person", "partner", "household"))
    again = content_and_dealing(read(save(tmp_path / f"again{suffix}", shuffled), client="person", drop=["c"], test=0.5).identity)
    assert person == partner == again
    assert person[0] == household[0]
    assert person[1] != household[1]
    assert content_and_dealing(load(Data(source="wine"), 0).identity) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), suffix=st.sampled_from([".csv", ".parquet", ".npz"]), data=st.data())
def test_whatever_columns_two_jobs_take_of_a_table_they_share_a_fingerprint(
    tmp_path: Path, seed: int, suffix: str, data: st.DataObject
) -> None:
    path = save(tmp_path / f"t{suffix}", _households(data.draw(st.integers(12, 120)), seed))
    both = []
    for _ in range(2):
        client = data.draw(st.sampled_from(["person", "household", "kind"]))
        label = data.draw(st.sampled_from([name for name in ("person", "household", "kind") if name != client]))
        drop = data.draw(st.lists(st.sampled_from([name for name in ("a", "person", "kind") if name not in (client, label)]), unique=True))
        both.append(prints(read(path, client=client, label=label, drop=drop)))
    assert both[0] & both[1]


def test_a_table_with_columns_renamed_taken_out_and_new_ids_is_known_by_a_column_that_stayed(tmp_path: Path) -> None:
    columns = _households(200, 0)
    wanted = prints(read(save(tmp_path / "t.csv", columns), client="person"))
    order = np.random.default_rng(1).permutation(200)
    copy = {"who": [f"p{person}" for person in columns["household"][order]], "z": columns["c"][order], "kind": columns["kind"][order]}
    assert len(wanted & prints(read(save(tmp_path / "copy.npz", copy), client="who"))) == 1
    moved = copy | {"z": copy["z"] + 1}
    assert not wanted & prints(read(save(tmp_path / "moved.npz", moved), client="who"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(60, 300),
    clients=st.integers(2, 80),
    name=st.sampled_from(["{}", "phone-{}", "site {:06d}", "{:012d}"]),
    seed=st.integers(0, 10**6),
)
def test_unrelated_tables_with_counted_ids_flags_ticks_and_row_numbers_share_no_fingerprint(
    tmp_path: Path, rows: int, clients: int, name: str, seed: int
) -> None:
    """Only the measured column tells them apart; 64-bit floats drawn from two seeds never agree."""
    found = []
    for which, client in enumerate(("patient", "device")):
        ids = [name.format(row % clients) for row in range(rows)]
        counted = {client: ids, "row": np.arange(rows), "tick": (np.arange(rows) * 0.1).astype(np.float32), "one": np.ones(rows)}
        counted |= {"turn": np.arange(rows) // clients, "code": [f"R{row:04d}" for row in range(rows)], "kind": np.arange(rows) % 2}
        counted |= {"day": np.datetime64("2024-01-01") + 3 * np.arange(rows) ** 2 % 1000}
        measured = np.random.default_rng([seed, which]).normal(size=rows)
        path = save(tmp_path / f"{client}.parquet", counted | {f"x{which}": measured})
        found.append(prints(read(path, client=client, drop=["code", "day"])))
    assert not found[0] & found[1]


@pytest.mark.parametrize(
    ("ids", "known"),
    [
        ([1, 2], 0),
        ([4711, 815], 0),
        (["phone-11", "phone-12"], 0),
        (["000000000007", "000000000008"], 0),
        (["Hamburg", "Bremen"], 0),
        ([491511234567, 331212345678], 2),
        (["0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"], 2),
        (["first.person@example.org", "x"], 1),
    ],
)
def test_a_particular_id_is_known_in_a_column_of_any_name_and_a_counted_one_is_not(tmp_path: Path, ids: list[Any], known: int) -> None:
    one = save(tmp_path / "one.csv", {"phone": ids, "x": [1, 2], "kind": [0, 1]})
    other = save(tmp_path / "other.csv", {"caller": ids, "y": [5, 6], "kind": [1, 0]})
    assert len(prints(read(one, client="phone")) & prints(read(other, client="caller"))) == known


def test_a_column_left_out_may_hold_what_no_feature_may(tmp_path: Path) -> None:
    columns = BASE | {
        "gaps": pa.array([1.0, None, float("nan"), float("inf"), 1e300, -0.0, 0.0, 2.0]),
        "note": pa.array(["a", None] * 4),
        "bytes": [b"\xff"] * 8,
        "nothing": pa.nulls(8),
        "list": [[1]] * 8,
        "when": pa.array([0] * 8).cast(pa.timestamp("s")),
        "price": pa.array([1] * 8, pa.int8()).cast(pa.decimal128(5, 2)),
        "group": pa.array(["g"] * 8).dictionary_encode(),
    }
    left_out = ["gaps", "note", "bytes", "nothing", "list", "when", "price", "group"]
    assert len(prints(read(save(tmp_path / "t.parquet", columns), drop=left_out))) == 1 + 3 + 3 + 2


def test_a_built_in_is_known_again_under_another_partition_and_its_empty_clients_leave_no_print() -> None:
    one, other = (load(Data(source="wine", partition={"clients": clients}, test=0.2), clients) for clients in (7, 300))
    assert len(prints(one)) == 1 + 7
    assert len(prints(other)) == 1 + 178
    assert len(prints(one) & prints(other)) >= 1


def test_fingerprints_are_keyed_and_the_messages_of_each_kind_have_their_own_domain(tmp_path: Path) -> None:
    rows = 60
    columns = {"client": [hashlib.sha256(bytes([row])).hexdigest() for row in range(rows)], "x": np.arange(rows) ** 0.5}
    federation = read(save(tmp_path / "t.parquet", columns | {"kind": np.arange(rows) % 2}))
    keys = [fingerprints(federation, lambda message, key=key: hmac.digest(key, message, "sha256")) for key in (b"one", b"two")]
    assert not keys[0] & keys[1]
    domains = {message.split(b"\0")[0] for message in federation.identity}
    assert len(domains) == 7
    assert not any(one != other and other.startswith(one) for one, other in itertools.product(domains, domains))


def test_rows_without_an_identity_cannot_pass_as_unknown_to_the_ledger(table: Path) -> None:
    federation = read(table)
    bare = Federation(federation.schema, federation.clients, federation.train, None, False, "hand-made")
    with pytest.raises(DataError, match="identity"):
        prints(bare)


@pytest.mark.slow
def test_a_million_rows_of_sixty_features_are_fingerprinted_in_seconds() -> None:
    from qedge.data.fingerprint import rows_messages
    from qedge.data.table_fingerprint import table_messages

    rng = np.random.default_rng(0)
    features = rng.random((1_000_000, 60), np.float32)
    offsets = np.linspace(0, 1_000_000, 1001).astype(np.int64)
    start = time.perf_counter()
    messages = rows_messages(features, rng.integers(0, 5, 1_000_000), offsets, [f"f{place}" for place in range(60)], range(5))
    assert time.perf_counter() - start < 15
    assert len(set(messages)) == 1001
    table = pa.table({f"f{place}": np.ascontiguousarray(features[:, place]) for place in range(60)})
    start = time.perf_counter()
    assert len(set(table_messages(table, rng.integers(0, 1000, 1_000_000)))) == 2 + 60
    assert time.perf_counter() - start < 30


# scope


@pytest.mark.parametrize(
    ("source", "scope"),
    [
        ("/data/har.parquet", "har"),
        ("my table (1).csv", "my-table-1-"),
        (".hidden.csv", "hidden"),
        ("数据.csv", "data"),
        ("x" * 300 + ".csv", "x" * 100),
    ],
)
def test_a_table_without_a_scope_has_that_of_its_file_name(source: str, scope: str) -> None:
    assert default_scope(Data(source=source, client="c", label="l")) == scope


def test_a_built_in_has_a_scope_of_its_own_name() -> None:
    assert default_scope(Data(source="breast-cancer")) == "breast-cancer"


def test_the_digest_of_a_row_is_the_documented_one() -> None:
    """One row computed by hand: names, float32 little-endian in the order of the names, then BLAKE2b of the label."""
    from qedge.data.fingerprint import rows_messages

    messages = rows_messages(np.array([[2.0, -0.0]], np.float32), np.array([1]), np.array([0, 1]), ["b", "a"], ["no", "yes"])
    counted = b"\0".join(len(name).to_bytes(8, "little") + name for name in (b"a", b"b"))
    row = np.array([0.0, 2.0], "<f4").tobytes() + hashlib.blake2b(b"yes", digest_size=8).digest()
    expected = hashlib.blake2b(counted, digest_size=32).digest() + hashlib.blake2b(row, digest_size=32).digest()
    assert [message.split(b"\0", 1)[1] for message in messages] == [expected, expected]
