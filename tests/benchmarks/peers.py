"""The frameworks that qedge is measured against: an environment of its own for each, and a process of it that takes turns.

Starting one takes most of a minute, so that each is started once a workload and runs the same plan anew whenever it is its turn; in
between all of its processes stand still. Its side of that is `workloads.Turns`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from tests.benchmarks.surroundings import ROOT, environment, go_on, stand_still
from tests.benchmarks.workloads import Weights, Workload

HERE = Path(__file__).parent
START_S, TURN_S, END_S = 300.0, 900.0, 120.0


@dataclass(frozen=True)
class Peer:
    """One framework. launch: what stands between its Python and its script; instead: packages put over its pinned ones at the end,
    whatever they ask for.
    """

    name: str
    version: str
    launch: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """How its files are named."""
        return self.name.lower()

    def python(self) -> Path:
        """The Python of its own environment, made when it is missing or its list of packages was changed."""
        folder, requirements = ROOT / f".venv-{self.key}", HERE / f"requirements-{self.key}.txt"
        wanted = requirements.read_bytes() + " ".join(self.instead).encode()
        stamp = folder / f".{self.key}-{self.version}-{hashlib.sha256(wanted).hexdigest()[:16]}"
        python = folder / "bin" / "python"
        if not stamp.exists():
            print(f"installing {self.name} into {folder}: some minutes the first time", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, "-r", requirements], check=True)
            if self.instead:
                subprocess.run([*install, "--no-deps", *self.instead], check=True)
            stamp.touch()
        return python


FLOWER = Peer("Flower", "1.42.0", instead=("flwr==1.42.0",))
PFL = Peer("pfl", "0.6.0", launch=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
NVFLARE = Peer("NVFLARE", "2.9.0")
MITIQ = Peer("mitiq", "1.1.0")
QISKIT = Peer("Qiskit", "2.3.0")
RUNTIMES = Peer("runtimes", "1")  # of edge models: all that edge_peers asks


@dataclass(frozen=True)
class Turn:
    """What came of a turn: when each round ended, seconds by one clock, and the final weights."""

    ends: list[float]
    weights: Weights


class Runner:
    """A peer that has been started on a workload and is ready."""

    def __init__(self, peer: Peer, process: subprocess.Popen[bytes], connection: Connection, log: Path) -> None:
        self.peer, self.process, self.connection, self.log = peer, process, connection, log
        self.ready = False

    def turn(self) -> Turn:
        """Let it run the plan once, and nothing before and after."""
        self.go_on()
        self.await_ready()
        self.connection.send("go")
        self.ready = False
        ends, weights = self._heard(TURN_S)
        self.stand_still()
        return Turn(ends, weights)

    def stand_still(self) -> None:
        """Stop all of its processes."""
        stand_still(self._processes())

    def go_on(self) -> None:
        """Let them run again."""
        go_on(self._processes())

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def await_ready(self) -> None:
        """Wait until it has started, or is back from its last turn."""
        if not self.ready:
            self._heard(START_S)
            self.ready = True

    def _heard(self, patience_s: float) -> tuple[list[float], Weights]:
        end = time.monotonic() + patience_s
        while not self.connection.poll(0.2):
            refuse_if_ended(self.peer, self.process, self.log, end)
        try:
            said: tuple[list[float], Weights] = self.connection.recv()
        except EOFError:
            self.process.wait(END_S)
            refuse_if_ended(self.peer, self.process, self.log, end)
            raise
        return said


@contextmanager
def running(peer: Peer, workload: Workload, table: Path, plan: Path, turns: int, folder: Path) -> Iterator[Runner]:
    """The peer in processes of its own, ready for so many turns at the plan; it ends after the last."""
    folder.mkdir(parents=True)
    python, log, place = peer.python(), folder / "log", str(folder / "turns")
    variables = environment(
        HOME=str(folder),
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(HERE),  # for the processes that it starts itself
        OMP_NUM_THREADS="1",
        FLWR_TELEMETRY_ENABLED="0",
        RAY_raylet_start_wait_time_s="150",
    )
    arguments = [workload.name, str(table), str(plan), str(turns), place]
    line = [str(python), *peer.launch, str(HERE / f"{peer.key}_rounds.py"), *arguments]
    with socket.socket(socket.AF_UNIX) as door, log.open("wb") as output:
        door.bind(place)
        door.listen()
        process = subprocess.Popen(line, env=variables, cwd=folder, stdout=output, stderr=output, start_new_session=True)
        try:
            with _connected(peer, process, door, log) as connection:
                runner = Runner(peer, process, connection, log)
                runner.await_ready()
                runner.stand_still()
                yield runner
                runner.go_on()
                process.wait(END_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def refuse_if_ended(peer: Peer, process: subprocess.Popen[bytes], log: Path, end: float) -> None:
    """Raise what the peer said last when it has ended, or time is up."""
    if process.poll() is not None or time.monotonic() > end:
        said = log.read_text(encoding="utf-8", errors="replace")[-8000:]
        raise RuntimeError(f"{peer.name} ended with {process.poll()} (None: it did not answer in time):\n{said}")


def _connected(peer: Peer, process: subprocess.Popen[bytes], door: socket.socket, log: Path) -> Connection:
    end = time.monotonic() + START_S
    door.settimeout(0.2)
    while True:
        try:
            caller, _ = door.accept()
        except TimeoutError:
            refuse_if_ended(peer, process, log, end)
        else:
            caller.setblocking(True)
            return Connection(caller.detach())
