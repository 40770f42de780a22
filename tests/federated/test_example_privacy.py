"""DP-SGD at the clients, end to end in one process: what is refused, drawn, added, charged, promised, and what a cut leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge import train
from qedge.audit.receipt import Receipt, verify
from qedge.config import Settings
from qedge.data.federation import Rows
from qedge.errors import BudgetExceeded, InvalidJob, InvalidPrivacy, ModelError, PrivacyError, ScopeConflict, UnknownScope
from qedge.federated.client import FederatedClient
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import RoundFinished
from qedge.federated.example_guarantee import plan_for
from qedge.federated.example_training import ExampleTraining, poisson
from qedge.federated.guarantee import read_guarantee
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model, TrainingJob
from qedge.kernels.batches import LocalSGD
from qedge.kernels.per_example.affine import AffineSums
from qedge.kernels.per_example.choice import build_sums
from qedge.privacy.accounting import RenyiCost, epsilon_of, sampled_gaussian
from qedge.privacy.example_sums import CLIP_WITHIN, LEAST_VARIANCE, NoisySteps, SumGrid
from qedge.privacy.ledger import Scope
from qedge.privacy.mechanisms import SeededNoise, SystemNoise
from qedge.privacy.mixture import group_nanos
from qedge.records import Records
from qedge.runs.backend import local_workers
from qedge.runs.completion import complete
from qedge.runs.preparation import prepare

Make = Callable[..., TrainingJob]
EXAMPLE = {"unit": "example", "epsilon": 8, "delta": 1e-3, "clipping": {"bound": 1.0}, "rate": 0.3, "steps": 3, "max_rows": 10}
PLAIN = {"local_epochs": 1, "batch_size": 32, "kernel": "auto", "learning_rate": 0.5}
FEATURES, CLASSES = 4, 3


@pytest.fixture
def make(make_job: Make) -> Make:
    """A small job whose unit is the example, with changes, merged into its parts."""

    def changed(**changes: object) -> TrainingJob:
        parts = {"privacy": EXAMPLE, "algorithm": PLAIN} | {key: value for key, value in changes.items() if not isinstance(value, dict)}
        for key, value in changes.items():
            if isinstance(value, dict):
                parts[key] = {**parts.get(key, {}), **value}  # type: ignore[dict-item]
        return make_job(**parts)

    return changed


# ---- a run


def test_a_run_charges_each_round_once_and_its_receipt_holds_against_the_server_too(settings: Settings, make: Make):
    events: list[object] = []
    result = train(make(), backend="serial", settings=settings, on_event=events.append)
    records = Records.open(settings.home)
    scope = records.ledger.scope("wine")
    assert (scope.unit, scope.relation) == ("example", "zero-out")
    assert sorted(records.ledger.releases(result.run_id)) == [1, 2, 3, 4]
    assert scope.spent == pytest.approx(result.epsilon)
    assert 7.9 < result.epsilon <= 8
    assert not any(scope.held.nanos)
    assert [event.round for event in events if isinstance(event, RoundFinished)] == [1, 2, 3, 4]
    model = settings.home / "runs" / result.run_id / "model"
    receipt = Receipt.read(model / "receipt.json")
    verify(receipt, records.keys.public, model)
    assert receipt.data.unit == "example"
    assert "for every example" in receipt.privacy
    assert {one.adversary: float(one.epsilon) for one in receipt.guarantees} == pytest.approx(
        {"released model": result.epsilon, "server": result.epsilon}
    )
    assert receipt.mechanism is not None
    assert (receipt.mechanism.sampling, receipt.mechanism.steps, receipt.mechanism.max_rows) == ("poisson", 3, 10)
    assert {(use.what, use.covered) for use in receipt.uses} >= {("training", "charged")}
    assert "first 10 rows" in next(use.note for use in receipt.uses if use.what == "training")


def test_what_is_charged_is_every_step_of_every_round_at_the_rate_of_the_examples(make: Make):
    guarantee = plan_for(make(), 30, 42, None)
    step = sampled_gaussian(guarantee.grid.sensitivity_squared, guarantee.variance, 0.3)
    assert guarantee.per_round == step * 3
    assert guarantee.epsilon(4) == epsilon_of((step * 12).at(guarantee.order), guarantee.order, 1e-3) <= 8
    assert read_guarantee(guarantee.plain()) == guarantee
    assert plan_for(make(cohort={"rate": 0.01}), 30, 42, None) == guarantee  # who is drawn amplifies nothing
    assert guarantee.roster_epsilon() == guarantee.epsilon(4)


def test_a_plan_is_held_whole_and_one_that_does_not_fit_is_refused_before_anything_is_computed(settings: Settings, make: Make):
    train(make(rounds=2, privacy={"epsilon": 3}), backend="serial", settings=settings)
    ledger = Records.open(settings.home).ledger
    ledger.set_budget("wine", epsilon=6.0, actor="officer")
    folder = prepare(make(rounds=3, privacy={"epsilon": 3}), settings)
    assert ledger.scope("wine").held == ledger.plan(folder.run).cost
    before = ledger.head()
    with pytest.raises(BudgetExceeded):
        prepare(make(rounds=3, privacy={"epsilon": 6}), settings)
    assert ledger.head() == before


def test_a_run_cut_between_rounds_goes_on_and_what_the_server_saw_is_counted(settings: Settings, make: Make):
    folder = prepare(make(), settings)

    class Cut(Exception):
        pass

    def cut(event: object) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise Cut

    with pytest.raises(Cut):
        Coordinator(folder, Records.open(settings.home), local_workers, cut).train()
    before = Records.open(settings.home).ledger.releases(folder.run)
    coordinator = Coordinator(folder, Records.open(settings.home), local_workers, lambda event: None)
    complete(coordinator, coordinator.train(), lambda event: None)
    releases = Records.open(settings.home).ledger.releases(folder.run)
    assert sorted(releases) == [1, 2, 3, 4]
    assert {number: releases[number] for number in before} == before
    guarantees = {one.adversary: float(one.epsilon) for one in Receipt.read(folder.model / "receipt.json").guarantees}
    assert guarantees["released model"] <= 8 < guarantees["server"] == pytest.approx(coordinator.guarantee.epsilon(5))


def test_a_model_of_the_users_own_and_momentum_train_by_hooks(settings: Settings, make: Make):
    job = make(model={"kind": "tests.kernels.test_dpsgd:own"}, algorithm={"momentum": 0.5}, rounds=2)
    folder = prepare(job, settings)
    assert (folder.read("record.json") or {})["kernel"] == "hooks"
    assert train(resume=folder.run, backend="serial", settings=settings).epsilon <= 8


# ---- units and scopes


def test_on_a_scope_of_clients_a_job_is_charged_for_all_of_a_clients_rows_together(settings: Settings, make: Make, make_job: Make):
    Records.open(settings.home).ledger.set_budget("wine", epsilon=6, delta=0.01, order=4, actor="officer")
    result = train(make(privacy={"epsilon": 6, "delta": 0.01}, rounds=2), backend="serial", settings=settings)
    receipt = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json")
    assert receipt.data.unit == "client"
    assert "for every client" in receipt.privacy
    mechanism = receipt.mechanism
    assert mechanism is not None
    step = group_nanos(mechanism.sensitivity_squared, mechanism.variance, 0.3, 10, 4)
    assert result.epsilon == pytest.approx(epsilon_of(step * 6, 4, 0.01))
    assert 5.9 < result.epsilon <= 6
    with pytest.raises(BudgetExceeded):
        train(make_job(), backend="serial", settings=settings)  # whole clients draw on the same budget


def test_a_client_costs_more_than_its_examples_do(make: Make):
    job, nothing = make(privacy={"delta": 1e-3}), RenyiCost.zero()
    as_example = plan_for(job, 30, 42, None)
    as_client = plan_for(job, 30, 42, Scope("wine", "client", "zero-out", 8.0, 1e-3, as_example.order, nothing, nothing))
    assert as_client.unit == "client"
    assert as_client.noise_multiplier > 2 * as_example.noise_multiplier
    assert as_client.epsilon(4) <= 8


def test_a_job_for_whole_clients_is_refused_on_a_scope_of_examples(settings: Settings, make: Make, make_job: Make):
    train(make(rounds=1), backend="serial", settings=settings)
    with pytest.raises(ScopeConflict, match=r"accepted on these data: 'privacy.unit: example'"):
        train(make_job(), backend="serial", settings=settings)
    with pytest.raises(ScopeConflict):
        train(make_job(privacy="none"), backend="serial", settings=settings)


def test_where_the_officer_opens_scopes_the_error_names_the_unit(settings: Settings, make: Make):
    strict = settings.model_copy(update={"ledger": settings.ledger.model_copy(update={"open_by_job": False})})
    with pytest.raises(UnknownScope, match=r"budget set wine .* --unit example"):
        train(make(), backend="serial", settings=strict)
    Records.open(strict.home).ledger.set_budget("wine", unit="example", epsilon=8.0, delta=1e-3, actor="officer")
    assert train(make(rounds=1), backend="serial", settings=strict).epsilon <= 8


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"privacy": {"rate": None}}, InvalidPrivacy, "takes 'rate'"),
        ({"privacy": {"steps": None}}, InvalidPrivacy, "takes 'steps'"),
        ({"privacy": {"max_rows": None}}, InvalidPrivacy, "takes 'max_rows'"),
        ({"privacy": {"rate": 1.5}}, InvalidPrivacy, r"probability in \(0, 1\]"),
        ({"privacy": {"unit": "client"}}, InvalidPrivacy, "goes with 'unit: example'"),
        ({"privacy": {"clipping": {"bound": 1.0, "quantile": 0.5}}}, InvalidPrivacy, "a fixed 'bound'"),
        ({"data": {"evaluation": None}}, PrivacyError, "'evaluation: public'"),
        ({"data": {"evaluation": "charged"}}, PrivacyError, "'evaluation: public'"),
        ({"algorithm": {"kind": "scaffold"}}, PrivacyError, "another algorithm"),
        (
            {"algorithm": {"kind": "fedbuff", "buffer": 2}, "cohort": {"sampling": "uniform", "rate": None, "size": 4}},
            PrivacyError,
            "fedbuff",
        ),
        ({"algorithm": {"loop": "tests.federated.own_code:loop"}}, PrivacyError, "no 'loop'"),
        ({"algorithm": {"batch_size": 8}}, InvalidJob, "leave out 'batch_size'"),
        ({"algorithm": {"local_epochs": 2}}, InvalidJob, "leave out 'local_epochs'"),
    ],
)
def test_what_has_no_bound_for_single_examples_is_refused_with_what_is_accepted(make: Make, changes, error, said):
    with pytest.raises(error, match=said):
        make(**changes)


def test_local_scaling_is_refused_as_one_row_moves_all_others(make: Make):
    table = {"source": "t.csv", "client": "who", "label": "what", "partition": None, "scale": "local"}
    with pytest.raises(PrivacyError, match="'scale: given'"):
        make(data=table)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"privacy": {"delta": 1 / 30}}, InvalidPrivacy, "below 1/"),
        ({"privacy": {"epsilon": 200}}, InvalidPrivacy, "protects nothing"),
        ({"algorithm": {"kernel": "stacked"}}, ModelError, "book-keeping"),
        ({"model": {"kind": "tests.federated.test_example_privacy:mixing"}}, ModelError, "BatchNorm"),
    ],
)
def test_a_job_without_an_honest_guarantee_is_refused_before_the_home_is_touched(settings: Settings, make: Make, changes, error, said):
    with pytest.raises(error, match=said):
        train(make(**changes), backend="serial", settings=settings)
    assert not (settings.home / "ledger.db").exists()


def test_a_delta_that_could_give_up_a_row_whole_is_refused_and_nothing_is_held(settings: Settings, make: Make):
    with pytest.raises(InvalidPrivacy, match=r"clients × privacy\.max_rows"):
        train(make(privacy={"delta": 1 / 300}), backend="serial", settings=settings)
    assert Records.open(settings.home).ledger.scopes() == []
    assert not list((settings.home / "runs").iterdir())


def mixing(features: int, classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(features, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, classes))


# ---- what clients do


class Watched(AffineSums):
    """Remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__([(FEATURES, CLASSES)])
        self.batches: list[torch.Tensor] = []

    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        self.batches.append(features[:, 0].clone())
        return super().clipped_sum(weights, features, labels, bound)


