"""The same job without privacy along four ways: whether the weights that are issued are the same, bit for bit.

The ways: in one process; on Ray; in one process that is killed with SIGKILL at a random round and resumed; on Ray with the coordinator
killed so. The job is the digits over 400 clients with its kernel fixed, since each kernel has bits of its own; compared is the file
`weights.safetensors` as a whole.
"""

from __future__ import annotations

import random
from pathlib import Path

from qedge import TrainingJob, train
from tests.benchmarks.crashes import Cluster, Moment, new_home, run_and_kill, running_cluster
from tests.benchmarks.figures import Figure
from tests.benchmarks.surroundings import changed, digits_job, scratch, settings_of

REPEAT = 5
ROUNDS = 300
SEED = 20261122


def measure(repeat: int) -> list[Figure]:
    """Each way `repeat` times, against one uninterrupted run in one process."""
    job = changed(digits_job(8), privacy="none", algorithm={"kernel": "stacked"}, rounds=ROUNDS)
    generator = random.Random(SEED)
    with scratch() as folder:
        oracle = _train(job, folder / "oracle", "serial")
        again = [_train(job, folder / f"serial-{number}", "serial") == oracle for number in range(repeat)]
        with running_cluster(folder / "head") as cluster:
            killed = [_killed(job, oracle, folder / f"coordinator-{number}", "coordinator", cluster, generator) for number in range(repeat)]
        on_ray = [_train(job, folder / f"ray-{number}", "ray") == oracle for number in range(repeat)]
        resumed = [_killed(job, oracle, folder / f"driver-{number}", "driver", None, generator) for number in range(repeat)]
    return [
        _figure("serial again, against serial", again),
        _figure("Ray, against serial", on_ray),
        _figure("serial, killed and resumed, against uninterrupted", [same for same, _ in resumed], [at for _, at in resumed]),
        _figure("Ray, coordinator killed, against serial uninterrupted", [same for same, _ in killed], [at for _, at in killed]),
    ]


def _figure(what: str, same: list[bool], killed: list[str] | None = None) -> Figure:
    at = f" ({'; '.join(killed)})" if killed else ""
    return Figure(what, "equal", f"{sum(same)} of {len(same)} equal{at}", all(same))


def _train(job: TrainingJob, home: Path, backend: str) -> bytes:
    result = train(job, backend=backend, settings=settings_of(home))
    return _weights(home, result.run_id)


def _killed(
    job: TrainingJob, oracle: bytes, folder: Path, victim: str, cluster: Cluster | None, generator: random.Random
) -> tuple[bool, str]:
    """Whether a run that was killed has the oracle's weights, and when it was killed; without a cluster it is one without Ray."""
    while True:
        moment = Moment(generator.randint(1, job.rounds - 1), generator.uniform(0, 0.05))
        home = new_home(folder)
        killed = run_and_kill(victim, moment, job, home, cluster, "ray" if cluster else "serial")
        if killed is None:
            continue
        if killed.wrong:
            raise RuntimeError(f"killed {moment}: {killed.wrong}")
        return _weights(home, killed.run) == oracle, f"round {moment.rounds}"


def _weights(home: Path, run: str) -> bytes:
    return (home / "runs" / run / "model" / "weights.safetensors").read_bytes()
