"""A graph that is written from the layers: the module's own answers, and the face that the exporter's graph of the same module has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qedge.data.federation import Schema
from qedge.export import OPSET, to_onnx
from qedge.job import Model
from qedge.layer_graph import chain_graph
from qedge.models import build

LABELS = ("north", "east", "south")
WIDTH = 12
SQUARE = nn.Linear(WIDTH, WIDTH)


def answers(graph: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    content = graph.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (found,) = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {"features": rows})
    assert isinstance(found, np.ndarray)
    return found


def assert_same(module: nn.Module, features: int, rows: int, seed: int) -> None:
    """Of rows [rows, features], scaled and not, ONNX Runtime's probabilities and the module's differ by 1e-6 at most."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(3, 2, (rows, features)).astype(np.float32)
    center, spread = rng.normal(3, 1, features).astype(np.float32), rng.uniform(1, 3, features).astype(np.float32)
    for scaling, given_ in ((None, raw), ((center, spread), (raw - center) / spread)):
        graph = chain_graph(module, features, scaling, OPSET)
        assert graph is not None
        with torch.no_grad():
            wanted = torch.softmax(module(torch.from_numpy(given_)).double(), 1).numpy()
        found = answers(graph, raw)
        assert found.shape == wanted.shape
        assert abs(found - wanted).max() <= 1e-6


seeds = st.integers(0, 2**20)
batches = st.integers(1, 9)


@settings(max_examples=40)
@given(st.integers(1, 40), st.lists(st.integers(1, 30), max_size=4), st.integers(2, 12), batches, seeds)
def test_linear_layers_of_any_widths_answer_as_the_module_does(
    features: int, hidden: list[int], classes: int, rows: int, seed: int
) -> None:
    spec = Model(kind="mlp", hidden=tuple(hidden)) if hidden else Model(kind="linear")
    assert_same(build(spec, features, classes, seed), features, rows, seed)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), st.lists(st.integers(1, 6), min_size=1, max_size=4), batches, seeds
)
def test_images_of_any_shape_answer_as_the_module_does(image: tuple[int, int, int], channels: list[int], rows: int, seed: int) -> None:
    features = int(np.prod(image))
    assert_same(build(Model(kind="cnn", image=image, channels=tuple(channels)), features, 3, seed), features, rows, seed)


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 4), st.sampled_from(["ry", "rx"]), st.booleans(), batches, seeds)
def test_circuits_of_any_size_answer_as_the_module_does(
    qubits: int, layers: int, embedding: str, reupload: bool, rows: int, seed: int
) -> None:
    spec = Model.model_validate({"kind": "hybrid", "qubits": qubits, "layers": layers, "embedding": embedding, "reupload": reupload})
    module = build(spec, 5, 3, seed)
    with torch.no_grad():  # far from the small angles that training begins with
        module[2].weights.uniform_(-3, 3, generator=torch.Generator().manual_seed(seed))  # type: ignore[index,union-attr,operator]
    assert_same(module, 5, rows, seed)


def test_the_largest_circuit_answers_as_the_module_does() -> None:
    assert_same(build(Model(kind="hybrid", qubits=12, layers=2, embedding="rx", reupload=True), 5, 3, 0), 5, 3, 0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(WIDTH, 3, bias=False),
        nn.Sequential(
            nn.Unflatten(1, (2, 3, 2)),
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2, bias=False),
            nn.Flatten(),
            nn.ReLU(),
            nn.Linear(24, 3),
        ),
        nn.Sequential(
            nn.Unflatten(1, (1, 3, 4)), nn.MaxPool2d((2, 3), stride=1, padding=1, dilation=(2, 1)), nn.Flatten(), nn.Linear(12, 3)
        ),
        nn.Sequential(SQUARE, nn.ReLU(), SQUARE, nn.Linear(WIDTH, 3)),
    ],
    ids=["without bias", "convolution", "pool", "twice"],
)
def test_settings_of_layers_that_no_built_in_model_has_are_kept(module: nn.Module) -> None:
    assert_same(module, WIDTH, 5, 0)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    module = nn.Linear(WIDTH, 3)
    module.register_forward_hook(lambda layer, given_, output: 2 * output)
    return nn.Sequential(module)


