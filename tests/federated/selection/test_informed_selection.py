"""Cohorts drawn by what is known of clients: the rules, whole runs, runs that were cut, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn import functional

from qedge import TrainingJob
from qedge.config import Settings
from qedge.data.federation import Rows, load
from qedge.errors import CheckpointTampered, DataNotFound, InvalidJob, PrivacyError, UnknownKey
from qedge.federated import coordinator as coordinator_module
from qedge.federated.client import FederatedClient
from qedge.federated.client_evaluation import LOSS_ROWS
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import ClientsFailed, Event, RoundFinished
from qedge.federated.messages import Broadcast, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.federated.run_folder import RunFolder
from qedge.federated.selection.client_facts import ClientFacts, client_facts
from qedge.federated.selection.drawing import expected_cohort
from qedge.federated.selection.informed import draw_informed, largest_losses, quickest
from qedge.federated.selection.roster import QUARANTINED_AFTER, Roster
from qedge.job import Algorithm, Cohort, Model
from qedge.models import build, parameters_vector, set_parameters
from qedge.records import Records
from qedge.runs.backend import local_workers
from qedge.runs.preparation import prepare

Make = Callable[..., TrainingJob]
CLIENTS = 30
COHORTS: dict[str, dict[str, object]] = {
    "stratified": {"size": 6, "strata": {"by": "rows", "bins": 3}},
    "resource": {"size": 6, "facts": "facts.csv", "need": {"battery": 0.2}, "candidates": 10},
    "power-of-choice": {"size": 4, "candidates": 12},
    "oort": {"size": 6, "facts": "facts.csv"},
}


@pytest.fixture
def informed(make_job: Make, tmp_path: Path) -> Callable[..., TrainingJob]:
    """A small job without privacy with the sampling of that name, its table of facts written."""
    lines = [f"client-{k:02d},{1 + k % 7},{k % 10 / 10}" for k in range(CLIENTS)]
    (tmp_path / "facts.csv").write_text("\n".join(["client,speed,battery", *lines]) + "\n")

    def make(sampling: str, size: int | None = None, **changes: object) -> TrainingJob:
        cohort = {"rate": None, "sampling": sampling, **COHORTS[sampling]}
        cohort["size"] = size or cohort["size"]
        if "facts" in cohort:
            cohort["facts"] = str(tmp_path / "facts.csv")
        return make_job(privacy="none", cohort={**cohort, "deadline_s": 6.0}, **changes)

    return make


class Cut(Exception):
    """A coordinator stopped dead."""


def cutting_at(number: int) -> Callable[[Event], None]:
    def cut(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == number:
            raise Cut

    return cut


def a_coordinator(settings: Settings, folder: RunFolder, on_event: Callable[[Event], None] = lambda event: None) -> Coordinator:
    return Coordinator(folder, Records.open(settings.home), local_workers, on_event)


def watched(coordinator: Coordinator) -> list[tuple[int, list[int]]]:
    """The cohorts that it trains, as they come: (round, clients)."""
    seen: list[tuple[int, list[int]]] = []
    partial_sum = coordinator.workers.partial_sum

    def noting(broadcast, chunks, deadline_s, ahead=()):
        seen.append((broadcast.round, sorted(int(client) for chunk in chunks for client in chunk.clients)))
        return partial_sum(broadcast, chunks, deadline_s, ahead)

    coordinator.workers.partial_sum = noting
    return seen


@pytest.mark.parametrize("sampling", COHORTS)
def test_a_run_learns_with_cohorts_of_the_size_asked_for_that_are_not_always_the_same(settings: Settings, informed, sampling):
    job = informed(sampling, rounds=12)
    coordinator = a_coordinator(settings, prepare(job, settings))
    seen = watched(coordinator)
    start, _ = coordinator.evaluate_public(coordinator._restore())
    accuracy, _ = coordinator.evaluate_public(coordinator.train())
    assert [number for number, _ in seen] == list(range(1, 13))
    assert {len(cohort) for _, cohort in seen} == {COHORTS[sampling]["size"]} == {expected_cohort(job.cohort, CLIENTS)}
    assert len({tuple(cohort) for _, cohort in seen}) > 6
    assert accuracy > max(0.6, start)


@pytest.mark.parametrize("sampling", COHORTS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(monkeypatch, settings: Settings, informed, sampling):
    monkeypatch.setattr(coordinator_module, "CHECKPOINT_EVERY_S", 0.0)
    job = informed(sampling, rounds=9)
    whole = a_coordinator(settings, prepare(job, settings))
    expected, state = watched(whole), whole.train()
    folder = prepare(job, settings)
    found: list[tuple[int, list[int]]] = []
    for cut in (3, 6, None):
        part = a_coordinator(settings, folder, cutting_at(cut) if cut else lambda event: None)
        seen = watched(part)
        if cut:
            with pytest.raises(Cut):
                part.train()
        else:
            assert part.train().weights.tobytes() == state.weights.tobytes()
        found += seen
    assert len(found) > 9  # rounds that were cut before their checkpoint are done again
    assert dict(found) == dict(expected)
    if sampling == "oort":
        assert part.cohorts.roster.last.tolist() == whole.cohorts.roster.last.tolist()
        assert part.cohorts.roster.utility.tobytes() == whole.cohorts.roster.utility.tobytes()


def test_a_run_whose_facts_were_changed_is_not_gone_on_with(monkeypatch, settings: Settings, informed, tmp_path):
    monkeypatch.setattr(coordinator_module, "CHECKPOINT_EVERY_S", 0.0)
    job = informed("resource", rounds=6)
    folder = prepare(job, settings)
    with pytest.raises(Cut):
        a_coordinator(settings, folder, cutting_at(4)).train()
    path = tmp_path / "facts.csv"
    path.write_text(path.read_text().replace("client-03,4,", "client-03,40,"))
    with pytest.raises(CheckpointTampered, match="no longer the one that this run began with"):
        a_coordinator(settings, folder).train()


def test_facts_that_do_not_fit_are_refused_before_the_home_is_touched(informed, tmp_path):
    job, settings = informed("resource"), Settings(home=tmp_path / "untouched")
    path = tmp_path / "facts.csv"
    path.write_text(path.read_text().replace("client-03,", "somebody-else,"))
    with pytest.raises(DataNotFound, match="no row for client 'client-03'"):
        prepare(job, settings)
    assert not settings.home.exists()


def test_power_of_choice_trains_the_candidates_whose_loss_under_the_rounds_weights_is_largest(settings: Settings, informed):
    """Against losses computed here from the rows, in every round of a run."""
    job = informed("power-of-choice", rounds=5)
    coordinator = a_coordinator(settings, prepare(job, settings))
    federation, module, cohort = load(job.data, job.seed), build(job.model, 13, 3, job.seed), job.cohort
    partial_sum = coordinator.workers.partial_sum

    def checking(broadcast, chunks, deadline_s, ahead=()):
        assert not ahead
        set_parameters(module, broadcast.weights)
        rows = np.diff(federation.train.offsets)
        nobody_asked = Cohort(sampling="power-of-choice", size=cohort.candidates, candidates=cohort.candidates)
        candidates = draw_informed(
            nobody_asked, client_facts(coordinator.job, coordinator.federation), Roster(CLIENTS), coordinator.key, broadcast.round
        )
        assert (rows[candidates] > 0).all()
        losses = []
        for client in candidates:
            features, labels = map(torch.tensor, federation.train.of(int(client)))
            losses.append(functional.cross_entropy(module(features), labels).item())
        expected = candidates[np.argsort(losses)[-4:]]
        assert sorted(expected.tolist()) == sorted(int(client) for chunk in chunks for client in chunk.clients)
        return partial_sum(broadcast, chunks, deadline_s, ahead)

    coordinator.workers.partial_sum = checking
    assert coordinator.train().round == 5


def test_oort_remembers_what_its_cohort_was_worth_under_the_weights_it_was_sent(settings: Settings, informed):
    job = informed("oort", rounds=1)
    coordinator = a_coordinator(settings, prepare(job, settings))
    seen = watched(coordinator)
    coordinator.train()
    (_, cohort) = seen[0]
    federation, module = load(job.data, job.seed), build(job.model, 13, 3, job.seed)
    assert np.flatnonzero(coordinator.cohorts.roster.last).tolist() == cohort
    for client in cohort:
        features, labels = map(torch.tensor, federation.train.of(client))
        losses = functional.cross_entropy(module(features), labels, reduction="none").detach()
        expected = len(labels) * float((losses**2).mean().sqrt())
        assert coordinator.cohorts.roster.utility[client] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sampling", ["stratified", "power-of-choice", "oort"])
def test_clients_in_quarantine_are_drawn_no_more(settings: Settings, informed, sampling):
    told: list[Event] = []
    job = informed(
        sampling,
        size=12,
        rounds=25,
        algorithm={"loop": "tests.federated.own_code:picky", "options": {"most": 7}, "kernel": "auto"},
        data={"test": None, "evaluation": None},
    )
    a_coordinator(settings, prepare(job, settings), told.append).train()
    failures = [event for event in told if isinstance(event, ClientsFailed)]
    out: set[str] = set()
    for event in failures:
        assert not out & event.reasons.keys()
        out |= set(event.quarantined)
    assert out
    assert all(sum(one in event.reasons for event in failures) == QUARANTINED_AFTER for one in out)


@hypothesis_settings(deadline=None)
@given(st.data())
def test_a_cohort_is_as_large_as_it_can_be_and_none_is_drawn_that_may_not_be(data):
    clients = data.draw(st.integers(2, 40))
    size = data.draw(st.integers(1, clients))
    candidates = data.draw(st.integers(size, clients))
    rows = np.array(data.draw(st.lists(st.integers(1, 9), min_size=clients, max_size=clients)))
    able = np.array(data.draw(st.lists(st.booleans(), min_size=clients, max_size=clients)))
    strata = np.unique(np.array(data.draw(st.lists(st.integers(0, 3), min_size=clients, max_size=clients))), return_inverse=True)[1]
    roster = Roster(clients)
    roster.failures[:] = data.draw(st.lists(st.integers(0, 4), min_size=clients, max_size=clients))
    known = ClientFacts(rows, np.ones(clients), rows.astype(float), able, strata, np.zeros(32, np.uint8))
    may = able & (roster.failures < QUARANTINED_AFTER)
    for cohort, most in (
        (Cohort(sampling="stratified", size=size, strata={"by": "rows", "bins": 2}), size),
        (Cohort(sampling="resource", size=size, facts="f", candidates=candidates), size),
        (Cohort(sampling="power-of-choice", size=size, candidates=candidates), candidates),
        (Cohort(sampling="oort", size=size), size),
    ):
        drawn = draw_informed(cohort, known, roster, RunKey.from_seed(1), 3)
        assert len(drawn) == min(most, int(may.sum()))
        assert (np.diff(drawn) > 0).all()
        assert may[drawn].all()
        assert drawn.tolist() == draw_informed(cohort, known, roster, RunKey.from_seed(1), 3).tolist()


@given(st.lists(st.one_of(st.floats(0, 1e6), st.just(float("inf")), st.just(float("nan"))), min_size=1, max_size=20), st.integers(1, 25))
def test_nobody_left_out_has_a_larger_loss_than_one_who_is_chosen(losses, size):
    candidates = np.arange(len(losses)) * 3 + 1
    chosen = largest_losses(candidates, np.array(losses), size)
    assert len(chosen) == min(size, len(losses))
    assert (np.diff(chosen) > 0).all()
    worth = {client: -1.0 if loss != loss else loss for client, loss in zip(candidates.tolist(), losses, strict=True)}
    left = [worth[client] for client in worth if client not in chosen]
    assert not left or max(left) <= min(worth[client] for client in chosen.tolist())


def test_the_quickest_candidates_are_kept_the_first_drawn_among_equals():
    seconds = np.array([5.0, 1, 9, 5, 2])
    assert quickest(np.array([2, 3, 0, 4]), seconds, 2).tolist() == [4, 3]
    assert quickest(np.array([2, 3, 0, 4]), None, 2).tolist() == [2, 3]


def _client(sizes: list[int], model: Model) -> FederatedClient:
    generator = np.random.default_rng(0)
    rows = Rows(generator.standard_normal((sum(sizes), 5), dtype=np.float32), generator.integers(0, 3, sum(sizes)), np.cumsum([0, *sizes]))
    algorithm = Algorithm.model_validate({"kernel": "sequential"})
    spec = ClientSpec(model, 5, 3, algorithm, "sequential", None, 0, RunKey.from_seed(0), 0)
    return FederatedClient(spec, rows, None)


def test_losses_are_each_clients_own_whoever_is_asked_beside_it_and_of_a_bounded_sample():
    client = _client([4, 0, 3 * LOSS_ROWS, LOSS_ROWS], Model(kind="linear"))
    weights = np.linspace(-1, 1, 18, dtype=np.float32)
    found = client.evaluation.losses(Broadcast(3, weights), np.arange(4))
    apart = np.concatenate([client.evaluation.losses(Broadcast(3, weights), np.array([k])) for k in range(4)])
    assert found.tobytes() == apart.tobytes()
    set_parameters(client.module, weights)
    for k in (0, 3):
        features, labels = map(torch.tensor, client.train.of(k))
        losses = functional.cross_entropy(client.module(features), labels, reduction="none").detach().double()
        assert found[k] == pytest.approx([float(losses.mean()), float((losses**2).mean() ** 0.5)], rel=1e-6)
    assert found[1].tolist() == [0, 0]
    again = client.evaluation.losses(Broadcast(4, weights), np.arange(4))
    assert (again[[0, 1, 3]] == found[[0, 1, 3]]).all()
    assert again[2].tolist() != found[2].tolist()  # other rows of the many
    assert again[2] == pytest.approx(found[2], rel=0.2)


class PickyModel(torch.nn.Linear):
    """Refuses batches of three."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if len(rows) == 3:
            raise ValueError("not three")
        return super().forward(rows)


