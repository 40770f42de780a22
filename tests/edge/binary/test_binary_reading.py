"""The architecture that a binary network takes over from an FP32 graph, as exported, and the graphs that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qedge.data.federation import Schema
from qedge.edge.binary.architecture import Architecture, Layer
from qedge.edge.binary.reading import architecture_of
from qedge.errors import UnfitGraph
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build

Step = tuple[str, tuple[np.ndarray, ...], dict[str, Any]]
POOLED = {"pads": (1, 1, 1, 1), "pool": (2, 2), "pool_stride": (2, 2)}


def exported(kind: str, features: int, folder: Path, **spec: Any) -> onnx.ModelProto:
    """A model as a run exports it, scaling and all."""
    module = build(Model.model_validate({"kind": kind, **spec}), features, 10, 0)
    zero = np.zeros(features, np.float32)
    to_onnx(module, Schema(tuple(f"x{k}" for k in range(features)), tuple(range(10)), "given", zero, zero + 2, True), folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


def graph(*steps: Step, features: int = 16) -> onnx.ModelProto:
    """A chain of operators with these constants and attributes, then Softmax."""
    nodes, constants, value = [], [], "features"
    for place, (kind, values, attributes) in enumerate(steps):
        names = [f"c{place}_{k}" for k in range(len(values))]
        constants += [numpy_helper.from_array(one, name) for one, name in zip(values, names, strict=True)]
        nodes.append(helper.make_node(kind, [value, *names], [f"v{place}"], **attributes))
        value = f"v{place}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
    taken = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features])
    given = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", None])
    return helper.make_model(helper.make_graph(nodes, "chain", [taken], [given], constants))


def dense(inputs: int, outputs: int) -> Step:
    return "MatMul", (np.zeros((inputs, outputs), np.float32),), {}


def convolution(outputs: int, inputs: int, rows: int, columns: int, **attributes: Any) -> Step:
    return "Conv", (np.zeros((outputs, inputs, rows, columns), np.float32),), attributes


def image(*shape: int) -> Step:
    return "Reshape", (np.array([-1, *shape]),), {}


RELU: Step = ("Relu", (), {})
FLAT: Step = ("Flatten", (), {"axis": 1})


def test_an_exported_mlp_keeps_its_widths(tmp_path: Path) -> None:
    assert architecture_of(exported("mlp", 64, tmp_path, hidden=[32, 16])) == Architecture((1, 1, 64), (Layer(32), Layer(16)), 10)


def test_an_exported_cnn_keeps_its_channels_kernels_and_pooling(tmp_path: Path) -> None:
    layers = (Layer(8, (3, 3), **POOLED), Layer(16, (3, 3), **POOLED))
    assert architecture_of(exported("cnn", 64, tmp_path, channels=[8, 16])) == Architecture((1, 8, 8), layers, 10)


def test_an_exported_linear_model_has_no_hidden_layer(tmp_path: Path) -> None:
    assert architecture_of(exported("linear", 16, tmp_path)) == Architecture((1, 1, 16), (), 10)


def test_hidden_layers_may_be_widened(tmp_path: Path) -> None:
    assert architecture_of(exported("mlp", 64, tmp_path, hidden=[32, 20]), widen=1.25).layers == (Layer(40), Layer(32))


def test_a_bias_by_add_and_both_orders_of_pooling_are_read() -> None:
    pool: Step = ("MaxPool", (), {"kernel_shape": [2, 2], "strides": [2, 2]})
    bias: Step = ("Add", (np.zeros(5, np.float32),), {})
    for between in ((RELU, pool), (pool, RELU)):
        steps = (image(1, 4, 4), convolution(3, 1, 2, 1), *between, FLAT, dense(12 // 2, 5), bias, RELU, dense(5, 3))
        found = architecture_of(graph(*steps))
        assert found == Architecture((1, 4, 4), (Layer(3, (2, 1), pool=(2, 2), pool_stride=(2, 2)), Layer(5)), 3)


POOL: Step = ("MaxPool", (), {"kernel_shape": [2, 2]})
REFUSED: dict[str, tuple[Step, ...]] = {
    "an operator that there is none of": (dense(16, 4), ("Erf", (), {}), dense(4, 2)),
    "an average": (image(1, 4, 4), convolution(2, 1, 2, 2), ("GlobalAveragePool", (), {}), FLAT, dense(2, 2)),
    "groups": (image(2, 2, 4), convolution(2, 1, 2, 2, group=2), FLAT, dense(6, 2)),
    "dilation": (image(1, 4, 4), convolution(2, 1, 2, 2, dilations=[2, 2]), FLAT, dense(8, 2)),
    "pads by name": (image(1, 4, 4), convolution(2, 1, 2, 2, auto_pad="SAME_UPPER"), FLAT, dense(32, 2)),
    "pooling of the input": (image(1, 4, 4), POOL, FLAT, dense(9, 2)),
    "pooling twice": (image(1, 4, 4), convolution(2, 1, 2, 2), POOL, POOL, FLAT, dense(2, 2)),
    "pooling with pads": (image(1, 4, 4), convolution(2, 1, 2, 2), ("MaxPool", (), {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]})),
    "no layer": (RELU,),
    "an activation before any layer": (RELU, dense(16, 2)),
    "a convolution at the end": (image(1, 4, 4), convolution(2, 1, 4, 4)),
    "weights of other values": (dense(15, 4), dense(4, 2)),
    "softmax inside": (dense(16, 4), ("Softmax", (), {}), dense(4, 2)),
    "an odd reshape": (image(1, 4, 4), convolution(2, 1, 2, 2), image(2, 9, 1), FLAT, dense(18, 2)),
    "scaling inside": (dense(16, 4), ("Mul", (np.ones(4, np.float32),), {}), dense(4, 2)),
    "a kernel beyond the image": (image(1, 4, 4), convolution(2, 1, 5, 5), FLAT, dense(2, 2)),
    "one class": (dense(16, 4), dense(4, 1)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_graph_that_is_no_such_chain_is_refused(what: str) -> None:
    with pytest.raises(UnfitGraph):
        architecture_of(graph(*REFUSED[what]))


def test_a_graph_with_branches_is_refused() -> None:
    model = graph(dense(16, 4), RELU, dense(4, 2))
    model.graph.node.append(helper.make_node("Relu", ["v0"], ["aside"]))
    with pytest.raises(UnfitGraph, match="goes to 2 operators"):
        architecture_of(model)


def test_weights_that_are_no_constants_are_refused() -> None:
    model = graph(dense(16, 16), RELU, dense(16, 2))
    del model.graph.initializer[1]
    with pytest.raises(UnfitGraph, match="not constant"):
        architecture_of(model)
