"""What is installed: lock files that are whole and exact, entry points that exist, and a Makefile that can be interrupted anywhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TOOLS = re.search(r"^TOOLS +:= (.+)$", MAKEFILE, re.MULTILINE)[1].split()  # type: ignore[index]


def pins(name: str) -> dict[str, str]:
    """Version of each package that a lock file pins."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(canonical(line) for line in lines if not line.startswith(("#", "-r ")))


def canonical(line: str) -> tuple[str, str]:
    name, release = line.split("==")
    return canonicalize_name(name), release


def closure(names: list[str]) -> set[str]:
    """The packages that `names` need on this platform, themselves included, read from what is installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in distribution(wanted.name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")):
                todo.append(needed)
    return {name for name, _ in seen}


RUNTIME, DEVELOPMENT = pins("requirements.lock"), pins("requirements-dev.lock")


def test_the_runtime_lock_is_the_closure_of_the_declared_dependencies_and_nothing_more() -> None:
    assert set(RUNTIME) == closure(PROJECT["dependencies"])


def test_the_development_lock_adds_the_closure_of_the_tools_and_nothing_more() -> None:
    assert set(DEVELOPMENT) == closure(TOOLS) - set(RUNTIME)
    assert (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()[1] == "-r requirements.lock"


def test_every_pin_is_a_public_release_that_satisfies_the_declared_range() -> None:
    assert all(re.fullmatch(r"\d[\w.]*", release) for release in (RUNTIME | DEVELOPMENT).values())
    for declared in map(Requirement, PROJECT["dependencies"]):
        assert declared.specifier.contains(RUNTIME[canonicalize_name(declared.name)]), declared


def test_the_tests_run_on_the_versions_that_are_pinned() -> None:
    assert {name: version(name).split("+")[0] for name in RUNTIME | DEVELOPMENT} == RUNTIME | DEVELOPMENT


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_names_no_index_and_no_place(lock: str) -> None:
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert "`make lock`" in lines[0]
    assert not [line for line in lines if re.search(r"://|index|find-links| @ |/", line)]


def test_every_entry_point_leads_to_something() -> None:
    targets = [*PROJECT["scripts"].values(), *(target for group in PROJECT["entry-points"].values() for target in group.values())]
    for module, name in (target.split(":") for target in targets):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None
        assert re.search(rf"^(class|def) {name}\b|^{name} =", Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{module}:{name}"
        )


# A python3 that records what the Makefile asks of it, so that its logic can be tried at every point without installing anything.
PYTHON = """#!/bin/sh
echo "$@" >> log
case "$*" in
  "-c "*) test ! -f old ;;
  "-m venv "*) mkdir -p .venv/bin && cp python3 .venv/bin/python ;;
  *"$(cat fail 2>/dev/null || echo never)"*) exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a path with 'quotes' and spaces"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "requirements-dev.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "python3").write_text(PYTHON)
    (folder / "python3").chmod(0o755)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "PYTHON=./python3", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def asked(folder: Path) -> str:
    """What was asked of Python since the last time this was looked at."""
    log = folder / "log"
    text = log.read_text() if log.exists() else ""
    log.write_text("")
    return text


def test_an_installation_is_made_once_and_again_only_when_a_lock_changes(checkout: Path) -> None:
    assert make(checkout, "install").returncode == 0
    first = asked(checkout)
    assert re.findall(r"-m venv \.venv|-r \S+|-e \.", first) == ["-m venv .venv", "-r requirements.lock", "-e ."]
    assert make(checkout, "install").returncode == 0
    assert asked(checkout) == ""
    assert make(checkout, "check").returncode == 0
    assert re.findall(r"-r \S+|-m (?:ruff|mypy|pytest)\b", asked(checkout)) == [
        "-r requirements-dev.lock",
        "-m ruff",
        "-m ruff",
        "-m mypy",
        "-m pytest",
    ]
    os.utime(checkout / "requirements.lock")
    assert make(checkout, "test").returncode == 0
    assert "install" not in asked(checkout)
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert make(checkout, "test").returncode == 0
    assert re.findall(r"-r \S+", asked(checkout)) == ["-r requirements.lock", "-r requirements-dev.lock"]


@pytest.mark.parametrize("broken_at", ["-r requirements.lock", "--no-build-isolation", "-r requirements-dev.lock"])
def test_an_interrupted_installation_is_made_anew_from_nothing(checkout: Path, broken_at: str) -> None:
    (checkout / "fail").write_text(broken_at)
    assert make(checkout, "test").returncode != 0
    assert "-m pytest" not in asked(checkout)
    (checkout / ".venv" / "half-installed").touch()
    (checkout / "fail").unlink()
    done = make(checkout, "test")
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert re.findall(r"-r \S+|-m pytest", asked(checkout)) == ["-r requirements.lock", "-r requirements-dev.lock", "-m pytest"]
    assert not (checkout / ".venv" / "half-installed").exists()


def test_a_second_make_does_not_touch_what_a_first_is_installing(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installing").write_text(f"{os.getpid()}\n")
    done = make(checkout, "install")
    assert done.returncode != 0
    assert f"another make (process {os.getpid()})" in done.stderr
    assert "install" not in asked(checkout)


def test_a_folder_that_was_moved_is_installed_anew(checkout: Path) -> None:
    assert make(checkout, "install").returncode == 0
    moved = checkout.rename(checkout.with_name("elsewhere"))
    asked(moved)
    assert make(moved, "install").returncode == 0
    assert "-r requirements.lock" in asked(moved)


def test_an_old_python_is_refused_with_the_way_out(checkout: Path) -> None:
    (checkout / "old").touch()
    done = make(checkout, "demo")
    assert done.returncode != 0
    assert "3.11 or newer" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_make_alone_lists_every_target_and_does_nothing_else(checkout: Path) -> None:
    done = make(checkout)
    targets = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]
    assert set(re.findall(r"^  make (\w+)", done.stdout, re.MULTILINE)) == targets
    assert asked(checkout) == ""


def test_clean_removes_every_environment_and_cache_and_never_the_state(checkout: Path) -> None:
    gone = [".venv", ".venv-lock", ".venv-flower", "build", ".mypy_cache", "qedge/__pycache__"]
    for folder in (*gone, ".qedge", "actors", "serve_apps", "tests"):
        (checkout / folder).mkdir(parents=True, exist_ok=True)
    done = make(checkout, "clean")
    assert done.returncode == 0, done.stderr
    assert [folder for folder in gone if (checkout / folder).exists()] == []
    assert (checkout / ".qedge").is_dir()


def test_what_ci_runs_is_the_same_as_make_test() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "make" in line] == ["exec make test"], "once: what fails has failed"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
