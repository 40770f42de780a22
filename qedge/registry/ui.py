"""The MLflow UI over a home's registry, as a child process with one worker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from qedge.config import Settings
from qedge.errors import PortInUse


def serve_ui(settings: Settings, port: int) -> None:
    """Run the UI on 127.0.0.1 until it ends or is interrupted.

    Raises:
        PortInUse: something listens there already.
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
    child = subprocess.Popen(command, env=os.environ | variables)
    try:
        child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
