"""What a private round releases: adaptive clipping by hand, correlated noise, and mechanisms that go on where they stood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge import train
from qedge.audit.receipt import Receipt
from qedge.config import Settings
from qedge.data.federation import Rows
from qedge.errors import InvalidJob, InvalidPrivacy, PrivacyError
from qedge.federated.client import FederatedClient
from qedge.federated.events import RoundFinished
from qedge.federated.guarantee import read_guarantee
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.planning import plan_guarantee
from qedge.federated.randomness import RunKey
from qedge.federated.release import AdaptiveClipping, build_mechanism
from qedge.federated.selection.drawing import draw_cohort
from qedge.job import Algorithm, Clipping, Cohort, Model, TrainingJob
from qedge.privacy import banded
from qedge.privacy.accounting import sampled_gaussian
from qedge.privacy.banded import BandedStrategy
from qedge.privacy.clipping import Grid
from qedge.privacy.mechanisms import MAX_VARIANCE, SeededNoise
from qedge.privacy.noise_share import NoiseShare
from qedge.records import Records

Make = Callable[..., TrainingJob]
CYCLIC = {"sampling": "cyclic", "period": 3, "rate": None}
QUANTILE = {"clipping": {"bound": 0.5, "quantile": 0.5}}


def test_the_bound_moves_by_the_papers_rule_by_hand(make_job: Make):
    guarantee = plan_guarantee(make_job(privacy=QUANTILE), 30, 4, None)
    clipping = AdaptiveClipping(guarantee, quantile=0.5, learning_rate=0.2, kept={})
    step, weight = Grid(0.5, 4).step, guarantee.count_weight
    # Of 15 expected clients, 12 within and 3 not: b̃ = 1/2 + 9/30 = 0.8, C = 0.5 exp(-0.2 (0.8 - 0.5)).
    mean = clipping.mean(np.array([30, -15, 0, 45, 9 * weight]), None, 15.0)
    np.testing.assert_allclose(mean, np.array([2.0, -1.0, 0.0, 3.0]) * step)
    assert clipping.bound == pytest.approx(0.5 * math.exp(-0.06))
    # The next sum is in units of the new bound's grid.
    assert clipping.mean(np.array([15, 0, 0, 0, 0]), None, 15.0)[0] == pytest.approx(Grid(clipping.arrays()["bound"][0], 4).step, rel=0.1)


def test_without_noise_the_bound_comes_to_the_quantile_of_the_norms(make_job: Make):
    guarantee = plan_guarantee(make_job(privacy=QUANTILE), 30, 1, None)
    clipping = AdaptiveClipping(guarantee, quantile=0.7, learning_rate=0.2, kept={})
    norms = np.random.default_rng(0).lognormal(2.0, 0.7, 1001)
    for _ in range(300):
        within = np.where(norms <= clipping.bound, 1, -1).sum()
        clipping.mean(np.array([0, guarantee.count_weight * int(within)]), None, float(len(norms)))
    assert clipping.bound == pytest.approx(np.quantile(norms, 0.7), rel=0.02)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=2, max_size=5),
    bound=st.floats(1e-3, 10),
    rate=st.sampled_from([0.01, 0.5, 1e30]),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_emptying_one_client_moves_what_is_noised_by_no_more_than_was_accounted(sizes, bound, rate, seed, data):
    weight, params, generator = 7, 6, np.random.default_rng(seed)
    features = generator.standard_normal((sum(sizes), 2), dtype=np.float32)
    labels = generator.integers(0, 2, sum(sizes))
    spec = ClientSpec(
        model=Model(kind="linear"),
        features=2,
        classes=2,
        algorithm=Algorithm(learning_rate=rate, batch_size=None),
        kernel="sequential",
        grid=Grid(0.5, params),
        count_weight=weight,
        key=RunKey.from_seed(seed),
        seed=seed,
    )
    emptied = data.draw(st.integers(0, len(sizes) - 1))
    offsets = np.cumsum([0, *sizes])
    kept = np.ones(sum(sizes), dtype=bool)
    kept[offsets[emptied] : offsets[emptied + 1]] = False
    fewer = np.array([0 if k == emptied else size for k, size in enumerate(sizes)])

    def released(rows: Rows) -> np.ndarray:
        broadcast = Broadcast(3, np.zeros(params, dtype=np.float32), bound=bound)
        return FederatedClient(spec, rows, None).partial_sum(broadcast, [Chunk(np.arange(len(sizes)))]).total

    whole = released(Rows(features, labels, offsets))
    without = released(Rows(features[kept], labels[kept], np.cumsum([0, *fewer])))
    moved = int(np.square(whole - without).sum())
    assert len(whole) == params + 1
    assert moved <= spec.grid.sensitivity_squared + weight**2
    assert abs(int(whole[-1] - without[-1])) in (0, weight)
    assert (sizes[emptied] == 0) <= (moved == 0)


@pytest.mark.parametrize("sampling", [{}, {"sampling": "uniform", "rate": None, "size": 10}])
def test_the_count_is_part_of_the_sensitivity_and_no_more_of_it_than_a_twentieth(make_job: Make, sampling):
    guarantee = plan_guarantee(make_job(privacy=QUANTILE, cohort=sampling), 30, 100, None)
    times = 4 if sampling else 1
    assert guarantee.sensitivity_squared == times * (guarantee.grid.sensitivity_squared + guarantee.count_weight**2)
    assert guarantee.per_round == sampled_gaussian(guarantee.sensitivity_squared, guarantee.variance, guarantee.rate)
    assert guarantee.count_weight**2 <= guarantee.grid.sensitivity_squared / 20
    assert guarantee.epsilon(4) <= 6
    assert read_guarantee(guarantee.plain()) == guarantee


def test_of_a_large_cohort_the_noise_on_the_count_is_a_twentieth(make_job: Make):
    guarantee = plan_guarantee(make_job(privacy=QUANTILE | {"delta": 1e-4}, cohort={"rate": 0.1}), 4000, 10_000, None)
    assert math.sqrt(guarantee.variance) / (2 * guarantee.count_weight) == pytest.approx(400 / 20, rel=0.05)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.integers(1, 60), period=st.integers(2, 12), epsilon=st.floats(0.5, 20))
def test_clients_that_take_turns_are_charged_for_the_whole_run_and_never_less_than_for_a_part_of_it(
    make_job: Make, rounds, period, epsilon
):
    job = make_job(rounds=rounds, cohort=CYCLIC | {"period": period}, privacy={"epsilon": epsilon, "delta": 1e-3})
    guarantee = plan_guarantee(job, 100, 50, None)
    factor = banded.sensitivity_squared(BandedStrategy(guarantee.strategy), rounds, period)
    whole = sampled_gaussian(guarantee.grid.sensitivity_squared * factor, guarantee.variance, 1.0)
    charged = guarantee.cost(rounds, evaluated=False)
    assert all(mine >= true for mine, true in zip(charged.nanos, whole.nanos, strict=True))
    spent = [guarantee.epsilon(number) for number in range(rounds + 1)]
    assert spent == sorted(spent)
    assert 0.9 * epsilon <= spent[-1] <= epsilon
    assert guarantee.roster_epsilon() <= spent[-1] * (1 + 1e-6) + 1e-6
    assert read_guarantee(guarantee.plain()) == guarantee


@hypothesis_settings(max_examples=40, deadline=None)
@given(clients=st.integers(2, 60), period=st.integers(2, 12), seed=st.integers(0, 99))
def test_nobody_takes_part_twice_within_a_period_and_everybody_once(clients, period, seed):
    period = min(period, clients)
    cohort, key = Cohort(sampling="cyclic", period=period), RunKey.from_seed(seed)
    rounds = [draw_cohort(cohort, clients, key, number) for number in range(1, 2 * period + 1)]
    assert sorted(np.concatenate(rounds[:period]).tolist()) == list(range(clients))
    assert all(first.tolist() == second.tolist() for first, second in zip(rounds[:period], rounds[period:], strict=True))


@pytest.mark.parametrize("changes", [{"privacy": QUANTILE}, {"cohort": CYCLIC}, {}])
@pytest.mark.parametrize("cut", [0, 1, 2, 5])
def test_a_mechanism_that_goes_on_from_a_checkpoint_and_the_records_since_says_the_same(make_job: Make, changes, cut):
    job = make_job(rounds=8, **changes)
    guarantee, clipping = plan_guarantee(job, 30, 5, None), job.privacy.clipping
    generator, noise = np.random.default_rng(0), SeededNoise(1)
    mechanism, kept = build_mechanism(guarantee, clipping, {}), {}
    told, records = [], []
    for number in range(8):
        if number == cut:
            kept, records = mechanism.arrays(), []
        exact = generator.integers(-1000, 1000, 5 + bool(guarantee.count_weight))
        released = mechanism.noised(exact, noise)
        records.append((released, mechanism.kept(exact)))
        told.append(mechanism.mean(*records[-1], 10.0))
    again = build_mechanism(guarantee, clipping, kept)
    assert [again.mean(*record, 10.0).tolist() for record in records] == [mean.tolist() for mean in told[cut:]]
    assert again.bound == mechanism.bound
    assert {name: array.tolist() for name, array in again.arrays().items()} == {n: a.tolist() for n, a in mechanism.arrays().items()}


def test_sums_of_correlated_noise_stay_smaller_than_of_independent_noise_of_the_same_cost(make_job: Make):
    """2000 coordinates, 60 rounds: the mean squared error of the last sums, which 4 relative deviations would need a chance of 1e-6."""
    job = make_job(rounds=60, cohort=CYCLIC | {"period": 10})
    guarantee = plan_guarantee(job, 30, 2000, None)
    mechanism, noise = build_mechanism(guarantee, job.privacy.clipping, {}), SeededNoise(3)
    total, squares = np.zeros(2000), []
    for _ in range(60):
        zero = np.zeros(2000, dtype=np.int64)
        total += mechanism.mean(mechanism.noised(zero, noise), zero, 1.0) / guarantee.grid.step
        squares.append(float(np.square(total).mean()))
    sensitivity = math.sqrt(guarantee.grid.sensitivity_squared)
    measured = math.sqrt(np.mean(squares)) / guarantee.noise_multiplier / sensitivity
    independent = banded.error(banded.IDENTITY, 60, 10)
    assert measured == pytest.approx(banded.error(BandedStrategy(guarantee.strategy), 60, 10), rel=0.1)
    assert measured < 0.55 * independent


@pytest.mark.parametrize("changes", [{"privacy": QUANTILE}, {"cohort": CYCLIC}])
@pytest.mark.parametrize("at", [1, 3])
def test_a_run_that_was_cut_off_is_charged_once_a_round_and_goes_on(settings: Settings, make_job: Make, changes, at):
    class Cut(Exception):
        pass

    def cut(event: object) -> None:
        if isinstance(event, RoundFinished) and event.round == at:
            raise Cut

    job = make_job(rounds=6, **changes)
    with pytest.raises(Cut):
        train(job, backend="serial", settings=settings, on_event=cut)
    (name,) = {path.name for path in (settings.home / "runs").iterdir()}
    result = train(resume=name, backend="serial", settings=settings)
    ledger = Records.open(settings.home).ledger
    assert sorted(ledger.releases(name)) == [1, 2, 3, 4, 5, 6]
    assert ledger.scope("wine").spent == pytest.approx(result.epsilon, rel=1e-6)
    assert result.epsilon <= 6
    receipt = Receipt.read(settings.home / "runs" / name / "model" / "receipt.json")
    assert receipt.mechanism is not None
    assert bool(receipt.mechanism.strategy) == ("cohort" in changes)
    last = (settings.home / "runs" / result.run_id / "checkpoint").read_bytes()
    assert b"beside.exact" not in last, "exact sums that no round needs any more"
    assert bool(receipt.mechanism.count_weight) == ("privacy" in changes)


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_a_plan_of_shares_that_is_accepted_can_be_carried_out_however_much_noise_they_come_to(make_job: Make, quantile: float | None):
    """A million parameters and a thousand rounds, say: a share of less than 10^12, and more in the sum than any one table is made for."""
    job = make_job(
        cohort={"sampling": "uniform", "rate": None, "size": 20},
        privacy={"clipping": {"bound": 1.0, "quantile": quantile}},
        secure_aggregation={},
    )
    planned = plan_guarantee(job, 30, 50, None)
    share = NoiseShare("discrete-gaussian", MAX_VARIANCE)
    guarantee = replace(planned, share=share, variance=share.variance * planned.honest)
    mechanism = build_mechanism(guarantee, job.privacy.clipping, {})
    released = np.zeros(guarantee.length + 1, np.int64)
    released[:2], released[-1] = 400, 40
    mean = mechanism.mean(released, None, 20.0)
    assert mean[:2] == pytest.approx(10 * guarantee.grid.step)
    assert not mean[2:].any()


def test_the_pattern_of_turns_stands_in_the_ledgers_plan(settings: Settings, make_job: Make):
    result = train(make_job(rounds=4, cohort=CYCLIC), backend="serial", settings=settings)
    plan = Records.open(settings.home).ledger.plan(result.run_id)
    assert plan.participation.startswith("cyclic separation=3 coefficients=")


def test_what_does_not_go_together_is_refused(settings: Settings, make_job: Make):
    with pytest.raises(PrivacyError, match="quantile"):
        make_job(cohort=CYCLIC, privacy=QUANTILE)
    with pytest.raises(InvalidPrivacy, match="quantile"):
        Clipping(bound=0.5, learning_rate=0.3)
    with pytest.raises(InvalidPrivacy, match=r"privacy\.clipping\.quantile"):
        make_job(privacy={"clipping": {"bound": 0.5, "quantile": 1.5}})
    for changes in ({"period": None}, {"size": 3}, {"sampling": "poisson", "rate": 0.5}):
        with pytest.raises(InvalidJob, match="cyclic"):
            make_job(cohort=CYCLIC | changes)
    with pytest.raises(InvalidJob, match="30 clients"):
        train(make_job(cohort=CYCLIC | {"period": 31}), backend="serial", settings=settings)
