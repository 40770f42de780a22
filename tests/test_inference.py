"""The inference server by itself: what it answers, what it refuses, and what it will not load."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from qedge.errors import ArtifactTampered, InvalidRequest, ModelError, QEdgeError, ReceiptTampered, UnknownModel
from qedge.security.keys import Keys, public_text
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder
from serve_apps.onnx_model import OnnxModel
from serve_apps.requests import InferenceRequest
from serve_apps.tensors import TensorSpec, read_tensor, write_tensor
from tests.served_models import FEATURES, LABELS, answer, graph, write

NAME = "mail"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.open(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def model(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = write(tmp_path_factory.mktemp("model"), NAME, keys, graph(seed=1))
    return OnnxModel.load(ModelFolder(NAME, "1", str(folder), public_text(keys.public)))


def request(**changes: Any) -> InferenceRequest:
    tensor: dict[str, Any] = {"name": "features", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.0] * FEATURES}
    top = {key: changes.pop(key) for key in ("id", "outputs") if key in changes}
    return InferenceRequest.parse(json.dumps({"inputs": [tensor | changes], **top}).encode())


@given(rows=arrays.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(FEATURES)), elements=st.floats(-1e3, 1e3, width=32)))
def test_answers_equal_numpy_for_any_batch_flat_or_nested(model: OnnxModel, rows: np.ndarray) -> None:
    flat = model.infer(request(shape=list(rows.shape), data=rows.ravel().tolist(), id="7"), max_rows=20)
    nested = model.infer(request(shape=list(rows.shape), data=rows.tolist(), id="7"), max_rows=20)
    assert flat == nested
    outputs = {output["name"]: output for output in flat["outputs"]}  # type: ignore[union-attr, index, call-overload]
    probabilities = np.array(outputs["probabilities"]["data"]).reshape(outputs["probabilities"]["shape"])
    np.testing.assert_allclose(probabilities, answer(rows, seed=1)[1], atol=1e-5)
    assert outputs["label"]["data"] == [LABELS[place] for place in probabilities.argmax(axis=1)]
    assert outputs["label"]["datatype"] == "BYTES"
    assert flat["id"] == "7"
    assert flat["parameters"] == {"model_version": "1", "receipt": model.receipt}


def test_only_the_outputs_asked_for_are_returned(model: OnnxModel) -> None:
    response = model.infer(request(outputs=[{"name": "label"}]), max_rows=1)
    assert [output["name"] for output in response["outputs"]] == ["label"]  # type: ignore[union-attr, index, call-overload]


def test_metadata_says_what_is_expected(model: OnnxModel) -> None:
    said = model.metadata()
    assert said["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, FEATURES]}]
    assert {"name": "label", "datatype": "BYTES", "shape": [-1]} in said["outputs"]  # type: ignore[operator]
    assert said["versions"] == ["1"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "pixels"}, r"expected one of each of: features \(FP32 \[-1, 4\]\)"),
        ({"datatype": "FP64"}, "expected FP32"),
        ({"datatype": "INT64", "data": [1, 2, 3, 4]}, "expected FP32"),
        ({"shape": [FEATURES]}, r"expected \[-1, 4\]"),
        ({"shape": [1, 5], "data": [0.0] * 5}, r"expected \[-1, 4\]"),
        ({"shape": [0, FEATURES], "data": []}, "any size from 1"),
        ({"shape": [-1, FEATURES]}, "any size from 1"),
        ({"shape": [9, FEATURES], "data": [0.0] * 36}, "at most 8 in one request"),
        ({"data": [0.0] * 3}, "have 3 elements"),
        ({"data": [[0.0] * 5]}, "nested data"),
        ({"shape": [2, FEATURES], "data": [[0.0] * 5, [0.0] * 3]}, "nested data"),
        ({"shape": [2, FEATURES], "data": [[0.0] * 4, 0.0]}, "nested data"),
        ({"data": [[[0.0] * 4]]}, "nested data"),
        ({"data": "0000"}, "must be a list"),
        ({"data": ["0", 0, 0, 0]}, "holds strings"),
        ({"data": [True, 0, 0, 0]}, "holds booleans"),
        ({"data": [None, 0, 0, 0]}, "holds null"),
        ({"data": [float("nan"), 0, 0, 0]}, "holds NaN"),
        ({"data": [float("inf"), 0, 0, 0]}, "holds NaN, an infinity"),
        ({"data": [1e39, 0, 0, 0]}, "out of range"),
        ({"data": [10**400, 0, 0, 0]}, "out of range"),
        ({"data": [3e38, -3e38, 3e38, 3e38]}, "not finite"),
        ({"outputs": [{"name": "labels"}]}, "did you mean 'label'"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_what_was_expected(model: OnnxModel, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        model.infer(request(**changes), max_rows=8)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "features"}]}',
        b'{"inputs": [], "input": []}',
        b'{"inputs": [{"name": "features", "shape": ["1", 4], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "features", "shape": [1.5, 4], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "features", "shape": [true, 4], "datatype": "FP32", "data": []}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"inputs": ' + b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        InferenceRequest.parse(body)


@given(body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_at_random_are_an_invalid_request_and_nothing_else(model: OnnxModel, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        model.infer(InferenceRequest.parse(body), max_rows=8)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(data=_JSON, shape=st.lists(st.integers(-3, 5), max_size=3))
def test_any_json_as_data_is_read_as_its_shape_or_refused(data: Any, shape: list[int]) -> None:
    spec = TensorSpec("x", "FP32", tuple(f"?{at}" for at in range(len(shape))))
    try:
        spec.check(shape, {})
        array = read_tensor(spec, shape, data)
    except InvalidRequest:
        return
    assert array.shape == tuple(shape)
    assert array.dtype == np.float32
    assert np.isfinite(array).all()


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT8", "INT32", "INT64", "UINT64", "FP16", "FP32", "FP64", "BYTES"])
@given(data=st.data())
def test_a_tensor_survives_being_written_and_read(datatype: str, data: st.DataObject) -> None:
    spec = TensorSpec("x", datatype, ("rows", 2))
    if datatype == "BYTES":
        array = np.array(data.draw(st.lists(st.text(max_size=4), min_size=6, max_size=6)), dtype=object).reshape(3, 2)
    else:
        dtype = np.dtype({"BOOL": "bool", "FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower()))
        finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
        array = data.draw(arrays.arrays(dtype, (3, 2), elements=arrays.from_dtype(dtype, **finite)))
    written = json.loads(json.dumps(write_tensor(spec, array)))
    np.testing.assert_array_equal(read_tensor(spec, written["shape"], written["data"]), array)


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT64", 2**63), ("INT32", 1.0), ("BYTES", 1)]
)
def test_a_value_its_datatype_cannot_hold_is_refused(datatype: str, value: float) -> None:
    with pytest.raises(InvalidRequest):
        read_tensor(TensorSpec("x", datatype, (1,)), [1], [value])


def test_inputs_of_different_batch_sizes_are_refused() -> None:
    chosen: dict[str, int] = {}
    TensorSpec("a", "FP32", ("batch", 2)).check([3, 2], chosen)
    with pytest.raises(InvalidRequest, match="agree"):
        TensorSpec("b", "FP32", ("batch", 2)).check([4, 2], chosen)


@pytest.mark.parametrize("filler", [b"[]", b"{}", b"[[]]", b'{"a":[]}', b"0", b"1.5", b"null", b'"a"'])
@pytest.mark.parametrize("place", [b'{"inputs": [{"data": [%s]}]}', b'{"parameters": {"a": [%s]}}'])
def test_a_body_of_far_too_much_is_refused_before_it_takes_memory(model: OnnxModel, filler: bytes, place: bytes) -> None:
    """Parsed, it would take up to thirty times its bytes."""
    body = place % b",".join([filler] * 200_000)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"the body holds [0-9]{6} (lists and objects|values)"):
            model.check_amount(body, max_rows=4096)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), named=st.integers(0, 4), data=st.data())
def test_no_nested_tensor_that_fits_has_more_lists_or_values_than_are_allowed(shape: list[int], named: int, data: st.DataObject) -> None:
    spec = TensorSpec("x", "FP32", tuple(f"d{at}" if at == 0 or at == named else size for at, size in enumerate(shape)))
    max_rows = data.draw(st.integers(shape[0], 10))
    body = json.dumps(np.zeros(shape, dtype=int).tolist(), separators=(",", ":"))
    assert body.count("[") <= spec.most_lists(max_rows, len(body))
    assert body.count(",") + 1 <= spec.most_values(max_rows, len(body))


def test_text_may_hold_any_number_of_brackets(keys: Keys, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]) for name in "xy")
    made = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    server = InferenceServer()
    server.serve([ModelFolder(NAME, "1", str(write(tmp_path / "text", NAME, keys, made)))])
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["[" * 5000]}
    assert server.infer(NAME, "1", json.dumps({"inputs": [tensor]}).encode())["outputs"][0]["data"] == ["[" * 5000]  # type: ignore[index, call-overload]


class TestLoading:
    @pytest.fixture
    def folder(self, keys: Keys, tmp_path: Path) -> Path:
        return write(tmp_path / "model", NAME, keys, graph(seed=1))

    @pytest.mark.parametrize("location", ["weights.bin", "../external/weights.bin", "ABSOLUTE"])
    def test_weights_outside_the_signed_file_are_not_pulled_in(
        self, location: str, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The receipt covers model.onnx; a graph that names another file must fail, wherever that file may lie."""
        model = graph(seed=1)
        tensor = model.graph.initializer[0]
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        path = tmp_path / "external" / "weights.bin"
        tensor.external_data.add(key="location", value=str(path) if location == "ABSOLUTE" else location)
        folder = write(path.parent, NAME, keys, model)
        path.write_bytes(content)
        monkeypatch.chdir(folder)
        with pytest.raises(ModelError):
            OnnxModel.load(ModelFolder(NAME, "1", str(folder)))

    @pytest.mark.parametrize("file", ["model.onnx", "receipt.json"])
    @given(data=st.data())
    def test_one_changed_byte_is_never_loaded(
        self, file: str, data: st.DataObject, keys: Keys, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = write(tmp_path_factory.mktemp("model"), NAME, keys, graph(seed=1))
        content = bytearray((folder / file).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        (folder / file).write_bytes(content)
        with pytest.raises((ArtifactTampered, ReceiptTampered)):
            OnnxModel.load(ModelFolder(NAME, "1", str(folder), public_text(keys.public)))

    def test_a_receipt_under_another_key_is_refused(self, folder: Path, tmp_path: Path) -> None:
        other = Keys.open(tmp_path / "other")
        with pytest.raises(ReceiptTampered, match="pinned"):
            OnnxModel.load(ModelFolder(NAME, "1", str(folder), public_text(other.public)))

    def test_the_receipt_of_another_model_is_refused(self, folder: Path, keys: Keys) -> None:
        with pytest.raises(ReceiptTampered, match="'mail', not of 'bank'"):
            OnnxModel.load(ModelFolder("bank", "1", str(folder), public_text(keys.public)))

    def test_a_folder_that_is_not_there_is_an_unknown_model(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownModel):
            OnnxModel.load(ModelFolder(NAME, "1", str(tmp_path / "nowhere")))

    def test_signed_bytes_that_are_no_graph_are_a_model_error(self, keys: Keys, tmp_path: Path) -> None:
        broken = graph(seed=1)
        broken.graph.node[0].op_type = "NoSuchOperator"
        folder = write(tmp_path / "broken", NAME, keys, broken)
        with pytest.raises(ModelError, match="cannot load"):
            OnnxModel.load(ModelFolder(NAME, "1", str(folder)))

    def test_a_type_the_protocol_cannot_carry_is_a_model_error(self, keys: Keys, tmp_path: Path) -> None:
        node = helper.make_node("SequenceConstruct", ["x"], ["y"])
        value = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
        made = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [value])
        folder = write(tmp_path / "s", NAME, keys, helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
        with pytest.raises(ModelError, match="cannot carry"):
            OnnxModel.load(ModelFolder(NAME, "1", str(folder)))


class TestServing:
    @pytest.fixture
    def versions(self, keys: Keys, tmp_path: Path) -> list[ModelFolder]:
        pinned = public_text(keys.public)
        return [ModelFolder(NAME, str(seed), str(write(tmp_path / str(seed), NAME, keys, graph(seed))), pinned) for seed in (1, 2)]

    def test_a_version_replaces_another_and_a_tampered_one_does_not(self, versions: list[ModelFolder]) -> None:
        seen: list[tuple[str, float, dict[str, str]]] = []
        server = InferenceServer(record=lambda name, value, **tags: seen.append((name, value, tags)))
        server.serve(versions[:1])
        server.serve(versions[1:])
        assert server.find(NAME).source.version == "2"
        path = Path(versions[0].folder) / "model.onnx"
        path.write_bytes(path.read_bytes() + b"\0")
        server.serve(versions[:1])
        assert server.find(NAME).source.version == "2"
        assert isinstance(server.failures[NAME], ArtifactTampered)
        assert ("qedge_models_refused_total", 1, {"model": NAME, "code": "tampered.artifact"}) in seen
        server.serve(versions[1:])
        assert not server.failures

    def test_what_is_not_in_the_plan_is_not_served(self, versions: list[ModelFolder]) -> None:
        server = InferenceServer()
        server.serve(versions[:1])
        server.serve([])
        with pytest.raises(UnknownModel, match="no model is served"):
            server.find(NAME)

    def test_an_unknown_name_or_version_says_what_is_served(self, versions: list[ModelFolder]) -> None:
        server = InferenceServer()
        server.serve(versions[:1])
        with pytest.raises(UnknownModel, match="did you mean 'mail'"):
            server.find("mial")
        with pytest.raises(UnknownModel, match="version 1 is"):
            server.find(NAME, "2")

    def test_every_error_is_typed(self, versions: list[ModelFolder]) -> None:
        server = InferenceServer()
        server.serve(versions[:1])
        for body in (b"", b"{}", b"null"):
            with pytest.raises(QEdgeError):
                server.infer(NAME, None, body)
