"""One row and 32 rows by the engine, beside ONNX Runtime, OpenVINO, torch (eager and compiled) and ExecuTorch, in the same run.

The networks are those of edge_selector, their weights random. The engine has a ladder of FP32, FP16, INT8, INT4 and INT2, measured here,
and takes the rung that its card says is fastest; asked again for FP32 alone, it computes what the others compute. They have FP32, an
environment and a process of their own, and their defaults (OpenVINO its latency hint, ExecuTorch its XNNPACK delegate); what they compile
is made for just so many rows. All take turns of 40 calls, and a turn's figure is its median. Each must answer as the engine's FP32 does,
within 1e-4, or is left out. The engine checks rows, holds rungs and copies answers; the others do what a call of theirs does.
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

import numpy as np
import torch
from torch import nn

from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.rung import Rows
from qedge.export import Served
from qedge.security.keys import Keys
from tests.benchmarks.edge_networks import built, networks, schema_of
from tests.benchmarks.figures import Figure, beside
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
    taken: dict[str, list[float]] = {"chosen": [], "fp32": []} | {other: [] for other in names}
    wrong: set[str] = set()
    with EdgeEngine(1 << 30) as engine:
        engine.add("chosen", ladder, card=card)
        engine.add("fp32", alone, card=card.model_copy(update={"rungs": (card["fp32"],)}))
        expected, rung = engine.infer("fp32", given).probabilities, engine.infer("chosen", given).rung
        for _ in range(repeat):
            for ours in ("chosen", "fp32"):
                taken[ours].append(_median(engine, ours, given))
            for other in names:
                said = others.say(ask=other, calls=CALLS)
                assert isinstance(said, dict)
                taken[other].append(1e3 * statistics.median(said["seconds"]))
                if not np.allclose(np.asarray(said["answer"], np.float32), expected, rtol=0, atol=CLOSE):
                    wrong.add(other)
    shown = f"{name}, {count} row{'s' if count > 1 else ''}"
    figures = [beside(f"{shown}: the engine, {rung}", taken["chosen"], "ms"), beside("… the engine, fp32", taken["fp32"], "ms")]
    for other in names:
        if other in wrong:
            figures.append(Figure(f"… {other}", "", "left out: it answers otherwise"))
            continue
        times = {ours: [theirs / mine for theirs, mine in zip(taken[other], taken[ours], strict=True)] for ours in ("chosen", "fp32")}
        figures.append(beside(f"… {other}", taken[other], "ms"))
        figures.append(beside(f"… {other}'s time over the engine's, {rung}", times["chosen"], "times"))
        figures.append(beside(f"… {other}'s time over the engine's, fp32", times["fp32"], "times"))
    return figures


def _median(engine: EdgeEngine, name: str, rows: Rows) -> float:
    """Milliseconds of a call, the median of CALLS after ten that are not counted."""
    taken = []
    for call in range(10 + CALLS):
        began = time.perf_counter()
        engine.infer(name, rows)
        if call >= 10:
            taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken)