def _plan(**changes: object) -> NoisySteps:
    grid = SumGrid(1.0, (FEATURES + 1) * CLASSES, 400)
    return replace(NoisySteps(grid, LEAST_VARIANCE, rate=0.25, steps=5, max_rows=40), **changes)  # type: ignore[arg-type]


def _rows(sizes: list[int], seed: int = 0) -> Rows:
    generator, rows = np.random.default_rng(seed), sum(sizes)
    features = generator.standard_normal((rows, FEATURES), dtype=np.float32)
    features[:, 0] = np.arange(rows)
    return Rows(features, generator.integers(0, CLASSES, rows), np.cumsum([0, *sizes]))


def _training(plan: NoisySteps, sums: AffineSums | None = None, seed: int | None = None, momentum: float = 0.0) -> ExampleTraining:
    source = SystemNoise() if seed is None else SeededNoise(seed)
    return ExampleTraining(plan, LocalSGD(1.0, momentum=momentum), sums or Watched(), source)


def test_every_client_takes_the_same_number_of_steps_also_without_rows_and_on_empty_batches():
    for size in (0, 1, 39, 200):
        sums = Watched()
        update = _training(_plan(), sums).updates(np.zeros(15, np.float32), _rows([size]), [0])
        assert len(sums.batches) == 5
        assert np.count_nonzero(update) == 15  # noise alone moves every weight


