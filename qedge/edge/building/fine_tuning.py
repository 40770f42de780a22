"""Weights trained for the few levels that a rung has: straight through the rounding, by the FP32 model's answers and the labels.

For graphs that are a chain of MatMul, Add and Relu between scaling and softmax; others stay as they are quantised.

Sources: Bengio et al., "Estimating or propagating gradients through stochastic neurons for conditional computation", 2013 (straight
through); Jacob et al., CVPR 2018, section 3 (simulated quantisation); Hinton et al., 2015 (the model as teacher).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from qedge.edge.building.graph import around
from qedge.edge.calibration import Labelled
from qedge.edge.compression.training import Course, Training
from qedge.edge.rung import Rows
from qedge.edge.session import INPUT, OUTPUT

_COURSE = Course(steps=1200, learning_rate=5e-4, temperature=2.0, mix=0.8)
_SEED = 0
_STEPS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"Sub": torch.sub, "Div": torch.div, "Add": torch.add}


def fine_tuned(model: onnx.ModelProto, bits: int, block: int, rows: Labelled) -> onnx.ModelProto | None:
    """The graph with weights that lose little when blocks of `block` values are rounded to `bits` bits; None where it is no such chain.

    model: as `cleaned_graph` leaves it, float32. rows: to train by.
    """
    chain = _Chain.of(model, bits, block)
    if chain is None:
        return None
    inputs, labels = torch.from_numpy(rows.rows), torch.from_numpy(rows.labels)
    whole = _Chain.of(model, 0, block)
    assert whole is not None
    training = Training(chain, inputs, labels, _COURSE, _SEED, teacher=whole)
    training.advance(_COURSE.steps)
    learnt = training.module
    assert isinstance(learnt, _Chain)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for constant in changed.graph.initializer:
        if constant.name in learnt.names:
            value = learnt.values[learnt.names.index(constant.name)].detach().numpy()
            constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), constant.name))
    return changed


class _Chain(nn.Module):
    """The graph from `features` to logits. names: of the weights and biases that learn; bits: 0 for none."""

    def __init__(self, steps: list[tuple[str, str]], fixed: dict[str, Rows], learning: dict[str, Rows], bits: int, block: int) -> None:
        super().__init__()
        self.steps, self.bits, self.block = steps, bits, block
        self.fixed = {name: torch.from_numpy(np.array(value)) for name, value in fixed.items()}
        self.names = list(learning)
        self.values = nn.ParameterList([nn.Parameter(torch.from_numpy(np.array(value))) for value in learning.values()])

    @classmethod
    def of(cls, model: onnx.ModelProto, bits: int, block: int) -> _Chain | None:
        """From a graph; None where it is no chain of what can be trained."""
        constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        kept, value = set(around(model)), INPUT
        steps: list[tuple[str, str]] = []
        fixed: dict[str, Rows] = {}
        learning: dict[str, Rows] = {}
        while True:
            takers = [node for node in model.graph.node if value in node.input]
            if len(takers) != 1:
                return None
            (node,) = takers
            if node.op_type == "Softmax" and OUTPUT in node.output:
                return cls(steps, fixed, learning, bits, block) if learning else None
            others = [name for name in node.input if name != value]
            if node.op_type == "Relu" and not others:
                steps.append(("Relu", ""))
            elif len(others) == 1 and others[0] in constants and (node.op_type in _STEPS or node.op_type == "MatMul"):
                if node.op_type in ("Sub", "Div", "MatMul") and node.input[0] != value:
                    return None
                (fixed if node.name in kept else learning)[others[0]] = constants[others[0]]
                steps.append((node.op_type, others[0]))
            else:
                return None
            value = node.output[0]

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits [batch, classes] of rows [batch, F] as callers have them."""
        learning = dict(zip(self.names, self.values, strict=True))
        value = rows
        for kind, name in self.steps:
            if kind == "Relu":
                value = torch.relu(value)
            elif kind == "MatMul":
                value = value @ rounded(learning[name], self.bits, self.block)
            else:
                value = _STEPS[kind](value, self.fixed[name] if name in self.fixed else learning[name])
        return value


def rounded(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """A weight [K, N] as MatMulNBits has it, each `block` values of a column between their least and greatest (0 among them).

    Backwards the identity. bits: 0 leaves it as it is.
    """
    if not bits:
        return weight
    rows, columns = weight.shape
    padded = nn.functional.pad(weight.detach(), (0, 0, 0, -rows % block)).reshape(-1, block, columns)
    low, high = padded.amin(1, keepdim=True).clamp_max(0), padded.amax(1, keepdim=True).clamp_min(0)
    most = 2**bits - 1
    unit = (high - low).clamp_min(1e-12) / most
    zero = torch.round(-low / unit).clamp(0, most)
    levels = (torch.round(padded / unit) + zero).clamp(0, most)
    found = ((levels - zero) * unit).reshape(-1, columns)[:rows]
    straight: torch.Tensor = weight + (found - weight.detach())
    return straight
