"""A whole query in one process: what it refuses, what it charges, and that a cut at any point costs nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qedge import query, train
from qedge.analytics.sums import LocalSums
from qedge.config import Settings
from qedge.data import built_in
from qedge.errors import BudgetExceeded, CheckpointTampered, Fenced, InvalidConfig, InvalidPrivacy, ScopeConflict, UnknownRun, UnknownScope
from qedge.federated.run_folder import Json, RunFolder, run_ids
from qedge.job import TrainingJob
from qedge.privacy.statement import statement
from qedge.records import Records
from qedge.runs.preparation import prepare
from qedge.runs.query_preparation import population_of, prepare_query, prints_of, recorded_plan, reopen_query
from qedge.runs.querying import Inquiry, complete_query
from tests.analytics.populations import query_of

ALCOHOL = {"column": "alcohol", "range": [10, 16]}
STATISTICS = [
    {"kind": "count"},
    {"kind": "mean", **ALCOHOL},
    {"kind": "variance", **ALCOHOL},
    {"kind": "histogram", "column": "label", "categories": ["class_0", "class_1"]},
    {"kind": "quantile", **ALCOHOL, "quantiles": [0.5], "depth": 5},
    {"kind": "heavy-hitters", "column": "label", "length": 7},
]


class Cut(Exception):
    """A coordinator stopped dead, at a point that the test chose."""


def _inquiry(settings: Settings, folder: RunFolder, records: Records | None = None) -> Inquiry:
    return Inquiry(folder, records or Records.open(settings.home), LocalSums)


def _answered(settings: Settings, **asked: Any) -> tuple[str, Json]:
    """A query carried out, and not published: its run and result."""
    folder = prepare_query(query_of(*asked.pop("statistics", STATISTICS), **asked), settings)
    return folder.run, complete_query(_inquiry(settings, folder))


def test_without_privacy_the_answers_are_those_of_the_rows_and_the_ledger_has_it_on_record(settings: Settings):
    known = built_in.read("wine")
    alcohol = known.features[:, 0].astype(np.float64)
    result = query(query_of(*STATISTICS, privacy="none", max_rows=178), backend="serial", settings=settings)
    values = {(line.statistic, line.of): line.value for line in result.lines()}
    assert values["count", "rows"] == 178
    assert values["mean alcohol", "mean"] == pytest.approx(alcohol.mean(), abs=1e-7)
    assert values["variance alcohol", "variance"] == pytest.approx(alcohol.var(), abs=1e-7)
    counts = np.bincount(known.labels).tolist()
    assert [values["histogram label", of] for of in ("class_0", "class_1", "none of these")] == counts
    assert abs(values["quantile alcohol", "quantile 0.5"] - np.median(alcohol)) <= 6 / 2**5
    assert values["heavy-hitters label", "class_1…"] == counts[1]
    assert (result.epsilon, result.delta, result.statement["privacy"]) == (None, None, "none")
    records = Records.open(settings.home)
    assert [event.kind for event in records.ledger.history()] == ["without-privacy"]
    assert result.run_id in {event.run for event in records.ledger.history()}


def test_the_cap_on_rows_holds_without_privacy_too(settings: Settings):
    results = [_answered(settings, statistics=[{"kind": "count"}], privacy="none", max_rows=most)[1] for most in (1, 2, 178)]
    values = [result["answers"][0]["estimates"][0]["value"] for result in results]
    assert values[0] < values[1] < values[2] == 178
    assert values[0] <= 40


def test_a_private_query_is_held_whole_and_charged_round_by_round(settings: Settings):
    result = query(query_of(*STATISTICS), backend="serial", settings=settings)
    records = Records.open(settings.home)
    plan, released = records.ledger.plan(result.run_id), records.ledger.releases(result.run_id)
    assert plan.rounds == 8
    assert plan.final is not None
    assert 9 in released
    assert set(released) <= set(range(1, 10))
    scope = records.ledger.scope("wine")
    assert scope.spent == pytest.approx(result.epsilon)
    assert result.epsilon <= 8
    assert not any(scope.held.nanos)
    assert [entry.event for entry in records.log.entries() if entry.event.startswith("query.")] == ["query.prepared", "query.answered"]
    said = [line.what for line in statement(records.ledger.history())]
    assert "8 rounds and all other statistics held" in said
    assert "all other statistics" in said
    folder = RunFolder.open(settings.home, result.run_id)
    assert folder.read("published.json")["done"] is True
    assert not folder.releases.exists()
    assert folder.read("result.json")["answers"] == result.answers


def test_the_result_says_what_it_cost_and_what_is_public_by_declaration(settings: Settings):
    result = _answered(settings)[1]
    told = json.loads(json.dumps(result))["statement"]
    assert {"epsilon", "delta", "adversary", "max_rows", "public_by_declaration", "unit", "relation", "releases"} <= told.keys()
    for release in told["releases"]:
        assert release["noise_multiplier"] == pytest.approx(release["noise_std"] / release["sensitivity"])
        assert release["sensitivity"] ** 2 == pytest.approx(release["sensitivity_squared"])
    assert "Sampling error is not included" in result["intervals"]


def test_all_rounds_cost_what_was_planned_when_none_is_left_out(settings: Settings):
    run, result = _answered(settings, statistics=[{"kind": "count"}, {"kind": "mean", **ALCOHOL}])
    plan = recorded_plan(RunFolder.open(settings.home, run))
    assert result["statement"]["epsilon"] == pytest.approx(plan.epsilon)
    assert result["statement"]["epsilon"] == pytest.approx(8, rel=1e-3)


def test_a_query_that_does_not_fit_is_refused_before_anything_is_computed(settings: Settings):
    prepare_query(query_of(privacy={"epsilon": 3, "delta": 1e-3}), settings)
    before = Records.open(settings.home).ledger.head()
    with pytest.raises(BudgetExceeded):
        query(query_of(*STATISTICS, privacy={"epsilon": 2, "delta": 1e-3}), backend="serial", settings=settings)
    records = Records.open(settings.home)
    assert records.ledger.head() == before
    assert len(run_ids(settings.home)) == 1
    assert [entry.event for entry in records.log.entries()][-1] == "query.refused"


def test_queries_and_jobs_on_the_same_rows_draw_on_one_budget(settings: Settings, make_job: Callable[..., TrainingJob]):
    prepare(make_job(rounds=1, privacy={"epsilon": 3}), settings)
    with pytest.raises(ScopeConflict):
        query(query_of(privacy="none"), backend="serial", settings=settings)
    with pytest.raises(ScopeConflict):
        query(query_of(privacy={"epsilon": 1, "delta": 0.01, "budget": "fresh"}), backend="serial", settings=settings)
    with pytest.raises(BudgetExceeded):
        query(query_of(privacy={"epsilon": 5, "delta": 0.01}), backend="serial", settings=settings)
    with pytest.raises(InvalidPrivacy, match="counts at delta"):
        query(query_of(privacy={"epsilon": 0.1, "delta": 1e-3}), backend="serial", settings=settings)
    Records.open(settings.home).ledger.set_budget("wine", epsilon=6, actor="officer")
    assert _answered(settings, privacy={"epsilon": 2, "delta": 0.01}, statistics=[{"kind": "count"}])[1]["statement"]["epsilon"] <= 2


def test_a_query_of_a_table_and_a_job_on_a_copy_of_it_draw_on_one_budget(
    settings: Settings, make_job: Callable[..., TrainingJob], tmp_path: Path
):
    """Whichever comes first, under whatever name; the query names no label, and has no use for the other columns."""
    draw = np.random.default_rng(0)
    rows = [f"p{row % 9},{draw.normal()},{draw.normal()},{row % 2}" for row in range(120)]
    for name, order in (("a.csv", 1), ("b.csv", -1)):
        (tmp_path / name).write_text("\n".join(["who,x,y,label", *rows[::order]]) + "\n")
    about_x = {"kind": "mean", "column": "x", "range": [-2, 2]}
    run = prepare_query(query_of(about_x, data={"source": str(tmp_path / "a.csv"), "client": "who"}), settings).run
    assert Records.open(settings.home).ledger.plan(run).scope == "a"
    data = {"source": str(tmp_path / "b.csv"), "client": "who", "label": "label", "test": 0.2, "evaluation": "public"}
    job = {**make_job(rounds=1, privacy={"epsilon": 6, "delta": 1e-3}).plain(), "data": data}
    with pytest.raises(ScopeConflict, match="belong to scope 'a'"):
        prepare(TrainingJob.parse({**job, "privacy": {**job["privacy"], "budget": "fresh"}}), settings)
    with pytest.raises(ScopeConflict, match="would void it"):
        prepare(TrainingJob.parse({**job, "privacy": "none"}), settings)
    with pytest.raises(BudgetExceeded):
        prepare(TrainingJob.parse(job), settings)


def test_a_budget_of_hospitals_is_not_spent_on_visits(settings: Settings, make_job: Callable[..., TrainingJob], tmp_path: Path):
    """A noise that hides one visit hides no hospital; the same hospitals under other names, in another order, are the same."""
    draw = np.random.default_rng(0)
    rows = [(f"h{row % 10}", f"v{row}", draw.normal(), row % 2) for row in range(120)]
    for name, order, called in (("a.csv", 1, "hospital"), ("b.csv", -1, "site")):
        text = [f"{place},{visit},{value},{label}" for place, visit, value, label in rows[::order]]
        (tmp_path / name).write_text("\n".join([f"{called},visit,x,label", *text]) + "\n")
    about_x = {"kind": "mean", "column": "x", "range": [-2, 2]}

    def prepared(name: str, client: str) -> RunFolder:
        data = {"source": str(tmp_path / name), "client": client}
        return prepare_query(query_of(about_x, data=data, privacy={"epsilon": 1, "delta": 1e-3}), settings)

    prepared("a.csv", "hospital")
    Records.open(settings.home).ledger.set_budget("a", epsilon=9, actor="officer")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(ScopeConflict, match=r"belong to others; accepted: as 'data\.client' the column"):
            prepared(name, "visit")
    data = {"source": str(tmp_path / "b.csv"), "client": "visit", "label": "label", "drop": ["site"]}
    job = {**make_job(rounds=1, privacy={"epsilon": 1, "delta": 1e-3}).plain(), "data": data}
    with pytest.raises(ScopeConflict, match="belong to others"):
        prepare(TrainingJob.parse(job), settings)
    by_site = TrainingJob.parse({**job, "data": {**data, "client": "site", "drop": ["visit"]}})
    for folder in (prepared("b.csv", "site"), prepare(by_site, settings)):
        assert Records.open(settings.home).ledger.plan(folder.run).scope == "a"


def test_a_process_that_is_killed_between_the_disk_and_the_ledger_has_released_one_noise(settings: Settings):
    """A real SIGKILL: what it wrote ahead, nobody had seen; it is what is charged and answered afterwards."""
    folder = prepare_query(query_of(), settings)
    script = f"""
