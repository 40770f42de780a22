"""Weights trained for few levels: a rung's graph in torch as ONNX Runtime runs it, better where rounding alone loses, kept only if so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

from qedge.data import built_in
from qedge.data.federation import Schema
from qedge.edge.building import graph
from qedge.edge.building.build import cleaned_graph, make_rung
from qedge.edge.building.chain import Chain, by_blocks, by_levels
from qedge.edge.building.choice import agreement, answers
from qedge.edge.building.fine_tuning import fine_tuned
from qedge.edge.building.integers import int8
from qedge.edge.building.nbits import nbits
from qedge.edge.calibration import Labelled
from qedge.edge.compression.training import Course, train
from qedge.edge.session import OnnxRunner
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build
from tests.edge_ladders import graph as two_layers

DIGITS = built_in.read("digits")
EVERY = Labelled(DIGITS.features, DIGITS.labels)


def exported(model: Model, path: Path, steps: int) -> onnx.ModelProto:
    """A network trained on two thirds of the digits, as rungs are made from it."""
    part = EVERY.part(np.arange(1200))
    module = train(build(model, 64, 10, 0), torch.from_numpy(part.rows / 16), torch.from_numpy(part.labels), Course(steps=steps), 0)
    zero = np.zeros(64, np.float32)
    to_onnx(module, Schema(tuple(f"x{k}" for k in range(64)), tuple(range(10)), "given", zero, zero + 16, True), path)
    return cleaned_graph(graph.read(path))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A narrow MLP: at 2 bits rounding alone loses much."""
    return exported(Model(kind="mlp", hidden=(24,)), tmp_path_factory.mktemp("tuned") / "model.onnx", 1500)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A small CNN, with convolutions and pooling."""
    return exported(Model(kind="cnn", channels=(4, 8)), tmp_path_factory.mktemp("pictures") / "model.onnx", 1500)


def by_runtime(model: onnx.ModelProto, rows: np.ndarray, folder: Path) -> np.ndarray:
    """Probabilities [n, classes] of ONNX Runtime, whose kernels of few bits round activations when weights are prepacked."""
    graph.write(model, folder, "asked")
    return answers(OnnxRunner.load(folder / "asked.onnx", prepacked=True), rows)


def by_torch(chain: Chain | None, rows: np.ndarray) -> np.ndarray:
    """The same of the graph in torch."""
    assert chain is not None
    with torch.no_grad():
        return torch.softmax(chain(torch.from_numpy(rows)), 1).numpy()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_graph_of_a_rung_answers_in_torch_as_in_onnx_runtime(
    kind: str, clean: onnx.ModelProto, pictures: onnx.ModelProto, tmp_path: Path
) -> None:
    model, rows = (clean if kind == "mlp" else pictures), EVERY.rows[:300]
    np.testing.assert_allclose(by_torch(Chain.of(model, model), rows), by_runtime(model, rows, tmp_path), atol=1e-5)
    ways = [*int8(model, rows, saturates=False)[:1], *int8(model, rows, saturates=True)[:1]]
    ways += [*nbits(model, 4, rows, saturates=False), *nbits(model, 2, rows, saturates=False)]
    assert len(ways) == (6 if kind == "mlp" else 8)
    for way, how in ways:
        apart = np.abs(by_torch(Chain.of(way, model), rows) - by_runtime(way, rows, tmp_path))
        assert apart.mean() < 1e-4, how  # activations that lie between two levels may fall to either
        assert apart.max() < 0.05, how


@given(st.integers(1, 70), st.integers(1, 5), st.sampled_from([2, 4]), st.sampled_from([16, 32, 128]), st.integers(0, 2**31))
def test_blocks_are_rounded_as_onnx_runtime_packs_them(rows: int, columns: int, bits: int, block: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    quantiser = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False, bits=bits))
    packed, scales, zeros = quantiser.qbits_block_quant(weight)
    blocks = -(-rows // block)
    level, zero = (_unpacked(one.reshape(columns, -1), bits) for one in (packed, zeros))
    scale = scales.reshape(columns, blocks, 1)
    theirs = (level.reshape(columns, blocks, -1)[:, :, :block] - zero[:, :blocks, None]) * scale
    np.testing.assert_allclose(by_blocks(torch.from_numpy(weight), bits, block), theirs.reshape(columns, -1)[:, :rows].T, atol=1e-5)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The values of each byte, the low bits first."""
    return np.stack([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)], -1).reshape(len(packed), -1).astype(np.float32)


def test_gradients_go_straight_through() -> None:
    factors = torch.arange(96.0).reshape(32, 3)
    for rounding in (lambda weight: by_blocks(weight, 2, 16), lambda weight: by_levels(weight, (0,), 254, symmetric=True)):
        weight = torch.randn(32, 3, requires_grad=True)
        torch.autograd.backward((rounding(weight) * factors).sum())
        torch.testing.assert_close(weight.grad, factors)


@pytest.mark.slow
def test_where_rounding_loses_the_rung_is_trained_for_it_and_answers_better(clean: onnx.ModelProto, tmp_path: Path) -> None:
    fitting, held = EVERY.part(np.arange(1200)), EVERY.part(np.arange(1200, len(EVERY)))
    graph.write(clean, tmp_path, "fp32")
    reference = OnnxRunner.load(tmp_path / "fp32.onnx")
    made = make_rung("int2", clean, fitting, reference, tmp_path)
    assert "trained for it on 960 rows" in made.how
    assert made.use == "choosing among quantisations, and training weights for them"
    expected = answers(reference, held.rows)
    plain = max(agreement(by_runtime(model, held.rows, tmp_path), expected) for model, _ in nbits(clean, 2, fitting.rows, saturates=False))
    assert agreement(answers(made.runner, held.rows), expected) > plain + 0.01
    four = make_rung("int4", clean, fitting, reference, tmp_path)
    assert four.how.startswith("weights of MatMul to 4 bits")


