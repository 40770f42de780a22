"""Buffered asynchronous training: what a step is made of in whatever order clients are done, and what survives slow and dying ones."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from actors.cluster import ClusterRecord, start_head, stop_head
from qedge import train
from qedge.algorithms import fedbuff
from qedge.algorithms.state import ServerState, init
from qedge.config import Settings, load
from qedge.data.federation import Federation
from qedge.data.federation import load as load_data
from qedge.errors import Diverged, InvalidJob, PrivacyError, RoundFailed
from qedge.federated import coordinator as coordinator_module
from qedge.federated.buffered import BufferedTraining
from qedge.federated.client import FederatedClient
from qedge.federated.cohorts import Cohorts
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import ClientsFailed, Event, Phase, RoundFinished
from qedge.federated.messages import Broadcast, Chunk, ClientSpec, PartialSum
from qedge.federated.profile import Profile
from qedge.federated.randomness import RunKey
from qedge.federated.run_folder import RunFolder
from qedge.federated.selection.drawing import draw_cohort
from qedge.federated.workers import LocalWorkers, make_chunks
from qedge.job import Cohort, TrainingJob
from qedge.kernels.batches import ClientBatches, LocalSGD
from qedge.kernels.sequential import SequentialKernel
from qedge.models import build, parameters_vector
from qedge.records import Records
from qedge.runs.backend import local_workers
from qedge.runs.preparation import prepare
from qedge.storage import write_atomically
from tests.endpoint import free_port

Make = Callable[..., TrainingJob]
PICKY = {"loop": "tests.federated.own_code:picky", "kernel": "auto"}


def _plain(size: int) -> dict[str, object]:
    return {"privacy": "none", "cohort": {"sampling": "uniform", "size": size, "rate": None}}


def _fedbuff(buffer: int, **more: object) -> dict[str, object]:
    return {"kind": "fedbuff", "buffer": buffer, **more}


@dataclass
class Run:
    """What a coordinator came to, and what it told."""

    state: ServerState
    heard: list[Event]
    metrics: dict[int, dict[str, float]]


def _run(job: TrainingJob, settings: Settings, folder: RunFolder | None = None) -> Run:
    """A job's rounds in this process, from where its folder stands; nothing is exported or published."""
    folder, heard = folder or prepare(job, settings), []
    state = Coordinator(folder, Records.open(settings.home), local_workers, heard.append).train()
    return Run(state, heard, folder.metrics_by_round())


class WatchedWorkers(LocalWorkers):
    """Trains what was sent in the order that `choose` picks, and notes who trains at once."""

    def __init__(self, client: FederatedClient, choose: Callable[[list[tuple[Broadcast, Chunk]]], int]) -> None:
        super().__init__(client)
        self.choose = choose
        self.most = 0
        self.done: list[tuple[int, Chunk, PartialSum]] = []

    def send(self, broadcast: Broadcast, chunks: Sequence[Chunk]) -> None:
        super().send(broadcast, chunks)
        training = [client for _, chunk in self.sent for client in chunk.clients.tolist()]
        assert len(training) == len(set(training)), "a client trains twice at once"
        self.most = max(self.most, len(training))

    def next_sum(self, deadline_s: float) -> tuple[int, Chunk, PartialSum]:
        self.sent.rotate(-self.choose(list(self.sent)))
        answer = super().next_sum(deadline_s)
        self.done.append(answer)
        return answer


class Loop:
    """`BufferedTraining` over real clients, and the server's step, without a home."""

    def __init__(self, job: TrainingJob, choose: Callable[[list[tuple[Broadcast, Chunk]]], int]) -> None:
        self.job, self.federation, self.key = job, load_data(job.data, job.seed), RunKey.from_seed(job.seed)
        schema = self.federation.schema
        shape = len(schema.features), len(schema.labels)
        spec = ClientSpec(job.model, *shape, job.algorithm, "sequential", None, 0, self.key.derive("clients"), job.seed)
        self.workers = WatchedWorkers(FederatedClient(spec, self.federation.train, None), choose)
        self.cohorts = Cohorts(job, self.federation, self.key, 16, self.workers)
        self.told: list[Event] = []
        self.training = BufferedTraining(self.cohorts, Profile(), self.told.append, "run")
        self.module = build(job.model, *shape, job.seed)
        self.state = init(parameters_vector(self.module))

    def step(self) -> ServerState:
        self.workers.done.clear()
        self.state = fedbuff.server_update(self.state, self.training.mean(self.state), self.job.algorithm)
        return self.state

    def alone(self, client: int, weights: np.ndarray) -> tuple[int, np.ndarray]:
        """A client's rows, and its update after one step on all of them, [params] float64, by the sequential kernel itself."""
        features, labels = self.federation.train.of(client)
        batch = ClientBatches(features, labels, np.arange(len(labels))[None])
        sgd = LocalSGD(self.job.algorithm.learning_rate)
        return len(labels), SequentialKernel(self.module, sgd).updates(weights, [batch]).values[0].astype(np.float64)


