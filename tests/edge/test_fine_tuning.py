"""Weights trained for few levels: rounded as ONNX Runtime rounds them, better where rounding alone loses, kept only if so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from qedge.data import built_in
from qedge.data.federation import Schema
from qedge.edge.building import graph
from qedge.edge.building.build import cleaned_graph, make_rung
from qedge.edge.building.choice import agreement, answers
from qedge.edge.building.fine_tuning import fine_tuned, rounded
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


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A narrow MLP on two thirds of the digits: at 2 bits rounding alone loses much."""
    part = EVERY.part(np.arange(0, 1200))
    rows, labels = torch.from_numpy(part.rows / 16), torch.from_numpy(part.labels)
    module = train(build(Model(kind="mlp", hidden=(24,)), 64, 10, 0), rows, labels, Course(steps=1500), 0)
    zero = np.zeros(64, np.float32)
    path = tmp_path_factory.mktemp("tuned") / "model.onnx"
    to_onnx(module, Schema(tuple(f"x{k}" for k in range(64)), tuple(range(10)), "given", zero, zero + 16, True), path)
    return cleaned_graph(graph.read(path))


@given(st.integers(1, 70), st.integers(1, 5), st.sampled_from([2, 4]), st.sampled_from([16, 32]), st.integers(0, 2**31))
def test_rounding_leaves_few_values_in_each_block_none_far_from_what_it_was(
    rows: int, columns: int, bits: int, block: int, seed: int
) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32))
    found = rounded(weight, bits, block)
    for column in range(columns):
        for start in range(0, rows, block):
            before, after = weight[start : start + block, column], found[start : start + block, column]
            unit = (max(0.0, float(before.max())) - min(0.0, float(before.min()))) / (2**bits - 1)
            assert len(torch.unique(torch.round(after / max(unit, 1e-12)))) <= 2**bits
            assert float((after - before).abs().max()) <= unit * 1.001 + 1e-6
    assert rounded(weight, 0, block) is weight


def test_gradients_go_straight_through() -> None:
    weight = torch.randn(32, 3, requires_grad=True)
    torch.autograd.backward((rounded(weight, 2, 16) * torch.arange(96.0).reshape(32, 3)).sum())
    torch.testing.assert_close(weight.grad, torch.arange(96.0).reshape(32, 3))


@pytest.mark.slow
def test_where_rounding_loses_the_rung_is_trained_for_it_and_answers_better(clean: onnx.ModelProto, tmp_path: Path) -> None:
    fitting, held = EVERY.part(np.arange(1200)), EVERY.part(np.arange(1200, len(EVERY)))
    graph.write(clean, tmp_path, "fp32")
    reference = OnnxRunner.load(tmp_path / "fp32.onnx")
    made = make_rung("int2", clean, fitting, reference, tmp_path)
    assert "trained for it on 960 rows" in made.how
    expected = answers(reference, held.rows)
    plain = 0.0
    for place, (model, _) in enumerate(nbits(clean, 2, fitting.rows, saturates=False)):
        graph.write(model, tmp_path, f"plain{place}")
        plain = max(plain, agreement(answers(OnnxRunner.load(tmp_path / f"plain{place}.onnx"), held.rows), expected))
    assert agreement(answers(made.runner, held.rows), expected) > plain + 0.01
    assert make_rung("int4", clean, fitting, reference, tmp_path).how.startswith("weights of MatMul to 4 bits")


@pytest.mark.slow
def test_too_few_rows_to_judge_by_train_nothing(clean: onnx.ModelProto, tmp_path: Path) -> None:
    graph.write(clean, tmp_path, "fp32")
    made = make_rung("int2", clean, EVERY.part(np.arange(60)), OnnxRunner.load(tmp_path / "fp32.onnx"), tmp_path)
    assert "trained" not in made.how


def test_a_graph_that_is_no_chain_is_left_as_it_is() -> None:
    model = two_layers(0)
    model.graph.node.append(helper.make_node("Identity", ["hidden"], ["beside"]))
    model.graph.output.append(helper.make_tensor_value_info("beside", onnx.TensorProto.FLOAT, ["batch", 8]))
    assert fine_tuned(graph.named(model), 2, 32, Labelled(np.zeros((5, 4), np.float32), np.zeros(5, np.int64))) is None