import os, signal
from pathlib import Path
from qedge.analytics.sums import LocalSums
from qedge.federated.run_folder import RunFolder
from qedge.privacy.ledger import Ledger
from qedge.records import Records
from qedge.runs.querying import Inquiry, complete_query

Ledger.commit = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
home = Path({str(settings.home)!r})
complete_query(Inquiry(RunFolder.open(home, {folder.run!r}), Records.open(home), LocalSums))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Records.open(settings.home).ledger.releases(folder.run) == {}
    inquiry = _inquiry(settings, folder)
    (release,) = inquiry.known.values()
    assert complete_query(inquiry)["status"] == "finished"
    assert inquiry.records.ledger.releases(folder.run) == {1: release.digest}


def test_where_the_officer_opens_scopes_a_query_may_not(settings: Settings):
    strict = settings.model_copy(update={"ledger": settings.ledger.model_copy(update={"open_by_job": False})})
    with pytest.raises(UnknownScope, match="qedge budget set wine"):
        query(query_of(), backend="serial", settings=strict)


@pytest.mark.parametrize("where", ["append", "commit", "after commit", "close", "result"])
@pytest.mark.parametrize("round_number", [1, 3, 9])
def test_a_cut_anywhere_releases_and_charges_every_round_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, where: str, round_number: int
):
    """What was on disk before the cut is what is answered after it, though noise is fresh: another draw would show."""
    folder = prepare_query(query_of(*STATISTICS, max_rows=2, privacy={"epsilon": 30, "delta": 1e-3}), settings)
    first = _inquiry(settings, folder)
    seen: dict[int, str] = {}
    append, commit = first.ahead.append, first.records.ledger.commit

    def cut_append(release) -> None:
        if where == "append" and release.round == round_number:
            raise Cut
        append(release)
        seen[release.round] = release.digest

    def cut_commit(run: str, number: int, digest: str, epoch: int) -> None:
        if where == "commit" and number == round_number:
            raise Cut
        commit(run, number, digest, epoch)
        if where == "after commit" and number == round_number:
            raise Cut

    def cut(*arguments: object, **named: object) -> None:
        raise Cut

    monkeypatch.setattr(first.ahead, "append", cut_append)
    monkeypatch.setattr(first.records.ledger, "commit", cut_commit)
    if where == "close":
        monkeypatch.setattr(first.records.ledger, "close", cut)
    if where == "result":
        monkeypatch.setattr(first.folder, "write", cut)
    with pytest.raises(Cut):
        complete_query(first)
    monkeypatch.undo()

    second = _inquiry(settings, reopen_query(folder.run, settings))
    result = complete_query(second)
    released = second.records.ledger.releases(folder.run)
    assert set(released) == set(range(1, 10))
    assert {number: released[number] for number in seen} == seen
    assert folder.finished() == result
    scope = second.records.ledger.scope("wine")
    assert scope.spent == pytest.approx(float(str(result["statement"]["epsilon"])))
    assert not any(scope.held.nanos)
    with pytest.raises(Fenced):
        first.records.ledger.commit(folder.run, 1, "0" * 64, first.epoch)
    assert sorted(folder.metrics_by_round()) == list(range(1, 10))


