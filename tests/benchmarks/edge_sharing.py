"""Eight sessions of one model of 64 MiB beside eight of ONNX Runtime with its defaults, and eight users of one session of the engine.

The model is an MLP, 784-2800-2800-2100-3 in float32. ONNX Runtime's defaults load it from one file with its weights inside, as exports
come. Ours have the weights beside the graph, mapped, and prepacking off; or, where the node measured that prepacking is worth its copy, on:
then users of a model share one session in the engine. Each way has a fresh process, which makes its sessions, asks each of them 32 rows and
says what its PSS grew by. Load time is of one session, the first of each process left out; of the engine, of all eight. Throughput is
of 32 rows with one thread, sessions taking turns in one process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from qedge.edge.building.graph import write
from qedge.edge.card import Card
from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.pss import pss_bytes
from qedge.edge.session import OnnxRunner, warm_up
from qedge.security.keys import Keys
from tests.benchmarks.figures import Figure, at_least, beside
from tests.edge_ladders import Told, ladder

REPEAT = 5
SESSIONS, BATCH = 8, 32
SIZES = (784, 2800, 2800, 2100, 3)
_TURNS = 15


def measure(repeat: int) -> list[Figure]:
    """`repeat` processes a way, taking turns."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model = mlp(SIZES)
        rungs = {"fp32": (model, Told())}
        opened, _ = ladder(place / "ladder", rungs, Keys.open(place / "keys"), features=SIZES[0])  # type: ignore[arg-type]
        onnx.save(model, str(place / "whole.onnx"))
        write(model, place, "fp32")
        rows = np.random.default_rng(0).random((BATCH, SIZES[0]), np.float32)
        card = measure_ladder(opened, rows)
        (place / "card.json").write_bytes(card.content())
        found = [{way: _in_process(way, place) for way in ("default", "mapped", "engine")} for _ in range(repeat)]
        rates = [_rates(place, opened, card, rows) for _ in range(repeat)]
    cost = card["fp32"].cost
    assert cost is not None
    ways = tuple(found[0])
    chosen = "prepacked" if cost.prepacked else "as they lie in the file"

    def over(what: str, one: str) -> list[float]:
        return [each["default"][what] / each[one][what] for each in found]

    def rate(one: str, other: str) -> list[float]:
        return [each[other] / each[one] for each in rates]

    return [
        at_least("eight sessions: PSS of ONNX Runtime's over ours", 8, over("pss", "mapped"), "times"),
        at_least("load of one: ONNX Runtime's over ours", 20, over("load", "mapped"), "times"),
        at_least("eight users of the engine: PSS of eight sessions over it", 8, over("pss", "engine"), "times"),
        beside("… load of eight sessions over that of eight users", over("all", "engine"), "times"),
        at_least(f"32 rows, weights {chosen} as measured: throughput over ONNX Runtime's", 0.95, rate("engine", "default"), "times"),
        beside("… without prepacking", rate("mapped", "default"), "times"),
        beside("… one row, without prepacking", rate("mapped, one row", "default, one row"), "times"),
        *(beside(f"PSS of eight, {way}", [one[way]["pss"] / 2**20 for one in found], "MiB") for way in ways),
        *(beside(f"load, {way}", [1e3 * one[way]["load"] for one in found], "ms") for way in ("default", "mapped")),
    ]


def mlp(sizes: tuple[int, ...]) -> onnx.ModelProto:
    """Layers of these widths, ReLU between them, weights drawn at random."""
    generator, nodes, constants, value = np.random.default_rng(0), [], [], "features"
    for place, (before, after) in enumerate(pairwise(sizes)):
        weights = generator.standard_normal((before, after), dtype=np.float32) / np.float32(np.sqrt(before))
        constants.append(numpy_helper.from_array(weights, f"weights{place}"))
        nodes.append(helper.make_node("MatMul", [value, f"weights{place}"], [value := f"scores{place}"]))
        if place < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [value], [value := f"active{place}"]))
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
    takes = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", sizes[0]])
    gives = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", sizes[-1]])
    made = helper.make_graph(nodes, "mlp", [takes], [gives], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def eight(way: str, place: Path) -> dict[str, float]:
    """Eight sessions, or users, in this process: bytes that it grew by, seconds of one load in the median and of all."""
    warm_up()
    rows = np.zeros((BATCH, SIZES[0]), np.float32)
    opened, card = Ladder.open(place / "ladder"), Card.parse((place / "card.json").read_bytes(), "")
    before, taken, kept = pss_bytes(), [], []
    if way == "engine":
        kept.append(engine := EdgeEngine(1 << 30))
        began = time.perf_counter()
        for number in range(SESSIONS):
            engine.add(str(number), opened, card=card)
            engine.infer(str(number), rows[:1])
        whole = time.perf_counter() - began
        engine.infer("0", rows)
        return {"pss": pss_bytes() - before, "load": whole / SESSIONS, "all": whole}
    for _ in range(SESSIONS):
        began = time.perf_counter()
        made = _default(place) if way == "default" else OnnxRunner.load(place / "fp32.onnx")
        taken.append(time.perf_counter() - began)
        if isinstance(made, OnnxRunner):
            made.run(rows)
        else:
            made.run(["probabilities"], {"features": rows})
        kept.append(made)
    return {"pss": pss_bytes() - before, "load": statistics.median(taken[1:]), "all": sum(taken)}


def _default(place: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(place / "whole.onnx"), options, providers=["CPUExecutionProvider"])


def _in_process(way: str, place: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.edge_sharing", way, str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _rates(place: Path, opened: Ladder, card: Card, rows: np.ndarray) -> dict[str, float]:
    """Median seconds of 32 rows, and of one."""
    session, runner = _default(place, 1), OnnxRunner.load(place / "fp32.onnx")
    taken: dict[str, list[float]] = {}
    cost = card["fp32"].cost
    assert cost is not None
    one_thread = {"fp32": cost.model_copy(update={"threads": 1})}
    with EdgeEngine(1 << 30) as engine:
        assert card.machine is not None
        engine.add("m", opened, card=card.measured(one_thread, card.machine))  # type: ignore[arg-type]
        ways = {
            "default": lambda: session.run(["probabilities"], {"features": rows}),
            "mapped": lambda: runner.run(rows),
            "engine": lambda: engine.infer("m", rows),
            "default, one row": lambda: session.run(["probabilities"], {"features": rows[:1]}),
            "mapped, one row": lambda: runner.run(rows[:1]),
        }
        for turn in range(_TURNS + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if turn:
                    taken.setdefault(name, []).append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    print(json.dumps(eight(sys.argv[1], Path(sys.argv[2]))))
