"""A run's folder that the ledger does not know is believed in nothing that the ledger would have refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qedge import TrainingJob, train
from qedge.config import Settings
from qedge.errors import CheckpointTampered, ScopeConflict
from qedge.federated.run_folder import RunFolder
from qedge.records import Records
from qedge.runs import preparation, query_preparation
from qedge.runs.preparation import prepare, reopen
from qedge.runs.query_preparation import prepare_query, reopen_query
from tests.analytics.populations import query_of

Make = Callable[..., TrainingJob]


def unheld(settings: Settings, job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The folder of a run that was cut off just before it was held."""

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "hold", cut)
        with pytest.raises(KeyboardInterrupt):
            prepare(job, settings)
    (run,) = [path.name for path in (settings.home / "runs").iterdir() if not path.name.startswith(".")]
    return RunFolder.open(settings.home, run)


def test_one_that_was_cut_off_before_it_was_held_goes_on(settings: Settings, make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unheld(settings, make_job(rounds=2), monkeypatch)
    reopen(folder.run, settings)
    (scope,) = Records.open(settings.home).ledger.scopes()
    assert scope.reserved > 0


@pytest.mark.parametrize("change", ["cost", "noise", "order", "scope"])
def test_one_that_says_other_than_what_would_be_held_is_refused(
    settings: Settings, make_job: Make, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = unheld(settings, make_job(rounds=2), monkeypatch)
    record = json.loads((folder.path / "record.json").read_text())
    guarantee = record["guarantee"]
    if change == "cost":
        guarantee["per_round"] = [0] * len(guarantee["per_round"])
    elif change == "noise":
        guarantee["variance"] = 1
    elif change == "order":
        guarantee["order"] += 1
    else:
        record["scope"] = "another"
    (folder.path / "record.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointTampered, match="begin a new run"):
        reopen(folder.run, settings)
    assert Records.open(settings.home).ledger.scopes() == []


def test_a_copy_of_a_finished_run_is_no_way_around_a_spent_budget(settings: Settings, make_job: Make) -> None:
    result = train(make_job(rounds=2), backend="serial", settings=settings)
    first = RunFolder.open(settings.home, result.run_id)
    other = first.path.with_name("tiny-20260101-000000-aaaaaa")
    other.mkdir(mode=0o700)
    for name in ("job.json", "record.json", "secret.key", "run.json"):
        shutil.copy2(first.path / name, other / name)
    record = json.loads((other / "record.json").read_text())
    record["guarantee"]["per_round"] = [0] * len(record["guarantee"]["per_round"])
    (other / "record.json").write_text(json.dumps(record))
    before = Records.open(settings.home).ledger.scopes()
    with pytest.raises((CheckpointTampered, ScopeConflict)):
        reopen(other.name, settings)
    assert Records.open(settings.home).ledger.scopes() == before
    assert not Path(other / "model").exists()


@pytest.mark.parametrize("change", ["nothing", "cost", "noise", "order", "scope"])
def test_a_query_is_believed_no_more_than_a_job(settings: Settings, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(query_preparation, "hold_query", cut)
        with pytest.raises(KeyboardInterrupt):
            prepare_query(query_of({"kind": "count"}), settings)
    (path,) = [path for path in (settings.home / "runs").iterdir() if not path.name.startswith(".")]
    record = json.loads((path / "record.json").read_text())
    if change == "cost":
        record["plan"]["once"]["cost"] = [0] * len(record["plan"]["once"]["cost"])
    elif change == "noise":
        record["plan"]["once"]["variance"] = 1
    elif change == "order":
        record["plan"]["order"] += 1
    elif change == "scope":
        record["scope"] = "another"
    (path / "record.json").write_text(json.dumps(record))
    if change == "nothing":
        reopen_query(path.name, settings)
        (scope,) = Records.open(settings.home).ledger.scopes()
        assert scope.reserved > 0
        return
    with pytest.raises(CheckpointTampered, match="begin a new run"):
        reopen_query(path.name, settings)
    assert Records.open(settings.home).ledger.scopes() == []
