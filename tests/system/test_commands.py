"""The commands on a real Ray as a user types them, one after another, and what they print."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qedge.config import load
from qedge.federated.run_folder import run_ids
from qedge.job import TrainingJob
from qedge.runs.training import train
from tests.endpoint import eventually, free_port

pytestmark = pytest.mark.slow
Said = tuple[int, dict[str, object], str]


@pytest.fixture
def type_in(tmp_path: Path) -> Iterator[Callable[..., Said]]:
    """Type a command: exit code, its JSON, and all else it printed. Whatever was started is stopped."""

    def run(*words: str) -> Said:
        command = [sys.executable, "-m", "qedge", *words, "--home", str(tmp_path / "home"), "--json"]
        variables = os.environ | {"QEDGE_CLUSTER__CPUS": "1", "QEDGE_CLUSTER__OBJECT_STORE_BYTES": str(100 * 2**20)}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=tmp_path, check=False)
        lines = done.stdout.splitlines()
        return done.returncode, json.loads(lines[-1]), "\n".join([*lines[:-1], done.stderr])

    yield run
    run("stop")


def test_start_and_deploy_stay_where_the_cluster_is_and_refuse_to_be_told_otherwise(
    type_in: Callable[..., Said], tmp_path: Path, make_job: Callable[..., TrainingJob]
) -> None:
    train(make_job(rounds=1, privacy="none"), backend="serial", settings=load(home=tmp_path / "home", environ={}))
    nowhere, refused, _ = type_in("start", "--address", "127.0.0.1:1")
    assert nowhere == 2
    assert "--address" in str(refused["error"])
    port, other = free_port(), free_port()
    code, started, _ = type_in("start", "--port", str(port))
    assert (code, started["url"]) == (0, f"http://127.0.0.1:{port}")
    for option, asked, held in (
        ("--port", str(other), str(port)),
        ("--host", "0.0.0.0", "127.0.0.1"),
        ("--address", "127.0.0.1:1", str(started["address"])),
    ):
        code, refused, said = type_in("start", option, asked)
        assert code == 2
        assert f"{option} is {held}, not {asked}" in said
        assert refused["error"]["code"] == "config.invalid"
    assert type_in("start", "--port", str(port), "--host", "127.0.0.1", "--address", str(started["address"]))[:2] == (0, started)
    assert type_in("start")[:2] == (0, started)
    assert type_in("deploy", "tiny", "--port", str(other))[0] == 2
    code, deployed, said = type_in("deploy", "tiny@champion")
    assert (code, deployed["url"]) == (0, started["url"])
    assert "INFO" not in said, "Serve's own log is not for the user of a command"
    assert type_in("undeploy", "tiny/2")[0] == 2
    code, gone, said = type_in("undeploy", "tiny/1")
    assert (code, gone) == (0, {"model": "tiny"})
    assert "INFO" not in said


def test_an_interrupted_demo_stops_what_it_started_and_says_how_its_run_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    command = [sys.executable, "-m", "qedge.demo", "--home", str(home)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
            assert eventually(lambda: bool(run_ids(home)), within_s=180)  # its first round may be seconds from its last
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=120)
    finally:
        subprocess.run([sys.executable, "-m", "qedge", "stop", "--home", str(home)], check=True, capture_output=True)
    (run,) = run_ids(home)
    assert demo.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"its run goes on with: .venv/bin/qedge train --resume {run} --home {home}"
    shutil.rmtree(home)
