"""Secure sums on Ray: those of the plain path, whoever dies or hangs at whatever step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import psutil
import pytest
import ray

from actors import reservation
from actors.client_workers import RayWorkers
from actors.cluster import connect
from qedge.config import load
from qedge.data.federation import Rows
from qedge.errors import RoundFailed, SumAborted
from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, ClientSpec
from qedge.federated.randomness import RunKey
from qedge.federated.secure_node import Said
from qedge.federated.secure_sum import ATTEMPTS, SecureSum
from qedge.job import Algorithm, Model, SecureAggregation
from qedge.secure_aggregation.ring import WHOLE_BITS, Ring

FEATURES, CLASSES, CLIENTS, ACTORS = 5, 3, 16, 4
PARAMS = (FEATURES + 1) * CLASSES
DEADLINE_S, SHORT_S = 60.0, 3.0
SECURE = SecureAggregation()

pytestmark = pytest.mark.slow


class HurtingWorkers(RayWorkers):
    """Real actors, some of whose processes are sent a signal just before a step."""

    step, how = "", signal.SIGKILL
    slots: tuple[int, ...] = ()
    times = 1
    stopped: tuple[psutil.Process, ...] = ()

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        if name == self.step and self.times:
            self.times -= 1
            for slot in self.slots:
                process = psutil.Process(_pid_of(self, slot))
                process.send_signal(self.how)
                self.stopped += (process,)
        return super().secure_step(name, messages, deadline_s)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    small = {"cpus": ACTORS, "object_store_bytes": 100 * 2**20}
    home = tmp_path_factory.mktemp("home")
    with connect(load(environ={}, home=home, address="local", cluster=small), start=True):
        yield


@pytest.fixture
def workers(cluster: None) -> Iterator[HurtingWorkers]:
    made = HurtingWorkers(_spec(), _rows(), None, reservation.reserve("clients", lambda: None))
    assert len(made.actors) == ACTORS
    yield made
    for process in made.stopped:
        if process.is_running():
            process.kill()
    for actor in (*made.actors, made.authority):
        ray.kill(actor)
    reservation.give_back("clients")


def _rows() -> Rows:
    generator = np.random.default_rng(0)
    sizes = generator.integers(3, 20, CLIENTS)
    features = generator.standard_normal((int(sizes.sum()), FEATURES), dtype=np.float32)
    return Rows(features, generator.integers(0, CLASSES, int(sizes.sum())), np.cumsum([0, *sizes]))


def _spec() -> ClientSpec:
    given = Algorithm.model_validate({"batch_size": 4, "local_epochs": 2, "learning_rate": 0.2, "kernel": "stacked"})
    model, key = Model(kind="linear"), RunKey.from_seed(0)
    return ClientSpec(model, FEATURES, CLASSES, given, given.kernel, grid=None, count_weight=0, key=key, seed=0, secure=SECURE)


def _secure_sum() -> SecureSum:
    return SecureSum(SECURE, "run", RunKey.from_seed(1), 1, Ring(WHOLE_BITS), PARAMS + 1, "")


def _round(number: int) -> tuple[Broadcast, list[Chunk]]:
    """A chunk for each actor, of clients of like numbers of rows, so that each stands for four of twelve."""
    drawn = np.sort(np.random.default_rng(number).permutation(CLIENTS)[:12])
    return Broadcast(number, np.random.default_rng([number, 1]).standard_normal(PARAMS, dtype=np.float32)), [
        Chunk(drawn[start::ACTORS]) for start in range(ACTORS)
    ]


def _plain(number: int, without: set[int] = frozenset()) -> tuple[np.ndarray, int]:
    """The integers of those left, summed on the plain path's side, and what they count for."""
    broadcast, chunks = _round(number)
    client, total = FederatedClient(_spec(), _rows(), None), np.zeros(PARAMS + 1, dtype=np.int64)
    for chunk in chunks:
        kept = [client not in without for client in chunk.clients.tolist()]
        total += client.integers(broadcast, chunk)[0][kept].sum(axis=0)
    return total[:-1], int(total[-1])


def _pid_of(workers: RayWorkers, slot: int) -> int:
    return int(ray.get(workers.actors[slot].__ray_call__.remote(lambda _actor: os.getpid())))


