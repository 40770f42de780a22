"""One federated round of workload A on Ray with two workers, against Flower's simulation on the same cohorts from the same weights.

The two take turns. Without privacy qedge's cohorts follow from the job's seed; Flower is given the very same ones, so that both must
end with the same weights. That the work is workload A, rows, order, initial weights and all, is checked apart: with the cohorts it
was published with, qedge must reach the norm that it was published with. A round of qedge is timed by its coordinator, from drawing
the cohort to having the metrics on disk; a round of Flower from choosing the clients to having averaged their models.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
from safetensors.numpy import load_file

from qedge import TrainingJob, train
from qedge.federated import coordinator
from qedge.federated.events import Event, RoundFinished
from qedge.federated.randomness import RunKey
from qedge.federated.selection import draw_cohort
from tests.benchmarks.figures import Figure, at_most, beside, spread
from tests.benchmarks.surroundings import ROOT, WORKERS, environment, scratch, settings_of
from tests.benchmarks.workloads import (
    BATCH,
    CLASSES,
    CLIENTS,
    COHORT,
    EPOCHS,
    HIDDEN,
    LEARNING_RATE,
    NORM_AFTER_20_ROUNDS,
    Weights,
    make_clients,
    make_model,
    norm,
    published_cohorts,
    write_table,
)

REPEAT = 5
ROUNDS = 200
PEER, PEER_VERSION = ROOT / ".venv-flower", "1.42.0"
REQUIREMENTS = Path(__file__).with_name("requirements-flower.txt")
LIMIT_MS = 12.0
SAME_WITHIN = 1e-5


def measure(repeat: int) -> list[Figure]:
    """`repeat` runs of each."""
    python = peer_python()
    with scratch() as folder:
        table = folder / "a.npz"
        write_table(make_clients(), table)
        published = norm(_with_published_cohorts(folder / "published", table))
        job = job_of(table, ROUNDS)
        plan = _write_plan(folder / "plan.npz", job)
        ours, paces, theirs, apart = [], [], [], []
        for number in range(repeat):
            seconds, pace, weights = _qedge(folder / f"home-{number}", job)
            peer_seconds, peer_weights = _flower(python, table, plan, folder / f"flower-{number}.npz")
            ours.append(seconds * 1000)
            paces.append(pace * 1000)
            theirs.append(peer_seconds * 1000)
            apart.append(max(float(np.abs(weights[name] - peer_weights[name]).max()) for name in weights))
    ratios = [peer / own for peer, own in zip(theirs, ours, strict=True)]
    same = abs(published - NORM_AFTER_20_ROUNDS) < 5.1e-6
    return [
        at_most(f"qedge, median round of {ROUNDS}, {WORKERS} workers", LIMIT_MS, ours, "ms"),
        beside("qedge, from the first round's end to the last's, a round", paces, "ms"),
        beside(f"Flower {PEER_VERSION}, median round, the same", theirs, "ms"),
        Figure("Flower's over qedge's, each pair of runs", "> 1", spread(ratios, "times"), statistics.median(ratios) > 1),
        at_most("largest difference between their final weights", SAME_WITHIN, apart, "", 2),
        Figure("norm after 20 rounds with the published cohorts", f"{NORM_AFTER_20_ROUNDS}", f"{published:.6f}", same),
    ]


def job_of(table: Path, rounds: int) -> TrainingJob:
    """Workload A as a job."""
    data = {"source": str(table), "client": "client", "label": "label", "labels": list(range(CLASSES)), "scale": "none"}
    sgd = {"local_epochs": EPOCHS, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "shuffle": False}
    cohort = {"sampling": "uniform", "size": COHORT}
    model = {"kind": "mlp", "hidden": [HIDDEN]}
    job = {"name": "workload-a", "data": data, "model": model, "algorithm": sgd, "cohort": cohort, "privacy": "none"}
    return TrainingJob.parse(job | {"rounds": rounds, "seed": 0})


def cohorts_of(job: TrainingJob) -> np.ndarray:
    """The cohorts that a run of the job without privacy will draw, [rounds, clients a round]."""
    key = RunKey.from_seed(job.seed)
    return np.array([draw_cohort(job.cohort, CLIENTS, key, number) for number in range(1, job.rounds + 1)])


def peer_python() -> Path:
    """The Python of Flower's own environment, made when it is missing or its list of packages was changed."""
    stamp = PEER / f".flwr-{PEER_VERSION}-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]}"
    python = PEER / "bin" / "python"
    if not stamp.exists():
        print(f"installing Flower into {PEER}: some minutes the first time", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", REQUIREMENTS], check=True)
        subprocess.run([*install, "--no-deps", f"flwr=={PEER_VERSION}"], check=True)
        stamp.touch()
    return python


def _write_plan(path: Path, job: TrainingJob) -> Path:
    weights = {name: value.numpy() for name, value in make_model().state_dict().items()}
    np.savez(path, cohorts=cohorts_of(job), **weights)
    return path


def _qedge(home: Path, job: TrainingJob) -> tuple[float, float, Weights]:
    """Seconds of the median round, seconds a round over all of them, final weights; on a Ray of its own."""
    ends: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, RoundFinished):
            ends.append(time.perf_counter())

    result = train(job, backend="ray", settings=settings_of(home), on_event=note)
    return result.seconds_per_round, (ends[-1] - ends[0]) / (len(ends) - 1), _weights(home, result.run_id)


def _with_published_cohorts(home: Path, table: Path) -> Weights:
    """qedge's final weights after 20 rounds with the cohorts that workload A was published with.

    A job has no way to name its cohorts, so the drawing is replaced: here alone, and not where time is measured.
    """
    published = published_cohorts(20)
    with mock.patch.object(coordinator, "draw_cohort", lambda cohort, clients, key, number: np.sort(published[number - 1])):
        result = train(job_of(table, 20), backend="serial", settings=settings_of(home))
    return _weights(home, result.run_id)


def _weights(home: Path, run: str) -> Weights:
    weights: Weights = load_file(home / "runs" / run / "model" / "weights.safetensors")
    return weights


def _flower(python: Path, table: Path, plan: Path, out: Path) -> tuple[float, Weights]:
    """Seconds of Flower's median round, and its final weights."""
    script = Path(__file__).with_name("flower_rounds.py")
    variables = environment(
        HOME=str(out.parent),
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(script.parent),  # for the processes of its Ray
        OMP_NUM_THREADS="1",
        FLWR_TELEMETRY_ENABLED="0",
        RAY_raylet_start_wait_time_s="150",
    )
    done = subprocess.run([python, script, table, plan, out], env=variables, cwd=out.parent, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        raise RuntimeError(f"Flower ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
    with np.load(out) as answer:
        return float(np.median(answer["seconds"])), {name: answer[name] for name in answer.files if name != "seconds"}
