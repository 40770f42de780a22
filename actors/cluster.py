"""The Ray that qedge uses: one that is given, the one `qedge start` left running, or one of its own for a single command.

Every cluster started here has its own folder, free ports and the home's own token, so that several live on one machine and
strangers are turned away. A cluster that outlives its command is known by a mark in the environment of its processes: that
is how all of them, and nothing else, are found and ended again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from actors import environment, session
from qedge.config import Settings, ensure_home
from qedge.errors import AddressUnreachable, Failed, InvalidConfig, PortInUse, QEdgeError
from qedge.ports import refuse_taken_port
from qedge.sdk import Client
from qedge.storage import locked, write_atomically

_PATIENCE_S = 10.0
_ANY_HOST = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


class ClusterRecord(BaseModel):
    """What `home/cluster.json` says of the cluster that `qedge start` left running."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    pid: int
    folder: Path
    serve_url: str | None
    serve_host: str | None = None

    @property
    def listens(self) -> dict[str, str | int]:
        """Host and port of the endpoint, as far as they are known."""
        places = {"host": self.serve_host, "port": urlsplit(self.serve_url or "").port}
        return {name: value for name, value in places.items() if value is not None}


@dataclass
class Connection(AbstractContextManager["Connection"]):
    """This process's connection to Ray. Closing it ends a cluster that was started for this process alone."""

    address: str
    private: bool = False
    _owned: bool = True
    _folder: Path | None = None
    _before: dict[str, str | None] = field(default_factory=dict)

    def close(self) -> None:
        """Disconnect, unless Ray was connected before `connect`. Harmless when repeated."""
        import ray

        if self._owned and ray.is_initialized():
            ray.shutdown()
            if (serve := sys.modules.get("ray.serve.context")) is not None:
                # It keeps its client by the number of the job, which is 1 again in the next cluster.
                serve._set_global_client(None)
        if self._folder is not None:
            end_processes(self._folder)
        environment.put_environment(self._before)
        self._owned, self._folder, self._before = False, None, {}

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(settings: Settings, *, start: bool) -> Connection:
    """Connect this process to the cluster of `settings.address`, else to the home's own, else (`start`) to a new private one.

    A process that is connected to Ray already stays where it is.

    Raises:
        AddressUnreachable: nothing that speaks Ray answers there in `cluster.connect_timeout_s`, it refuses our token, the
            home's own cluster runs and does not answer, or no cluster is running and `start` is False.
        InvalidConfig: an address that is not HOST:PORT.
        Failed: a private cluster did not come up.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return Connection(ray.get_runtime_context().gcs_address, _owned=False)
    if settings.address == "local":
        return _start_private(settings)
    record = head(settings)
    if record is not None and settings.address in (None, record.address):
        return _join(record.address, environment.token_environment(settings), settings)
    if settings.address is not None:
        return _join(settings.address, {}, settings)
    if not start:
        raise AddressUnreachable(f"no Ray is running for {settings.home}; `qedge start` starts one, `--address` names another")
    return _start_private(settings)


def start_head(settings: Settings, *, serve: bool = False) -> ClusterRecord:
    """Start the home's own cluster, which outlives this process; when it is already running, say where.

    Ray is up when this returns; Serve is still coming up, behind the lock of `serve_starting`, so that the first model to be
    deployed finds it there. Where its port is taken it is left out, or, with `serve`, the cluster is refused; a
    port that is taken between this look and Serve's is left out as well, and `cluster.log` says so.

    Raises:
        PortInUse: `serve`, and the port for HTTP is taken; nothing was started.
        AddressUnreachable: it is running and does not answer; it is left as it is.
        Failed: Ray did not come up in `cluster.start_timeout_s`; what had been started is gone again.
    """
    ensure_home(settings.home)
    with _alone(settings):
        record = head(settings)
        if record is not None:
            return record
        _end_recorded(settings)
        url = _free_endpoint(settings, required=serve)
        folder = environment.new_folder()
        with ExitStack() as undo:
            undo.callback(end_processes, folder)
            process = _spawn(settings, folder, serve=url is not None)
            address = _wait_for_address(process, settings, folder)
            host = settings.serve.host if url else None
            record = ClusterRecord(address=address, pid=process.pid, folder=folder, serve_url=url, serve_host=host)
            _write(settings, record)
            undo.pop_all()
        return record


def stop_head(settings: Settings) -> bool:
    """End the home's own cluster and wait until no process of it is left. False when there was none."""
    if not settings.home.is_dir():
        return False
    with _alone(settings):
        return _end_recorded(settings)


