"""The graph of a rung as a torch module, whose weights can learn what the rung's roundings do to them.

It is read from the rung's own graph, a chain of layers from `features` to softmax. Weights and biases are those of the FP32 graph that
the rung was made from, rounded on the way as in the rung's files: by levels for each channel where a DequantizeLinear gives them, by
blocks in MatMulNBits. Activations are rounded by the graph's own scales, or by blocks as MatMulNBits does. Backwards rounding is the
identity; an activation beyond its range learns nothing.

Sources: Bengio et al., "Estimating or propagating gradients through stochastic neurons for conditional computation", 2013 (straight
through); Jacob et al., CVPR 2018, section 3 (simulated quantisation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from qedge.edge.rung import Rows
from qedge.edge.session import INPUT, OUTPUT

Constants = dict[str, torch.Tensor]
Step = Callable[[torch.Tensor, Constants], torch.Tensor]
Rounding = Callable[[torch.Tensor], torch.Tensor]
_LEAST = 1e-12
_SCALINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"Sub": torch.sub, "Div": torch.div, "Mul": torch.mul}
_ACTIVATION_LEVELS = 127.0  # on either side of 0, of MatMulNBits at accuracy_level 4


class Chain(nn.Module):
    """From rows [batch, F] as callers have them to logits [batch, classes]. names: of constants of the FP32 graph, which learn."""

    def __init__(self, steps: Sequence[Step], learning: dict[str, Rows]) -> None:
        super().__init__()
        self.steps, self.names = list(steps), list(learning)
        self.values = nn.ParameterList([nn.Parameter(torch.from_numpy(np.array(value))) for value in learning.values()])

    @classmethod
    def of(cls, rung: onnx.ModelProto, whole: onnx.ModelProto) -> Chain | None:
        """From the graph of a rung and the FP32 graph that it was made from; None where it is no chain of layers known here.

        The same graph twice gives the FP32 model itself.
        """
        reader = _Reader(rung, whole)
        steps = reader.steps()
        return cls(steps, reader.learning) if steps is not None and reader.learning else None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        learning = dict(zip(self.names, self.values, strict=True))
        value = rows
        for step in self.steps:
            value = step(value, learning)
        return value

    def put_into(self, whole: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the FP32 graph with what was learnt."""
        changed = onnx.ModelProto()
        changed.CopyFrom(whole)
        learnt = dict(zip(self.names, self.values, strict=True))
        for constant in changed.graph.initializer:
            if constant.name in learnt:
                constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(learnt[constant.name].detach().numpy()), constant.name))
        return changed


def by_levels(weight: torch.Tensor, dims: Sequence[int], levels: int, *, symmetric: bool) -> torch.Tensor:
    """A weight rounded to `levels` equal steps between its least and greatest value (0 among them) over `dims`; backwards the identity."""
    value = weight.detach()
    if symmetric:
        high = value.abs().amax(tuple(dims), keepdim=True)
        low = -high
    else:
        low, high = value.amin(tuple(dims), keepdim=True).clamp_max(0), value.amax(tuple(dims), keepdim=True).clamp_min(0)
    unit = ((high - low) / levels).clamp_min(_LEAST)
    zero = torch.round(-low / unit).clamp(0, levels)
    found = ((torch.round(value / unit) + zero).clamp(0, levels) - zero) * unit
    return weight + (found - value)


