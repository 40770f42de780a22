"""The MLflow UI over a home's registry, as a child process with one worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from qedge.config import Settings
from qedge.errors import PortInUse, RegistryUnavailable


def serve_ui(settings: Settings, port: int) -> None:
    """Run the UI on 127.0.0.1 until this process is told to end (SIGINT, SIGTERM, SIGHUP). For the main thread.

    Raises:
        PortInUse: something listens there already.
        RegistryUnavailable: the UI could not be started, or ended by itself.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise PortInUse(f"port {port} is in use; give another with --port", port=port) from None
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # The URI may hold a password, and everybody on the machine can read a command line.
    variables = {
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow_uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(settings.home / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    # In a group of its own: Ctrl-C in the terminal reaches us alone, and the server with its worker is then ended in order.
    child = subprocess.Popen(command, env=os.environ | variables, process_group=0)
    told = threading.Event()

    def end(*_: object) -> None:
        told.set()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)

    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup leaves one
            signal.signal(ending, end)
    code = child.wait()
    if not told.is_set():
        raise RegistryUnavailable(f"the MLflow UI ended by itself with {code}; what it said stands above")
