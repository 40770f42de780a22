"""One trial, in this process: measured before it is trained, trained in pieces as in one, and its rung answers as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qedge.data.labelled import read
from qedge.edge.building.choice import answers
from qedge.edge.search.job import EdgeSearch
from qedge.edge.search.trial import Limits, Outcome, Parts, Trial, load_rung

PARTS = Parts.of(read("digits", "label"), 0)


def asked(**values: object) -> EdgeSearch:
    space = {name: {"choice": [value]} for name, value in values.items()}
    return EdgeSearch.parse({"name": "d", "source": "digits", "space": space, "trials": 1, "steps": 300, "checks": 3})


def test_the_parts_of_a_table_have_no_row_in_common_and_all_labels() -> None:
    table = read("digits", "label")
    seen = [tuple(row) for part in (PARTS.training, PARTS.choosing, PARTS.held) for row in part.rows]
    assert sorted(seen) == sorted(map(tuple, table.features))
    for part, share in ((PARTS.training, 0.6), (PARTS.choosing, 0.2), (PARTS.held, 0.2)):
        assert abs(len(part) - share * len(table.labels)) < 20
        assert set(part.labels) == set(range(10))
    np.testing.assert_array_equal(PARTS.schema.center, PARTS.training.rows.min(axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["fp32", "int8", "binary"])
def test_a_trial_is_measured_trained_and_kept(tmp_path: Path, rung: str) -> None:
    trial = Trial(asked(width=24, rung=rung), 1, PARTS, tmp_path)
    p50_ms, size = trial.cost()
    found = []
    while not trial.over:
        found.append(trial.advance())
    assert len(found) == 3
    assert found[-1] > 0.8
    outcome = trial.outcome("to its end", found[-1], (p50_ms, size))
    outcome.write(tmp_path)
    trial.outcome("stopped", 0.0, None).write(tmp_path)  # an end on record stays
    assert Outcome.read(tmp_path) == outcome
    runner = load_rung(tmp_path, trial.rung)
    right = answers(runner, PARTS.choosing.rows).argmax(axis=1) == PARTS.choosing.labels
    assert found[-1] == pytest.approx(float(right.mean()))
    on_disk = sum(path.stat().st_size for path in (tmp_path / "rung").iterdir())
    assert on_disk == pytest.approx(size, rel=0.2)  # with weights that were learnt, which may compress otherwise
    runner.close()


def test_the_same_trial_comes_to_the_same(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first, again = (Trial(asked(width=8), 1, PARTS, tmp_path / name) for name in ("a", "b"))
    for trial in (first, again):
        (tmp_path / ("a" if trial is first else "b")).mkdir()
    assert [first.advance() for _ in range(3)] == [again.advance() for _ in range(3)]


def test_a_size_is_known_before_anything_is_trained(tmp_path: Path) -> None:
    trial = Trial(asked(width=200), 1, PARTS, tmp_path)
    _, size = trial.cost()
    assert size > 4 * (64 * 200 + 200 * 10)
    assert "kB" in Limits(None, 1000).against(0.0, size)
