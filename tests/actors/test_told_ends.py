"""What an actor raised, or died of, as the drivers hear it: always an error of ours, and no text that may hold a private value."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import pytest
from ray import exceptions

from actors import reservation
from actors.client_workers import LOST, RayWorkers
from actors.cluster import connect
from actors.coordinator import as_told
from qedge.config import Settings, load
from qedge.data.federation import Rows
from qedge.errors import BudgetExceeded, QEdgeError, RoundFailed
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model

SECRET = "row 17: age 93"


class Mute(Exception):
    """An exception that cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError(SECRET)


FOREIGN = [SystemExit(SECRET), KeyboardInterrupt(SECRET), ValueError(SECRET), exceptions.RayError(SECRET), OSError(SECRET), Mute(SECRET)]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("raised", FOREIGN, ids=lambda raised: type(raised).__name__)
def test_what_is_not_ours_is_told_by_its_type_and_under_privacy_by_nothing_else(raised: BaseException, private: bool) -> None:
    told = pickle.loads(pickle.dumps(as_told(raised, "run-1", private=private)))
    assert isinstance(told, RoundFailed)
    assert type(raised).__name__ in told.message
    assert told.facts == {"run": "run-1", "cause": type(raised).__name__}
    assert SECRET not in told.message or not private


def test_without_privacy_the_text_is_told_as_well() -> None:
    assert SECRET in as_told(ValueError(SECRET), "run-1", private=False).message


def test_an_error_of_ours_is_told_as_it_is_and_one_that_cannot_travel_by_its_type() -> None:
    ours = BudgetExceeded("too much", left=1.5)
    assert as_told(ours, "run-1", private=True) is ours
    stuck = as_told(BudgetExceeded("too much", socket=socket.socket), "run-1", private=True)
    assert pickle.loads(pickle.dumps(stuck)).message == stuck.message
    with socket.socket() as one:
        stuck = as_told(BudgetExceeded(SECRET, socket=one), "run-1", private=True)
    assert pickle.loads(pickle.dumps(stuck)).facts["cause"] == "BudgetExceeded"
    assert SECRET not in stuck.message


def test_every_way_ray_tells_of_a_lost_actor_is_known() -> None:
    """OutOfMemoryError is not a RayActorError; a deadline, a failure to start and an error in the actor's code are not losses."""
    lost = (exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.OutOfMemoryError, exceptions.ActorUnschedulableError)
    for kind in (*lost, exceptions.ObjectLostError, exceptions.OwnerDiedError):
        assert issubclass(kind, LOST)
        assert issubclass(kind, exceptions.RayError)
    for kind in (exceptions.RayTaskError, exceptions.GetTimeoutError, exceptions.RaySystemError, QEdgeError):
        assert not issubclass(kind, LOST)


@pytest.fixture
def short_of_memory(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of one CPU that takes its machine for full, so that it ends every worker to make room."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.0")
    small = {"cpus": 1, "object_store_bytes": 100 * 2**20}
    with connect(load(environ={}, home=settings.home, address="local", cluster=small), start=True):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("short_of_memory")
def test_client_actors_that_ray_ends_for_want_of_memory_are_replaced_so_many_times_and_the_end_is_told() -> None:
    rows = Rows(np.zeros((4, 2), dtype=np.float32), np.array([0, 1, 0, 1]), np.array([0, 4]))
    model, algorithm = Model(kind="linear"), Algorithm(kind="fedavg")
    key = RunKey(b"k" * 32)
    spec = ClientSpec(model, features=2, classes=2, algorithm=algorithm, kernel="sequential", grid=None, count_weight=0, key=key, seed=0)

    def work() -> NoReturn:
        workers = RayWorkers(spec, rows, None, reservation.reserve("clients", lambda: None))
        while True:  # until Ray looks
            workers.partial_sum(Broadcast(1, np.zeros(6, dtype=np.float32)), [Chunk(np.array([0]))], 30.0)

    with pytest.raises(RoundFailed, match=r"3 attempts actors died|3 client actors died as they started \(Ray: OutOfMemoryError\)"):
        work()