def test_a_step_of_a_fresh_and_a_stale_client_by_hand(make_job: Make):
    """Three train at once and two make a step: the third comes in one step late, beside one that began just now."""
    job = make_job(
        **_plain(3), algorithm=_fedbuff(2, local_epochs=1, batch_size=None), data={"partition": {"dirichlet": 1.0, "clients": 8}}
    )
    loop = Loop(job, lambda sent: 0)
    rows = np.diff(loop.federation.train.offsets)

    def drawn(number: int, size: int, busy: Sequence[int]) -> list[int]:
        may = np.array([client not in busy for client in range(8)])
        cohort = draw_cohort(Cohort(sampling="uniform", size=size), 8, loop.key, number, may)
        return [int(chunk[0]) for chunk in make_chunks(cohort, rows, 1)]

    a, b, late = drawn(1, 3, [])
    fresh, _ = drawn(2, 2, [late])
    start = loop.state.weights
    (rows_a, update_a), (rows_b, update_b) = loop.alone(a, start), loop.alone(b, start)
    first = start + (rows_a * update_a + rows_b * update_b) / (rows_a + rows_b)
    np.testing.assert_allclose(loop.step().weights, first, atol=1e-6)
    assert loop.training.staleness == {"staleness_mean": 0.0, "staleness_max": 0.0}
    (rows_late, update_late), (rows_fresh, update_fresh) = loop.alone(late, start), loop.alone(fresh, first.astype(np.float32))
    second = first + (rows_late * update_late / np.sqrt(2) + rows_fresh * update_fresh) / (rows_late + rows_fresh)
    np.testing.assert_allclose(loop.step().weights, second, atol=1e-6)
    assert loop.training.staleness == {"staleness_mean": 0.5, "staleness_max": 1.0}


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 14),
    part=st.floats(0.01, 1),
    order=st.lists(st.integers(0, 30), min_size=1, max_size=40),
)
def test_in_whatever_order_clients_are_done_each_counts_once_by_its_rows_and_its_staleness(size: int, part: float, order: list[int]):
    buffer = max(1, round(part * size))
    job = TrainingJob.parse(
        {
            "name": "tiny",
            "data": {"source": "wine", "partition": {"dirichlet": 1.0, "clients": 15}, "test": 0.3},
            "model": {"kind": "linear"},
            "algorithm": {"kind": "fedbuff", "buffer": buffer, "kernel": "sequential"},
            "cohort": {"sampling": "uniform", "size": size},
            "privacy": "none",
            "rounds": 6,
        }
    )
    picks = iter(order * 100)
    loop = Loop(job, lambda sent: next(picks) % len(sent))
    rows = np.diff(loop.federation.train.offsets)
    for number in range(1, 7):
        before = loop.state.weights
        after = loop.step().weights
        done = loop.workers.done
        updates = sum(int((rows[chunk.clients] > 0).sum()) for _, chunk, _ in done)
        assert updates >= buffer or not loop.training.training.any()
        assert updates < buffer + loop.training.chunk
        assert set(np.flatnonzero(loop.training.training)) == {int(one) for _, chunk in loop.workers.sent for one in chunk.clients}
        weight = sum(partial.weight for *_, partial in done)
        assert weight == sum(int(rows[chunk.clients].sum()) for _, chunk, _ in done)
        total = sum(partial.total * 2.0**-30 / np.sqrt(1 + number - begun) for begun, _, partial in done)
        np.testing.assert_allclose(after, before + total / (weight or 1), atol=1e-6)
    assert loop.workers.most == size


def test_a_client_that_is_never_done_delays_nobody_and_counts_less_when_it_is(make_job: Make):
    loop = Loop(make_job(**_plain(10), algorithm=_fedbuff(4, kernel="sequential")), lambda sent: 0)
    loop.step()
    slow = loop.workers.sent[-1]
    loop.workers.choose = lambda sent: next((place for place, one in enumerate(sent) if one is not slow), 0)
    for _ in range(30):
        loop.step()
    assert loop.state.round == 31
    assert slow in loop.workers.sent
    loop.workers.choose = lambda sent: next((place for place, one in enumerate(sent) if one is slow), 0)
    loop.step()
    assert loop.training.staleness["staleness_max"] == 31.0


