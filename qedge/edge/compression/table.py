"""What compressing a model came to: accuracy, size and latency of each step, beside the model that it began with."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
from torch import nn

from qedge.edge.calibration import Labelled
from qedge.edge.card import wilson
from qedge.edge.rung import Rows
from qedge.edge.session import CPU, INPUT, OUTPUT, options
from qedge.uncertainty import paired_interval

_TURNS, _CALLS = 5, 200


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network, and the ONNX file that answers as it does."""

    module: nn.Module
    graph: bytes


@dataclass(frozen=True)
class Row:
    """One network. accuracy: of rows that it has not seen, with its 95 % interval; lost: points beside the first, paired, with theirs.

    parameters: that are not zero; file_bytes: of the ONNX file; packed_bytes: of that file deflated; p50_ms: of one row, one thread.
    """

    name: str
    accuracy: float
    accuracy_interval: tuple[float, float]
    lost_points: float
    lost_interval: tuple[float, float]
    parameters: int
    file_bytes: int
    packed_bytes: int
    p50_ms: float


def compare(candidates: Mapping[str, Candidate], held: Labelled) -> list[Row]:
    """A row for each, the first being what the others are held against; latencies are taken in turns."""
    sessions = {name: onnxruntime.InferenceSession(one.graph, options(1, True), providers=[CPU]) for name, one in candidates.items()}
    right = {name: _answers(session, held.rows).argmax(axis=1) == held.labels for name, session in sessions.items()}
    taken = _latencies(sessions, held.rows[:1])
    first = next(iter(right.values()))
    return [_row(name, one, right[name], first, taken[name]) for name, one in candidates.items()]


def paired(right: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Points of accuracy that `right` has less than `other` on the same rows, and the 95 % interval."""
    low, high = paired_interval(int((other & ~right).sum()), int((right & ~other).sum()), len(right))
    return 100 * float(other.mean() - right.mean()), (100 * low, 100 * high)


def _row(name: str, one: Candidate, right: np.ndarray, first: np.ndarray, p50_ms: float) -> Row:
    lost, interval = (0.0, (0.0, 0.0)) if right is first else paired(right, first)
    return Row(
        name=name,
        accuracy=float(right.mean()),
        accuracy_interval=wilson(int(right.sum()), len(right)),
        lost_points=lost,
        lost_interval=interval,
        parameters=sum(int(parameter.count_nonzero()) for parameter in one.module.parameters()),
        file_bytes=len(one.graph),
        packed_bytes=len(zlib.compress(one.graph, 9)),
        p50_ms=p50_ms,
    )


def _answers(session: onnxruntime.InferenceSession, rows: Rows) -> Rows:
    return np.concatenate([session.run([OUTPUT], {INPUT: rows[at : at + 256]})[0] for at in range(0, len(rows), 256)])


def _latencies(sessions: Mapping[str, onnxruntime.InferenceSession], row: Rows) -> dict[str, float]:
    """Medians of calls, milliseconds, the sessions taking turns; of the turns' medians the least."""
    found = dict.fromkeys(sessions, math.inf)
    for _ in range(_TURNS):
        for name, session in sessions.items():
            times = []
            for _ in range(_CALLS):
                began = time.perf_counter()
                session.run([OUTPUT], {INPUT: row})
                times.append(time.perf_counter() - began)
            found[name] = min(found[name], 1e3 * float(np.median(times)))
    return found
