"""Which trials no other beats in accuracy, latency and size at once; and the picture of that."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from qedge.search.space import Values, shown

_COLOURS = {"fp32": "tab:blue", "fp16": "tab:cyan", "int8": "tab:orange", "int4": "tab:green", "int2": "tab:olive", "binary": "tab:red"}


@dataclass(frozen=True)
class Point:
    """A trial that went to its end. chosen_by: accuracy on the rows that trials are compared by; accuracy, interval: on rows apart.

    p50_ms: of one row, measured when nothing else ran, the trials taking turns; over: what is over the limits, in words.
    """

    number: int
    values: Values
    chosen_by: float
    accuracy: float
    interval: tuple[float, float]
    p50_ms: float
    file_bytes: int
    over: str
    on_front: bool = False


def front(points: Sequence[Point]) -> set[int]:
    """The numbers of the trials that no other one beats: as good in all three and better in one."""
    return {one.number for one in points if not any(_beats(other, one) for other in points)}


def best(points: Sequence[Point]) -> Point | None:
    """Within the limits, the one that is most accurate on the rows that trials are compared by; of equals the fastest."""
    return max((one for one in points if not one.over), key=lambda one: (one.chosen_by, -one.p50_ms, -one.file_bytes), default=None)


def nearest(points: Sequence[Point], p50_ms: float | None, file_bytes: int | None) -> Point:
    """Where none is within the limits: the one that is over by the smallest factor."""
    return min(points, key=lambda one: max(one.p50_ms / (p50_ms or one.p50_ms), one.file_bytes / (file_bytes or one.file_bytes)))


def picture(title: str, points: Sequence[Point], p50_ms: float | None) -> bytes:
    """A PNG: accuracy on rows apart against latency, the front joined, the limit a line, the size of a dot that of the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot(xlabel="p50 latency of one row, ms", ylabel="accuracy, 95 % interval", title=title)
    largest = max(one.file_bytes for one in points)
    for one in points:
        colour = _COLOURS[str(one.values["rung"])]
        spread = [[max(0.0, one.accuracy - one.interval[0])], [max(0.0, one.interval[1] - one.accuracy)]]
        axes.errorbar(one.p50_ms, one.accuracy, yerr=spread, fmt="none", ecolor=colour, alpha=0.4, elinewidth=1)
        axes.scatter(one.p50_ms, one.accuracy, s=15 + 150 * one.file_bytes / largest, color=colour, alpha=1.0 if one.on_front else 0.35)
    joined = sorted((one for one in points if one.on_front), key=lambda one: one.p50_ms)
    axes.plot([one.p50_ms for one in joined], [one.accuracy for one in joined], color="black", linewidth=0.8, alpha=0.6)
    for one in joined[:12]:
        axes.annotate(shown(one.values), (one.p50_ms, one.accuracy), xytext=(5, -8), textcoords="offset points", fontsize=5)
    if p50_ms is not None:
        axes.axvline(p50_ms, color="grey", linestyle=":")
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _beats(other: Point, one: Point) -> bool:
    mine = (-one.chosen_by, one.p50_ms, one.file_bytes)
    theirs = (-other.chosen_by, other.p50_ms, other.file_bytes)
    return theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
