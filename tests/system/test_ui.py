"""The MLflow UI over a home's registry, as its own process: it answers, and shows nobody the database's password."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from qedge.config import load
from tests.endpoint import eventually, free_port

SERVE = """
import sys
from qedge.config import Settings
from qedge.registry.ui import serve_ui
serve_ui(Settings.model_validate_json(sys.stdin.read()), int(sys.argv[1]))
"""
SECRET = "hunter2-of-the-database"


@pytest.mark.slow
def test_the_ui_answers_from_its_store_and_the_uri_is_on_no_command_line(tmp_path: Path) -> None:
    store = tmp_path / f"{SECRET}.db"
    settings = load(environ={}, home=tmp_path, tracking_uri=f"sqlite:///{store}")
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stdin=subprocess.PIPE, env=os.environ) as process:
        assert process.stdin is not None
        process.stdin.write(settings.model_dump_json().encode())
        process.stdin.close()
        try:
            assert eventually(lambda: _answers(port), within_s=90)
            assert store.exists()
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            lines = [" ".join(psutil.Process(pid).cmdline()) for pid in family]
            assert any("mlflow" in line for line in lines[1:])
            assert not [line for line in lines if SECRET in line]
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_ends_the_ui_with_its_server_and_without_a_traceback(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "qedge", "ui", "--port", str(port), "--home", str(tmp_path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as process:
        try:
            assert eventually(lambda: _answers(port), within_s=90)
            children = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the command's group
            said, _ = process.communicate(timeout=60)
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert json.loads(said.splitlines()[-1]) == {"port": port}
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()]


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