def hooked_as_a_whole() -> nn.Module:
    module = nn.Sequential(nn.Linear(WIDTH, 3))
    module.register_forward_pre_hook(lambda layer, given_: (2 * given_[0],))
    return module


def patched() -> nn.Module:
    module = nn.Linear(WIDTH, 3)
    module.forward = lambda x: 2 * nn.functional.linear(x, module.weight)  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    "module",
    [
        Doubled(WIDTH, 3),
        hooked(),
        hooked_as_a_whole(),
        patched(),
        nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 3)),
        nn.Sequential(nn.Linear(WIDTH, 3), nn.GELU(), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(WIDTH, 3), nn.ReLU()),
        nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 2), nn.Flatten(), nn.Linear(6, 3)),
        nn.Sequential(nn.Unflatten(1, (3, 4)), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)),
        nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 1, 3, padding="same"), nn.Flatten(), nn.Linear(12, 3)),
        nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(12, 3)),
        nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(4, 3)),
        nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Flatten(0, 1), nn.Linear(4, 3)),
    ],
)
def test_what_is_not_written_exactly_here_is_left_to_the_exporter(module: nn.Module) -> None:
    assert chain_graph(module, WIDTH, None, OPSET) is None


def test_a_layer_of_another_precision_or_no_layer_is_left_to_the_exporter() -> None:
    assert chain_graph(nn.Linear(WIDTH, 3).double(), WIDTH, None, OPSET) is None
    assert chain_graph(nn.Sequential(), WIDTH, None, OPSET) is None


class Wrapped(nn.Module):
    """The same network, which the exporter traces since it is no known chain."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_the_file_has_the_face_metadata_and_answers_that_the_exporter_gives_it(tmp_path: Path) -> None:
    schema = Schema(tuple("abcdefghijkl"), LABELS, "given", np.full(WIDTH, 2, np.float32), np.full(WIDTH, 3, np.float32), True)
    module = build(Model(kind="cnn", image=(1, 3, 4), channels=(2,)), WIDTH, len(LABELS), 0)
    rows = np.random.default_rng(0).normal(2, 3, (7, WIDTH)).astype(np.float32)
    faces, found = [], []
    for name, exported in (("written", module), ("traced", Wrapped(module))):
        path = tmp_path / f"{name}.onnx"
        to_onnx(exported, schema, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ends = [(end.name, end.type, end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
        proto = onnx.load(str(path))
        faces.append(
            (ends, session.get_modelmeta().custom_metadata_map, proto.ir_version, [(one.domain, one.version) for one in proto.opset_import])
        )
        found.append(session.run(["probabilities", "label"], {"features": rows}))
    assert faces[0] == faces[1]
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    assert list(found[0][1]) == list(found[1][1])


def test_weights_have_the_names_of_the_modules_state() -> None:
    module = build(Model(kind="cnn", image=(1, 3, 4), channels=(2,)), WIDTH, 3, 0)
    graph = chain_graph(module, WIDTH, None, OPSET)
    assert graph is not None
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(kept[f"module.{name}"], tensor.numpy())


def test_models_of_a_job_never_wait_for_the_exporter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_given: object, **_more: object) -> None:
        raise AssertionError("the exporter was asked")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    schema = Schema(tuple("abcdefghijkl"), LABELS, "none", np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32), True)
    for more in ({}, {"kind": "mlp", "hidden": [4]}, {"kind": "cnn", "image": [1, 3, 4]}, {"kind": "hybrid"}):
        path = tmp_path / f"{more.get('kind')}.onnx"
        to_onnx(build(Model.model_validate({"kind": "linear", **more}), WIDTH, 3, 0), schema, path)
        assert onnx.load(str(path)).producer_name == "qedge"