def test_batches_are_poisson_draws_of_each_row_by_itself():
    """False alarm below 1e-6: the sizes of 4,000 batches of 40 rows at 1/4 have the binomial's mean, its variance and its empty share
    within 5.5 standard deviations each, and so has every row's own share of batches."""
    sums = Watched()
    _training(_plan(steps=4000), sums).updates(np.zeros(15, np.float32), _rows([40]), [0])
    sizes = np.array([len(batch) for batch in sums.batches])
    assert abs(sizes.mean() - 10) < 5.5 * math.sqrt(7.5 / 4000)
    assert abs(sizes.var() - 7.5) < 5.5 * 7.5 * math.sqrt(2 / 4000)
    shares = np.bincount(torch.cat(sums.batches).long(), minlength=40) / 4000
    assert np.abs(shares - 0.25).max() < 6.5 * math.sqrt(0.1875 / 4000)
    pairs = np.array([[k in set(batch.tolist()) for k in (3, 17)] for batch in sums.batches])
    assert abs(pairs.all(axis=1).mean() - 1 / 16) < 5.5 * math.sqrt(1 / 16 / 4000)


def test_a_rate_of_one_takes_every_row_and_two_keys_draw_apart():
    assert poisson(RunKey.from_seed(0), _plan(rate=1.0)).all()
    assert (poisson(RunKey.from_seed(0), _plan()) != poisson(RunKey.from_seed(1), _plan())).any()


