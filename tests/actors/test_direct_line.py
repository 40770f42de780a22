"""Rounds over direct lines: the same sums as by calls, whoever dies, hangs or raises."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from actors import direct_line, reservation
from actors.client_workers import MOST_PARAMS_ON_LINES, RayWorkers
from actors.cluster import connect
from actors.direct_line import BROKEN, DirectLine, Errand, listen
from qedge.config import load
from qedge.data.federation import Rows
from qedge.errors import Diverged
from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model
from tests.endpoint import eventually

FEATURES, CLASSES, CLIENTS = 5, 3, 12
PARAMS = (FEATURES + 1) * CLASSES
DEADLINE_S = 30.0


class TestOneLine:
    """Both ends in this process."""

    def test_what_is_told_is_answered_in_order_and_what_is_only_made_ready_is_not(self) -> None:
        told: list[int] = []

        def answer(errand: Errand) -> object | None:
            told.append(errand.round)
            return None if errand.broadcast is None else errand.round

        line = DirectLine(listen(answer))
        for number in range(1, 40, 2):
            line.tell(DEADLINE_S, _errand(number), Errand(number + 1, []))
            assert line.answer() == number
        line.tell(DEADLINE_S, _errand(41))
        assert line.answer() == 41
        assert told == list(range(1, 42))
        line.close()

    def test_only_its_user_reaches_it_and_only_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(direct_line.tempfile, "tempdir", str(tmp_path))
        place = Path(listen(lambda errand: errand.round))
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        line = DirectLine(str(place))
        line.tell(DEADLINE_S, _errand(3))
        assert line.answer() == 3  # whoever answers has taken the socket away before
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(OSError, match="No such file"):
            DirectLine(str(place))
        line.close()

    def test_an_end_that_takes_nothing_costs_no_more_than_the_deadline(self) -> None:
        busy = threading.Event()

        def answer(errand: Errand) -> None:
            busy.wait()

        line = DirectLine(listen(answer))
        begun = time.monotonic()
        with pytest.raises(BROKEN):
            line.tell(0.5, _errand(1), _errand(2, 1_000_000))
        assert 0.4 < time.monotonic() - begun < 10
        busy.set()
        line.close()

    def test_an_end_that_is_gone_is_noticed(self) -> None:
        def answer(errand: Errand) -> object:
            raise EOFError

        line = DirectLine(listen(answer))
        line.tell(DEADLINE_S, _errand(1))
        assert connection.wait([line], DEADLINE_S) == [line]
        with pytest.raises(BROKEN):
            line.answer()
        line.close()


def _errand(number: int, params: int = 1) -> Errand:
    return Errand(number, [], Broadcast(number, np.zeros(params, dtype=np.float32)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    small = {"cpus": 2, "object_store_bytes": 100 * 2**20}
    home = tmp_path_factory.mktemp("home")
    with connect(load(environ={}, home=home, address="local", cluster=small), start=True):
        yield


@pytest.fixture
def make_workers(cluster: None) -> Iterator[Callable[..., RayWorkers]]:
    made: list[RayWorkers] = []

    def make(**algorithm: object) -> RayWorkers:
        made.append(RayWorkers(_spec(**algorithm), _rows(), None, reservation.reserve("clients", lambda: None)))
        return made[-1]

    yield make
    for workers in made:
        for actor in workers.actors:
            ray.kill(actor)
    reservation.give_back("clients")


def _rows() -> Rows:
    generator = np.random.default_rng(0)
    sizes = generator.integers(3, 20, CLIENTS)
    features = generator.standard_normal((int(sizes.sum()), FEATURES), dtype=np.float32)
    return Rows(features, generator.integers(0, CLASSES, int(sizes.sum())), np.cumsum([0, *sizes]))


def _spec(**algorithm: object) -> ClientSpec:
    given = Algorithm.model_validate({"batch_size": 4, "local_epochs": 2, "learning_rate": 0.2, "kernel": "stacked", **algorithm})
    model, key = Model(kind="linear"), RunKey.from_seed(0)
    return ClientSpec(model, FEATURES, CLASSES, given, given.kernel, grid=None, count_weight=0, key=key, seed=0)


def _round(number: int) -> tuple[Broadcast, list[Chunk]]:
    drawn = np.sort(np.random.default_rng(number).permutation(CLIENTS)[:8])
    weights = np.random.default_rng([number, 1]).standard_normal(PARAMS, dtype=np.float32)
    return Broadcast(number, weights), [Chunk(drawn[:3]), Chunk(drawn[3:6]), Chunk(drawn[6:])]


def _expected(number: int) -> np.ndarray:
    broadcast, chunks = _round(number)
    return FederatedClient(_spec(), _rows(), None).partial_sum(broadcast, chunks).total


def _pid_of(workers: RayWorkers, slot: int) -> int:
    """The process at the other end of a line."""
    return int(ray.get(workers.actors[slot].__ray_call__.remote(lambda _actor: os.getpid())))


def _is_down(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


@pytest.mark.slow
class TestRounds:
    """On Ray."""

    def test_the_sums_are_those_of_one_process_with_and_without_being_made_ready(self, make_workers: Callable[..., RayWorkers]) -> None:
        workers = make_workers()
        assert None not in workers.lines
        for number in range(1, 9):
            ahead = _round(number + 1)[1] if number % 3 else ()
            partial = workers.partial_sum(*_round(number), DEADLINE_S, ahead)
            assert partial.total.tobytes() == _expected(number).tobytes()
        workers._hang_up()
        for number in range(9, 12):  # by calls
            assert workers.partial_sum(*_round(number), DEADLINE_S, _round(number + 1)[1]).total.tobytes() == _expected(number).tobytes()

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
    def test_who_dies_or_hangs_is_replaced_and_the_sum_is_the_same(self, make_workers: Callable[..., RayWorkers], how: int) -> None:
        workers = make_workers()
        workers.partial_sum(*_round(1), DEADLINE_S, _round(2)[1])
        hurt, other = psutil.Process(_pid_of(workers, 0)), _pid_of(workers, 1)
        hurt.send_signal(how)
        assert eventually(lambda: _is_down(hurt)), "a round may take less time than a signal to all threads of a process"
        try:
            assert workers.partial_sum(*_round(2), 3.0, _round(3)[1]).total.tobytes() == _expected(2).tobytes()
        finally:
            if hurt.is_running():
                hurt.kill()
        assert None not in workers.lines, "a line to the one that stands in"
        assert [_pid_of(workers, 0) != hurt.pid, _pid_of(workers, 1) == other] == [True, True]
        assert workers.partial_sum(*_round(3), DEADLINE_S).total.tobytes() == _expected(3).tobytes()

    def test_what_an_actor_raises_is_raised_and_no_answer_is_taken_for_that_of_a_later_round(
        self, make_workers: Callable[..., RayWorkers]
    ) -> None:
        workers = make_workers()
        wild = np.full(PARAMS, np.inf, dtype=np.float32)
        with pytest.raises(Diverged):
            workers.partial_sum(Broadcast(1, wild), _round(1)[1], DEADLINE_S)
        for number in (2, 3):
            assert workers.partial_sum(*_round(number), DEADLINE_S).total.tobytes() == _expected(number).tobytes()

    def test_long_weights_go_to_all_though_one_is_late_to_take_them(self, make_workers: Callable[..., RayWorkers]) -> None:
        """A quarter of a million weights are far more than a socket holds."""
        model, key = Model(kind="mlp", hidden=(32_000,)), RunKey.from_seed(0)
        spec = ClientSpec(model, FEATURES, CLASSES, _spec().algorithm, "sequential", grid=None, count_weight=0, key=key, seed=0)
        workers = RayWorkers(spec, _rows(), None, reservation.reserve("clients", lambda: None))
        params = 32_000 * (FEATURES + 1) + (32_000 + 1) * CLASSES
        assert params < MOST_PARAMS_ON_LINES
        weights = np.random.default_rng(0).standard_normal(params, dtype=np.float32)
        hurt = psutil.Process(_pid_of(workers, 0))
        hurt.suspend()
        assert eventually(lambda: _is_down(hurt))
        try:
            partial = workers.partial_sum(Broadcast(1, weights), _round(1)[1], 4.0)
        finally:
            if hurt.is_running():
                hurt.kill()
            for actor in workers.actors:
                ray.kill(actor)
        expected = FederatedClient(spec, _rows(), None).partial_sum(Broadcast(1, weights), _round(1)[1])
        assert partial.total.tobytes() == expected.total.tobytes()
