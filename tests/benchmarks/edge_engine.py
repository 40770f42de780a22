"""What the engine adds to a session of ONNX Runtime, and what a node that serves takes.

The model is an MLP of the digits' size, 64 features and 32 hidden units, asked one row at a time. The bare session is asked by
`session.run` with the same row; both take turns of 2000 calls in one process, and a turn's figure is its median. The engine checks the
row, holds the rung, copies the answer, counts the call and reviews its choice every second: all of that is in its calls. The node is a
fresh process that imports the engine, opens a signed ladder, loads the rung and answers; its memory is its PSS, Python and NumPy included.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from qedge.edge.card import Card
from qedge.edge.engine import EdgeEngine
from qedge.edge.isolated import IsolatedEngine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.security.keys import Keys
from tests.benchmarks.figures import Figure, at_most, beside
from tests.edge_ladders import Told, graph, ladder

REPEAT = 5
FEATURES, HIDDEN, BUDGET = 64, 32, 64 << 20
_CALLS = 2000
_NODE = """
import sys, time
began = time.perf_counter()
import json, numpy as np
from pathlib import Path
from qedge.edge.card import Card
from qedge.edge.engine import EdgeEngine
from qedge.edge.pss import pss_bytes
place = Path(sys.argv[1])
engine = EdgeEngine(64 << 20)
engine.add("m", place / "ladder", card=Card.parse((place / "card.json").read_bytes(), ""))
rows = np.zeros((1, 64), np.float32)
engine.infer("m", rows)
answered = time.perf_counter() - began
for _ in range(1000):
    engine.infer("m", rows)
print(json.dumps([answered, pss_bytes()]))
"""


def measure(repeat: int) -> list[Figure]:
    """`repeat` turns of the engine and the session, and as many nodes."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        rung = {"fp32": (graph(1, FEATURES, HIDDEN), Told())}
        opened, _ = ladder(place / "ladder", rung, Keys.open(place / "keys"), features=FEATURES)  # type: ignore[arg-type]
        row = np.random.default_rng(0).random((1, FEATURES), np.float32)
        card = measure_ladder(opened, row)
        (place / "card.json").write_bytes(card.content())
        return [*_calls(opened, card, row, repeat), *_nodes(place, repeat)]


def _calls(opened: Ladder, card: Card, row: np.ndarray, repeat: int) -> list[Figure]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(opened.folder / "fp32.onnx"), options, providers=["CPUExecutionProvider"])
    with EdgeEngine(BUDGET) as engine, IsolatedEngine(BUDGET) as isolated:
        engine.add("m", opened, card=card)
        isolated.add("m", opened, card=card)
        ways: dict[str, Callable[[], object]] = {
            "session": lambda: session.run(["probabilities"], {"features": row}),
            "engine": lambda: engine.infer("m", row),
            "isolated": lambda: isolated.infer("m", row),
        }
        for way in ways.values():
            _times(way)
        turns = [{name: _times(way) for name, way in ways.items()} for _ in range(repeat)]
    middle = {name: [1e6 * statistics.median(turn[name]) for turn in turns] for name in ways}
    over = [engine - session for engine, session in zip(middle["engine"], middle["session"], strict=True)]
    return [
        at_most("engine over a bare session, one row", 10, over, "µs"),
        beside("… a bare session", middle["session"], "µs"),
        beside("… the engine", middle["engine"], "µs"),
        beside("… the engine in a process of its own", middle["isolated"], "µs"),
        at_most("p95 through the engine", 0.2, [1e3 * float(np.percentile(turn["engine"], 95)) for turn in turns], "ms"),
        beside("p99 through the engine", [1e3 * float(np.percentile(turn["engine"], 99)) for turn in turns], "ms"),
    ]


def _times(way: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        way()
        found.append(time.perf_counter() - began)
    return found


def _nodes(place: Path, repeat: int) -> list[Figure]:
    found = []
    for _ in range(repeat):
        done = subprocess.run([sys.executable, "-c", _NODE, str(place)], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return [
        at_most("a node from its first import to its first answer, from a verified folder", 2.3, [one[0] for one in found], "s"),
        at_most("memory of a node that serves, Python included", 384, [one[1] / 2**20 for one in found], "MiB"),
    ]
