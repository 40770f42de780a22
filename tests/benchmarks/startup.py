"""How long until something can be used: the command line, the demo, the first answer of a model that is deployed.

A deployment is timed from when `qedge deploy` is typed to the first good answer over HTTP, on a Ray that `qedge start` left running:
once right after `qedge start` has returned, while Serve is still coming up, and once with Serve at rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from qedge import train
from qedge.errors import QEdgeError
from qedge.prediction import held_out_rows
from qedge.sdk import Client
from tests.benchmarks.figures import Figure, at_most, beside
from tests.benchmarks.surroundings import ROOT, changed, command, digits_job, environment, free_port, run, scratch, settings_of

REPEAT = 5
COMMANDS = 10
LOOK_EVERY_S = 0.02
PATIENCE_S = 300.0


def measure(repeat: int) -> list[Figure]:
    """`repeat` demos and deployments; the short ones `COMMANDS` times."""
    qedge = Path(sys.executable).with_name("qedge")
    bare, imports, helps = _walls([sys.executable, "-c", "pass"], [sys.executable, "-c", "import qedge"], [str(qedge), "--help"])
    early, late = [], []
    with scratch() as folder:
        demos = [_demo(folder / f"demo-{number}") for number in range(repeat)]
        home = folder / "served"
        rows = _model(home)
        for _ in range(repeat):
            port = free_port()
            run(home, "start", "--port", str(port))
            try:
                early.append(_first_answer(home, port, rows))
                run(home, "undeploy", "served")
                late.append(_first_answer(home, port, rows))
            finally:
                run(home, "stop")
    how = "make demo" if _make_is_ready() else "python -m qedge.demo, as `make demo` runs it once installed"
    return [
        at_most(how, 90, demos, "s"),
        at_most("qedge --help", 0.5, helps, "s"),
        at_most('python -c "import qedge"', 0.5, imports, "s"),
        beside("python -c pass", bare, "s"),
        at_most("first answer after qedge deploy, Serve at rest", 12, late, "s"),
        at_most("first answer after qedge deploy, right after qedge start", 12, early, "s"),
    ]


def _walls(*lines: list[str]) -> list[list[float]]:
    """Seconds of each command, `COMMANDS` times in turns, after once for the file cache."""
    rounds = [[_wall(line) for line in lines] for _ in range(COMMANDS + 1)]
    return [list(walls) for walls in zip(*rounds[1:], strict=True)]


def _wall(line: list[str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{line} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return time.perf_counter() - begun


def _make_is_ready() -> bool:
    """Whether make would run the demo at once: it must not install anything into the environment this runs in."""
    planned = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=False)
    return planned.returncode == 0 and "venv .venv" not in planned.stdout and "pip install" not in planned.stdout


def _demo(home: Path) -> float:
    make = ["make", "demo", f"ARGS=--home {home}"]
    return _wall(make if _make_is_ready() else [sys.executable, "-m", "qedge.demo", "--home", str(home)])


def _model(home: Path) -> np.ndarray:
    """Train a model to serve, `served`; the rows to ask it about."""
    job = changed(digits_job(8), name="served", privacy="none", rounds=5)
    train(job, backend="serial", settings=settings_of(home))
    file = home / "job.yaml"
    file.write_text(yaml.safe_dump(job.plain()), encoding="utf-8")
    return held_out_rows(file, home)[0][:8]


def _first_answer(home: Path, port: int, rows: np.ndarray) -> float:
    """Seconds from typing `qedge deploy` to the first good answer; the command must end well, too."""
    url = f"http://127.0.0.1:{port}"
    begun = time.perf_counter()
    line = command(home, "deploy", "served@champion", "--port", str(port))
    deploying = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        with Client(url, timeout_s=2) as client:
            while not _answers(client, rows):
                if time.perf_counter() - begun > PATIENCE_S or deploying.poll() not in (None, 0):
                    raise RuntimeError(f"no answer at {url}; qedge deploy ended with {deploying.poll()}")
                time.sleep(LOOK_EVERY_S)
        seconds = time.perf_counter() - begun
        output, _ = deploying.communicate(timeout=PATIENCE_S)
    finally:
        if deploying.poll() is None:
            deploying.kill()
            deploying.wait()
    if json.loads(output.splitlines()[-1])["url"] != url:
        raise RuntimeError(f"qedge deploy says {output}")
    return seconds


def _answers(client: Client, rows: np.ndarray) -> bool:
    try:
        return len(client.infer("served", rows).labels) == len(rows)
    except QEdgeError:
        return False
