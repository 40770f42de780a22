"""Processes of a private run on Ray killed with SIGKILL at random moments: its coordinator, one of its client actors, its driver.

Afterwards, and after `qedge train --resume` where the driver died, the run must be finished; the ledger must hold rounds 1 to T, each
once, at T times what a round costs and nothing more; and every noised sum that was on disk or charged when the process died must be the
one that is charged in the end: noise is never drawn twice for one round. Each run has a home of its own. Coordinators and clients die on
one Ray that stays up; drivers in turns on that Ray, where the coordinator outlives them, and on one of their own, which must end with
them.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from actors.cluster import start_head, stop_head
from actors.environment import processes_of
from qedge import TrainingJob
from qedge.audit.receipt import FILE, Receipt, verify
from qedge.federated.run_folder import RunFolder, recorded_guarantee, run_ids
from qedge.federated.write_ahead import WriteAhead
from qedge.privacy.accounting import RenyiCost
from qedge.records import Records
from tests.benchmarks.figures import Figure, spread
from tests.benchmarks.surroundings import changed, command, digits_job, environment, free_port, scratch, settings_of

REPEAT = 20
SEED = 20261122
VICTIMS = {"coordinator": "ray::CoordinatorActor", "client": "ray::FederatedClientActor", "driver": ""}
PATIENCE_S = 300.0
_LOOK_EVERY_S = 0.002

Releases = frozenset[tuple[int, str]]  # round and digest


@dataclass(frozen=True)
class Moment:
    """So many seconds after so many rounds were on record; 0 rounds: after the victim (of a driver: its run's folder) was there."""

    rounds: int
    delay_s: float


@dataclass(frozen=True)
class Crash:
    """What came of one killing. wrong: what is not as it should be afterwards; seconds: from the kill to the run's end."""

    moment: Moment
    wrong: list[str]
    seconds: float


@dataclass(frozen=True)
class Killed:
    """A run that lost a process and ended. known: round and digest of every release there was at the kill; wrong: what went wrong on the
    way to its end; seconds: from the kill to there."""

    run: str
    known: Releases
    wrong: list[str]
    seconds: float


@dataclass(frozen=True)
class Cluster:
    """A Ray that stays up: the folder that marks its processes, and the variables with which a driver reaches it."""

    folder: Path
    variables: dict[str, str]


def measure(repeat: int) -> list[Figure]:
    """`repeat` kills of each victim."""
    figures = []
    generator = random.Random(SEED)
    job = changed(digits_job(8), algorithm={"kernel": "stacked"})
    with scratch() as folder, running_cluster(folder / "head") as cluster:
        for victim in VICTIMS:
            crashes = []
            for number in range(repeat):
                own = victim == "driver" and number % 2 == 1
                crashes.append(crash(victim, job, folder / f"{victim}-{number}", None if own else cluster, generator))
            wrong = [f"{crash.moment}: {reason}" for crash in crashes for reason in crash.wrong]
            told = spread([crash.seconds for crash in crashes], "s") + (f"; {'; '.join(wrong)}" if wrong else "")
            bad = sum(bool(crash.wrong) for crash in crashes)
            figures.append(Figure(f"{victim} killed, runs that ended wrong", "0", f"{bad} of {repeat}; from kill to end {told}", not bad))
    return figures


@contextmanager
def running_cluster(home: Path) -> Iterator[Cluster]:
    """A Ray as `qedge start` starts it, ended afterwards."""
    settings = settings_of(home, serve={"port": free_port()})
    record = start_head(settings)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "keys" / "ray.token")}
    try:
        yield Cluster(record.folder, {"RAY_ADDRESS": record.address, **token})
    finally:
        stop_head(settings)


def crash(victim: str, job: TrainingJob, folder: Path, cluster: Cluster | None, generator: random.Random) -> Crash:
    """Run the job, kill the victim at a random moment, see the run to its end, and look at what it left.

    A moment after the run's end has killed nobody: then another is drawn, for a new run. cluster: None for a Ray of the driver's own.
    """
    while True:
        moment = draw_moment(job.rounds, generator)
        home = new_home(folder)
        killed = run_and_kill(victim, moment, job, home, cluster)
        if killed is not None:
            wrong = killed.wrong or what_is_wrong(home, killed.run, killed.known)
            return Crash(moment, wrong, killed.seconds)


def draw_moment(rounds: int, generator: random.Random) -> Moment:
    """While things start (a quarter of the moments), between two rounds (half), or while the model is made and published."""
    stage = generator.choice(["starting", "training", "training", "ending"])
    if stage == "starting":
        return Moment(0, generator.uniform(0, 6))
    if stage == "training":
        return Moment(generator.randint(1, rounds - 1), generator.uniform(0, 0.05))
    return Moment(rounds, generator.uniform(0, 2))


