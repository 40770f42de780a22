"""A query on a real Ray: the same sums as in one process, charged, and clients whose actor dies or hangs are asked again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import PlacementGroup

from actors.client_sums import RaySums
from actors.reservation import give_back, reserve
from qedge import query
from qedge.analytics.encoding import Encoder
from qedge.analytics.plan import measured_at_once
from qedge.config import Settings
from qedge.data.client_columns import ClientColumns
from qedge.errors import RoundFailed
from qedge.federated.run_folder import run_ids
from qedge.records import Records
from qedge.runs.query_preparation import population_of
from tests.analytics.populations import encoder_of, query_of

pytestmark = pytest.mark.slow
STATISTICS = [
    {"kind": "mean", "column": "alcohol", "range": [10, 16]},
    {"kind": "histogram", "column": "hue", "range": [0, 2], "bins": 8},
    {"kind": "heavy-hitters", "column": "label", "length": 7},
]


@pytest.fixture
def reserved(cluster: Settings) -> Iterator[PlacementGroup]:
    """The CPUs of the cluster."""
    yield reserve("statistics", lambda: None)
    give_back("statistics")


@pytest.fixture
def asked() -> tuple[Encoder, ClientColumns]:
    """What clients are asked, and their columns."""
    asking = query_of(*STATISTICS)
    measured = list(measured_at_once(asking))
    return encoder_of(measured, [31] * len(measured), asking.max_rows), population_of(asking).columns


def test_without_privacy_ray_and_serial_give_the_same_answers(cluster: Settings):
    without = query_of(*STATISTICS, privacy="none")
    serial, on_ray = (query(without, backend=backend, settings=cluster) for backend in ("serial", "ray"))
    assert serial.answers == on_ray.answers


def test_a_private_query_on_ray_is_charged_once_and_gives_its_cpus_back(cluster: Settings):
    """The count is within 20 standard deviations of its noise."""
    rows = {"data": {"source": "digits", "partition": {"clients": 50}}, "max_rows": 40}
    for times in (1, 2):
        result = query(query_of(privacy={"epsilon": 2, "delta": 1e-3, "budget": "digits"}, **rows), backend="ray", settings=cluster)
        (count,) = result.lines()
        assert abs(count.value - 1797) < 400 + 20 * (count.high - count.low) / 3.9
        ledger = Records.open(cluster.home).ledger
        assert set(ledger.releases(result.run_id)) == {1}
        assert result.run_id in run_ids(cluster.home)
        if times == 1:
            assert ledger.scope("digits").spent == pytest.approx(result.epsilon)
            ledger.set_budget("digits", epsilon=10, actor="officer")


def test_clients_whose_actor_died_or_hangs_are_asked_again_and_the_sum_is_the_same(
    reserved: PlacementGroup, asked: tuple[Encoder, ClientColumns]
):
    encoder, columns = asked
    wanted = encoder.total(columns, range(len(columns.offsets) - 1)).tolist()
    sums = RaySums(columns, reserved)
    assert sums.vector_sum(encoder, 60).tolist() == wanted
    ray.kill(sums.actors[0])
    assert sums.vector_sum(encoder, 60).tolist() == wanted
    stopped = ray.get(sums.actors[-1].__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(stopped, signal.SIGSTOP)
    assert sums.vector_sum(encoder, 10).tolist() == wanted


def test_a_round_that_nobody_does_in_time_fails_and_can_be_resumed(reserved: PlacementGroup, asked: tuple[Encoder, ClientColumns]):
    encoder, columns = asked
    with pytest.raises(RoundFailed, match="3 attempts"):
        RaySums(columns, reserved).vector_sum(encoder, 0.0)