def test_the_sums_are_those_of_the_plain_path_round_after_round(workers: HurtingWorkers) -> None:
    for number in (1, 2, 3):
        broadcast, chunks = _round(number)
        partial = _secure_sum().of_round(broadcast, chunks, workers, DEADLINE_S)
        plain = workers.partial_sum(broadcast, chunks, DEADLINE_S)
        assert partial.total.tobytes() == plain.total.tobytes()
        assert partial.weight == plain.weight


@pytest.mark.parametrize(
    ("step", "how"), [(step, signal.SIGKILL) for step in ("seal", "mask", "agree", "reveal")] + [("mask", signal.SIGSTOP)]
)
def test_the_sum_is_that_of_those_who_gave_their_vector(workers: HurtingWorkers, step: str, how: int) -> None:
    workers.step, workers.how, workers.slots = step, how, (1,)
    broadcast, chunks = _round(1)
    partial = _secure_sum().of_round(broadcast, chunks, workers, DEADLINE_S if how == signal.SIGKILL else SHORT_S)
    gone = set(workers.secure.standing[1]) if step in ("seal", "mask") else set()
    assert len(workers.secure.standing[1]) == 3
    total, weight = _plain(1, gone)
    assert partial.total.tobytes() == total.tobytes()
    assert partial.weight == weight
    broadcast, chunks = _round(2)  # another stands in
    assert _secure_sum().of_round(broadcast, chunks, workers, DEADLINE_S).total.tobytes() == _plain(2)[0].tobytes()


def test_an_attempt_that_too_few_come_through_is_given_up_and_the_next_one_is_whole(workers: HurtingWorkers) -> None:
    workers.step, workers.slots = "mask", (0, 2)
    broadcast, chunks = _round(1)
    charged: list[str] = []
    with_charge = SecureSum(SECURE, "run", RunKey.from_seed(1), 1, Ring(WHOLE_BITS), PARAMS + 1, "")
    partial = with_charge.of_round(broadcast, chunks, workers, DEADLINE_S, charged.append)
    assert partial.total[:-1].tobytes() == _plain(1)[0].tobytes()
    assert partial.weight == 12
    assert len(charged) == 1


def test_where_too_few_are_left_in_every_attempt_nothing_is_charged(workers: HurtingWorkers) -> None:
    workers.step, workers.slots, workers.times = "mask", (0, 2), ATTEMPTS
    charged: list[str] = []
    broadcast, chunks = _round(1)
    with pytest.raises(RoundFailed, match=f"it takes 9; nothing was opened, in {ATTEMPTS} attempts"):
        _secure_sum().of_round(broadcast, chunks, workers, DEADLINE_S, charged.append)
    assert charged == []


def test_a_sum_that_cannot_be_opened_once_shares_were_asked_for_is_charged_and_never_tried_again(workers: HurtingWorkers) -> None:
    workers.step, workers.slots, workers.times = "reveal", (0, 2), ATTEMPTS
    charged: list[str] = []
    broadcast, chunks = _round(1)
    with pytest.raises(SumAborted):
        _secure_sum().of_round(broadcast, chunks, workers, DEADLINE_S, charged.append)
    assert len(charged) == 1
    assert workers.times == ATTEMPTS - 1


def test_without_its_authority_a_round_fails_by_name_and_nothing_is_charged(workers: HurtingWorkers) -> None:
    ray.kill(workers.authority)
    charged: list[str] = []
    broadcast, chunks = _round(1)
    with pytest.raises(RoundFailed, match="enrolment authority was lost; resume"):
        _secure_sum().of_round(broadcast, chunks, workers, DEADLINE_S, charged.append)
    assert charged == []


def test_neither_the_coordinator_nor_what_it_sends_holds_a_client_identity(workers: HurtingWorkers) -> None:
    provision: Callable[[], object] = workers.standing_for[3]
    assert isinstance(provision, ray.ObjectRef), "the authority answers whoever stands for clients, not the coordinator"
    roster = workers.roster((0, 3, 5))
    roster.check(roster_authority(workers))
    assert roster.places == (0, 3, 5)


def roster_authority(workers: HurtingWorkers) -> bytes:
    """The authority's public key, as an actor that stands for clients knows it."""
    return ray.get(workers.actors[0].__ray_call__.remote(lambda actor: actor.secure.node.provision.authority))