def run_and_kill(victim: str, moment: Moment, job: TrainingJob, home: Path, cluster: Cluster | None, backend: str = "ray") -> Killed | None:
    """Run the job by the command line, kill the victim at the moment, resume where it was the driver. None when the run was over first."""
    job_file = home / "job.yaml"
    job_file.write_text(yaml.safe_dump(job.plain()), encoding="utf-8")
    before = _pids(victim, cluster)
    variables = dict(cluster.variables) if cluster else {}
    with ExitStack() as started:
        # A Ray that dies leaves its folder behind: it shall be one that is removed here, and its path must be short.
        variables["TMPDIR"] = started.enter_context(tempfile.TemporaryDirectory(prefix="qt-", ignore_cleanup_errors=True))
        driver = started.enter_context(_begun(home, variables, "train", str(job_file), "--backend", backend))
        pid = _await_moment(victim, moment, home, driver, cluster, before)
        if pid is None:
            if driver.wait(PATIENCE_S):
                raise RuntimeError(f"the run failed before anything was killed:\n{_shown(home)}")
            return None
        family = _lasting_children(driver.pid) if victim == "driver" else []
        process = psutil.Process(pid)
        process.kill()
        begun = time.monotonic()
        process.wait(PATIENCE_S)
        (run,) = run_ids(home)
        known = known_releases(home, run)
        if victim == "driver":
            driver = started.enter_context(_begun(home, variables, "train", "--resume", run, "--backend", backend))
        output, _ = driver.communicate(timeout=PATIENCE_S)
    seconds = time.monotonic() - begun
    _, left = psutil.wait_procs(family, timeout=PATIENCE_S)
    wrong = [f"of the driver's own Ray {process} outlived it" for process in left]
    if driver.returncode:
        wrong.append(f"qedge train ended with {driver.returncode}: {_shown(home)}")
    elif json.loads(output.splitlines()[-1])["run_id"] != run:
        wrong.append(f"another run than {run} was finished: {output}")
    return Killed(run, known, wrong, seconds)


def what_is_wrong(home: Path, run: str, known: Releases) -> list[str]:
    """Everything about a finished run that is not as if nothing had happened. known: every release there was at the kill."""
    records, folder = Records.open(home), RunFolder.open(home, run)  # opening verifies the ledger's and the log's chains
    rounds, guarantee = folder.job().rounds, recorded_guarantee(folder)
    result = folder.read("result.json")
    if result is None or result["status"] != "finished" or guarantee is None:
        return [f"the run is not finished: {result}"]
    (scope,) = records.ledger.scopes()
    releases = records.ledger.releases(run)
    charged = sorted(int(str(event.facts["round"])) for event in records.ledger.history() if event.kind == "commit")
    metrics = [json.loads(line)["round"] for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    wanted = list(range(1, rounds + 1))
    checks = {
        f"the ledger released rounds {sorted(releases)}": sorted(releases) == wanted,
        f"the ledger charged rounds {charged}": charged == wanted,
        f"committed is {scope.committed}, not {rounds} rounds": scope.committed == guarantee.per_round * rounds,
        f"still held: {scope.held}": scope.held == RenyiCost.zero(),
        f"metrics are of rounds {metrics}": metrics == wanted,
    }
    lost = sorted({number for number, digest in known if releases.get(number) != digest})
    checks[f"of rounds {lost} another sum is charged than the one there was at the kill"] = not lost
    verify(Receipt.read(folder.model / FILE), records.keys.public, folder.model)
    return [complaint for complaint, holds in checks.items() if not holds]


@contextmanager
def _begun(home: Path, variables: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `qedge` command that was begun; it is not left running when something goes wrong."""
    with (home / "stderr").open("ab") as shown:
        process = subprocess.Popen(
            command(home, *arguments), env=environment(**variables), stdout=subprocess.PIPE, stderr=shown, text=True, cwd=home
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _await_moment(
    victim: str, moment: Moment, home: Path, driver: subprocess.Popen[str], cluster: Cluster | None, before: set[int]
) -> int | None:
    """Wait for the moment; the process to kill, or None when the run was over first."""
    while not _reached(moment, home) or not (pids := _victims(victim, driver, cluster, before)):
        if driver.poll() is not None:
            return None
        time.sleep(_LOOK_EVERY_S)
    time.sleep(moment.delay_s)
    pids = _victims(victim, driver, cluster, before)
    return min(pids) if pids and driver.poll() is None else None


def _reached(moment: Moment, home: Path) -> bool:
    runs = run_ids(home)
    if not runs or moment.rounds == 0:
        return bool(runs)
    metrics = RunFolder(home, runs[0]).metrics
    return metrics.exists() and metrics.read_bytes().count(b"\n") >= moment.rounds


def _victims(victim: str, driver: subprocess.Popen[str], cluster: Cluster | None, before: set[int]) -> set[int]:
    return {driver.pid} if victim == "driver" else _pids(victim, cluster) - before


def _pids(victim: str, cluster: Cluster | None) -> set[int]:
    """The cluster's own processes that are the victim; Ray names a worker after its actor."""
    found = set()
    for process in processes_of(cluster.folder) if cluster and VICTIMS[victim] else []:
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(VICTIMS[victim]):
                found.add(process.pid)
    return found


def _lasting_children(pid: int) -> list[psutil.Process]:
    """The processes of a driver's own Ray, without Ray's agents: those look only once a minute whether they are still needed."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("Agent" in word for word in process.cmdline()[:1]):
                found.append(process)
    return found


def known_releases(home: Path, run: str) -> Releases:
    """Every release of a run there is: the noised sums written ahead, and those the ledger has charged.

    The file first: what a living coordinator drops from it meanwhile, behind a checkpoint, the ledger has by then. Read from a copy, as
    reading cuts a torn end off.
    """
    records, folder = Records.open(home), RunFolder.open(home, run)
    copy = home / "releases.copy"
    copy.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # a checkpoint covers all there was
        shutil.copy(folder.releases, copy)
    ahead = WriteAhead(copy, lambda message: records.keys.mac("release", message)).read({})
    written = {(number, release.digest) for number, release in ahead.items()}
    return frozenset(written | set(records.ledger.releases(run).items()))


def new_home(folder: Path) -> Path:
    """A folder of its own for a run's home, under `folder`."""
    folder.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def _shown(home: Path) -> str:
    """The end of what the commands showed."""
    return (home / "stderr").read_text(encoding="utf-8", errors="replace")[-2000:]
