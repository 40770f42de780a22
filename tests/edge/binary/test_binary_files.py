"""A file of a binary network is taken by nothing but its bytes: whatever else it says is refused before anything is made of it."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.edge.binary.architecture import Architecture, Layer
from qedge.edge.binary.module import pack
from qedge.edge.binary.network import BinaryNetwork
from qedge.errors import ModelError
from tests.edge.binary.binary_networks import random_module

CNN = Architecture((1, 8, 8), (Layer(8, (3, 3), pads=(1, 1, 1, 1), pool=(2, 2), pool_stride=(2, 2)), Layer(24)), 4)
Arrays = dict[str, np.ndarray]
NAMES = ("head", "layers", "words", "limits", "ranges", "last")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a good file."""
    path = tmp_path_factory.mktemp("good") / "binary.npz"
    pack(random_module(CNN, 2, 0)).save(path)
    return path.read_bytes()


def _written(arrays: Arrays, compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=True)
    return target.getvalue()


def _arrays(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return dict(found)


def _load(path: Path, content: bytes) -> BinaryNetwork:
    path.write_bytes(content)
    return BinaryNetwork.load(path)


def _put(name: str, place: tuple[int, ...], value: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][place] = value

    return change


def _as(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def changed(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return changed


class _Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle of the file was run",))


CHANGES: dict[str, Callable[[Arrays], object]] = {
    "an array is missing": lambda arrays: arrays.pop("last"),
    "an array too many": lambda arrays: arrays.update(more=np.zeros(1)),
    "objects": _as("last", lambda _: np.array([_Harm()], dtype=object)),
    "another type": _as("words", lambda one: one.astype(np.float64)),
    "other bytes": _as("words", lambda one: one.astype(">u8")),
    "by columns": _as("ranges", np.asfortranarray),
    "words too few": _as("words", lambda one: one[:-1]),
    "words too many": _as("words", lambda one: np.append(one, one[:1])),
    "limits too few": _as("limits", lambda one: one[1:]),
    "ranges of fewer features": _as("ranges", lambda one: np.ascontiguousarray(one[:, 1:])),
    "scales of more classes": _as("last", lambda one: np.concatenate([one, one], axis=1)),
    "a short head": _as("head", lambda one: one[:5]),
    "an odd layer": _as("layers", lambda one: np.ascontiguousarray(one[:, :12])),
    "a large image": _put("head", (1,), 2**24),
    "a huge image": _put("head", (1,), 2**31 - 1),
    "a negative image": _put("head", (1,), -8),
    "one class": _put("head", (3,), 1),
    "no bits": _put("head", (5,), 0),
    "many bits": _put("head", (5,), 63),
    "more bits a weight": _put("head", (4,), 8),
    "no outputs": _put("layers", (0, 0), 0),
    "many outputs": _put("layers", (0, 0), 2**24),
    "a kernel beyond the image": _put("layers", (0, 1), 20),
    "no stride": _put("layers", (0, 3), 0),
    "a negative pad": _put("layers", (0, 5), -1),
    "wide pads": _put("layers", (0, 6), 2**20),
    "a negative window": _put("layers", (0, 9), -2),
    "a range that is no number": _put("ranges", (0, 3), np.nan),
    "a range backwards": _put("ranges", (1, 3), -1.0),
    "an infinite scale": _put("last", (0, 0), np.inf),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_holds_something_else_is_refused(content: bytes, tmp_path: Path, what: str) -> None:
    arrays = _arrays(content)
    CHANGES[what](arrays)
    with pytest.raises(ModelError, match=r"changed\.npz is not the file of a binary network"):
        _load(tmp_path / "changed.npz", _written(arrays))


def test_the_tests_own_writer_makes_files_that_are_taken(content: bytes, tmp_path: Path) -> None:
    assert _load(tmp_path / "same.npz", _written(_arrays(content))).classes == 4


def test_compressed_arrays_are_refused_before_they_are_unpacked(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="compressed"):
        _load(tmp_path / "small.npz", _written(_arrays(content), zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("given_", [b"", b"PK", pickle.dumps({"words": 1}), b"\x93NUMPY"], ids=["empty", "start", "pickle", "npy"])
def test_what_is_no_archive_is_refused(given_: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        _load(tmp_path / "none.npz", given_)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.npz"):
        BinaryNetwork.load(tmp_path / "none.npz")


@settings(max_examples=300)
@given(name=st.sampled_from(NAMES), place=st.floats(0, 1), byte=st.sampled_from([0, 1, 39, 40, 44, 255]), head=st.booleans())
def test_an_array_with_another_byte_and_a_sum_to_match_is_refused_or_answers(
    content: bytes, tmp_path_factory: pytest.TempPathFactory, name: str, place: float, byte: int, head: bool
) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            array = bytearray(source.read(entry))
            if entry.filename == f"{name}.npy":
                array[int(place * (127 if head else len(array) - 1))] = byte
            archive.writestr(entry.filename, bytes(array))
    try:
        network = _load(tmp_path_factory.mktemp("altered") / "binary.npz", target.getvalue())
    except ModelError:
        return
    assert network.run(np.zeros((2, network.features), np.float32)).shape == (2, network.classes)


@settings(max_examples=150)
@given(cut=st.floats(0, 1), place=st.floats(0, 1), byte=st.integers(1, 255))
def test_a_file_cut_short_or_with_another_byte_is_refused_or_answers_in_numbers(
    content: bytes, tmp_path_factory: pytest.TempPathFactory, cut: float, place: float, byte: int
) -> None:
    path = tmp_path_factory.mktemp("altered") / "binary.npz"
    with pytest.raises(ModelError):
        _load(path, content[: int(cut * (len(content) - 1))])
    altered = bytearray(content)
    altered[int(place * (len(content) - 1))] ^= byte
    try:
        network = _load(path, bytes(altered))
    except ModelError:
        return
    assert np.isfinite(network.run(np.zeros((1, 64), np.float32))).all()  # what the archive does not sum: dates, names of no use
