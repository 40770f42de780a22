"""RESULTS.md: one section a benchmark, replaced whole by the next run of that benchmark."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from qedge.storage import write_atomically
from tests.benchmarks.figures import Figure

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """# Results

Each section is written by the command under its table, on the machine that the command's line names. A ratio against a peer was
measured in the same run, the two taking turns.
"""
_VERSIONS = ("qedge", "ray", "torch", "numpy", "mlflow", "onnxruntime")


def section(name: str, about: str, figures: Sequence[Figure], command: str) -> str:
    """The Markdown of one benchmark's section."""
    rows = [f"| {row.what} | {row.reach or '—'} | {row.measured} | {_verdict(row)} |" for row in figures]
    table = ["| what | to reach | measured | |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", about, "", *table, "", f"`{command}` · {machine()}", ""])


def put(path: Path, name: str, text: str, order: Sequence[str]) -> None:
    """Replace the section `name` of the file, or add it where `order` has it. The file is whole at every moment."""
    sections = {**_sections(path), name: text}
    known = sorted(sections, key=lambda one: (order.index(one) if one in order else len(order), one))
    content = "\n".join([_HEAD, *(sections[one].strip() + "\n" for one in known)])
    write_atomically(path, content.encode(), mode=0o644)


def machine() -> str:
    """Date, cores, processor, versions and code, in one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    load = os.getloadavg()[1]
    today = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{today} · {os.cpu_count()} cores, {_processor()} · Python {platform.python_version()}, {versions} · {_code()} · load {load:.1f}"
    )


def _verdict(row: Figure) -> str:
    if not row.reach:
        return ""
    return "reached" if row.kept else "**missed**"


def _sections(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    parts = re.split(r"^## (\S+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: f"## {name}\n{body}" for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", about.read_text(encoding="utf-8")) if about.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _code() -> str:
    """The commit, and whether the tree differed from it."""
    git = ["git", "-C", str(RESULTS.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout.strip()
    return f"commit {commit}{' with changes' if changed else ''}" if commit else "no commit"
