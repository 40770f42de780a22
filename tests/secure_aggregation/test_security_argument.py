"""The security argument names checks and tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import qedge.secure_aggregation
from tests.secure_aggregation.test_broken_variants import ATTACKS

HERE = Path(__file__).parent
PACKAGE = Path(str(qedge.secure_aggregation.__file__)).parent
TEXT = (PACKAGE / "SECURITY.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\d+\. \*\*(.+?)\*\*(.*)$", TEXT.split("## The argument")[1].split("## What it does not do")[0], re.MULTILINE)


def test_every_line_of_the_argument_names_a_test_that_there_is_or_an_attack_that_succeeds_without_it():
    tests = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in HERE.glob("test_*.py")), re.MULTILINE))
    assert len(LINES) == 17
    for claim, rest in LINES:
        named, cases = re.findall(r"`(test_\w+)`", rest), re.findall(r'"([^"]+)"', rest)
        assert named or cases, claim
        assert set(named) <= tests, claim
        assert set(cases) <= set(ATTACKS), claim
    assert set(re.findall(r"`(test_\w+)`", TEXT)) <= tests


def test_every_attack_is_behind_a_line_of_the_argument():
    assert set(ATTACKS) == {case for _, rest in LINES for case in re.findall(r'"([^"]+)"', rest)}


def test_every_check_that_it_names_is_in_the_code():
    code = "".join(path.read_text() for path in PACKAGE.parent.rglob("*.py"))
    for name in re.findall(r"`([A-Za-z_.]+)`", TEXT):
        if not name.startswith("test_"):
            assert all(re.search(rf"\b(?:def|class) {part}\b", code) or (PACKAGE / f"{part}.py").exists() for part in name.split(".")), name
