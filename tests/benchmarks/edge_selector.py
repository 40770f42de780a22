"""The rung that the selector takes, by the card of this machine, beside every other asked at the same time.

Four models with random weights: an MLP 784-512-512-10, a CNN of two layers on 28 by 28 pixels, a net of depthwise separable convolutions in
MobileNet's way on 3 by 64 by 64, and a transformer of four blocks over 16 patches, 128 wide. Each is made into FP32, FP16, INT8, INT4 and
INT2 as a ladder is, and measured as a node measures. Then all rungs are asked one row at a time, taking turns, and the selector's is
compared with the fastest of those that meet the requirement: nothing, or three fifths of FP32's memory. Accuracy plays no part: every rung
is told to be as good as any.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from qedge.data.federation import Schema
from qedge.edge.building import floats, graph, integers, nbits
from qedge.edge.building.choice import answers, best
from qedge.edge.card import Card
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.rung import Rows, RungName
from qedge.edge.selector import Load, Requirement, choose
from qedge.edge.session import OnnxRunner
from qedge.errors import QEdgeError
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build
from qedge.security.keys import Keys
from tests.benchmarks.figures import Figure, at_most, beside
from tests.edge_ladders import Told, ladder

REPEAT = 3
CLASSES = 10
_TURNS = 9


def measure(repeat: int) -> list[Figure]:
    """Each model measured once, its rungs asked `repeat` times."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        keys = Keys.open(Path(scratch) / "keys")
        for name, (module, features) in _models().items():
            rows = np.random.default_rng(0).random((64, features), np.float32)
            opened = _built(Path(scratch) / name, name, module, rows, keys)
            card = measure_ladder(opened, rows)
            found = [_medians(opened, card, rows[:1]) for _ in range(repeat)]
            figures += _compared(name, card, found)
    return figures


def _compared(name: str, card: Card, found: list[dict[RungName, float]]) -> list[Figure]:
    cost = card["fp32"].cost
    assert cost is not None
    figures = []
    for what, limit in (("", None), (", three fifths of the memory", 3 * cost.pss_bytes // 5)):
        try:
            rung = choose(card, Requirement(memory_bytes=limit), Load()).rung
        except QEdgeError as error:
            figures.append(Figure(f"{name}{what}", "", f"refused: {error.message}"))
            continue
        fits = [one.rung for one in card.rungs if one.cost is not None and (limit is None or one.cost.pss_bytes <= limit)]
        ratios = [one[rung] / min(one[other] for other in fits) for one in found]
        figures.append(at_most(f"{name}{what}: {rung} over the fastest that fits", 1.1, ratios, "times"))
        if limit is None:
            figures.append(at_most(f"… over fp32, {name}", 1.02, [one[rung] / one["fp32"] for one in found], "times"))
    figures += [beside(f"… {rung}, {name}", [1e3 * one[rung] for one in found], "ms") for rung in found[0]]
    return figures


def _medians(opened: Ladder, card: Card, row: Rows) -> dict[RungName, float]:
    """Median seconds of a call by each rung, run as the card says, taking turns."""
    taken: dict[RungName, list[float]] = {one.rung: [] for one in card.rungs}
    measured = Ladder(opened.folder, opened.id, card, opened.receipts)
    runners = {rung: measured.load(rung) for rung in taken}
    for turn in range(_TURNS + 1):
        for rung, runner in runners.items():
            for _ in range(40):
                began = time.perf_counter()
                runner.run(row)
                if turn:
                    taken[rung].append(time.perf_counter() - began)
    return {rung: statistics.median(seconds) for rung, seconds in taken.items()}


def _built(folder: Path, name: str, module: nn.Module, rows: Rows, keys: Keys) -> Ladder:
    features = rows.shape[1]
    zero = np.zeros(features, np.float32)
    schema = Schema(tuple(f"x{place}" for place in range(features)), tuple(range(CLASSES)), "given", zero, zero + 1, True)
    path = folder.parent / f"{name}.onnx"
    to_onnx(module.eval(), schema, path)
    clean = graph.named(graph.with_matmul(graph.named(graph.cleaned(graph.read(path)))))
    graph.write(clean, folder.parent, f"{name}-fp32")
    expected, saturates = answers(OnnxRunner.load(folder.parent / f"{name}-fp32.onnx"), rows), this_machine().saturates
    made: dict[RungName, tuple[onnx.ModelProto, Told]] = {"fp32": (floats.fp32(clean)[0], Told()), "fp16": (floats.fp16(clean)[0], Told())}
    made["int8"] = best(integers.int8(clean, rows, saturates=saturates), rows, expected)[0], Told()
    for rung, bits in (("int4", 4), ("int2", 2)):
        ways = nbits.nbits(clean, bits, rows, saturates=saturates)
        made[rung] = best(ways, rows, expected)[0], Told()  # type: ignore[index]
    return ladder(folder, made, keys, name=name, features=features, labels=tuple(range(CLASSES)))[0]


def _models() -> dict[str, tuple[nn.Module, int]]:
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