@pytest.mark.parametrize("failing", [False, True])
def test_with_a_buffer_as_large_as_the_cohort_it_is_fedavg_bit_for_bit(settings: Settings, make_job: Make, failing: bool):
    more = {"server_momentum": 0.5, **({**PICKY, "options": {"most": 7}} if failing else {})}
    ours = _run(make_job(**_plain(13), algorithm=_fedbuff(13, **more), rounds=5), settings)
    theirs = _run(make_job(**_plain(13), algorithm={"kind": "fedavg", **more}, rounds=5), settings)
    assert ours.state.weights.tobytes() == theirs.state.weights.tobytes()
    told = [[(one.round, one.reasons, one.quarantined) for one in run.heard if isinstance(one, ClientsFailed)] for run in (ours, theirs)]
    assert told[0] == told[1]
    assert bool(told[0]) is failing
    assert {metrics["staleness_max"] for metrics in ours.metrics.values()} == {0.0}
    assert all("staleness_max" not in metrics for metrics in theirs.metrics.values())


def test_it_learns_from_stale_clients_and_says_how_stale(settings: Settings, make_job: Make):
    heard: list[Event] = []
    result = train(make_job(**_plain(12), algorithm=_fedbuff(4), rounds=60), backend="serial", settings=settings, on_event=heard.append)
    assert result.accuracy is not None
    assert result.accuracy > 0.8
    metrics = list(RunFolder.open(settings.home, result.run_id).metrics_by_round().values())
    assert [event.staleness for event in heard if isinstance(event, RoundFinished)] == [one["staleness_mean"] for one in metrics]
    # First come first: of twelve that train, a third is new at each step and comes in two steps later.
    assert metrics[-1]["staleness_mean"] == pytest.approx(2, abs=0.5)
    assert all(one["staleness_max"] >= one["staleness_mean"] for one in metrics)
    assert {"sampling", "train", "step", "evaluate"} <= result.profile.keys()


def test_a_serial_run_repeats_bit_for_bit(settings: Settings, make_job: Make):
    job = make_job(**_plain(12), algorithm=_fedbuff(5), rounds=12)
    assert _run(job, settings).state.weights.tobytes() == _run(job, settings).state.weights.tobytes()


