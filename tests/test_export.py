"""A served model: the same answers as torch, from raw rows, for any batch, with labels by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from qedge.data.federation import Schema, load
from qedge.errors import HomeUnusable, LabelMismatch, ModelError
from qedge.export import save_weights, to_onnx
from qedge.job import Data, Model
from qedge.models import build, parameters_vector

WORDS = ("sit", "walk", "läuft", "run")
NUMBERS = (7, -3, 2**40, 0)


def make_schema(features: int, labels: tuple[str, ...] | tuple[int, ...], scale: str = "none") -> Schema:
    rng = np.random.default_rng(4)
    center, spread = np.zeros(features, np.float32), np.ones(features, np.float32)
    if scale == "given":
        center, spread = rng.normal(0, 50, features).astype(np.float32), rng.uniform(0.1, 90, features).astype(np.float32)
    return Schema(tuple(f"f {place}" for place in range(features)), labels, scale, center, spread, labels_declared=True)  # type: ignore[arg-type]


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


class Attention(nn.Module):
    """Something that is not a chain of layers: attention over the features of one row."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.lift(x.unsqueeze(2))
        return self.last((tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0]).mean(dim=1))


@pytest.mark.parametrize(
    ("spec", "labels", "scale"),
    [
        (Model(kind="linear"), NUMBERS, "none"),
        (Model(kind="mlp", hidden=(8,)), WORDS, "given"),
        (Model(kind="cnn", channels=(3, 4)), WORDS, "local"),
        (Model(kind="cnn", image=(1, 2, 8), channels=(3, 4, 2)), NUMBERS, "given"),
    ],
    ids=["linear", "mlp", "cnn", "wide cnn"],
)
def test_every_kind_answers_as_torch_does_for_any_batch(tmp_path: Path, spec: Model, labels: tuple[str, ...], scale: str) -> None:
    schema = make_schema(16, labels, scale)
    module = build(spec, 16, 4, seed=1)
    to_onnx(module, schema, tmp_path / "model.onnx")
    served = session(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    for batch in (1, 2, 33):
        raw = schema.center + schema.spread * rng.random((batch, 16), np.float32)
        scaled = (raw - schema.center) / schema.spread  # as training does, outside the graph
        with torch.no_grad():
            wanted = torch.softmax(module(torch.from_numpy(scaled)), 1).numpy()
        probabilities, label = served.run(["probabilities", "label"], {"features": raw})
        assert np.allclose(probabilities, wanted, rtol=0, atol=1e-5)
        assert list(label) == [labels[place] for place in wanted.argmax(1)]
    assert module.training


def test_the_face_of_the_graph_is_the_documented_one(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4))
    for module, labels, kind in ((build(Model(kind="linear"), 6, 4, seed=0), WORDS, "tensor(string)"), (own, NUMBERS, "tensor(int64)")):
        schema = make_schema(6, labels, "given")
        to_onnx(module, schema, tmp_path / "model.onnx")
        served = session(tmp_path / "model.onnx")
        assert [(tensor.name, tensor.type, tensor.shape) for tensor in served.get_inputs()] == [("features", "tensor(float)", ["batch", 6])]
        assert [(tensor.name, tensor.type, tensor.shape) for tensor in served.get_outputs()] == [
            ("probabilities", "tensor(float)", ["batch", 4]),
            ("label", kind, ["batch"]),
        ]
        known = served.get_modelmeta().custom_metadata_map
        assert json.loads(known["features"]) == list(schema.features)
        assert json.loads(known["labels"]) == list(labels)
        assert known["scale"] == "given"
        assert known["qedge"]


def test_raw_rows_of_a_built_in_are_answered_as_its_scaled_rows_are(tmp_path: Path) -> None:
    federation = load(Data(source="breast-cancer", partition={"clients": 3}, test=0.2), 0)
    assert federation.test is not None
    module = build(Model(kind="mlp", hidden=(4,)), 30, 2, seed=0)
    to_onnx(module, federation.schema, tmp_path / "model.onnx")
    with torch.no_grad():
        wanted = torch.softmax(module(torch.from_numpy(federation.test.features)), 1).numpy()
    probabilities, label = session(tmp_path / "model.onnx").run(None, {"features": federation.test_raw})
    assert np.allclose(probabilities, wanted, atol=1e-5)
    assert set(label) <= {"malignant", "benign"}


def test_a_model_of_the_users_own_is_exported_without_the_paths_of_this_machine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    to_onnx(Attention(4), make_schema(5, WORDS), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content
    assert onnx.load(str(tmp_path / "model.onnx")).opset_import[0].version >= 20


def written() -> nn.Module:
    """A model whose graph is written from its layers."""
    return build(Model(kind="mlp", hidden=(3,)), 5, 4, seed=0)


def traced() -> nn.Module:
    """One with a layer that only torch's exporter knows."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 4))


@pytest.mark.parametrize("make", [written, traced])
def test_the_same_model_gives_the_same_file(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    schema = make_schema(5, WORDS, "given")
    for name in ("one", "two"):
        to_onnx(make(), schema, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


class Branches(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


class Wanders(nn.Linear):
    """Torch itself answers otherwise each time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(4)


def diverged() -> nn.Module:
    module = nn.Linear(5, 4)
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    return module


@pytest.mark.parametrize(
    ("module", "error", "says"),
    [
        (Branches(5, 4), ModelError, "exported"),
        (Wanders(5, 4), ModelError, "as torch does"),
        (diverged(), ModelError, "not numbers"),
        (nn.Linear(5, 3), LabelMismatch, "4 labels"),
        (nn.Linear(5, 5), LabelMismatch, "4 labels"),
    ],
)
def test_a_model_that_would_answer_otherwise_is_refused_and_the_older_file_stays(
    tmp_path: Path, module: nn.Module, error: type[Exception], says: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"older")
    with pytest.raises(error, match=says):
        to_onnx(module, make_schema(5, WORDS), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("make", [written, traced])
def test_the_exporter_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder, make: Callable[[], nn.Module]
) -> None:
    to_onnx(make(), make_schema(5, WORDS), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_folder_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(HomeUnusable):
        to_onnx(build(Model(kind="linear"), 3, 4, seed=0), make_schema(3, WORDS), tmp_path / "gone" / "model.onnx")


def test_weights_are_saved_by_name_and_train_further_from_there(tmp_path: Path) -> None:
    module = build(Model(kind="mlp", hidden=(3,)), 5, 4, seed=0)
    kept = parameters_vector(module)
    vector = np.arange(len(kept), dtype=np.float32)
    save_weights(vector, module, tmp_path / "weights.safetensors")
    assert (parameters_vector(module) == kept).all()
    fresh = build(Model(kind="mlp", hidden=(3,)), 5, 4, seed=9)
    fresh.load_state_dict({name: torch.from_numpy(values) for name, values in load_file(tmp_path / "weights.safetensors").items()})
    assert (parameters_vector(fresh) == vector).all()
    with pytest.raises(ModelError):
        save_weights(vector[1:], module, tmp_path / "weights.safetensors")


def test_tied_weights_are_saved_under_each_of_their_names(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    module = nn.Sequential(first, second)
    save_weights(parameters_vector(module), module, tmp_path / "weights.safetensors")
    saved = load_file(tmp_path / "weights.safetensors")
    assert (saved["0.weight"] == saved["1.weight"]).all()