def test_a_second_coordinator_takes_up_what_the_first_wrote_ahead_and_fences_it_out(settings: Settings):
    folder = prepare_query(query_of(), settings)
    first = _inquiry(settings, folder)
    second = _inquiry(settings, folder)
    with pytest.raises(Fenced):
        first.answers()
    written = second.ahead.read({})[1].digest  # the first one's, which nobody has seen
    third = _inquiry(settings, folder)
    third.answers()
    assert third.records.ledger.releases(folder.run) == {1: written}


def test_a_release_that_was_altered_or_lost_after_it_was_charged_is_refused(settings: Settings):
    folder = prepare_query(query_of(), settings)
    _inquiry(settings, folder).answers()
    content = bytearray(folder.releases.read_bytes())
    content[-40] ^= 1
    folder.releases.write_bytes(bytes(content))
    with pytest.raises(CheckpointTampered):
        _inquiry(settings, folder)
    folder.releases.unlink()
    with pytest.raises(CheckpointTampered, match="charged but its record is gone"):
        _inquiry(settings, folder).answers()


@pytest.mark.parametrize("name", ["query.json", "record.json", "secret.key"])
def test_a_query_whose_terms_were_changed_after_it_was_held_is_refused(settings: Settings, name: str):
    """A smaller cap on rows, less noise, or rounding that can be foreseen, under the hold of what was asked."""
    folder = prepare_query(query_of(), settings)
    if name == "query.json":
        folder.write(name, {**folder.query().plain(), "max_rows": 5})
    elif name == "record.json":
        record = folder.read(name)
        record["plan"]["once"]["variance"] = 1
        folder.write(name, record)
    else:
        (folder.path / name).write_bytes(bytes(32))
    with pytest.raises(CheckpointTampered, match="not the one that the ledger holds"):
        _inquiry(settings, folder)