def test_a_row_that_is_missing_changes_the_batch_of_its_own_block_alone():
    """1,500 rows at a rate of 1/2 in two blocks of 1,024 places; one of each block, the first and the last of all are left out."""
    plan, rows, weights = _plan(rate=0.5, max_rows=1500), _rows([1500]), torch.zeros(15)
    features, labels = torch.tensor(rows.features), torch.tensor(rows.labels)
    everybody = np.arange(0, 1500, 2)
    for gone, block in ((0, 0), (1022, 0), (1024, 1), (1498, 1)):
        sums = [Watched(), Watched()]
        training = [_training(plan, one) for one in sums]
        whole = training[0].batch_sum(weights, features, labels, everybody)
        rest = training[1].batch_sum(weights, features, labels, everybody[everybody != gone])
        changed = [len(mine) != len(theirs) for mine, theirs in zip(sums[0].batches, sums[1].batches, strict=True)]
        assert changed == [block == 0, block == 1]
        assert torch.cat(sums[0].batches).tolist() == everybody.tolist()
        assert np.linalg.norm(whole - rest) <= 1


@pytest.mark.parametrize("way", ["book-keeping", "hooks"])
def test_one_of_twenty_thousand_equal_rows_moves_the_sum_by_itself(way: str):
    """The sum is that much larger than a row: summed at once its last bits move by most of what is left to the bound, or more."""
    generator = np.random.default_rng(0)
    module = torch.nn.Sequential(torch.nn.Linear(20, 3))
    rows = torch.from_numpy(generator.standard_normal((1, 20), dtype=np.float32)).repeat(20_000, 1)
    labels, weights = torch.zeros(20_000, dtype=torch.int64), torch.from_numpy(generator.standard_normal(63, dtype=np.float32))
    plan = NoisySteps(SumGrid(1.0, 63, 400), LEAST_VARIANCE, rate=1.0, steps=1, max_rows=20_000)
    training = ExampleTraining(plan, LocalSGD(1.0), build_sums(way, module), SystemNoise())
    everybody = np.arange(20_000)
    whole = training.batch_sum(weights, rows, labels, everybody)
    assert np.linalg.norm(whole) == pytest.approx(20_000 * CLIP_WITHIN, rel=1e-4)
    for gone in (0, 19_999):
        moved = np.linalg.norm(whole - training.batch_sum(weights, rows, labels, everybody[everybody != gone]))
        assert moved == pytest.approx(CLIP_WITHIN, abs=1e-4)


