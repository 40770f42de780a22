"""An edge gateway that serves the demo's model: from the start of its process to its first good answer, and the memory it takes at most.

The model is the demo's, its ladder FP32 alone, measured on this machine before. Cold: nothing on the node's disk, the ladder comes from
the registry, which is an MLflow server on this machine, or MLflow's SQLite file under the node's own home. Kept: the ladder lies in the
gateway's own cache, and the registry is asked beside that. Times are of the whole process, its Python included, as a caller sees them, who
asks every 10 ms. Memory is the process' largest RSS. Then requests of one row over one connection.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np

from qedge import TrainingJob, train
from qedge.config import ensure_home, load
from qedge.demo import JOB
from qedge.edge.building.build import Asked, build
from qedge.edge.building.graph import read as read_graph
from qedge.edge.calibration import Calibration, Labelled, Taken
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.node import keep_card
from qedge.records import Records
from qedge.registry.ladder_cache import FOLDER
from qedge.registry.registry import Registry
from tests.benchmarks.figures import Figure, at_most, beside
from tests.endpoint import eventually, free_port

REPEAT = 7
_CALLS = 2000


def measure(repeat: int) -> list[Figure]:
    """`repeat` processes of each kind, taking turns."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    found: dict[str, list[tuple[float, float, float, float]]] = {"server": [], "file": [], "kept": []}
    with tempfile.TemporaryDirectory() as scratch:
        home = ensure_home(Path(scratch) / "home")
        name, rows = _prepared(home)
        with _server(home) as uri:
            for _ in range(repeat):
                for way, where in (("server", uri), ("file", None), ("kept", uri)):
                    if way != "kept":
                        shutil.rmtree(home / FOLDER, ignore_errors=True)
                    found[way].append(_started(home, name, rows, where))
    seconds, most, p50, p95 = ({way: [one[place] for one in values] for way, values in found.items()} for place in range(4))
    return [
        at_most("cold, from a server: to the first good answer", 2.3, seconds["server"], "s"),
        at_most("… most memory", 384, most["server"], "MB"),
        at_most("cold, from SQLite: to the first good answer", 2.3, seconds["file"], "s"),
        at_most("… most memory", 384, most["file"], "MB"),
        beside("kept: to the first good answer", seconds["kept"], "s"),
        at_most("… most memory", 384, most["kept"], "MB"),
        beside("one row over HTTP: p50", p50["kept"], "ms"),
        beside("… p95", p95["kept"], "ms"),
    ]


@contextmanager
def _server(home: Path) -> Iterator[str]:
    """An MLflow server over the home's registry."""
    port = free_port()
    command = [sys.executable, "-m", "qedge", "ui", "--home", str(home), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert eventually(lambda: _answers(f"http://127.0.0.1:{port}/health"))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _prepared(home: Path) -> tuple[str, np.ndarray]:
    """A home with the demo's model and its ladder, measured; the model's name, and rows for it."""
    settings = load(environ={}, home=home)
    job = TrainingJob.parse(JOB)
    run = train(job, backend="serial", settings=settings)
    model = home / "runs" / run.run_id / "model"
    taken = Taken.of(read_graph(model / "model.onnx"))
    drawn = np.random.default_rng(0).random((400, len(taken.features)), np.float32)
    part = Labelled(drawn, np.arange(400) % len(taken.labels))
    records, registry = Records.open(home), Registry(settings)
    version = registry.resolve(job.name)
    asked = Asked(job.name, str(version.version), ("fp32",), Calibration(part, part, ()), public=True)
    ladder = build(asked, model, home / "ladder", records)
    keep_card(home, ladder.id, measure_ladder(ladder, drawn))
    registry.attach_ladder(version, home / "ladder", ladder.id)
    return job.name, drawn


def _started(home: Path, name: str, rows: np.ndarray, uri: str | None) -> tuple[float, float, float, float]:
    """Seconds to the first good answer, most MB, and p50 and p95 of requests in milliseconds."""
    command = [sys.executable, "-m", "qedge", "edge", "gateway", name, "--home", str(home), "--port", "0", "--every", "1000"]
    body = {"inputs": [{"name": "features", "shape": [1, rows.shape[1]], "datatype": "FP32", "data": rows[0].tolist()}]}
    variables = os.environ | ({"QEDGE_TRACKING_URI": uri} if uri else {})
    begun = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process,
        httpx.Client(trust_env=False, timeout=30) as client,
    ):
        assert process.stdout is not None
        url = f"{process.stdout.readline().split(' answers at ')[1].split('/v2/')[0]}/v2/models/{name}/infer"
        while True:
            with suppress(httpx.TransportError):
                if client.post(url, json=body).status_code == 200:
                    break
            time.sleep(0.01)
        seconds = time.perf_counter() - begun
        time.sleep(3)  # the look at the registry ends, and what it takes is taken
        calls = []
        for _ in range(_CALLS):
            before = time.perf_counter()
            client.post(url, json=body)
            calls.append(time.perf_counter() - before)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
    most = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    p50, p95 = (float(value) for value in 1e3 * np.percentile(calls, (50, 95)))
    return seconds, most * 1024 / 1e6, p50, p95
