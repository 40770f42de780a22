"""Networks that rungs and runtimes are compared on, their weights random, and ladders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from qedge.data.federation import Schema
from qedge.edge.building import floats, graph, integers, nbits
from qedge.edge.building.choice import answers, best
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.rung import Rows, RungName
from qedge.edge.session import OnnxRunner
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build
from qedge.security.keys import Keys
from tests.edge_ladders import Told, ladder

CLASSES = 10


def built(folder: Path, name: str, module: nn.Module, rows: Rows, keys: Keys) -> Ladder:
    """FP32, FP16, INT8, INT4 and INT2 of a network, signed, in `folder`; the FP32 export lies beside it as NAME.onnx."""
    features = rows.shape[1]
    path = folder.parent / f"{name}.onnx"
    to_onnx(module.eval(), schema_of(features), path)
    clean = graph.named(graph.with_matmul(graph.named(graph.cleaned(graph.read(path)))))
    graph.write(clean, folder.parent, f"{name}-fp32")
    expected, saturates = answers(OnnxRunner.load(folder.parent / f"{name}-fp32.onnx"), rows), this_machine().saturates
    made: dict[RungName, tuple[onnx.ModelProto, Told]] = {"fp32": (floats.fp32(clean)[0], Told()), "fp16": (floats.fp16(clean)[0], Told())}
    made["int8"] = best(integers.int8(clean, rows, saturates=saturates), rows, expected)[0], Told()
    bits: dict[RungName, int] = {"int4": 4, "int2": 2}
    for rung, width in bits.items():
        made[rung] = best(nbits.nbits(clean, width, rows, saturates=saturates), rows, expected)[0], Told()
    return ladder(folder, made, keys, name=name, features=features, labels=tuple(range(CLASSES)))[0]


def schema_of(features: int) -> Schema:
    """Rows between 0 and 1, CLASSES labels."""
    zero = np.zeros(features, np.float32)
    return Schema(tuple(f"x{place}" for place in range(features)), tuple(range(CLASSES)), "given", zero, zero + 1, True)


def networks() -> dict[str, tuple[nn.Module, int]]:
    """An MLP, a CNN, depthwise separable convolutions in MobileNet's way and a transformer, each with its features."""
    torch.manual_seed(0)
    return {
        "mlp": (build(Model(kind="mlp", hidden=(512, 512)), 784, CLASSES, 0), 784),
        "cnn": (build(Model(kind="cnn", channels=(16, 32), image=(1, 28, 28)), 784, CLASSES, 0), 784),
        "mobilenet": (_mobile(), 3 * 64 * 64),
        "transformer": (_Transformer(), 16 * 64),
    }


def _mobile() -> nn.Module:
    """Depthwise and pointwise convolutions in turn, each with ReLU6."""
    layers: list[nn.Module] = [nn.Unflatten(1, (3, 64, 64)), nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()]
    for before, after, stride in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)):
        layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before), nn.ReLU6(), nn.Conv2d(before, after, 1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, CLASSES))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.before, self.after = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.given, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.within = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length, width = tokens.shape[1:]
        parts = self.given(self.before(tokens)).reshape(-1, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(parts[0] @ parts[1].transpose(-1, -2) / (width // self.heads) ** 0.5, dim=-1)
        tokens = tokens + self.joined((weights @ parts[2]).transpose(1, 2).reshape(-1, length, width))
        return tokens + self.within(self.after(tokens))


class _Transformer(nn.Module):
    def __init__(self, patches: int = 16, size: int = 64, width: int = 128, blocks: int = 4) -> None:
        super().__init__()
        self.shape, self.taken = (patches, size), nn.Linear(size, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.blocks, self.last = nn.Sequential(*(_Block(width, 4) for _ in range(blocks))), nn.Linear(width, CLASSES)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        tokens = self.blocks(self.taken(rows.reshape(-1, *self.shape)) + self.place)
        found: torch.Tensor = self.last(tokens.mean(dim=1))
        return found