def status(settings: Settings) -> dict[str, JsonValue]:
    """The cluster that the settings name, or the home's own and what it serves, to be shown.

    Raises:
        AddressUnreachable: the one that is named does not answer.
    """
    if settings.address is not None:
        with connect(settings, start=False) as named:
            return {"cluster": "running", "address": named.address}
    try:
        record = head(settings)
    except AddressUnreachable as error:
        return {"cluster": error.message}
    if record is None:
        return {"cluster": "not running"}
    shown: dict[str, JsonValue] = {"cluster": "running", "address": record.address, "pid": record.pid, "endpoint": record.serve_url}
    if record.serve_url is not None:
        with Client(record.serve_url, timeout_s=settings.cluster.connect_timeout_s) as client, suppress(QEdgeError):
            shown["models"] = [*client.models()]
    return shown


def head(settings: Settings) -> ClusterRecord | None:
    """The home's own cluster, if it is running.

    Raises:
        AddressUnreachable: its processes live, and it does not answer in `cluster.connect_timeout_s`. A machine may be that busy:
            such a cluster is not gone, and whoever took it for gone would end the runs and the models on it.
    """
    record = _recorded(settings)
    if record is None or not _alive(record):
        return None
    token, patience_s = environment.token_path(settings).read_text(encoding="utf-8"), settings.cluster.connect_timeout_s
    if environment.ask_alive(record.address, token, patience_s):
        return record
    if environment.is_closed(record.address):
        return None
    raise AddressUnreachable(
        f"the Ray of {settings.home} (process {record.pid}) runs at {record.address} and does not answer in {patience_s:g} s "
        "(cluster.connect_timeout_s); try again when it is less busy, or end it by `qedge stop`",
        address=record.address,
    )


@contextmanager
def serve_starting(settings: Settings) -> Iterator[None]:
    """Alone at starting or changing Serve for this home; waits for a Serve that `start_head` has under way."""
    ensure_home(settings.home)
    with locked(settings.home / "serve.lock", timeout_s=settings.cluster.start_timeout_s):
        yield


def connected_head(settings: Settings) -> ClusterRecord | None:
    """The home's own cluster, if it is the one this process is connected to."""
    import ray

    record = _recorded(settings)
    return record if record is not None and record.address == ray.get_runtime_context().gcs_address else None


def note_endpoint(settings: Settings, url: str) -> None:
    """Put on the record of the home's own cluster, if this process is connected to it, where its Serve listens now."""
    record = connected_head(settings)
    if record is not None and record.serve_url != url:
        _write(settings, record.model_copy(update={"serve_url": url, "serve_host": settings.serve.host}))


def drop_endpoint(settings: Settings) -> None:
    """Put on the record of the home's own cluster that its Serve did not come up; waits for a `start_head` that writes the record."""
    with _alone(settings):
        record = _recorded(settings)
        if record is not None:
            _write(settings, record.model_copy(update={"serve_url": None, "serve_host": None}))


def refuse_elsewhere(record: ClusterRecord, *, address: str | None = None, host: str | None = None, port: int | None = None) -> None:
    """Refuse to be told, by options, another place than where the home's own cluster is already; None: nothing was said.

    Raises:
        InvalidConfig: names each option that does not hold, and what does.
    """
    held = {"address": record.address, **record.listens}
    asked = {"address": address, "host": host, "port": port}
    differ = [f"--{name} is {held.get(name, 'none yet')}, not {one}" for name, one in asked.items() if one not in (None, held.get(name))]
    if differ:
        raise InvalidConfig(f"this home's cluster is up already: {'; '.join(differ)}; `qedge stop` it first, or leave them out")