def by_blocks(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """A weight [K, N] as MatMulNBits has it: each `block` values of a column to `bits` bits; backwards the identity."""
    rows, columns = weight.shape
    padded = nn.functional.pad(weight, (0, 0, 0, -rows % block)).reshape(-1, block, columns)
    return by_levels(padded, (1,), 2**bits - 1, symmetric=False).reshape(-1, columns)[:rows]


def _activations_by_blocks(value: torch.Tensor, block: int) -> torch.Tensor:
    width = value.shape[-1]
    pieces = nn.functional.pad(value, (0, -width % block)).reshape(*value.shape[:-1], -1, block)
    unit = (pieces.detach().abs().amax(-1, keepdim=True) / _ACTIVATION_LEVELS).clamp_min(_LEAST)
    found: torch.Tensor = pieces + (torch.round(pieces / unit) * unit - pieces).detach()
    return found.flatten(-2)[..., :width]


def _rounded(value: torch.Tensor, _: Constants, *, scale: float, low: float, high: float) -> torch.Tensor:
    """An activation by a fixed scale; low, high: levels beside that of 0."""
    within = value.clamp(low * scale, high * scale)
    return within + (torch.round(within / scale) * scale - within).detach()


def _same(value: torch.Tensor, _: Constants) -> torch.Tensor:
    return value


def _relu(value: torch.Tensor, _: Constants) -> torch.Tensor:
    return torch.relu(value)


def _scaled(value: torch.Tensor, _: Constants, *, by: torch.Tensor, how: Callable[..., torch.Tensor]) -> torch.Tensor:
    return how(value, by)


def _added(value: torch.Tensor, learning: Constants, *, name: str, rounding: Rounding) -> torch.Tensor:
    return value + rounding(learning[name])


def _product(value: torch.Tensor, learning: Constants, *, name: str, rounding: Rounding, block: int = 0) -> torch.Tensor:
    return (_activations_by_blocks(value, block) if block else value) @ rounding(learning[name])


def _convolution(
    value: torch.Tensor, learning: Constants, *, weight: tuple[str, Rounding], bias: tuple[str, Rounding] | None, given: dict[str, Any]
) -> torch.Tensor:
    added = None if bias is None else bias[1](learning[bias[0]])
    padded = nn.functional.pad(value, _padding(given))
    steps = {"stride": given.get("strides", [1, 1]), "dilation": given.get("dilations", [1, 1]), "groups": given.get("group", 1)}
    return nn.functional.conv2d(padded, weight[1](learning[weight[0]]), added, **steps)


def _max_pool(value: torch.Tensor, _: Constants, *, given: dict[str, Any]) -> torch.Tensor:
    padded = nn.functional.pad(value, _padding(given), value=-torch.inf)
    return nn.functional.max_pool2d(padded, given["kernel_shape"], given.get("strides", [1, 1]), dilation=given.get("dilations", [1, 1]))


def _average_pool(value: torch.Tensor, _: Constants, *, given: dict[str, Any]) -> torch.Tensor:
    return nn.functional.avg_pool2d(value, given["kernel_shape"], given.get("strides", [1, 1]))


def _whole_average(value: torch.Tensor, _: Constants) -> torch.Tensor:
    return value.mean((2, 3), keepdim=True)


def _reshaped(value: torch.Tensor, _: Constants, *, shape: list[int]) -> torch.Tensor:
    return value.reshape([value.shape[place] if size == 0 else size for place, size in enumerate(shape)])


def _padding(given: dict[str, Any]) -> tuple[int, int, int, int]:
    """ONNX's top, left, bottom, right in torch's order."""
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    return left, right, top, bottom


class _Reader:
    """Walks a graph from `features` on. learning: what it met that can learn, by its name in the FP32 graph."""

    def __init__(self, rung: onnx.ModelProto, whole: onnx.ModelProto) -> None:
        self._nodes = list(rung.graph.node)
        self._constants = {one.name: numpy_helper.to_array(one) for one in rung.graph.initializer}
        self._whole = {one.name: numpy_helper.to_array(one) for one in whole.graph.initializer}
        self._weights = {node.name: node.input[1] for node in whole.graph.node if len(node.input) > 1}
        self._made_by = {name: node for node in self._nodes for name in node.output}
        self.learning: dict[str, Rows] = {}
        self._readers: dict[str, Callable[[onnx.NodeProto, str, dict[str, Any]], Step | None]] = {
            "Sub": self._scaling,
            "Div": self._scaling,
            "Mul": self._scaling,
            "Add": self._adding,
            "MatMul": self._dense,
            "MatMulNBits": self._dense_in_blocks,
            "Conv": self._conv,
            "MaxPool": self._pool,
            "AveragePool": self._pool,
            "Reshape": self._reshape,
            "QuantizeLinear": self._quantise,
            "Flatten": lambda node, value, given: partial(_reshaped, shape=[0, -1]) if given.get("axis", 1) == 1 else None,
            "GlobalAveragePool": lambda node, value, given: _whole_average,
            "DequantizeLinear": lambda node, value, given: _same,  # `_quantise` has gone back already
            "Relu": lambda node, value, given: _relu,
        }

    def steps(self) -> list[Step] | None:
        """To the softmax that gives the probabilities; None where something is not known here."""
        value = INPUT
        found: list[Step] = []
        while True:
            takers = [node for node in self._nodes if value in node.input]
            if len(takers) != 1:
                return None
            (node,) = takers
            given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            if node.op_type == "Softmax":
                return found if OUTPUT in node.output and given.get("axis", -1) in (1, -1) else None
            read = self._readers.get(node.op_type)
            if read is None or (node.input[0] != value and node.op_type not in ("Add", "Mul")):
                return None
            step = read(node, value, given)
            if step is None:
                return None
            found.append(step)
            value = node.output[0]

    def _scaling(self, node: onnx.NodeProto, value: str, _: dict[str, Any]) -> Step | None:
        by = self._whole.get(_other(node, value))
        return None if by is None else partial(_scaled, by=torch.from_numpy(np.array(by)), how=_SCALINGS[node.op_type])

    def _adding(self, node: onnx.NodeProto, value: str, _: dict[str, Any]) -> Step | None:
        learns = self._learning(_other(node, value))
        return None if learns is None else partial(_added, name=learns[0], rounding=learns[1])

    def _dense(self, node: onnx.NodeProto, value: str, _: dict[str, Any]) -> Step | None:
        learns = self._learning(_other(node, value))
        return None if learns is None else partial(_product, name=learns[0], rounding=learns[1])

    def _dense_in_blocks(self, node: onnx.NodeProto, value: str, given: dict[str, Any]) -> Step | None:
        name = self._weights.get(node.name.removesuffix(f"_Q{given['bits']}"), "")
        if name not in self._whole or len(node.input) != 4:
            return None
        self.learning[name] = self._whole[name]
        block = given["block_size"] if given.get("accuracy_level", 0) == 4 else 0
        return partial(_product, name=name, rounding=partial(by_blocks, bits=given["bits"], block=given["block_size"]), block=block)

    def _conv(self, node: onnx.NodeProto, value: str, given: dict[str, Any]) -> Step | None:
        weight = self._learning(node.input[1])
        bias = self._learning(node.input[2]) if len(node.input) > 2 else None
        plain = given.get("auto_pad", b"NOTSET") == b"NOTSET" and weight is not None and self._whole[weight[0]].ndim == 4
        if not plain or weight is None or (bias is None and len(node.input) > 2):
            return None
        return partial(_convolution, weight=weight, bias=bias, given=given)

    def _pool(self, node: onnx.NodeProto, value: str, given: dict[str, Any]) -> Step | None:
        flat = len(given["kernel_shape"]) == 2 and not given.get("ceil_mode") and len(node.output) == 1
        if not flat or given.get("auto_pad", b"NOTSET") != b"NOTSET":
            return None
        if node.op_type == "MaxPool":
            return partial(_max_pool, given=given)
        spaced = any(given.get("pads", [])) or set(given.get("dilations", [1])) != {1}
        return None if spaced else partial(_average_pool, given=given)

    def _reshape(self, node: onnx.NodeProto, value: str, given: dict[str, Any]) -> Step | None:
        shape = self._constants.get(node.input[1])
        return None if shape is None or given.get("allowzero") else partial(_reshaped, shape=shape.tolist())

    def _quantise(self, node: onnx.NodeProto, value: str, _: dict[str, Any]) -> Step | None:
        scale, zero = (self._constants.get(name) for name in (*node.input[1:], "", "")[:2])
        if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
            return None
        levels, middle = np.iinfo(zero.dtype), int(zero.item())
        return partial(_rounded, scale=float(scale.item()), low=levels.min - middle, high=levels.max - middle)

    def _learning(self, name: str) -> tuple[str, Rounding] | None:
        """What is behind a constant of the rung in the FP32 graph, and how it is rounded on the way."""
        rounding: Rounding | None = _unrounded
        if name not in self._whole:
            node = self._made_by.get(name)
            if node is None or node.op_type != "DequantizeLinear":
                return None
            name = node.input[0].removesuffix("_quantized")
            rounding = self._rounding(node, name) if name in self._whole else None
        if rounding is None or self._whole[name].dtype != np.float32:
            return None
        self.learning[name] = self._whole[name]
        return name, rounding

    def _rounding(self, node: onnx.NodeProto, name: str) -> Rounding | None:
        """As the rung's file has it; how many levels there are is told by its scale."""
        stored, scale, zero = (self._constants.get(one) for one in (*node.input, "")[:3])
        if stored is None or scale is None or zero is None:
            return None
        if stored.dtype == np.int32:
            return _unrounded  # biases, by levels finer than float32 has
        symmetric = stored.dtype == np.int8
        if stored.dtype not in (np.int8, np.uint8) or (symmetric and zero.any()):
            return None
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) if scale.size > 1 else None
        weight = self._whole[name]
        dims = tuple(place for place in range(weight.ndim) if axis is None or place != axis % weight.ndim)
        low, high = np.minimum(weight.min(axis=dims), 0), np.maximum(weight.max(axis=dims), 0)
        span = 2 * np.maximum(-low, high) if symmetric else high - low
        levels = round(float(np.max(span / np.maximum(scale.reshape(span.shape), _LEAST))))
        return partial(by_levels, dims=dims, levels=levels, symmetric=symmetric)


def _unrounded(weight: torch.Tensor) -> torch.Tensor:
    return weight


def _other(node: onnx.NodeProto, value: str) -> str:
    """The input beside `value`."""
    return next((name for name in node.input if name != value), "")
