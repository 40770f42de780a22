"""The cluster files against Ray's own schema and against the mistakes that were seen to stop a cluster from working."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "cluster").glob("*.yaml"))
ONPREM = ROOT / "cluster" / "onprem.yaml"


def read(path: Path) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def strings(value: object) -> list[str]:
    assert isinstance(value, list)
    assert all(isinstance(item, str) for item in value)
    return value


def starts() -> dict[str, list[str]]:
    """The commands that start Ray, on the head and on a worker."""
    config = read(ONPREM)
    return {node: strings(config[f"{node}_start_ray_commands"]) for node in ("head", "worker")}


def exported(commands: list[str]) -> dict[str, str]:
    """What stands in the environment when `ray start` is reached."""
    command = next(command for command in commands if " start " in command)
    before = command[: command.index(" start ")]
    return dict(pair.split("=", 1) for export in re.findall(r"export ([^;]*);", before) for pair in export.split())


@pytest.fixture(autouse=True)
def _where_ray_up_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_accepts_the_file(path: Path) -> None:
    prepared = prepare_config(read(path))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_check_would_notice_a_misspelt_key(path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(read(path) | {"file_mount": {}}))


def test_every_worker_that_is_named_is_started() -> None:
    prepared = prepare_config(read(ONPREM))
    node_type = prepared["available_node_types"][prepared["head_node_type"]]
    assert node_type["min_workers"] == node_type["max_workers"] == len(prepared["provider"]["worker_ips"]) == prepared["max_workers"]


def test_every_mounted_file_is_there_and_together_they_can_be_installed() -> None:
    mounts = read(ONPREM)["file_mounts"]
    assert isinstance(mounts, dict)
    ours = {remote: local for remote, local in mounts.items() if not local.startswith("~")}
    assert {remote.removeprefix("~/qedge/") for remote in ours} == set(ours.values())
    needed = {"Makefile", "requirements.lock", "pyproject.toml", "qedge", "actors", "serve_apps"}
    assert needed | {"README.md"} == set(ours.values())
    assert all((ROOT / name).exists() for name in needed)


def test_the_installation_is_the_one_of_the_makefile() -> None:
    assert "make -C ~/qedge install" in strings(read(ONPREM)["setup_commands"])
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_ray_is_found_by_the_commands_that_ray_itself_sends() -> None:
    """`ray down` runs a bare `ray stop` over ssh, and takes it for done when there is no such command."""
    added = [command for command in strings(read(ONPREM)["setup_commands"]) if "PATH" in command]
    assert len(added) == 1
    with tempfile.TemporaryDirectory() as home:
        for _ in range(2):
            subprocess.run(["bash", "-c", added[0]], env={"HOME": home, "PATH": os.environ["PATH"]}, check=True)
        lines = (Path(home) / ".bashrc").read_text(encoding="utf-8").splitlines()
    assert lines == ['export PATH="$PATH:$HOME/qedge/.venv/bin"']


def test_token_authentication_is_on_everywhere_and_the_token_travels_closed_to_others() -> None:
    config = read(ONPREM)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # type: ignore[index]
    assert "chmod 600 ~/.ray/auth_token" in strings(config["setup_commands"])
    assert {node: exported(commands)["RAY_AUTH_MODE"] for node, commands in starts().items()} == {"head": "token", "worker": "token"}


def test_what_ray_and_serve_read_at_their_start_is_the_same_on_head_and_worker() -> None:
    head, worker = (exported(commands) for commands in starts().values())
    assert {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}.items() <= worker.items() <= head.items()
    assert set(head) - set(worker) == {"RAY_enable_autoscaler_v2", "QEDGE_HOME"}
    assert head["RAY_enable_autoscaler_v2"] == "0"


def test_every_node_gives_its_own_address_and_no_command_of_another_environment_is_used() -> None:
    for commands in starts().values():
        assert commands[0] == "~/qedge/.venv/bin/ray stop"
        assert "--node-ip-address=" in commands[1]
        assert re.findall(r"\S*\bray (?:start|stop)", " ".join(commands)) == ["~/qedge/.venv/bin/ray stop", "~/qedge/.venv/bin/ray start"]


def test_the_file_names_only_addresses_that_belong_to_no_one() -> None:
    """192.0.2.0/24 is kept for documentation (RFC 5737): a file used before it is filled in reaches no machine."""
    addresses = re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", ONPREM.read_text(encoding="utf-8"))
    assert addresses
    assert all(address.startswith("192.0.2.") for address in addresses)
    assert ONPREM.read_text(encoding="utf-8").count("# YOURS") == 4