@pytest.mark.slow
def test_convolutions_learn_too(pictures: onnx.ModelProto, tmp_path: Path) -> None:
    fitting, held = EVERY.part(np.arange(1200)), EVERY.rows[1200:]
    mixed, how = nbits(pictures, 2, fitting.rows, saturates=False)[-1]
    assert how.endswith("2 convolutions to 8 bits")
    tuned = fine_tuned(pictures, mixed, fitting)
    assert tuned is not None
    changed = {one.name for one, other in zip(tuned.graph.initializer, pictures.graph.initializer, strict=True) if one != other}
    assert {len(one.dims) for one in pictures.graph.initializer if one.name in changed} == {1, 2, 4}  # biases, the last layer, convolutions
    whole, after = by_runtime(pictures, held, tmp_path), nbits(tuned, 2, fitting.rows, saturates=False)[-1][0]
    assert agreement(by_runtime(after, held, tmp_path), whole) > agreement(by_runtime(mixed, held, tmp_path), whole) + 0.1


def with_outliers(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function with three hidden units that answer `factor` times as much, so that one range for all units is coarse."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for constant in changed.graph.initializer:
        value = numpy_helper.to_array(constant).copy()
        if constant.name in ("module.0.weight_by_columns", "module.0.bias"):
            value[..., :3] *= factor
        elif constant.name == "module.2.weight_by_columns":
            value[:3] /= factor
        constant.CopyFrom(numpy_helper.from_array(value, constant.name))
    return changed


@pytest.mark.slow
def test_eight_bits_are_trained_for_where_they_lose_and_what_training_worsens_is_not_kept(clean: onnx.ModelProto, tmp_path: Path) -> None:
    fitting, held = EVERY.part(np.arange(1200)), EVERY.rows[1200:]
    hard = with_outliers(clean, 30)
    expected = by_runtime(clean, held, tmp_path)
    np.testing.assert_allclose(by_runtime(hard, held, tmp_path), expected, atol=1e-4)
    plain, _ = int8(hard, fitting.rows, saturates=True)[0]
    tuned = fine_tuned(hard, plain, fitting)
    assert tuned is not None
    after, _ = int8(tuned, fitting.rows, saturates=True)[0]
    assert agreement(by_runtime(after, held, tmp_path), expected) > agreement(by_runtime(plain, held, tmp_path), expected)

    hopeless = with_outliers(clean, 200)
    graph.write(hopeless, tmp_path, "fp32")
    made = make_rung("int4", hopeless, fitting, OnnxRunner.load(tmp_path / "fp32.onnx"), tmp_path)
    assert made.how.endswith("training for it gained nothing")
    assert made.use == "choosing among quantisations, and training weights for them"


@pytest.mark.slow
def test_too_few_rows_to_judge_by_train_nothing(clean: onnx.ModelProto, tmp_path: Path) -> None:
    graph.write(clean, tmp_path, "fp32")
    made = make_rung("int2", clean, EVERY.part(np.arange(60)), OnnxRunner.load(tmp_path / "fp32.onnx"), tmp_path)
    assert made.how.endswith("not trained for it: 12 rows would judge that, fewer than 20")
    assert made.use == "choosing among quantisations"


@pytest.mark.slow
def test_nothing_is_trained_where_that_is_asked_nor_kept_where_it_diverges(clean: onnx.ModelProto, tmp_path: Path) -> None:
    fitting = EVERY.part(np.arange(1200))
    graph.write(clean, tmp_path, "fp32")
    made = make_rung("int2", clean, fitting, OnnxRunner.load(tmp_path / "fp32.onnx"), tmp_path, training=False)
    assert made.how.split(" in blocks of ")[0] == "weights of MatMul to 2 bits"
    assert (made.use, "train" in made.how) == ("choosing among quantisations", False)
    endless = Labelled(np.full((64, 64), np.inf, np.float32), np.arange(64) % 10)
    assert fine_tuned(clean, nbits(clean, 2, fitting.rows, saturates=False)[0][0], endless) is None


def branching() -> onnx.ModelProto:
    """A graph one of whose values goes two ways."""
    model = two_layers(0)
    model.graph.node.append(helper.make_node("Identity", ["hidden"], ["beside"]))
    model.graph.output.append(helper.make_tensor_value_info("beside", TensorProto.FLOAT, ["batch", 8]))
    return graph.named(model)


def unknown() -> onnx.ModelProto:
    """A graph with an activation that is not known."""
    model = two_layers(0)
    model.graph.node[1].op_type = "Selu"
    return graph.named(model)


def turned() -> onnx.ModelProto:
    """A graph whose product has the constant first."""
    model = two_layers(0)
    model.graph.node[0].input[:] = ["first", "features"]
    return graph.named(model)


@pytest.mark.parametrize("make", [branching, unknown, turned])
def test_a_graph_that_is_no_chain_is_left_as_it_is(make: Callable[[], onnx.ModelProto]) -> None:
    assert fine_tuned(make(), make(), Labelled(np.zeros((5, 4), np.float32), np.zeros(5, np.int64))) is None
