"""A run on a real Ray: the same bits as the serial one, and a client node that hangs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors import environment
from actors.cluster import ClusterRecord, start_head, stop_head
from qedge import train
from qedge.audit.receipt import Receipt
from qedge.config import Settings, load
from qedge.errors import AddressUnreachable
from qedge.federated.events import Event, RoundFinished
from qedge.records import Records
from tests.endpoint import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, ClusterRecord]]:
    """A Ray of this module's own, and the settings of the home that started it."""
    settings = load(home=tmp_path_factory.mktemp("ray") / "home", environ={}, serve={"port": free_port()})
    record = start_head(settings)
    try:
        yield settings, record
    finally:
        stop_head(settings)


def _weights(settings: Settings, run: str) -> bytes:
    return (settings.home / "runs" / run / "model" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_without_privacy_ray_and_serial_give_the_same_bits(running, make_job, kind):
    settings, _record = running
    model = {"kind": "mlp", "hidden": [8]} if kind == "mlp" else {"kind": "cnn", "channels": [2]}
    data = {"source": "digits", "partition": {"dirichlet": 0.5, "clients": 40}, "test": 0.2}
    job = make_job(privacy="none", rounds=3, model=model, data=data, algorithm={"kernel": "stacked" if kind == "mlp" else "sequential"})
    serial = train(job, backend="serial", settings=settings)
    on_ray = train(job, backend="ray", settings=settings)
    assert _weights(settings, serial.run_id) == _weights(settings, on_ray.run_id)
    assert serial.accuracy == on_ray.accuracy


def test_a_private_run_on_ray_is_charged_and_registered(running, make_job):
    settings, _record = running
    events: list[Event] = []
    result = train(make_job(), backend="ray", settings=settings, on_event=events.append)
    assert [event.round for event in events if isinstance(event, RoundFinished)] == [1, 2, 3, 4]
    assert sorted(Records.open(settings.home).ledger.releases(result.run_id)) == [1, 2, 3, 4]
    assert result.version is not None


def test_a_client_node_that_hangs_costs_one_deadline_and_changes_no_bit(running, make_job):
    settings, record = running
    data = {"source": "digits", "partition": {"dirichlet": 0.5, "clients": 40}, "test": 0.2}
    job = make_job(privacy="none", rounds=4, data=data, cohort={"sampling": "poisson", "rate": 0.9, "deadline_s": 6})
    stopped: list[psutil.Process] = []

    def stop_one(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 1 and not stopped:
            workers = [p for p in environment.processes_of(Path(record.folder)) if "FederatedClientActor" in " ".join(p.cmdline())]
            stopped.append(workers[0])
            stopped[0].send_signal(signal.SIGSTOP)

    try:
        result = train(job, backend="ray", settings=settings, on_event=stop_one)
    finally:
        for process in stopped:
            if process.is_running():
                process.kill()
    assert stopped
    assert result.rounds == 4
    assert _weights(settings, result.run_id) == _weights(settings, train(job, backend="serial", settings=settings).run_id)


def test_an_address_that_does_not_answer_is_refused_before_anything_is_held(settings, make_job):
    away = settings.model_copy(update={"address": f"127.0.0.1:{free_port()}"})
    with pytest.raises(AddressUnreachable):
        train(make_job(), backend="ray", settings=away)
    assert Records.open(settings.home).ledger.scopes() == []


def test_clients_on_ray_train_by_dp_sgd_and_the_server_is_on_the_receipt(running, make_job):
    settings, _record = running
    example = {"unit": "example", "epsilon": 8, "delta": 1e-3, "clipping": {"bound": 1.0}, "rate": 0.3, "steps": 3, "max_rows": 10}
    plain = {"local_epochs": 1, "batch_size": 32, "kernel": "auto"}
    data = {"source": "breast-cancer", "partition": {"dirichlet": 1.0, "clients": 30}}
    result = train(make_job(data=data, algorithm=plain, privacy=example), backend="ray", settings=settings)
    records = Records.open(settings.home)
    assert sorted(records.ledger.releases(result.run_id)) == [1, 2, 3, 4]
    assert records.ledger.scope("breast-cancer").unit == "example"
    receipt = Receipt.read(settings.home / "runs" / result.run_id / "model" / "receipt.json")
    assert {one.adversary for one in receipt.guarantees} == {"released model", "server"}