def test_only_the_first_rows_up_to_the_cap_count():
    long, short = _rows([60]), _rows([60])
    short = Rows(short.features[:40], short.labels[:40], np.array([0, 40]))
    start = np.zeros(15, np.float32)
    assert (_training(_plan(), seed=3).updates(start, long, [0]) == _training(_plan(), seed=3).updates(start, short, [0])).all()


def test_an_update_leaves_with_noise_of_the_planned_size_in_it():
    """False alarm below 1e-6: 300 clients without rows, 4,500 entries of which each is one step's noise over the expected batch."""
    plan = _plan(steps=1)
    update = _training(plan).updates(np.zeros(15, np.float32), _rows([0] * 300), list(range(300))) * plan.expected_batch / plan.grid.step
    assert np.mean(update.astype(np.float64) ** 2) == pytest.approx(LEAST_VARIANCE, rel=6 * math.sqrt(2 / 4500))
    assert len(np.unique(update[:, 0])) > 290  # no two clients share it


def test_nothing_that_a_client_does_repeats_not_even_under_the_same_run_key():
    start, train_rows = np.zeros(15, np.float32), _rows([20])
    spec = ClientSpec(
        Model(kind="linear"), FEATURES, CLASSES, Algorithm(), "book-keeping", None, 0, RunKey.from_seed(0), 0, examples=_plan()
    )
    sums = [FederatedClient(spec, train_rows, None).partial_sum(Broadcast(1, start), [Chunk(np.array([0]))]) for _ in range(2)]
    assert (sums[0].total != sums[1].total).all()
    assert [one.weight for one in sums] == [1, 1]


@given(
    rows=st.integers(1, 30), seed=st.integers(0, 999), size=st.sampled_from([0.01, 1.0, 50.0]), refined=st.integers(1, 40), data=st.data()
)
@hypothesis_settings(max_examples=80)
def test_emptying_one_row_moves_the_integers_before_noise_by_no_more_than_is_accounted(rows, seed, size, refined, data):
    """For every u the rounded sums are within c + √d of each other; the mean over u of their squared distance, over 40 of them, within
    what is charged (false alarm below 1e-6: entries are independent, and of each at most a unit is left to chance)."""
    grid, table = SumGrid(1.0, 15, refined), _rows([rows], seed)
    features, labels = torch.tensor(table.features) * size, torch.tensor(table.labels)
    weights = torch.tensor(np.random.default_rng(seed).standard_normal(15), dtype=torch.float32)
    kept = torch.arange(rows) != data.draw(st.integers(0, rows - 1))
    sums = AffineSums([(FEATURES, CLASSES)])
    whole = sums.clipped_sum(weights, features, labels, CLIP_WITHIN).numpy().astype(np.float64)
    rest = sums.clipped_sum(weights, features[kept], labels[kept], CLIP_WITHIN).numpy().astype(np.float64)
    squares = []
    for u in range(40):
        moved = grid.rounded(whole, np.random.default_rng(u)) - grid.rounded(rest, np.random.default_rng(u))
        squares.append(int(moved @ moved))
    assert max(squares) <= (grid.scale + math.sqrt(15)) ** 2
    spread = (2 * grid.scale + math.sqrt(15)) / 2
    assert np.mean(squares) <= grid.sensitivity_squared + 5.5 * spread / math.sqrt(40)


def test_weights_that_are_not_finite_end_the_run_and_tell_nothing_of_the_rows():
    start = np.full(15, np.nan, np.float32)
    update = _training(_plan(), momentum=0.5).updates(start, _rows([20]), [0])
    assert np.isnan(update).all()
