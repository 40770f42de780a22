"""`qedge edge cascade`: fitted on this machine, signed, used where the ladder is, and refused where it does not pay or does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qedge.audit.receipt import Receipt, verify
from qedge.cli import main
from qedge.data import built_in
from qedge.edge.building.choice import answers
from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.node import card_here, cascade_here
from qedge.errors import ArtifactTampered
from tests.edge.conftest import Home
from tests.edge_ladders import Told

pytestmark = pytest.mark.slow
COSTLY, CHEAP = Told(p95_ms=10.0), Told(p95_ms=0.1)


def call(home: Home, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(main, ["edge", *arguments, "--home", str(home.settings.home), "--json"])
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def ladder(home: Home, tmp_path: Path) -> Ladder:
    return home.attached(tmp_path / "ladder", {"fp32": COSTLY, "int2": CHEAP})


def test_a_cascade_is_fitted_signed_and_used_where_the_ladder_is(home: Home, ladder: Ladder, tmp_path: Path) -> None:
    rows, digits = home.calibration.held.rows, built_in.read("digits")
    expected = answers(ladder.load("fp32"), digits.features).argmax(axis=1)  # as labels: the cheap rung is wrong at times
    lines = [",".join((*map(str, row), str(label))) for row, label in zip(digits.features, expected, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join([",".join((*digits.ranges, "label")), *lines]))
    told = call(home, "cascade", "digits/1", "--rows", str(tmp_path / "rows.csv"), "--lost", "0.001")
    assert (told["cheap"], told["dear"]) == ("int2", "fp32")
    assert 0 <= told["share"] < 0.8  # type: ignore[operator]
    assert told["lost"] <= 0.005  # type: ignore[operator]
    kept = home.settings.home / "edge" / "cascades" / f"{ladder.id}.receipt.json"
    receipt = Receipt.read(kept)
    verify(receipt, home.records.keys.public)
    assert receipt.parent == ladder.id
    assert (receipt.uses[-1].covered, receipt.uses[-1].note) == ("NOT COVERED", "1797 rows")
    np.save(tmp_path / "rows.npy", rows[:200])
    run = CliRunner().invoke(main, ["edge", "run", "digits/1", str(tmp_path / "rows.npy"), "--explain", "--home", str(home.settings.home)])
    assert "go on to fp32" in run.stdout
    with EdgeEngine(1 << 30, home=home.settings.home) as engine:
        engine.add("m", ladder)
        answer = engine.infer("m", rows)
    assert 0 < answer.escalated < len(rows)
    assert (answer.probabilities.argmax(axis=1) == answers(ladder.load("fp32"), rows).argmax(axis=1)).mean() > 0.99
    assert cascade_here(home.settings.home, ladder, card_here(home.settings.home, ladder)) is not None
    assert cascade_here(home.settings.home, ladder, card_here(home.settings.home, ladder), covered_only=True) is None


def test_one_that_was_altered_is_never_used(home: Home, ladder: Ladder) -> None:
    call(home, "cascade", "digits/1", "--rows", "digits", "--public")
    path = home.settings.home / "edge" / "cascades" / f"{ladder.id}.json"
    path.write_text(path.read_text().replace('"threshold": ', '"threshold": 1'))
    with EdgeEngine(1 << 30, home=home.settings.home) as engine, pytest.raises(ArtifactTampered, match="does not match"):
        engine.add("m", ladder)
    path.with_suffix(".receipt.json").unlink()
    with EdgeEngine(1 << 30, home=home.settings.home) as engine:
        assert engine.add("m", ladder).cascade is None


def test_where_none_pays_the_nearest_is_named_and_nothing_is_kept(home: Home, tmp_path: Path) -> None:
    ladder = home.attached(tmp_path / "even", {"fp32": Told(p95_ms=1.0), "int8": Told(p95_ms=0.9)})
    told = call(home, "cascade", "digits/1", "--rows", "digits")
    assert told["error"]["code"] == "edge.no-rung-fits"  # type: ignore[index]
    assert "int8, then fp32" in told["error"]["message"]  # type: ignore[index]
    assert not (home.settings.home / "edge" / "cascades" / f"{ladder.id}.json").exists()
    assert call(home, "cascade", "digits/1", "--rows", "digits", "--lost", "1.5")["error"]["code"] == "edge.refused"  # type: ignore[index]
    assert call(home, "cascade", "digits/1", "--rows", "nothing.csv")["error"]["code"] == "data.not-found"  # type: ignore[index]
