"""Many registered clients on Ray with two workers: seconds a round, and what the coordinator and the client actors weigh meanwhile.

A linear model on 64 features, 1,000 clients a round, lognormal sizes (24 rows on average), no privacy. The rows are read through an index
of their table, and for comparison from the table itself. Memory is PSS, each process's share of what it shares, read from the kernel
(smaps_rollup) while rounds go on: the most that was seen after the first round was done and before the last was. A round is the time from
the end of the first to the end of the last, over how many there were between. To the first round it is from the call of `train`, on a Ray
that is up, to its end: everything that refuses a job, and the processes' start, are in it.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet

from actors import environment
from qedge import TrainingJob, train
from qedge.config import Settings
from qedge.federated.events import Event, RoundFinished
from tests.benchmarks.figures import Figure, at_most, beside
from tests.benchmarks.surroundings import cluster, free_port, run, scratch, settings_of

REPEAT = 3
CLIENTS, MANY, COHORT = 10_000, 100_000, 1_000
ROUNDS, LONG, ENDS = 100, 1_000, 100
FEATURES, CLASSES = 64, 10
AT_ONCE = 1_000  # clients whose rows are made, and written, at a time
LOOK_EVERY_S = 0.25
MIB = 1 << 20
COORDINATOR, ACTOR = "ray::CoordinatorActor", "ray::FederatedClientActor"


@dataclass
class Watched:
    """A run: ends, when each round was; looks: (rounds done, MiB of the coordinator, MiB of each client actor)."""

    begun: float
    ends: list[float] = field(default_factory=list)
    looks: list[tuple[int, float, list[float]]] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """Seconds to the end of the first round."""
        return self.ends[0] - self.begun

    @property
    def pace_s(self) -> float:
        """Seconds a round after the first."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)

    @property
    def most(self) -> float:
        """The most that the coordinator weighed between the first round and the last."""
        return max(coordinator for done, coordinator, _ in self.looks if 0 < done < len(self.ends))

    def growth(self, since: int) -> tuple[float, float]:
        """How much more the coordinator, and the client actor that grew most, weighed in the last looks than after the round `since`."""
        looks = [look for look in self.looks if since <= look[0] < len(self.ends)]
        early, late = looks[: len(looks) // 10 + 1], looks[-(len(looks) // 10 + 1) :]
        actors = [_middle(late, place) - _middle(early, place) for place in range(len(looks[0][2]))]
        return statistics.median(one[1] for one in late) - statistics.median(one[1] for one in early), max(actors)


def measure(repeat: int) -> list[Figure]:
    """`repeat` runs over 10,000 clients; one of 1,000 rounds, one from the table itself and one over 100,000 clients."""
    with scratch() as folder:
        few, many = folder / "few.parquet", folder / "many.parquet"
        write_table(few, CLIENTS)
        write_table(many, MANY)
        made = {table: float(str(_index(folder, table)["seconds"])) for table in (few, many)}
        settings = settings_of(folder / "home", serve={"port": free_port()})
        with cluster(settings) as processes:
            runs = [watch(job_of(few.with_suffix(".index"), ROUNDS), settings, processes) for _ in range(repeat)]
            plain = watch(job_of(few, ROUNDS), settings, processes)
            long = watch(job_of(few.with_suffix(".index"), LONG), settings, processes)
            large = watch(job_of(many.with_suffix(".index"), ROUNDS), settings, processes)
    coordinator, actor = long.growth(ENDS)
    ratio = (long.ends[-1] - long.ends[-ENDS]) / (long.ends[ENDS - 1] - long.ends[0])
    return [
        at_most(f"{CLIENTS:,} clients, {COHORT:,} a round: a round", 0.5, [one.pace_s for one in runs], "s"),
        at_most(f"{CLIENTS:,}: the coordinator through its rounds, PSS", 500, [one.most for one in runs], "MiB"),
        beside(f"{CLIENTS:,}: to the end of the first round", [one.first_s for one in runs], "s"),
        beside(f"{CLIENTS:,}, from the table itself: to the end of the first round", [plain.first_s], "s"),
        at_most(f"{CLIENTS:,}, from the table itself: the coordinator through its rounds, PSS", 500, [plain.most], "MiB"),
        at_most(f"{LONG:,} rounds: the coordinator's growth from round {ENDS} on, PSS", 20, [coordinator], "MiB"),
        at_most(f"{LONG:,} rounds: that of the client actor that grew most, PSS", 20, [actor], "MiB"),
        at_most(f"{LONG:,} rounds: the last {ENDS} over the first {ENDS}", 1.1, [ratio], "times"),
        beside(f"{MANY:,} clients, {COHORT:,} a round: to the end of the first round", [large.first_s], "s"),
        beside(f"{MANY:,}: a round", [large.pace_s], "s"),
        beside(f"{MANY:,}: the coordinator through its rounds, PSS", [large.most], "MiB"),
        beside(f"{CLIENTS:,}: `qedge index`", [made[few]], "s"),
        beside(f"{MANY:,}: `qedge index`", [made[many]], "s"),
    ]


def write_table(path: Path, clients: int) -> None:
    """A table of so many clients: label by a linear rule and noise, `f0` to `f63`, client ids that sort by number."""
    rule = np.random.default_rng(0).standard_normal((FEATURES, CLASSES))
    width, writer = len(str(clients - 1)), None
    for first in range(0, clients, AT_ONCE):
        generator = np.random.default_rng([1, first])
        owner = np.repeat(np.arange(first, min(first + AT_ONCE, clients)), np.maximum(4, generator.lognormal(3, 0.6, AT_ONCE).astype(int)))
        features = generator.standard_normal((len(owner), FEATURES), dtype=np.float32)
        labels = (features @ rule + 2 * generator.standard_normal((len(owner), CLASSES))).argmax(1)
        columns = {f"f{place}": np.ascontiguousarray(features[:, place]) for place in range(FEATURES)}
        ids = [f"client-{client:0{width}d}" for client in owner.tolist()]
        table = pa.table(columns | {"label": labels, "client": ids})
        writer = writer or pa.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def job_of(source: Path, rounds: int) -> TrainingJob:
    """A linear model on the table or index, 1,000 clients a round."""
    data = {"source": str(source), "client": "client", "label": "label", "labels": list(range(CLASSES)), "scale": "none"}
    sgd = {"local_epochs": 1, "batch_size": 16, "learning_rate": 0.1}
    job = {"name": "scale", "data": data, "model": {"kind": "linear"}, "algorithm": sgd, "privacy": "none", "rounds": rounds}
    return TrainingJob.parse(job | {"cohort": {"sampling": "uniform", "size": COHORT}})


def watch(job: TrainingJob, settings: Settings, processes: Path) -> Watched:
    """Run the job on the cluster that is up, looking at its processes all the while."""
    watched, over = Watched(time.perf_counter()), threading.Event()

    def note(event: Event) -> None:
        if isinstance(event, RoundFinished):
            watched.ends.append(time.perf_counter())

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            coordinators, actors = _weights(processes, COORDINATOR), _weights(processes, ACTOR)
            if coordinators and actors:
                watched.looks.append((len(watched.ends), max(coordinators), actors))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        train(job, backend="ray", settings=settings, on_event=note)
    finally:
        over.set()
        looking.join()
    return watched


def _weights(folder: Path, name: str) -> list[float]:
    """MiB of PSS of the cluster's processes that go by a name, oldest first."""
    found = []
    for process in sorted(environment.processes_of(folder), key=lambda one: one.pid):
        try:
            if " ".join(process.cmdline()).startswith(name):
                found.append(process.memory_full_info().pss / MIB)
        except psutil.Error:  # it has ended
            continue
    return found


def _middle(looks: Sequence[tuple[int, float, list[float]]], place: int) -> float:
    return statistics.median(actors[place] for _, _, actors in looks)


def _index(folder: Path, table: Path) -> dict[str, object]:
    return run(folder / "home", "index", str(table), "--client", "client", "--label", "label")