def test_a_query_goes_on_only_with_the_data_it_was_prepared_on(settings: Settings, tmp_path: Path):
    def write(rows: int) -> str:
        lines = [f"p{row % 7},{row * row % 91}" for row in range(rows)]
        (tmp_path / "t.csv").write_text("\n".join(["phone,x", *lines]) + "\n")
        return str(tmp_path / "t.csv")

    folder = prepare_query(query_of(data={"source": write(60), "client": "phone"}), settings)
    write(59)
    with pytest.raises(CheckpointTampered, match="data are no longer those"):
        _inquiry(settings, folder)


def test_queries_and_jobs_are_told_apart_when_they_are_gone_on_with(settings: Settings, make_job: Callable[..., TrainingJob]):
    asked = prepare_query(query_of(privacy="none"), settings).run
    with pytest.raises(UnknownRun, match="qedge query --resume"):
        train(resume=asked, backend="serial", settings=settings)
    trained = prepare(make_job(rounds=1, privacy="none"), settings).run
    with pytest.raises(UnknownRun, match="qedge train --resume"):
        query(resume=trained, backend="serial", settings=settings)
    with pytest.raises(UnknownRun):
        query(resume="nothing", backend="serial", settings=settings)
    with pytest.raises(InvalidConfig):
        query(backend="serial", settings=settings)


def test_rows_that_were_asked_about_without_privacy_are_known_to_have_been(settings: Settings):
    """By which a receipt of a model that is trained on them names the run as not covered."""
    run, _ = _answered(settings, privacy="none")
    records = Records.open(settings.home)
    assert records.ledger.runs_without_privacy(prints_of(population_of(query_of(max_rows=3)), records)) == (run,)
