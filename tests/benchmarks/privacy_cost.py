"""What client-level privacy costs in time: the rounds of one job with it and without it, in this process and on Ray.

The job is the digits at epsilon 8 with its kernel fixed; without privacy it clips, rounds, draws and charges nothing. The two take
turns. Timed is what whoever follows the run sees: from the end of the first round to the end of the last, checkpoints included,
after one run of each that does not count.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from actors.cluster import connect
from qedge import TrainingJob, train
from qedge.config import Settings
from qedge.federated.events import Event, RoundFinished
from tests.benchmarks.figures import Figure, beside, spread
from tests.benchmarks.surroundings import changed, digits_job, scratch, settings_of

REPEAT = 5
LIMIT = 1.3
ROUNDS = 300  # of the job's 60 the first seconds of a process would be too large a part


def measure(repeat: int) -> list[Figure]:
    """`repeat` pairs of runs on each backend."""
    private = changed(digits_job(8), algorithm={"kernel": "stacked"}, rounds=ROUNDS)
    with scratch() as folder:
        figures = _compare(folder / "serial", private, "serial", "in this process", repeat)
        with connect(settings_of(folder / "cluster"), start=True):  # one Ray for all of its runs
            figures += _compare(folder / "ray", private, "ray", "on Ray", repeat)
    return figures


def _compare(folder: Path, private: TrainingJob, backend: str, where: str, repeat: int) -> list[Figure]:
    kinds = {"with": private, "without": changed(private, privacy="none")}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(repeat + 1):
        for kind, job in kinds.items():
            took = _rounds(job, backend, settings_of(folder / f"{kind}-{number}", tracking_uri=f"sqlite:///{folder}/mlflow.db"))
            if number:
                seconds[kind].append(took)
    ratios = [mine / plain for mine, plain in zip(seconds["with"], seconds["without"], strict=True)]
    return [
        Figure(f"with privacy over without, {where}", f"≤ {LIMIT} times", spread(ratios, "times"), statistics.median(ratios) <= LIMIT),
        beside("… with privacy, a round", [1000 * one / (ROUNDS - 1) for one in seconds["with"]], "ms"),
        beside("… without privacy, a round", [1000 * one / (ROUNDS - 1) for one in seconds["without"]], "ms"),
    ]


def _rounds(job: TrainingJob, backend: str, settings: Settings) -> float:
    """Seconds from the end of the first round to the end of the last."""
    ends: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, RoundFinished):
            ends.append(time.perf_counter())

    train(job, backend=backend, settings=settings, on_event=note)
    return ends[-1] - ends[0]
