"""What a Ray started by qedge is given: a folder, a token, ports of its own, and Serve's HAProxy ingress.

Ray's defaults put HAProxy's sockets, its two status ports and the ports of replicas in fixed places, so that a second
cluster on the machine would answer for the first. All of them are moved here, by the environment, before Ray starts.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from qedge.config import Settings
from qedge.errors import AddressUnreachable
from qedge.ports import free_ports
from qedge.storage import storage_errors, write_beside

MARK = "IN_QEDGE_CLUSTER"
_LONGEST_TEMPORARY_FOLDER = 30
_PREFIX = "qe-"
_ABANDONED_AFTER_S = 3600.0
_REPLICA_PORTS = range(20000, 30000, 100)
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def new_folder() -> Path:
    """A new folder (0700) for a cluster's sockets and logs, its path short: a socket's path may not pass 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
    (folder / MARK).touch()
    return folder


def remove_abandoned(idle_s: float = _ABANDONED_AFTER_S) -> None:
    """Remove folders of clusters that nobody could end, such as that of a driver that was killed.

    Only folders that `new_folder` marked as this user's, that no living process is marked with, and where nothing was written
    for `idle_s`: a cluster that this process cannot see, in another container, writes its state many times in an hour.
    """
    idle = [folder for folder in _parent().glob(f"{_PREFIX}*") if _is_own(folder) and time.time() - _last_written(folder) > idle_s]
    if idle:
        alive = {_mark_of(process) for process in psutil.process_iter()}
        for folder in idle:
            if str(folder) not in alive:
                shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    parent = tempfile.gettempdir()
    return Path(parent if len(parent) <= _LONGEST_TEMPORARY_FOLDER else "/tmp")  # noqa: S108 - random names, 0700


def _is_own(folder: Path) -> bool:
    try:
        seen = folder.lstat()
        return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and (folder / MARK).is_file()
    except OSError:
        return False


def _last_written(folder: Path) -> float:
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)


def token_path(settings: Settings) -> Path:
    """Where the token of the home's clusters lies."""
    return settings.home / "keys" / "ray.token"


def token_environment(settings: Settings) -> dict[str, str | None]:
    """Variables that make Ray ask for, and present, the home's own token (made when missing, 0600)."""
    path = token_path(settings)
    with storage_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            fresh = write_beside(path, secrets.token_hex(32).encode())
            try:
                path.hardlink_to(fresh)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": None}


def cluster_environment(settings: Settings, folder: Path) -> dict[str, str | None]:
    """Variables of a new cluster: token, patience, and an HAProxy whose ports and sockets no other cluster has."""
    haproxy = folder / "h"
    haproxy.mkdir()
    metrics, stats, http, grpc = free_ports(4)
    replicas = secrets.choice(_REPLICA_PORTS)
    return token_environment(settings) | {
        MARK: str(folder),
        "RAY_raylet_start_wait_time_s": str(int(settings.cluster.start_timeout_s)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
        # Replicas stand behind our own HAProxy alone, which hears at once that one is leaving: no need to wait 30 s for others.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas + _REPLICA_PORTS.step - 1),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
    }


def put_environment(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set (or, for None, unset) variables of this process; what they were before."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process of the cluster in `folder`, known by the mark that children inherit."""
    return [process for process in psutil.process_iter() if is_marked(process, folder)]


def is_marked(process: psutil.Process, folder: Path) -> bool:
    """Whether a living process belongs to the cluster in `folder`."""
    try:
        return _mark_of(process) == str(folder) and process.is_running()
    except psutil.Error:
        return False


def _mark_of(process: psutil.Process) -> str | None:
    try:
        mark: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
    return mark


def ask_alive(address: str, token: str | None, timeout_s: float) -> bool:
    """Whether a Ray of ours answers at HOST:PORT, asked directly: Ray's own client tries for 20 to 40 s before it gives up.

    Raises:
        AddressUnreachable: there is a Ray, and it refuses `token`.
    """
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CHECK_ALIVE)(b"", timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise AddressUnreachable(
                    f"the Ray at {address} refuses our token; RAY_AUTH_TOKEN_PATH names the file with the right one", address=address
                ) from None
            return False
    return True


def is_closed(address: str) -> bool:
    """Whether nobody listens at HOST:PORT; one who is merely slow to answer listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
