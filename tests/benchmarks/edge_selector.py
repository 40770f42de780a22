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

from qedge.edge.card import Card
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.rung import Rows, RungName
from qedge.edge.selector import Load, Requirement, choose
from qedge.errors import QEdgeError
from qedge.security.keys import Keys
from tests.benchmarks.edge_networks import built, networks
from tests.benchmarks.figures import Figure, at_most, beside

REPEAT = 3
_TURNS = 9


def measure(repeat: int) -> list[Figure]:
    """Each model measured once, its rungs asked `repeat` times."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        keys = Keys.open(Path(scratch) / "keys")
        for name, (module, features) in networks().items():
            rows = np.random.default_rng(0).random((64, features), np.float32)
            opened = built(Path(scratch) / name, name, module, rows, keys)
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
