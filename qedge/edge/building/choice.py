"""Which of several ways to a rung is taken: of those that answer as the model does, the fastest here."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qedge.edge.building.graph import write
from qedge.edge.building.integers import Made
from qedge.edge.rung import Rows, Runner
from qedge.edge.session import OnnxRunner

EQUAL_WITHIN = 0.005  # agreement that counts as the same
_PIECE = 256
_TURNS, _CALLS = 5, 20


def best(ways: Sequence[Made], rows: Rows, expected: Rows) -> Made:
    """The fastest at one row among those that agree with `expected`, [n, classes], on as many rows as any does, within half a point.

    rows: [n, F] that made the rungs, never those that will validate them.
    """
    if len(ways) == 1:
        return ways[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runners = []
        for place, (model, _) in enumerate(ways):
            write(model, folder, str(place))
            runners.append(OnnxRunner.load(folder / f"{place}.onnx", prepacked=True))
        agreed = [agreement(answers(runner, rows), expected) for runner in runners]
        fast = [math.inf] * len(ways)
        for _ in range(_TURNS):
            for place, runner in enumerate(runners):
                fast[place] = min(fast[place], _seconds(runner, rows[:1]))
        return ways[min((place for place, share in enumerate(agreed) if share >= max(agreed) - EQUAL_WITHIN), key=fast.__getitem__)]


def answers(runner: Runner, rows: Rows) -> Rows:
    """Probabilities [n, classes] of all rows, a piece at a time."""
    return np.concatenate([runner.run(rows[at : at + _PIECE]).copy() for at in range(0, len(rows), _PIECE)])


def agreement(found: Rows, expected: Rows) -> float:
    """Share of rows for which both name the same label."""
    return float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _seconds(runner: Runner, row: Rows) -> float:
    taken = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        runner.run(row)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))
