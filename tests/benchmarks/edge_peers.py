"""One row and 32 rows by the engine, beside ONNX Runtime, OpenVINO, torch (eager and compiled) and ExecuTorch, in the same run.

The networks are those of edge_selector, their weights random. The engine has a ladder of FP32, FP16, INT8, INT4 and INT2, measured here,
and takes the rung that its card says is fastest; asked again for FP32 alone, it computes what the others compute. They have FP32, an
environment and a process of their own, and their defaults (OpenVINO its latency hint, and float32 where it would round to bfloat16;
ExecuTorch its XNNPACK delegate); what they compile is made for just so many rows. All take turns of 40 calls, and a turn's figure is its
median. Each must answer as the engine's FP32 does, within 1e-4, or is left out. By their defaults they take all cores, and keep them busy
between calls; the engine takes as many threads as its card says are worth it. What a call costs is therefore told twice: time, and CPU time
of the whole process. The engine checks rows, holds rungs and copies answers; the others do what a call of theirs does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from qedge.edge.card import Card
from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.rung import Rows, RungName
from qedge.export import Served
from qedge.security.keys import Keys
from tests.benchmarks.edge_networks import built, networks, schema_of
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.peers import HERE, RUNTIMES
from tests.benchmarks.surroundings import environment

REPEAT = 5
CALLS, CLOSE = 40, 1e-4


def measure(repeat: int) -> list[Figure]:
    """Each network with one row and with 32, `repeat` turns of everybody."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch, _others(Path(scratch)) as others:
        keys = Keys.open(Path(scratch) / "keys")
        for name, (module, features) in networks().items():
            rows = np.random.default_rng(0).random((64, features), np.float32)
            (Path(scratch) / name).mkdir()
            ladder = built(Path(scratch) / name / "ladder", name, module, rows, keys)
            for count in (1, 32):
                _given(module, rows[:count], Path(scratch) / name)
                figures += _turns(name, ladder, rows, count, others, Path(scratch) / name, repeat)
    return figures


class _Others:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def say(self, **asked: object) -> object:
        """Send a line and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, "the other runtimes ended; their errors are above"
        return json.loads(line)


@contextmanager
def _others(scratch: Path) -> Iterator[_Others]:
    command = [str(RUNTIMES.python()), str(HERE / "runtimes_calls.py")]
    variables = environment(HOME=str(scratch), TMPDIR=str(scratch))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as process:
        yield _Others(process)
        assert process.stdin is not None
        process.stdin.close()


def _given(module: nn.Module, rows: Rows, folder: Path) -> None:
    """What the others open beside the ONNX file: the rows, and torch's program of just so many."""
    np.save(folder / "rows.npy", rows)
    served = Served(module, schema_of(rows.shape[1])).eval()
    torch.export.save(torch.export.export(served, (torch.from_numpy(rows),)), folder / f"torch-{len(rows)}.pt2")


def _turns(name: str, ladder: Ladder, rows: Rows, count: int, others: _Others, folder: Path, repeat: int) -> list[Figure]:
    card, given = measure_ladder(ladder, rows), rows[:count]
    names = others.say(open=str(folder / f"{name}.onnx"), rows=count)
    assert isinstance(names, list)
    alone = Ladder(ladder.folder, ladder.id, ladder.card.model_copy(update={"rungs": (ladder.card["fp32"],)}), ladder.receipts)
    taken: dict[str, list[Taken]] = {"chosen": [], "fp32": []} | {other: [] for other in names}
    wrong: set[str] = set()
    with EdgeEngine(1 << 30) as engine:
        engine.add("chosen", ladder, card=card)
        engine.add("fp32", alone, card=card.model_copy(update={"rungs": (card["fp32"],)}))
        expected, rung = engine.infer("fp32", given).probabilities, engine.infer("chosen", given).rung
        for _ in range(repeat):
            for ours in ("chosen", "fp32"):
                taken[ours].append(_taken(engine, ours, given))
            for other in names:
                said = others.say(ask=other, calls=CALLS)
                assert isinstance(said, dict)
                taken[other].append(Taken(1e3 * statistics.median(said["seconds"]), 1e3 * said["cpu_s"]))
                if not np.allclose(np.asarray(said["answer"], np.float32), expected, rtol=0, atol=CLOSE):
                    wrong.add(other)
    shown = f"{name}, {count} row{'s' if count > 1 else ''}"
    figures = [Figure(f"{shown}: the engine, {_way(card, rung)}", "", _shown(taken["chosen"]))]
    figures.append(Figure(f"… the engine, {_way(card, 'fp32')}", "", _shown(taken["fp32"])))
    for other in names:
        over = [f"{_over(taken[other], taken[ours])} of the engine's {what}" for ours, what in (("chosen", rung), ("fp32", "fp32"))]
        said_of = "left out: it answers otherwise" if other in wrong else f"{_shown(taken[other])}; {', '.join(dict.fromkeys(over))}"
        figures.append(Figure(f"… {other}", "", said_of))
    return figures


class Taken(NamedTuple):
    """Milliseconds of a call: of the clock, the median, and of all threads together, the mean."""

    clock: float
    cpu: float


def _way(card: Card, rung: RungName) -> str:
    cost = card[rung].cost
    assert cost is not None
    return f"{rung} on {cost.threads} thread{'s' if cost.threads > 1 else ''}"


def _shown(taken: list[Taken]) -> str:
    return f"{spread([one.clock for one in taken], 'ms')}; CPU {statistics.median(one.cpu for one in taken):.3g} ms"


def _over(theirs: list[Taken], ours: list[Taken]) -> str:
    clock, cpu = (statistics.median(one[kind] / mine[kind] for one, mine in zip(theirs, ours, strict=True)) for kind in (0, 1))
    return f"{clock:.3g} times the time and {cpu:.3g} times the CPU time"


def _taken(engine: EdgeEngine, name: str, rows: Rows) -> Taken:
    """Of CALLS calls, after ten that are not counted."""
    for _ in range(10):
        engine.infer(name, rows)
    taken, used = [], time.process_time()
    for _ in range(CALLS):
        began = time.perf_counter()
        engine.infer(name, rows)
        taken.append(time.perf_counter() - began)
    return Taken(1e3 * statistics.median(taken), 1e3 * (time.process_time() - used) / CALLS)
