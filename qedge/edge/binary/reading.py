"""The binary architecture that an FP32 graph asks for: its chain of layers, each of which becomes a binary one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
from onnx import helper, numpy_helper

from qedge.edge.binary.architecture import Architecture, Layer
from qedge.edge.session import INPUT, OUTPUT
from qedge.errors import UnfitGraph

_ACTIVATIONS = {"Relu", "LeakyRelu", "Elu", "Gelu", "Sigmoid", "Tanh", "Clip", "HardSwish"}  # sign takes their place
_NOTHING = {"Identity", "Dropout", "BatchNormalization"}  # what a binary layer has anyway, or does without
_SCALING = {"Sub", "Div", "Mul", "Add"}
_ACCEPTED = "accepted: a chain of MatMul, Gemm, Conv (one group, no dilation), MaxPool and activations like Relu, ending in Softmax"
_Given = dict[str, Any]


def architecture_of(model: onnx.ModelProto, *, widen: float = 1.0) -> Architecture:
    """The hidden layers of a graph from `features` to `probabilities`, each `widen` times as wide, up to a whole multiple of 8.

    Scaling before the first layer is left out, since a binary network has its own (`Encoding`).

    Raises:
        UnfitGraph: it is no such chain; what is accepted is said.
    """
    chain = _Chain({one.name: one for one in model.graph.initializer}, widen)
    (features,) = (value for value in model.graph.input if value.name == INPUT)
    chain.shape = (1, 1, features.type.tensor_type.shape.dim[1].dim_value)
    value = INPUT
    while value != OUTPUT:
        takers = [node for node in model.graph.node if value in node.input]
        if len(takers) != 1 or (takers[0].input[0] != value and takers[0].op_type not in ("Add", "Mul")):
            raise UnfitGraph(f"'{value}' goes to {len(takers)} operators, or is not their first input; {_ACCEPTED}")
        chain.take(takers[0], value)
        value = takers[0].output[0]
    return chain.architecture()


@dataclass
class _Chain:
    """What was read so far. shape: (channels, rows, columns) of the values; layers: as they are, the last that to the classes."""

    constants: dict[str, onnx.TensorProto]
    widen: float
    shape: tuple[int, int, int] = (1, 1, 1)
    image: tuple[int, int, int] | None = None
    layers: list[Layer] = field(default_factory=list)
    ended: bool = False

    def take(self, node: onnx.NodeProto, value: str) -> None:
        """Go on by one operator."""
        readers: dict[str, Callable[[onnx.NodeProto, _Given], None]] = {
            "MatMul": self._dense,
            "Gemm": self._dense,
            "Conv": self._convolution,
            "MaxPool": self._pool,
            "Reshape": self._reshape,
            "Flatten": self._flatten,
            "Softmax": self._softmax,
        }
        given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        others = [name for name in node.input if name not in ("", value)]
        if any(name not in self.constants for name in others):
            raise UnfitGraph(f"{node.op_type} has an input that is not constant; {_ACCEPTED}", operator=node.op_type)
        if node.op_type in readers:
            readers[node.op_type](node, given)
        elif node.op_type in _NOTHING or (node.op_type in _ACTIVATIONS and self.layers):
            return
        elif node.op_type not in _SCALING or (self.layers and node.op_type != "Add"):  # after a layer, Add is its bias
            raise UnfitGraph(f"the graph has {node.op_type} where a binary network has none; {_ACCEPTED}", operator=node.op_type)

    def architecture(self) -> Architecture:
        """Of all that was taken; the outputs of the last layer are the classes."""
        if not self.layers or self.layers[-1] != Layer(self.layers[-1].outputs):
            raise UnfitGraph(f"the last layer is not a dense one; {_ACCEPTED}")
        *hidden, last = self.layers
        return Architecture(self.image or self.shape, tuple(map(self._widened, hidden)), last.outputs)

    def _widened(self, layer: Layer) -> Layer:
        return layer if self.widen == 1 else replace(layer, outputs=-(-round(layer.outputs * self.widen) // 8) * 8)

    def _dims(self, node: onnx.NodeProto) -> list[int]:
        return list(self.constants[node.input[1]].dims) if len(node.input) > 1 and node.input[1] in self.constants else []

    def _add(self, layer: Layer) -> None:
        """Raises: UnfitGraph, when it does not fit what the last one gives."""
        if self.image is None:
            self.image = self.shape
        *_, shape, _ = Architecture(self.image, (*self.layers, layer), 2).shapes()
        self.layers.append(layer)
        self.shape = (layer.outputs, *shape.pooled)

    def _dense(self, node: onnx.NodeProto, given: _Given) -> None:
        dims = self._dims(node)
        channels, rows, columns = self.shape
        if len(dims) != 2 or given.get("transA") or dims[bool(given.get("transB"))] != channels * rows * columns:
            raise UnfitGraph(f"{node.op_type} has weights {dims} for {channels * rows * columns} values; {_ACCEPTED}")
        self._add(Layer(dims[0 if given.get("transB") else 1]))

    def _convolution(self, node: onnx.NodeProto, given: _Given) -> None:
        dims = self._dims(node)
        if len(dims) != 4 or dims[1] != self.shape[0] or given.get("group", 1) != 1 or set(given.get("dilations", [1])) != {1}:
            groups = given.get("group", 1)
            raise UnfitGraph(f"Conv has weights {dims} in {groups} groups for {self.shape[0]} channels; {_ACCEPTED}", operator="Conv")
        _refuse_auto(node, given)
        pads, stride = given.get("pads", [0, 0, 0, 0]), given.get("strides", [1, 1])
        self._add(Layer(dims[0], (dims[2], dims[3]), (stride[0], stride[1]), (pads[0], pads[1], pads[2], pads[3])))

    def _pool(self, node: onnx.NodeProto, given: _Given) -> None:
        if not self.layers or self.layers[-1].kernel is None or self.layers[-1].pool != (1, 1):
            raise UnfitGraph(f"MaxPool without a Conv of its own before it; {_ACCEPTED}", operator="MaxPool")
        _refuse_auto(node, given)
        if any(given.get("pads", [])) or given.get("ceil_mode") or set(given.get("dilations", [1])) != {1}:
            raise UnfitGraph("MaxPool with pads, dilation or ceil_mode; accepted: none of these", operator="MaxPool")
        pool, stride = given["kernel_shape"], given.get("strides", [1, 1])
        last = self.layers.pop()
        if self.layers:
            *_, before, _ = Architecture(self.image or self.shape, tuple(self.layers), 2).shapes()
            self.shape = (before.layer.outputs, *before.pooled)
        self._add(replace(last, pool=(pool[0], pool[1]), pool_stride=(stride[0], stride[1])))

    def _reshape(self, node: onnx.NodeProto, given: _Given) -> None:
        constant = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        target = [] if constant is None else numpy_helper.to_array(constant).tolist()
        values = self.shape[0] * self.shape[1] * self.shape[2]
        if not self.layers and len(target) == 4 and target[1] * target[2] * target[3] == values and min(target[1:]) > 0:
            self.shape = (target[1], target[2], target[3])
        elif len(target) != 2 or target[1] not in (-1, values):
            raise UnfitGraph(f"Reshape of {values} values to {target}; accepted: to an image before the first layer, or flat")

    def _flatten(self, node: onnx.NodeProto, given: _Given) -> None:
        if given.get("axis", 1) != 1:
            raise UnfitGraph(f"Flatten from axis {given['axis']}; accepted: 1", operator="Flatten")

    def _softmax(self, node: onnx.NodeProto, given: _Given) -> None:
        if node.output[0] != OUTPUT:
            raise UnfitGraph(f"Softmax inside of the network; {_ACCEPTED}", operator="Softmax")


def _refuse_auto(node: onnx.NodeProto, given: _Given) -> None:
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnfitGraph(f"{node.op_type} with auto_pad {given['auto_pad'].decode()}; accepted: pads by number", operator=node.op_type)
