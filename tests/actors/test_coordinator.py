"""The life of a run's actors on a real Ray with one CPU: they wait in line, give up when they cannot live, and end in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray

from actors import environment
from actors.cluster import ClusterRecord, connect, start_head, stop_head
from actors.coordinator import STARTS
from qedge import TrainingJob, train
from qedge.config import Settings, load
from qedge.errors import HomeUnusable, QEdgeError, RoundFailed
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import run_ids
from qedge.records import Records
from tests.endpoint import eventually, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, ClusterRecord]]:
    """A Ray with one CPU that this process is connected to."""
    small = {"cpus": 1, "object_store_bytes": 100 * 2**20}
    settings = load(environ={}, home=tmp_path_factory.mktemp("ray") / "home", serve={"port": free_port()}, cluster=small)
    record = start_head(settings)
    try:
        with connect(settings, start=False):
            yield settings, record
    finally:
        stop_head(settings)


@ray.remote(num_cpus=1)
class Occupant:
    """Somebody else on the cluster's only CPU."""

    def ready(self) -> bool:
        return True


class Listener:
    """The phases of a run, in order, and whether one has come."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.waits = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.phases.append(event.name)
            if event.name == "waiting":
                self.waits.set()


def test_runs_that_find_the_cpus_taken_say_so_once_and_start_when_they_are_free(
    running: tuple[Settings, ClusterRecord], make_job: Callable[..., TrainingJob]
) -> None:
    settings, _ = running
    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    listeners = Listener(), Listener()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(train, make_job(privacy="none"), settings=settings, on_event=listener) for listener in listeners]
        try:
            assert all(listener.waits.wait(60) for listener in listeners)
            assert not any(run.done() for run in runs)
        finally:
            ray.kill(occupant)
        assert [run.result(120).rounds for run in runs] == [4, 4]
    for listener in listeners:
        assert listener.phases.count("waiting") == 1
        assert listener.phases.index("waiting") < listener.phases.index("training")
    assert eventually(lambda: ray.available_resources().get("CPU") == 1.0), "both have given back what was set aside for them"


def test_a_run_that_need_not_wait_does_not_say_it_waits(
    running: tuple[Settings, ClusterRecord], make_job: Callable[..., TrainingJob]
) -> None:
    listener = Listener()
    train(make_job(privacy="none"), settings=running[0], on_event=listener)
    assert listener.phases == ["preparing", "training", "evaluating", "exporting", "publishing"]


@pytest.mark.parametrize(
    ("actor", "said"),
    [("CoordinatorActor", "died 3 times after round 0"), ("FederatedClientActor", "3 client actors died as they started")],
)
def test_an_actor_that_dies_whenever_it_starts_fails_the_run_in_a_minute_and_it_can_be_resumed(
    running: tuple[Settings, ClusterRecord], make_job: Callable[..., TrainingJob], tmp_path: Path, actor: str, said: str
) -> None:
    given, record = running
    settings = given.model_copy(update={"home": tmp_path / "home"})
    model = {"kind": "tests.actors.dying_models:linear", "options": {"dies_in": f"ray::{actor}"}}
    begun = time.monotonic()
    with pytest.raises(RoundFailed, match=said) as failed:
        train(make_job(model=model, algorithm={"kernel": "sequential"}), settings=settings)
    assert time.monotonic() - begun < 60
    assert failed.value.facts["deaths"] == 3
    (run,) = run_ids(settings.home)
    assert Records.open(settings.home).ledger.releases(run) == {}
    assert eventually(lambda: not [one for one in environment.processes_of(record.folder) if _is_actor(one)])
    assert eventually(lambda: ray.available_resources().get("CPU") == 1.0)
    assert not (settings.home / "runs" / run / STARTS).exists(), "what comes next is counted anew"
    assert train(resume=run, backend="serial", settings=settings).rounds == 4


def test_the_driver_that_hears_the_end_of_a_run_ends_its_coordinator(
    running: tuple[Settings, ClusterRecord], make_job: Callable[..., TrainingJob]
) -> None:
    """It would linger for minutes otherwise, for a driver that might come back."""
    run = train(make_job(privacy="none"), settings=running[0]).run_id
    assert eventually(lambda: f"coordinator-{run}" not in ray.util.list_named_actors())
    assert eventually(lambda: not [one for one in environment.processes_of(running[1].folder) if _is_actor(one)])


def test_a_driver_on_another_node_than_the_head_is_told_where_to_run_and_holds_nothing(
    running: tuple[Settings, ClusterRecord], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    settings, record = running
    elsewhere = settings.model_copy(update={"home": tmp_path / "home", "address": record.address})
    job = make_job()

    @ray.remote(resources={"elsewhere": 0.1}, num_cpus=0)
    def drive() -> tuple[str, str]:
        try:
            train(job, settings=elsewhere)
        except QEdgeError as error:
            return error.code, error.message
        return "done", ""

    node = ["start", f"--address={record.address}", "--num-cpus=0", '--resources={"elsewhere": 1}', "--block"]
    variables = environment.token_environment(settings) | {environment.MARK: str(record.folder), "RAY_AUTH_TOKEN": None}
    given = {name: value for name, value in (os.environ | variables).items() if value is not None}
    with subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), *node], env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as other:
        try:
            code, message = ray.get(drive.remote(), timeout=120)
        finally:
            other.terminate()
    assert code == HomeUnusable.code
    assert record.address.partition(":")[0] in message
    assert not (tmp_path / "home").exists()


def _is_actor(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()[:1]).startswith(("ray::CoordinatorActor", "ray::FederatedClientActor"))
    except psutil.Error:
        return False
