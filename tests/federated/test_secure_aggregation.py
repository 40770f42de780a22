"""A run under secure aggregation: the plain path's integers, noise from its clients, charged before a share is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from qedge import train
from qedge.audit.receipt import Receipt
from qedge.config import Settings
from qedge.data.federation import Rows
from qedge.errors import BudgetExceeded, InvalidJob, InvalidPrivacy, PrivacyError, RoundFailed
from qedge.federated.client import FederatedClient
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import SumLost
from qedge.federated.guarantee import Guarantee, read_guarantee
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.planning import plan_guarantee
from qedge.federated.release import build_mechanism
from qedge.federated.run_folder import RunFolder
from qedge.federated.secure_node import Said
from qedge.federated.workers import LocalWorkers
from qedge.job import TrainingJob
from qedge.privacy.mechanisms import DiscreteGaussian, SeededNoise
from qedge.records import Records
from qedge.runs.backend import local_workers
from qedge.runs.completion import complete
from qedge.runs.preparation import prepare

Make = Callable[..., TrainingJob]
PLAIN = {"cohort": {"sampling": "uniform", "rate": None, "size": 12}, "privacy": "none", "algorithm": {"kernel": "sequential"}}
PRIVATE = {"cohort": {"sampling": "uniform", "rate": None, "size": 12}, "secure_aggregation": {}}


class Cut(Exception):
    """A coordinator stopped dead, at a point that the test chose."""


class FaultyWorkers(LocalWorkers):
    """Clients of this process, of whom some say nothing from a step of some round on; what was asked of them is kept."""

    def __init__(self, client: FederatedClient, step: str, silent: int, times: int = 1) -> None:
        super().__init__(client)
        self.at, self.silent, self.times = step, silent, times
        self.asked: list[str] = []

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        self.asked.append(name)
        if name == self.at and self.times:
            self.times -= 1
            for place in sorted(messages)[: self.silent]:
                self._secure.training.node.at_work.pop(place, None)
        return super().secure_step(name, messages, deadline_s)


def _faulty(step: str, silent: int, times: int = 1) -> Callable[[ClientSpec, Rows, Rows | None], FaultyWorkers]:
    return lambda spec, rows, test: FaultyWorkers(FederatedClient(spec, rows, test), step, silent, times)


def _weights(settings: Settings, run: str) -> np.ndarray:
    tensors = load_file(settings.home / "runs" / run / "model" / "weights.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


@pytest.mark.parametrize("secure", [{}, {"group_size": 4}, {"server": "honest-but-curious", "threshold": 0.5}, {"signatures": "ml-dsa-65"}])
def test_without_privacy_a_secure_run_ends_with_the_bits_of_the_plain_one(settings: Settings, make_job: Make, secure: dict[str, object]):
    plain = train(make_job(**PLAIN), backend="serial", settings=settings)
    kept = train(make_job(**PLAIN, secure_aggregation=secure), backend="serial", settings=settings)
    assert _weights(settings, kept.run_id).tobytes() == _weights(settings, plain.run_id).tobytes()
    receipt = Receipt.read(settings.home / "runs" / kept.run_id / "model" / "receipt.json")
    assert "the coordinator opens the sums of groups alone" in receipt.trust_model
    assert "one Ray cluster" in receipt.trust_model


@pytest.mark.parametrize("noise", ["discrete-gaussian", "skellam"])
def test_what_is_released_is_the_plain_sum_with_the_shares_of_all_its_clients(
    settings: Settings, make_job: Make, noise: str, monkeypatch: pytest.MonkeyPatch
):
    """The exact sums are those of the plain path; what is left has the variance of twelve shares. False alarm below 1e-6."""
    job = make_job(**PRIVATE, privacy={"noise": noise}, rounds=40)
    exact: list[np.ndarray] = []
    whole = FederatedClient.integers

    def integers(self: FederatedClient, broadcast, chunk):  # what the clients of a chunk add to the sum, noted on its way
        found = whole(self, broadcast, chunk)
        exact.append(found[0].sum(axis=0))
        return found

    monkeypatch.setattr(FederatedClient, "integers", integers)
    folder = prepare(job, settings)
    coordinator = Coordinator(folder, Records.open(settings.home), local_workers, lambda event: None)
    released: list[np.ndarray] = []
    append = coordinator.ahead.append
    monkeypatch.setattr(coordinator.ahead, "append", lambda release: (released.append(release.total), append(release)))
    coordinator.train()
    sums = [total for total in released if len(total)]
    assert len(sums) == 40
    assert all(total[-1] == 12 for total in sums)
    per_round = len(exact) // 40
    noise_only = np.concatenate(
        [total[:-1] - sum(exact[number * per_round : (number + 1) * per_round]) for number, total in enumerate(sums)]
    )
    guarantee = _guarantee(folder)
    assert guarantee.share is not None
    expected = 12 * guarantee.share.variance
    assert abs(noise_only.var() / expected - 1) < 5.5 * math.sqrt(2 / len(noise_only))
    assert abs(noise_only.mean()) < 5.5 * math.sqrt(expected / len(noise_only))


def test_the_receipt_names_each_adversary_and_the_ledger_is_charged_the_strongest(settings: Settings, make_job: Make):
    result = train(make_job(**PRIVATE), backend="serial", settings=settings)
    receipt = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json")
    epsilons = {one.adversary: float(one.epsilon) for one in receipt.guarantees}
    assert list(epsilons) == ["server", "colluding participants", "released model"]
    assert epsilons["released model"] < epsilons["colluding participants"] <= epsilons["server"] <= 6
    assert Records.open(settings.home).ledger.scope("wine").spent == pytest.approx(epsilons["server"])
    share = receipt.mechanism.share if receipt.mechanism else None
    assert share is not None
    assert (share.group, share.threshold, share.colluders, share.counted) == (12, 9, 3, 6)
    assert receipt.mechanism is not None
    assert receipt.mechanism.variance == 6 * share.variance


def test_the_receipt_names_the_group_that_its_noise_is_counted_in(settings: Settings, make_job: Make):
    """Of nine in groups of five and four: 4 of 5 survive and 2 may collude, of four all survive and 1 may."""
    secure = {"group_size": 5, "threshold": 0.8, "colluders": 0.25}
    cohort = {"sampling": "uniform", "rate": None, "size": 9}
    job = make_job(cohort=cohort, secure_aggregation=secure, rounds=1)
    result = train(job, backend="serial", settings=settings)
    mechanism = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json").mechanism
    assert mechanism is not None
    assert mechanism.share is not None
    assert (mechanism.share.group, mechanism.share.threshold, mechanism.share.colluders, mechanism.share.counted) == (5, 4, 2, 2)


def test_noise_is_sized_for_the_smallest_group_and_the_fewest_survivors(make_job: Make):
    one = plan_guarantee(make_job(**PRIVATE), 30, 42, None)
    split = plan_guarantee(make_job(**{**PRIVATE, "secure_aggregation": {"group_size": 7}}), 30, 42, None)
    sure = plan_guarantee(make_job(**{**PRIVATE, "secure_aggregation": {"survivors": 1.0}}), 30, 42, None)
    assert [g.honest for g in (one, split, sure)] == [6, 3, 9]
    assert [g.share.honest for g in (one, split, sure) if g.share] == [6, 3, 9]
    assert one.variance == pytest.approx(split.variance, rel=0.01)
    shares = [g.share.variance for g in (one, split, sure) if g.share]
    assert shares == pytest.approx([one.variance / 6, one.variance / 3, one.variance / 9], rel=0.01)
    assert read_guarantee(json.loads(json.dumps(one.plain()))) == one


def test_a_clipping_bound_that_follows_a_quantile_counts_within_the_same_sum(settings: Settings, make_job: Make):
    job = make_job(**PRIVATE, privacy={"clipping": {"bound": 0.5, "quantile": 0.5}})
    result = train(job, backend="serial", settings=settings)
    receipt = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json")
    assert receipt.mechanism is not None
    assert receipt.mechanism.count_weight > 0


def test_a_plan_that_does_not_fit_is_refused_as_any_other(settings: Settings, make_job: Make):
    train(make_job(**PRIVATE, rounds=2, privacy={"epsilon": 3}), backend="serial", settings=settings)
    Records.open(settings.home).ledger.set_budget("wine", epsilon=4.0, actor="officer")
    with pytest.raises(BudgetExceeded):
        train(make_job(**PRIVATE, rounds=40, privacy={"epsilon": 4}), backend="serial", settings=settings)


REFUSED = [
    ({"secure_aggregation": {"threshold": 0.5}}, InvalidPrivacy, "a threshold of 0.667"),
    ({"secure_aggregation": {"colluders": 0.9}}, InvalidPrivacy, "no threshold would do"),
    ({"secure_aggregation": {}, "cohort": {"sampling": "uniform", "rate": None, "size": 2}}, InvalidPrivacy, "a larger group"),
    ({"secure_aggregation": {"group_size": 2}}, InvalidJob, "greater than or equal to 3"),
    ({"secure_aggregation": {"survivors": 0.5}}, InvalidJob, "at least 'threshold'"),
    ({"secure_aggregation": {"server": "friendly"}}, InvalidJob, "malicious"),
    ({"cohort": {"sampling": "poisson", "rate": 0.5, "size": None}}, PrivacyError, "'uniform', with 'size'"),
    ({"cohort": {"sampling": "cyclic", "rate": None, "size": None, "period": 3}}, PrivacyError, "accepted: 'uniform'"),
    ({"privacy": {"noise": "central"}}, PrivacyError, "discrete-gaussian, skellam"),
    ({"secure_aggregation": None, "privacy": {"noise": "skellam"}}, PrivacyError, "'noise: central'"),
    ({"privacy": {"noise": "laplace"}}, InvalidJob, "discrete-gaussian"),
    ({"data": {"evaluation": "charged"}}, PrivacyError, "'evaluation: public'"),
    ({"privacy": "none", "algorithm": {"kind": "scaffold"}}, PrivacyError, "control variates"),
    ({"privacy": "none", "algorithm": {"kind": "fedbuff", "buffer": 3}}, PrivacyError, "no cohort"),
    ({"privacy": "none", "personalisation": {}}, PrivacyError, "client by client"),
]


@pytest.mark.parametrize(("changes", "kind", "says"), REFUSED)
def test_what_is_not_honest_is_refused_with_what_would_be(make_job: Make, changes: dict[str, object], kind: type[Exception], says: str):
    with pytest.raises(kind, match=says):
        make_job(**{**PRIVATE, **changes})


@pytest.mark.parametrize("step", ["seal", "mask", "agree", "reveal"])
def test_a_run_goes_on_with_those_who_are_left_at_any_step(settings: Settings, make_job: Make, step: str):
    folder = prepare(make_job(**PRIVATE), settings)
    coordinator = Coordinator(folder, Records.open(settings.home), _faulty(step, 3), lambda event: None)
    complete(coordinator, coordinator.train(), lambda event: None)
    assert sorted(Records.open(settings.home).ledger.releases(folder.run)) == [1, 2, 3, 4]


def test_a_round_that_is_lost_once_shares_were_asked_for_is_charged_and_the_run_goes_on(settings: Settings, make_job: Make):
    folder, events = prepare(make_job(**PRIVATE), settings), []
    coordinator = Coordinator(folder, Records.open(settings.home), _faulty("reveal", 8), events.append)
    state = coordinator.train()
    assert [event.round for event in events if isinstance(event, SumLost)] == [1]
    assert state.round == 4
    ledger = Records.open(settings.home).ledger
    assert sorted(ledger.releases(folder.run)) == [1, 2, 3, 4]
    assert ledger.scope("wine").spent == pytest.approx(_guarantee(folder).epsilon(4))


def test_a_round_that_too_few_come_through_is_not_charged(settings: Settings, make_job: Make):
    folder = prepare(make_job(**PRIVATE), settings)
    coordinator = Coordinator(folder, Records.open(settings.home), _faulty("mask", 8, times=3), lambda event: None)
    with pytest.raises(RoundFailed, match="in 3 attempts"):
        coordinator.train()
    assert Records.open(settings.home).ledger.releases(folder.run) == {}
    again = Coordinator(folder, Records.open(settings.home), local_workers, lambda event: None)
    assert again.train().round == 4


@pytest.mark.parametrize("where", ["before the charge", "between charge and shares", "before the sum is on disk"])
def test_a_coordinator_that_is_cut_off_anywhere_charges_each_round_once(
    settings: Settings, make_job: Make, where: str, monkeypatch: pytest.MonkeyPatch
):
    folder, cut = prepare(make_job(**PRIVATE), settings), []
    coordinator = Coordinator(folder, Records.open(settings.home), local_workers, lambda event: None)
    charge, append, step = coordinator._charge, coordinator.ahead.append, coordinator.workers.secure_step

    def stop_at(place: str) -> None:
        if place == where and not cut:
            cut.append(place)
            raise Cut

    monkeypatch.setattr(coordinator, "_charge", lambda release: (release.round == 2 and stop_at("before the charge"), charge(release)))
    monkeypatch.setattr(
        coordinator.ahead,
        "append",
        lambda release: (release.round == 2 and len(release.total) and stop_at("before the sum is on disk"), append(release)),
    )

    def secure_step(name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        if name == "reveal" and len(coordinator.records.ledger.releases(folder.run)) == 2:
            stop_at("between charge and shares")
        return step(name, messages, deadline_s)

    monkeypatch.setattr(coordinator.workers, "secure_step", secure_step)
    with pytest.raises(Cut):
        coordinator.train()
    charged = dict(Records.open(settings.home).ledger.releases(folder.run))
    assert set(charged) == ({1} if where == "before the charge" else {1, 2})
    again = Coordinator(folder, Records.open(settings.home), local_workers, lambda event: None)
    assert again.train().round == 4
    after = Records.open(settings.home).ledger.releases(folder.run)
    assert sorted(after) == [1, 2, 3, 4]
    assert {number: after[number] for number in charged} == charged


def test_the_clients_of_a_run_are_in_no_sum_that_goes_by_another_run_or_past_its_last_round(settings: Settings, make_job: Make):
    coordinator = Coordinator(prepare(make_job(**PRIVATE), settings), Records.open(settings.home), local_workers, lambda event: None)
    state, charged = coordinator._restore(), list[str]()
    assert coordinator.secure is not None
    for secure, number in ((replace(coordinator.secure, run="other"), 1), (coordinator.secure, coordinator.job.rounds + 1)):
        broadcast = Broadcast(number, state.weights)
        chunks = [Chunk(clients) for clients in coordinator.cohorts.of(broadcast)]
        with pytest.raises(RoundFailed, match=r"a client said: .* this client takes part in"):
            secure.of_round(broadcast, chunks, coordinator.workers, 60.0, charged.append)
    assert charged == []


def test_the_released_sum_is_empty_and_moves_nothing_where_it_was_lost(make_job: Make):
    job = make_job(**PRIVATE, privacy={"clipping": {"bound": 0.5, "quantile": 0.5}})
    guarantee = plan_guarantee(job, 30, 42, None)
    assert job.privacy is not None
    mechanism = build_mechanism(guarantee, job.privacy.clipping, {})
    assert not mechanism.mean(np.empty(0, dtype=np.int64), None, 12.0).any()
    assert mechanism.bound == 0.5
    released = np.append(DiscreteGaussian(4).sample(43, SeededNoise(3)), 11)
    assert mechanism.mean(released, None, 12.0).shape == (42,)
    assert mechanism.bound != 0.5


def _guarantee(folder: RunFolder) -> Guarantee:
    return read_guarantee((folder.read("record.json") or {})["guarantee"])


def test_a_cohort_that_shrank_below_what_hides_anybody_ends_the_round_with_its_reason(settings: Settings, make_job: Make):
    """Clients whose code raises take part with zeros; a cohort of whom too few are left is a failure by name, not a sum of one."""
    job = make_job(**{**PLAIN, "cohort": {"sampling": "uniform", "rate": None, "size": 3}}, secure_aggregation={})
    folder, heard = prepare(job, settings), []
    coordinator = Coordinator(folder, Records.open(settings.home), _faulty("seal", 1, times=3), heard.append)
    with pytest.raises(RoundFailed, match="2 of 3 members came through step 'sealed', it takes 3"):
        coordinator.train()
    assert not any(isinstance(event, SumLost) for event in heard)
