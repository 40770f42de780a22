"""`ray up cluster/onprem.yaml` on two hosts over ssh: one cluster, closed to whoever has no token, and ended by `ray down`.

The file is used as it is but for what its user fills in and for the installation: the packages are the ones of this environment, which the
hosts see too; the code is what the file mounts.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts as ssh_hosts
import psutil
import pytest
import yaml

from qedge.demo import JOB

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(ssh_hosts.missing() is not None, reason=f"ssh hosts cannot be made here: {ssh_hosts.missing()}"),
]


@dataclass(frozen=True)
class Cluster:
    """A cluster that `ray up` made, and the environment of the machine it was made from."""

    config: Path
    hosts: ssh_hosts.Hosts
    environ: dict[str, str]

    def ray(self, *arguments: str, timeout_s: float = 600) -> str:
        """What a `ray` command prints, run where the cluster was made from; a failure shows all it printed."""
        command = [str(RAY), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"ray {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def on_head(self, *command: str, environ: dict[str, str] | None = None, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        """A shell command on the head, over ssh, with the token's mode and `environ` given."""
        given = [f"{name}={value}" for name, value in {"RAY_AUTH_MODE": "token", **(environ or {})}.items()]
        ssh = ["ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        remote = [f"root@{self.hosts.hosts[0].address}", " ".join([*given, *command])]
        return subprocess.run([*ssh, "-i", str(self.hosts.key), *remote], capture_output=True, text=True, timeout=timeout_s, check=False)


def filled_in(given: ssh_hosts.Hosts) -> dict[str, Any]:
    """The cluster file as the owner of these hosts fills it in."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text(encoding="utf-8"))
    head, *workers = given.hosts
    config["provider"] = {"type": "local", "head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(given.key)}
    packages = Path(sysconfig.get_path("purelib"))
    installation = [
        f"'{sys.executable}' -m venv --without-pip ~/qedge/.venv",
        f"printf '%s\\n' ~/qedge '{packages}' > ~/qedge/.venv/lib/{packages.parent.name}/site-packages/shared.pth",
        f"sed \"1s|.*|#!$HOME/qedge/.venv/bin/python|\" '{RAY}' > ~/qedge/.venv/bin/ray && chmod +x ~/qedge/.venv/bin/ray",
    ]
    commands = config["setup_commands"]
    at = commands.index("make -C ~/qedge install")
    config["setup_commands"] = [*commands[:at], *installation, *commands[at + 1 :]]
    return config


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("up")
    (folder / "home").mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "QEDGE_"))}
    environ |= {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder / "ray")}
    with ssh_hosts.running(2, folder) as made:
        config = folder / "onprem.yaml"
        config.write_text(yaml.safe_dump(filled_in(made)), encoding="utf-8")
        up = Cluster(config, made, environ)
        up.ray("get-auth-token", "--generate")
        up.ray("up", "-y", str(config))
        yield up


ON_EVERY_NODE = """
import json, os, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init("auto", namespace="qedge", log_to_driver=False, logging_level="ERROR")
until = time.monotonic() + 240
while len(nodes := [node for node in ray.nodes() if node["Alive"]]) < 2 and time.monotonic() < until:
    time.sleep(0.5)  # the head starts the worker over ssh: there is no event to wait for
@ray.remote(num_cpus=0)
def where():
    import qedge
    return ray.util.get_node_ip_address(), qedge.__file__, os.environ["RAY_SERVE_ENABLE_HA_PROXY"], os.environ.get("QEDGE_HOME", "")
found = ray.get([where.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in nodes], timeout=120)
print(json.dumps({"found": found, "state": [node["NodeManagerAddress"] for node in nodes if node["Labels"].get("state") == "true"]}))
"""


def test_a_task_runs_on_both_nodes_with_the_code_and_the_settings_of_the_file(cluster: Cluster) -> None:
    head, worker = cluster.hosts.hosts
    (head.home / "on_every_node.py").write_text(ON_EVERY_NODE, encoding="utf-8")
    done = cluster.on_head("~/qedge/.venv/bin/python", "~/on_every_node.py")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    home = Path.home()
    code = str(home / "qedge" / "qedge" / "__init__.py")
    assert sorted(answer["found"]) == [[head.address, code, "1", str(home / ".qedge")], [worker.address, code, "1", ""]]
    assert answer["state"] == [head.address]


def test_a_private_run_trains_on_both_nodes_and_its_state_lies_on_the_head(cluster: Cluster) -> None:
    head, worker = cluster.hosts.hosts
    (head.home / "digits.yaml").write_text(yaml.safe_dump(JOB | {"rounds": 5}), encoding="utf-8")
    qedge = "~/qedge/.venv/bin/python -m qedge"
    state = {"QEDGE_HOME": "~/.qedge"}
    done = cluster.on_head(qedge, "train", "~/digits.yaml", "--address", "auto", "--json", environ=state)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["rounds"] == 5
    assert answer["version"] == 1
    shown = cluster.on_head(qedge, "budget", "show", "--json", environ=state)
    (scope,) = json.loads(shown.stdout.splitlines()[-1])["scopes"]
    assert scope["spent"] == pytest.approx(answer["epsilon"])
    assert (head.home / ".qedge" / "ledger.db").exists()
    assert not (worker.home / ".qedge" / "ledger.db").exists()


def test_status_shows_both_nodes_to_the_one_who_made_the_cluster(cluster: Cluster) -> None:
    printed = cluster.ray("exec", str(cluster.config), "RAY_AUTH_MODE=token ray status")
    assert "2 local.cluster.node" in printed, printed


@pytest.mark.parametrize("environ", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"])
def test_without_the_token_nothing_can_be_run(cluster: Cluster, environ: dict[str, str]) -> None:
    code = "import ray; ray.init('auto', log_to_driver=False); print('let in')"
    done = cluster.on_head("~/qedge/.venv/bin/python", "-c", shlex.quote(code), environ=environ)
    assert done.returncode != 0
    assert "let in" not in done.stdout


def test_the_token_lies_on_every_node_closed_to_others(cluster: Cluster) -> None:
    tokens = [host.home / ".ray" / "auth_token" for host in cluster.hosts.hosts]
    assert [oct(token.stat().st_mode & 0o777) for token in tokens] == ["0o600", "0o600"]
    assert len({token.read_text() for token in tokens}) == 1


def test_down_ends_ray_on_every_host(cluster: Cluster) -> None:
    """Last: it ends the module's cluster. Ray stops the head itself; a worker's raylet ends when it has missed its head for a minute, and
    leaves its log reader to the `ray stop` with which the next `ray up` begins."""
    head, worker = cluster.hosts.hosts
    running = [*head.processes("/ray/"), *worker.processes("/ray/core/")]
    assert sorted(process.name() for process in running if process.name() in {"gcs_server", "raylet"}) == ["gcs_server", "raylet", "raylet"]
    cluster.ray("down", "-y", str(cluster.config))
    _, left = psutil.wait_procs(running, timeout=240)
    assert [process.cmdline() for process in left] == []
    assert head.processes("/ray/") == []
    assert worker.processes("/ray/core/") == []