def picky_model(features: int, classes: int) -> torch.nn.Module:
    return PickyModel(features, classes)


def test_a_model_that_raises_on_a_clients_rows_has_no_loss_there_and_trains_on():
    client = _client([3, 5], Model(kind="tests.federated.selection.test_informed_selection:picky_model"))
    weights = parameters_vector(client.module)
    found = client.evaluation.losses(Broadcast(1, weights), np.arange(2))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    assert client.module.training


@pytest.mark.parametrize("sampling", COHORTS)
def test_under_privacy_each_is_refused_and_the_samplings_that_are_covered_are_named(make_job: Make, sampling):
    with pytest.raises(PrivacyError, match=r"no accounting covers that; accepted under privacy: .*poisson, uniform; or 'privacy: none'"):
        make_job(cohort={"rate": None, "sampling": sampling, **COHORTS[sampling]})


@pytest.mark.parametrize(
    ("cohort", "error", "says"),
    [
        ({"sampling": "stratified", "size": 4}, InvalidJob, "takes 'strata'"),
        ({"sampling": "stratified", "strata": {"by": "rows", "bins": 2}}, InvalidJob, "takes 'size'"),
        ({"sampling": "stratified", "size": 4, "strata": {"by": "rows"}}, InvalidJob, "takes 'bins'"),
        ({"sampling": "stratified", "size": 4, "strata": {"by": "rows", "bins": 1}}, InvalidJob, "cohort.strata.bins"),
        ({"sampling": "stratified", "size": 4, "strata": {"bins": 2}}, InvalidJob, "'cohort.strata.by' is missing"),
        ({"sampling": "stratified", "size": 4, "strata": {"of": "rows"}}, UnknownKey, "unknown key 'of'"),
        ({"sampling": "stratified", "size": 4, "strata": {"by": "region"}}, InvalidJob, "needs 'facts'"),
        ({"sampling": "stratified", "size": 4, "strata": {"by": "rows", "bins": 2}, "facts": "f.csv"}, InvalidJob, "takes no 'facts'"),
        ({"sampling": "resource", "size": 4}, InvalidJob, "takes 'facts'"),
        ({"sampling": "resource", "size": 4, "facts": "f.csv", "need": {}}, InvalidJob, "the least that a client must have"),
        ({"sampling": "resource", "size": 4, "facts": "f.csv", "need": {"gpu": True}}, InvalidJob, "the least that a client must have"),
        ({"sampling": "resource", "size": 4, "facts": "f.csv", "need": {"gpu": "much"}}, InvalidJob, "cohort.need.gpu"),
        ({"sampling": "resource", "size": 4, "facts": ""}, InvalidJob, "cohort.facts"),
        ({"sampling": "resource", "size": 4, "facts": "f.csv", "candidates": 3}, InvalidJob, "at least 'size', 4"),
        ({"sampling": "power-of-choice", "size": 4}, InvalidJob, "takes 'candidates'"),
        ({"sampling": "power-of-choice", "size": 4, "candidates": 3}, InvalidJob, "at least 'size', 4"),
        ({"sampling": "power-of-choice", "size": 4, "candidates": 8, "facts": "f.csv"}, InvalidJob, "takes no 'facts'"),
        ({"sampling": "oort"}, InvalidJob, "takes 'size'"),
        ({"sampling": "oort", "size": 4, "rate": 0.5}, InvalidJob, "takes no 'rate'"),
        ({"sampling": "oort", "size": 4, "need": {"battery": 1}}, InvalidJob, "takes no 'need'"),
        ({"sampling": "oort", "size": 4, "period": 3}, InvalidJob, "period"),
        ({"sampling": "uniform", "size": 4, "candidates": 8}, InvalidJob, "takes no 'candidates'"),
        ({"sampling": "poisson", "rate": 0.5, "strata": {"by": "rows", "bins": 2}}, InvalidJob, "takes no 'strata'"),
        ({"sampling": "oorrt", "size": 4}, UnknownKey, "did you mean 'oort'"),
    ],
)
def test_cohorts_that_say_too_little_too_much_or_nonsense_are_refused(make_job: Make, cohort, error, says):
    with pytest.raises(error, match=says) as refused:
        make_job(privacy="none", cohort={"rate": None, **cohort})
    assert type(refused.value) is error


@pytest.mark.parametrize("sampling", COHORTS)
def test_a_job_is_read_back_equal_and_its_facts_lie_beside_its_file(informed, tmp_path, sampling):
    job = informed(sampling)
    assert TrainingJob.parse(job.plain()) == job
    cohort = ", ".join(f"{key}: {str(value).replace(chr(39), '')}" for key, value in COHORTS[sampling].items())
    text = "name: x\ndata: {source: wine}\nmodel: {kind: linear}\nprivacy: none\nrounds: 1\n"
    (tmp_path / "job.yaml").write_text(text + f"cohort: {{sampling: {sampling}, {cohort}}}\n")
    read = TrainingJob.load(tmp_path / "job.yaml").cohort
    assert read.facts == job.cohort.facts
    assert (read.size, read.candidates, read.need, read.strata) == (
        job.cohort.size,
        job.cohort.candidates,
        job.cohort.need,
        job.cohort.strata,
    )
