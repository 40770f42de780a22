"""The README's script over a ladder, and how a ladder is opened by the name of its version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qedge import open_ladder
from qedge.errors import ReceiptTampered, UnknownModel
from tests.benchmarks.surroundings import environment
from tests.edge.conftest import Home
from tests.edge_ladders import Told
from tests.test_documents import PYTHON

pytestmark = pytest.mark.slow


def test_a_version_without_a_ladder_and_one_whose_ladder_was_altered_are_refused(own_home: Home, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="qedge edge build digits/1"):
        open_ladder("digits/1", own_home.settings)
    own_home.attached(tmp_path / "ladder", {"fp32": Told()})
    opened = open_ladder("digits/1", own_home.settings)
    assert opened.card.model == "digits"
    path = opened.folder / "receipt.json"
    path.write_text(path.read_text().replace('"model":"digits"', '"model":"digitz"'))
    with pytest.raises(ReceiptTampered):
        open_ladder("digits/1", own_home.settings)


def test_the_edge_script_of_the_readme_answers_by_a_rung_that_meets_the_requirement(own_home: Home, tmp_path: Path) -> None:
    ladder = own_home.attached(tmp_path / "ladder", {"fp32": Told(p95_ms=10.0), "int8": Told(p95_ms=1.0)})
    script = PYTHON[2].replace("activity@champion", "digits/1")
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    (tmp_path / ".qedge").symlink_to(own_home.settings.home)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rung, *_, rows, classes = done.stdout.replace("(", "").replace(")", "").replace(",", "").split()
    assert (rung, int(rows), int(classes)) == ("int8", 1, len(ladder.card.labels))
