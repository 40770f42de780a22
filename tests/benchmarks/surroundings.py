"""Where a benchmark runs: a home and a Ray of its own, with nothing of the user's environment in them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from actors.cluster import start_head, stop_head
from qedge.config import Settings, load
from qedge.job import TrainingJob
from qedge.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
JOBS = Path(__file__).with_name("jobs")
WORKERS = 2


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for homes, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="qb-") as folder:
        yield Path(folder)


def settings_of(home: Path, **changes: object) -> Settings:
    """Settings of a home, the user's own environment left out; a Ray it starts has `WORKERS` CPUs."""
    return load(home=home, environ={}, **{"cluster": {"cpus": WORKERS}, **changes})


@contextmanager
def cluster(settings: Settings, *, serve: bool = True) -> Iterator[Path]:
    """A Ray of this benchmark's own, with or without Serve; the folder that its processes are known by."""
    with socket.socket() as taken:
        if not serve:  # what finds its port taken is left out
            taken.bind((settings.serve.host, settings.serve.port))
            taken.listen()
        record = start_head(settings)
    try:
        yield record.folder
    finally:
        stop_head(settings)


def stand_still(processes: Sequence[psutil.Process]) -> None:
    """Stop processes, so that they are in nobody's way, until they `go_on`."""
    _signal(processes, signal.SIGSTOP)


def go_on(processes: Sequence[psutil.Process]) -> None:
    """Let processes that were stopped run."""
    _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def command(home: Path, *arguments: str) -> list[str]:
    """A `qedge` command on a home, which prints its answer as JSON."""
    return [sys.executable, "-m", "qedge", *arguments, "--home", str(home), "--json"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would reach a Ray or a home of the user's, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "QEDGE_", "IN_QEDGE_"))}
    return kept | {"QEDGE_CLUSTER__CPUS": str(WORKERS)} | variables


def run(home: Path, *arguments: str, variables: dict[str, str] | None = None) -> dict[str, object]:
    """A `qedge` command's answer; what it shows goes with the error when it fails."""
    done = subprocess.run(command(home, *arguments), env=environment(**variables or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"qedge {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def digits_job(epsilon: int) -> TrainingJob:
    """The digits over 400 clients at that epsilon."""
    return TrainingJob.load(JOBS / f"digits-epsilon-{epsilon}.yaml")


def changed(job: TrainingJob, **parts: object) -> TrainingJob:
    """The job with some of its parts replaced; a mapping is merged into its part."""
    values = job.plain()
    for name, value in parts.items():
        before = values[name]
        values[name] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else value  # type: ignore[assignment]
    return TrainingJob.parse(values)


def free_port() -> int:
    """A port nobody listens on."""
    (port,) = free_ports(1)
    return port