def serve_url(settings: Settings) -> str:
    """Where the endpoint is reached from its own machine."""
    host = "127.0.0.1" if settings.serve.host in _ANY_HOST else settings.serve.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve.port}"


def end_processes(folder: Path, head: int | None = None) -> None:
    """End every process of the cluster in `folder` and remove the folder. Returns when none is left.

    The head is asked first: it takes its cluster down in order. What is left after that is killed.
    """
    deadline = time.monotonic() + (_PATIENCE_S if head else 0.0)
    for process in environment.processes_of(folder):
        if process.pid == head:
            process.terminate()
    while left := environment.processes_of(folder):
        if time.monotonic() > deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        psutil.wait_procs(left, timeout=0.1)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    with locked(settings.home / "cluster.lock", timeout_s=settings.cluster.start_timeout_s + _PATIENCE_S):
        yield


def _recorded(settings: Settings) -> ClusterRecord | None:
    try:
        return ClusterRecord.model_validate_json((settings.home / "cluster.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _write(settings: Settings, record: ClusterRecord) -> None:
    write_atomically(settings.home / "cluster.json", record.model_dump_json().encode())


def _alive(record: ClusterRecord) -> bool:
    try:
        return environment.is_marked(psutil.Process(record.pid), record.folder)
    except psutil.NoSuchProcess:
        return False


def _end_recorded(settings: Settings) -> bool:
    record = _recorded(settings)
    if record is None:
        return False
    end_processes(record.folder, record.pid)
    (settings.home / "cluster.json").unlink(missing_ok=True)
    return True


def _free_endpoint(settings: Settings, *, required: bool) -> str | None:
    try:
        refuse_taken_port(settings.serve.host, settings.serve.port)
    except PortInUse:
        if required:
            raise
        return None
    return serve_url(settings)


def _spawn(settings: Settings, folder: Path, *, serve: bool) -> subprocess.Popen[bytes]:
    variables = os.environ | environment.cluster_environment(settings, folder)
    with (settings.home / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.head", str(folder), "serve" if serve else "train"],
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    # A head that ended at once does not read; the wait for its address finds that out and says so.
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin as given:
            given.write(settings.model_dump_json().encode())
    return process


def _wait_for_address(process: subprocess.Popen[bytes], settings: Settings, folder: Path) -> str:
    patience_s = settings.cluster.start_timeout_s
    deadline = time.monotonic() + patience_s
    ready, log = folder / "address", settings.home / "cluster.log"
    while not ready.exists():
        if process.poll() is not None:
            raise Failed(f"Ray did not start; {log} says why", log=str(log))
        if time.monotonic() > deadline:
            raise Failed(f"Ray did not start in {patience_s:g} s (cluster.start_timeout_s); {log} may say why", log=str(log))
        time.sleep(0.05)
    return ready.read_text(encoding="utf-8")


def _join(address: str, variables: Mapping[str, str | None], settings: Settings) -> Connection:
    before = environment.put_environment({"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE")} | dict(variables))
    with ExitStack() as undo:
        undo.callback(environment.put_environment, before)
        joined = session.join(address, settings.cluster.connect_timeout_s)
        undo.pop_all()
    return Connection(joined, _before=before)


def _start_private(settings: Settings) -> Connection:
    environment.remove_abandoned()
    folder = environment.new_folder()
    before = environment.put_environment(environment.cluster_environment(settings, folder))
    with ExitStack() as undo:
        undo.callback(end_processes, folder)
        undo.callback(environment.put_environment, before)
        address = session.start(settings, folder)
        undo.pop_all()
    # Ray's processes have the mark; what this process starts from now on is not part of the cluster.
    os.environ.pop(environment.MARK, None)
    return Connection(address, private=True, _folder=folder, _before=before)