def test_a_run_that_was_cut_off_goes_on_with_a_full_cohort_and_no_round_lost_or_double(monkeypatch, settings: Settings, make_job: Make):
    monkeypatch.setattr(coordinator_module, "CHECKPOINT_EVERY_S", 0.0)
    job = make_job(**_plain(12), algorithm=_fedbuff(4), rounds=9)
    folder = prepare(job, settings)

    class Cut(Exception):
        pass

    def cut(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 6:  # after five checkpoints, before the sixth
            raise Cut

    with pytest.raises(Cut):
        Coordinator(folder, Records.open(settings.home), local_workers, cut).train()
    again = _run(job, settings, folder)
    finished = [event for event in again.heard if isinstance(event, RoundFinished)]
    assert [(event.round, event.staleness) for event in finished[:1]] == [(6, 0.0)]
    assert [event.round for event in finished] == [6, 7, 8, 9]
    assert [json.loads(line)["round"] for line in folder.metrics.read_text().splitlines()] == list(range(1, 10))
    assert again.state.round == 9


def test_clients_that_raise_fill_no_buffer_and_are_drawn_no_more_after_three_rounds(settings: Settings, make_job: Make):
    run = _run(make_job(**_plain(12), algorithm=_fedbuff(3, **PICKY, options={"most": 4}), rounds=40), settings)
    failed = [event for event in run.heard if isinstance(event, ClientsFailed)]
    times = Counter(client for event in failed for client in event.reasons)
    assert set(times.values()) == {3}
    assert {client for event in failed for client in event.quarantined} == times.keys()
    assert run.state.round == 40


def test_everybody_raising_ends_the_run_by_name(settings: Settings, make_job: Make):
    with pytest.raises(RoundFailed, match=r"all \d+ clients that hold rows failed; client 'client-\d+': .*too many"):
        _run(make_job(**_plain(12), algorithm=_fedbuff(3, **PICKY, options={"most": 0})), settings)


def test_a_model_that_diverges_ends_the_run(settings: Settings, make_job: Make):
    with pytest.raises(Diverged):
        _run(make_job(**_plain(12), algorithm=_fedbuff(4, learning_rate=1e30), rounds=20), settings)


def test_it_is_refused_under_privacy(make_job: Make):
    with pytest.raises(PrivacyError, match=r"fedbuff.*own accounting.*accepted: fedadagrad, .*privacy: none"):
        make_job(algorithm=_fedbuff(4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algorithm": {"buffer": None}}, "go together; given: fedbuff, None"),
        ({"algorithm": {"kind": "fedavg"}}, "go together; given: fedavg, 4"),
        ({"algorithm": _fedbuff(0)}, r"algorithm\.buffer: .*greater than or equal to 1"),
        ({"algorithm": _fedbuff(True)}, "truth values"),
        ({"algorithm": _fedbuff(13)}, "algorithm.buffer is 13; accepted: at most 'cohort.size', 12"),
        ({"cohort": {"sampling": "poisson", "rate": 0.5, "size": None}}, "not by 'poisson'; accepted: 'sampling: uniform'"),
        ({"cohort": {"sampling": "cyclic", "period": 3, "size": None}}, "not by 'cyclic'"),
        ({"cohort": {"sampling": "oort"}}, "not by 'oort'"),
        ({"cohort": {"sampling": "power-of-choice", "candidates": 20}}, "not by 'power-of-choice'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(make_job: Make, changes: dict[str, dict[str, object]], says: str):
    whole = {**_plain(12), "algorithm": _fedbuff(4)}
    with pytest.raises(InvalidJob, match=says):
        make_job(**{key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value for key, value in whole.items()})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, ClusterRecord]]:
    """A Ray of two workers of this module's own."""
    small = {"cpus": 2, "object_store_bytes": 100 * 2**20}
    settings = load(environ={}, home=tmp_path_factory.mktemp("ray") / "home", serve={"port": free_port()}, cluster=small)
    record = start_head(settings)
    try:
        yield settings, record
    finally:
        stop_head(settings)


def _most_rows(job: TrainingJob) -> int:
    federation: Federation = load_data(job.data, job.seed)
    rows = np.sort(np.diff(federation.train.offsets))
    assert rows[-1] > rows[-2]
    return int(rows[-1])


@pytest.mark.slow
def test_a_run_ends_before_its_slow_client_is_done_once(running, make_job: Make):
    settings, _record = running
    busy_s, began = 90.0, []
    loop = {"loop": "tests.federated.slow_code:slow", "options": {"rows": _most_rows(make_job()), "seconds": busy_s}, "kernel": "auto"}
    job = make_job(**_plain(30), algorithm=_fedbuff(4, **loop), rounds=30)

    def hear(event: Event) -> None:
        if isinstance(event, Phase) and event.name == "training":
            began.append(time.monotonic())

    assert train(job, backend="ray", settings=settings, on_event=hear).rounds == 30
    assert time.monotonic() - began[0] < busy_s


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_what_an_actor_had_that_is_killed_or_hangs_is_run_by_another_and_no_step_is_lost(running, make_job: Make, tmp_path: Path, how: str):
    settings, _record = running
    options = {"folder": str(tmp_path), "seconds": 0.01}
    loop = {"loop": "tests.federated.slow_code:slow_until_replaced", "options": options, "kernel": "auto"}
    # Longer than a process that was just started takes over its first clients on a busy machine, which would be late too.
    cohort = {**_plain(12)["cohort"], "deadline_s": 8}
    # Four clients a step: while one actor is left alone, 32 s at least until the last step.
    job = make_job(privacy="none", cohort=cohort, algorithm=_fedbuff(4, **loop), rounds=800)
    hurt: list[psutil.Process] = []
    rounds: list[int] = []

    def hurt_one(event: Event) -> None:
        if isinstance(event, RoundFinished):
            rounds.append(event.round)
        living = [path.name for path in tmp_path.glob("[0-9]*") if psutil.pid_exists(int(path.name))]
        if rounds and not hurt and len(living) == 2:
            write_atomically(tmp_path / "hurt", " ".join(living).encode())
            hurt.append(psutil.Process(int(living[0])))
            hurt[0].kill() if how == "killed" else hurt[0].suspend()

    try:
        result = train(job, backend="ray", settings=settings, on_event=hurt_one)
    finally:
        for process in hurt:
            if process.is_running():
                process.kill()
    assert hurt
    assert rounds == list(range(1, 801))
    assert result.accuracy is not None
    assert result.accuracy > 0.8
    assert (tmp_path / "replaced").exists(), "no actor took its place"
    metrics = RunFolder.open(settings.home, result.run_id).metrics_by_round().values()
    # Its clients are handed to its replacement, while whose process starts the other actor goes on.
    print("STALE", how, max(one["staleness_max"] for one in metrics))
    assert max(one["staleness_max"] for one in metrics) > 20, "what the actor had was never run again"


@pytest.mark.slow
def test_a_client_over_which_every_actor_dies_ends_the_run(running, make_job: Make):
    settings, _record = running
    loop = {"loop": "tests.federated.slow_code:deadly", "options": {"rows": _most_rows(make_job())}, "kernel": "auto"}
    job = make_job(**_plain(30), algorithm=_fedbuff(30, **loop))
    with pytest.raises(RoundFailed, match="in 3 attempts actors died"):
        train(job, backend="ray", settings=settings)
