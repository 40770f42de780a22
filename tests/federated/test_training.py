"""A whole run in one process: what it refuses, what it releases and charges, and what survives a cut at any point."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge import train
from qedge.audit.receipt import NO_GUARANTEE, Receipt, verify
from qedge.config import Settings, load
from qedge.errors import (
    BudgetExceeded,
    CheckpointTampered,
    Diverged,
    Failed,
    Fenced,
    InvalidJob,
    InvalidPrivacy,
    NotInThisVersion,
    RolledBack,
    ScopeConflict,
    UnknownRun,
    UnknownScope,
)
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import ClientsFailed, RoundFinished
from qedge.federated.guarantee import EVALUATION_ROWS
from qedge.federated.run_folder import RunFolder
from qedge.job import TrainingJob
from qedge.models import set_parameters
from qedge.privacy.mechanisms import SeededNoise
from qedge.records import Records
from qedge.runs.backend import local_workers
from qedge.runs.completion import complete
from qedge.runs.preparation import prepare
from qedge.storage import locked

Make = Callable[..., TrainingJob]


class Cut(Exception):
    """A coordinator stopped dead, at a point that the test chose."""


def _coordinator(settings: Settings, folder: RunFolder, on_event=lambda event: None, noise=None) -> Coordinator:
    return Coordinator(folder, Records.open(settings.home), local_workers, on_event, noise)


def test_a_private_run_charges_each_round_once_and_issues_a_receipt_that_holds(settings: Settings, make_job: Make):
    seen: list[RoundFinished] = []
    result = train(
        make_job(), backend="serial", settings=settings, on_event=lambda e: seen.append(e) if isinstance(e, RoundFinished) else None
    )
    records = Records.open(settings.home)
    assert sorted(records.ledger.releases(result.run_id)) == [1, 2, 3, 4]
    scope = records.ledger.scope("wine")
    assert scope.spent == pytest.approx(result.epsilon)
    assert result.epsilon <= 6
    assert not any(scope.held.nanos)
    assert [event.round for event in seen] == [1, 2, 3, 4]
    assert all(event.expected_cohort == 15 for event in seen)
    receipt = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json")
    verify(receipt, records.keys.public, settings.home / "runs" / result.run_id / "model")
    assert receipt.id == result.receipt
    adversaries = {g.adversary: float(g.epsilon) for g in receipt.guarantees}
    assert adversaries["released model"] == pytest.approx(result.epsilon)
    assert adversaries["roster holder"] > adversaries["released model"]
    assert ("training", "charged") in {(use.what, use.covered) for use in receipt.uses}
    assert result.version == 1


def test_what_is_shown_and_mirrored_never_says_how_large_a_cohort_was(settings: Settings, make_job: Make):
    result = train(make_job(), backend="serial", settings=settings)
    folder = RunFolder.open(settings.home, result.run_id)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert {row["metrics"]["expected_cohort"] for row in rows} == {15.0}
    assert {name for row in rows for name in row["metrics"]} == {
        *("accuracy", "loss", "epsilon", "expected_cohort", "bytes_down", "bytes_up")
    }
    created = folder.read("run.json")["created_ms"]
    assert [row["time_ms"] - created for row in rows] == [1, 2, 3, 4]
    assert (folder.path / "secret.key").stat().st_mode & 0o077 == 0


def test_a_second_job_that_does_not_fit_is_refused_and_told_how_many_rounds_would(settings: Settings, make_job: Make):
    train(make_job(rounds=2, privacy={"epsilon": 3}), backend="serial", settings=settings)
    Records.open(settings.home).ledger.set_budget("wine", epsilon=5.0, actor="officer")
    before = Records.open(settings.home).ledger.head()
    with pytest.raises(BudgetExceeded) as refused:
        train(make_job(rounds=40, privacy={"epsilon": 4}), backend="serial", settings=settings)
    assert 0 < int(refused.value.facts["rounds_that_fit"]) < 40
    assert Records.open(settings.home).ledger.head() == before
    assert len(list((settings.home / "runs").iterdir())) == 1
    assert any(entry.event == "job.refused" for entry in Records.open(settings.home).log.entries())


def test_the_same_rows_under_another_name_are_the_same_budget(settings: Settings, make_job: Make):
    train(make_job(rounds=1, privacy={"epsilon": 3}), backend="serial", settings=settings)
    with pytest.raises(ScopeConflict):
        train(make_job(privacy={"budget": "fresh"}), backend="serial", settings=settings)
    with pytest.raises(ScopeConflict):
        train(make_job(privacy="none"), backend="serial", settings=settings)
    # Another partition of the same rows is still the same rows.
    with pytest.raises(BudgetExceeded):
        train(make_job(data={"partition": {"dirichlet": 5.0, "clients": 20}}, privacy={"epsilon": 30}), backend="serial", settings=settings)


def test_where_the_officer_opens_scopes_a_job_may_not(settings: Settings, make_job: Make):
    strict = settings.model_copy(update={"ledger": settings.ledger.model_copy(update={"open_by_job": False})})
    with pytest.raises(UnknownScope, match="budget set wine"):
        train(make_job(), backend="serial", settings=strict)
    Records.open(strict.home).ledger.set_budget("wine", epsilon=6.0, delta=0.01, actor="officer")
    assert train(make_job(rounds=1), backend="serial", settings=strict).epsilon <= 6


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": {"partition": {"clients": 1}}}, InvalidPrivacy),
        ({"privacy": {"delta": 1 / 30}}, InvalidPrivacy),
    ],
)
def test_a_job_without_an_honest_guarantee_is_refused_before_the_home_is_touched(tmp_path: Path, make_job: Make, changes, error):
    settings = load(home=tmp_path / "untouched", environ={})
    with pytest.raises(error):
        train(make_job(**changes), backend="serial", settings=settings)
    assert not settings.home.exists()


def test_known_names_of_the_field_are_refused_as_not_in_this_version(make_job: Make):
    for changes in ({"aggregation": "krum"}, {"aggregation": "median"}):
        with pytest.raises(NotInThisVersion):
            make_job(**changes)


def test_without_privacy_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(settings: Settings, make_job: Make):
    job = make_job(privacy="none", rounds=6)
    whole = _coordinator(settings, prepare(job, settings)).train()
    folder = prepare(job, settings)

    def cut(event: object) -> None:
        if isinstance(event, RoundFinished) and event.round == 3:
            raise Cut

    with pytest.raises(Cut):
        _coordinator(settings, folder, cut).train()
    resumed = _coordinator(settings, folder).train()
    assert resumed.weights.tobytes() == whole.weights.tobytes()
    assert {name: slot.tobytes() for name, slot in resumed.slots.items()} == {name: slot.tobytes() for name, slot in whole.slots.items()}


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_under_privacy_a_cut_anywhere_loses_nothing_and_charges_nothing_twice(settings: Settings, make_job: Make, data):
    shutil.rmtree(settings.home, ignore_errors=True)
    folder = prepare(make_job(rounds=5), settings)
    place = data.draw(st.sampled_from(["before-append", "before-commit", "after-commit", "after-apply"]))
    at = data.draw(st.integers(1, 5))
    first = _coordinator(settings, folder)
    _cut_at(first, place, at)
    with pytest.raises(Cut):
        first.train()
    on_disk = first.ahead.read({})
    charged = first.records.ledger.releases(folder.run)
    again = _coordinator(settings, folder)
    again.train()
    releases = again.records.ledger.releases(folder.run)
    assert sorted(releases) == [1, 2, 3, 4, 5]
    assert {number: releases[number] for number in charged} == charged
    # What was written ahead was taken up again, not drawn anew: noise is never spent on the same round twice.
    assert all(releases[number] == release.digest for number, release in on_disk.items())
    scope = again.records.ledger.scope("wine")
    assert scope.committed == again.guarantee.cost(5, evaluated=False)


def _cut_at(coordinator: Coordinator, place: str, at: int) -> None:
    """Stop the coordinator dead at one point of one round, as if its process had been killed there."""
    append, commit, apply = coordinator.ahead.append, coordinator.records.ledger.commit, coordinator._apply

    def cutting_append(release):
        if place == "before-append" and release.round == at:
            raise Cut
        append(release)

    def cutting_commit(run, number, digest, epoch):
        if place == "before-commit" and number == at:
            raise Cut
        commit(run, number, digest, epoch)
        if place == "after-commit" and number == at:
            raise Cut

    def cutting_apply(state, mean):
        after = apply(state, mean)
        if place == "after-apply" and after.round == at:
            raise Cut
        return after

    coordinator.ahead.append, coordinator.records.ledger.commit, coordinator._apply = cutting_append, cutting_commit, cutting_apply


def test_a_coordinator_that_was_thought_dead_releases_nothing_more(settings: Settings, make_job: Make):
    folder = prepare(make_job(), settings)
    old = _coordinator(settings, folder)
    _coordinator(settings, folder)
    with pytest.raises(Fenced):
        old.train()
    assert old.records.ledger.releases(folder.run) == {}


def test_with_seeded_noise_serial_runs_repeat_and_issue_no_receipt(settings: Settings, make_job: Make, monkeypatch):
    monkeypatch.setattr(secrets, "token_bytes", lambda count: b"k" * count)
    states = []
    for _ in range(2):
        shutil.rmtree(settings.home, ignore_errors=True)
        folder = prepare(make_job(), settings)
        coordinator = _coordinator(settings, folder, noise=SeededNoise(7))
        states.append(coordinator.train())
        result = complete(coordinator, states[-1], lambda event: None)
        assert result["summary"]["receipt"] is None
        assert not folder.model.exists()
    assert states[0].weights.tobytes() == states[1].weights.tobytes()


def test_a_released_record_that_is_gone_is_noticed(settings: Settings, make_job: Make):
    folder = prepare(make_job(), settings)
    coordinator = _coordinator(settings, folder)
    _cut_at(coordinator, "after-apply", 3)
    with pytest.raises(Cut):
        coordinator.train()
    folder.releases.unlink()
    folder.checkpoint.unlink(missing_ok=True)
    with pytest.raises(CheckpointTampered, match="round 1"):
        _coordinator(settings, folder).train()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("job.json", '"rounds": 4', '"rounds": 3'),
        ("job.json", '"bound": 0.5', '"bound": 5.0'),
        ("record.json", '"rounds": 4', '"rounds": 3'),
        ("record.json", '"guarantee": {', '"guarantee": null, "was": {'),
        ("record.json", '"kernel": "stacked"', '"kernel": "sequential"'),
    ],
)
def test_the_terms_of_a_run_cannot_be_changed_after_its_budget_was_held(settings: Settings, make_job: Make, name, before, after):
    folder = prepare(make_job(), settings)
    text = (folder.path / name).read_text()
    assert before in text
    (folder.path / name).write_text(text.replace(before, after))
    with pytest.raises(CheckpointTampered):
        train(resume=folder.run, backend="serial", settings=settings)
    assert Records.open(settings.home).ledger.releases(folder.run) == {}


def test_a_held_run_cannot_be_turned_into_one_without_privacy(settings: Settings, make_job: Make):
    folder = prepare(make_job(), settings)
    job = json.loads((folder.path / "job.json").read_text()) | {"privacy": "none"}
    (folder.path / "job.json").write_text(json.dumps(job))
    record = json.loads((folder.path / "record.json").read_text()) | {"guarantee": None, "scope": None}
    (folder.path / "record.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointTampered):
        train(resume=folder.run, backend="serial", settings=settings)


def _table(path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [f"{k % 12},{generator.normal(k % 2):.6f},{generator.normal():.6f},{'ab'[k % 2]}" for k in range(240)]
    path.write_text("\n".join(["who,x,y,what", *rows]))


def test_data_swapped_under_a_held_run_are_noticed(settings: Settings, make_job: Make, tmp_path: Path):
    _table(tmp_path / "t.csv", 0)
    data = {"source": str(tmp_path / "t.csv"), "client": "who", "label": "what", "partition": None}
    for changes in ({}, {"privacy": "none", "data": data | {"drop": ["x"]}}):
        home = settings.model_copy(update={"home": settings.home / str(len(changes))})
        _table(tmp_path / "t.csv", 0)
        folder = prepare(make_job(**({"data": data, "privacy": {"delta": 0.05}} | changes)), home)
        _table(tmp_path / "t.csv", 1)
        with pytest.raises(CheckpointTampered, match="data"):
            train(resume=folder.run, backend="serial", settings=home)


def test_a_run_without_privacy_cut_before_it_was_recorded_is_checked_again(settings: Settings, make_job: Make, monkeypatch):
    from qedge.runs import preparation

    def cut(*given: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "hold", cut)
        with pytest.raises(Cut):
            prepare(make_job(privacy="none"), settings)
    (run,) = [path.name for path in (settings.home / "runs").iterdir()]
    train(make_job(rounds=1), backend="serial", settings=settings)
    with pytest.raises(ScopeConflict):
        train(resume=run, backend="serial", settings=settings)


def test_an_old_ledger_under_a_checkpoint_is_noticed(settings: Settings, make_job: Make):
    folder = prepare(make_job(), settings)
    old = (settings.home / "ledger.db").read_bytes()
    coordinator = _coordinator(settings, folder)
    coordinator.records.ledger.repeat_in_log = lambda: None  # killed before the log heard of it
    coordinator.train()
    del coordinator
    for path in settings.home.glob("ledger.db*"):
        path.unlink()
    (settings.home / "ledger.db").write_bytes(old)
    with pytest.raises(RolledBack):
        train(resume=folder.run, backend="serial", settings=settings)


def test_a_superseded_coordinator_touches_no_file_of_its_successor(settings: Settings, make_job: Make):
    folder = prepare(make_job(), settings)
    old = _coordinator(settings, folder)
    _cut_at(old, "after-apply", 2)
    with pytest.raises(Cut):
        old.train()
    state = _coordinator(settings, folder).train()
    kept = folder.checkpoint.read_bytes()
    with pytest.raises(Fenced):
        old._checkpoint(state)
    assert folder.checkpoint.read_bytes() == kept


def test_a_run_that_another_process_carries_out_is_left_alone(settings: Settings, make_job: Make, monkeypatch):
    from qedge.runs import backend

    monkeypatch.setattr(backend, "LOCK_TIMEOUT_S", 0.2)
    folder = prepare(make_job(), settings)
    with locked(folder.path / "lock"), pytest.raises(Failed, match="locked"):
        train(resume=folder.run, backend="serial", settings=settings)
    assert train(resume=folder.run, backend="serial", settings=settings).rounds == 4


def test_a_sum_that_makes_the_model_diverge_is_charged_all_the_same(settings: Settings, make_job: Make):
    folder = prepare(make_job(algorithm={"server_learning_rate": 1e45}), settings)
    coordinator = _coordinator(settings, folder)
    with pytest.raises(Diverged):
        coordinator.train()
    assert list(coordinator.records.ledger.releases(folder.run)) == [1]


@pytest.mark.parametrize("spoil", ["empty", "open to others", "another"])
def test_a_run_key_that_was_exchanged_or_left_open_is_refused(settings: Settings, make_job: Make, spoil):
    folder = prepare(make_job(), settings)
    path = folder.path / "secret.key"
    if spoil == "open to others":
        path.chmod(0o644)
    else:
        path.write_bytes(b"" if spoil == "empty" else b"k" * 32)
    with pytest.raises(CheckpointTampered):
        train(resume=folder.run, backend="serial", settings=settings)


def test_a_scope_whose_delta_is_larger_than_the_jobs_is_refused(settings: Settings, make_job: Make):
    Records.open(settings.home).ledger.set_budget("wine", epsilon=8.0, delta=0.02, actor="officer")
    with pytest.raises(InvalidPrivacy, match="delta"):
        train(make_job(), backend="serial", settings=settings)


def test_more_clients_a_round_than_there_are_is_refused(settings: Settings, make_job: Make):
    with pytest.raises(InvalidJob, match="30"):
        train(make_job(cohort={"sampling": "uniform", "rate": None, "size": 31}), backend="serial", settings=settings)


def test_a_receipt_whose_labels_were_found_in_the_data_says_so_in_its_first_sentence(settings: Settings, make_job: Make, tmp_path: Path):
    _table(tmp_path / "t.csv", 0)
    data = {"source": str(tmp_path / "t.csv"), "client": "who", "label": "what", "partition": None}
    for labels, said in ((None, True), (["a", "b"], False)):
        home = settings.model_copy(update={"home": settings.home / str(said)})
        result = train(make_job(rounds=1, data=data | {"labels": labels}, privacy={"delta": 0.05}), backend="serial", settings=home)
        receipt = Receipt.read(home.home / "runs" / result.run_id / "model" / "receipt.json")
        assert ("NOT COVERED: label set" in receipt.privacy) == said


def test_a_run_without_privacy_says_so_on_its_receipt(settings: Settings, make_job: Make):
    result = train(make_job(privacy="none", rounds=2), backend="serial", settings=settings)
    receipt = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json")
    assert receipt.privacy == NO_GUARANTEE
    assert receipt.guarantees == ()
    assert ("training", "NOT COVERED") in {(use.what, use.covered) for use in receipt.uses}
    assert result.epsilon is None
    # A later private run on the same rows tells of it.
    private = train(make_job(rounds=1), backend="serial", settings=settings)
    uses = Receipt.read(settings.home / "runs" / private.run_id / "model" / "receipt.json").uses
    assert any(result.run_id in use.note for use in uses)


def test_held_out_rows_not_declared_public_are_looked_at_once_and_charged(settings: Settings, make_job: Make):
    seen: list[RoundFinished] = []
    job = make_job(data={"evaluation": None})
    result = train(job, backend="serial", settings=settings, on_event=lambda e: seen.append(e) if isinstance(e, RoundFinished) else None)
    assert all(event.accuracy is None and event.loss is None for event in seen)
    assert 0 <= result.accuracy <= 1
    releases = Records.open(settings.home).ledger.releases(result.run_id)
    assert sorted(releases) == [1, 2, 3, 4, 5]
    assert Records.open(settings.home).ledger.scope("wine").spent == pytest.approx(result.epsilon)
    assert result.epsilon <= 6


def test_the_charged_accuracy_is_that_of_the_clients_that_hold_rows_out(settings: Settings, make_job: Make):
    """False alarms: six standard deviations of noise, below 1e-8. Most clients hold no row out: they count neither way."""
    data = {"source": "digits", "partition": {"dirichlet": 0.5, "clients": 400}, "test": 0.1, "evaluation": None}
    private = {"epsilon": 30, "delta": 1e-3, "clipping": {"bound": 2.0}}
    job = make_job(data=data, privacy=private, algorithm={"learning_rate": 0.5}, cohort={"rate": 0.5}, rounds=5)
    coordinator = _coordinator(settings, prepare(job, settings))
    state = coordinator.train()
    accuracy, deviation = coordinator.evaluate_charged(state)
    test = coordinator.federation.test
    assert test is not None
    set_parameters(coordinator.module, state.model)
    with torch.no_grad():
        hits = coordinator.module(torch.from_numpy(test.features)).argmax(1).numpy() == test.labels
    own = [hits[start:end].mean() for start, end in pairwise(test.offsets) if end > start]
    assert len(own) < 0.6 * len(coordinator.federation.clients)
    assert accuracy is not None
    assert deviation is not None
    assert abs(accuracy - np.mean(own)) < 6 * deviation + 1 / EVALUATION_ROWS
    assert deviation < 0.1


def test_a_round_that_nobody_takes_part_in_is_a_round(settings: Settings, make_job: Make):
    """With cohorts this small most are empty; which ones is secret, so nothing may come of it."""
    result = train(make_job(cohort={"rate": 0.001}, rounds=6), backend="serial", settings=settings)
    assert result.rounds == 6
    assert len(Records.open(settings.home).ledger.releases(result.run_id)) == 6


@pytest.mark.parametrize("privacy", ["none", None])
def test_a_model_that_raises_on_somebodys_rows_tells_nothing_of_them_under_privacy(settings: Settings, make_job: Make, privacy: str | None):
    changes = {} if privacy is None else {"privacy": privacy}
    folder = prepare(make_job(model={"kind": "linear"}, algorithm={"kernel": "sequential"}, rounds=2, **changes), settings)
    told: list[ClientsFailed] = []
    coordinator = _coordinator(settings, folder, on_event=lambda event: told.append(event) if isinstance(event, ClientsFailed) else None)
    client = coordinator.workers.client
    whole = client.module.forward
    seen: list[int] = []

    def forward(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        if len(seen) % 3 == 0:
            raise ValueError(f"out of range: {rows[0]}")
        return whole(rows)

    client.module.forward = forward
    state = coordinator.train()
    assert state.round == 2
    assert np.isfinite(state.weights).all()
    if privacy == "none":
        assert told
        assert all("out of range" in reason for event in told for reason in event.reasons.values())
    else:
        assert not told
    assert len(seen) >= 3


def test_a_diverging_run_stops_and_is_on_record_as_failed(settings: Settings, make_job: Make):
    job = make_job(privacy="none", algorithm={"learning_rate": 1e30}, rounds=3)
    with pytest.raises(Diverged):
        train(job, backend="serial", settings=settings)
    (folder,) = (settings.home / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


def test_under_privacy_an_update_that_is_not_finite_counts_as_zero(settings: Settings, make_job: Make):
    folder = prepare(make_job(algorithm={"learning_rate": 1e30}), settings)
    state = _coordinator(settings, folder).train()
    assert np.isfinite(state.weights).all()


def test_an_unknown_run_offers_the_nearest(settings: Settings, make_job: Make):
    folder = prepare(make_job(), settings)
    with pytest.raises(UnknownRun, match=folder.run):
        train(resume=folder.run[:-1] + "x", backend="serial", settings=settings)
    assert train(resume=folder.run, backend="serial", settings=settings).rounds == 4
