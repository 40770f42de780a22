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
from actors.backend import RayBackend
from actors.cluster import ClusterRecord, connect, start_head, stop_head
from actors.coordinator import MOST_DEATHS, STARTS, CoordinatorActor
from actors.nodes import HEAD
from actors.reservation import CPUS_OF_AN_ACTOR, give_back, reserve
from actors.session import NAMESPACE
from qedge import TrainingJob, train
from qedge.config import Settings, load
from qedge.errors import Diverged, Failed, HomeUnusable, QEdgeError, RoundFailed
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import RunFolder, run_ids
from qedge.records import Records
from qedge.runs.preparation import prepare
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


@pytest.fixture
def exiting_job(make_job: Callable[..., TrainingJob], tmp_path: Path) -> tuple[TrainingJob, Path]:
    """A job whose model calls sys.exit in the coordinator, while the file is there."""
    marker = tmp_path / "exit"
    marker.touch()
    model = {"kind": "tests.actors.dying_models:Exiting", "options": {"marker": str(marker)}}
    return make_job(privacy="none", model=model, algorithm={"kernel": "sequential"}), marker


def test_a_model_that_calls_exit_in_the_coordinator_ends_the_run_and_not_in_silence(
    running: tuple[Settings, ClusterRecord], exiting_job: tuple[TrainingJob, Path]
) -> None:
    """Python ends a thread that raises SystemExit without a word."""
    job, marker = exiting_job
    with pytest.raises(Failed, match="SystemExit") as failed:
        train(job, settings=running[0])
    marker.unlink()
    assert train(resume=str(failed.value.facts["run"]), settings=running[0]).rounds == 4


def test_a_run_that_failed_while_nobody_followed_goes_on_when_it_is_resumed(
    running: tuple[Settings, ClusterRecord], exiting_job: tuple[TrainingJob, Path]
) -> None:
    """Its coordinator lingers to tell of the failure; whoever resumes the run does not ask for that."""
    job, marker = exiting_job
    run = prepare(job, running[0]).run
    left = CoordinatorActor.options(name=f"coordinator-{run}", namespace=NAMESPACE, lifetime="detached", resources={HEAD: 0.001})
    lingering = left.remote(run, running[0].model_dump_json())
    assert eventually(lambda: ray.get(lingering.has_ended.remote()))
    marker.unlink()
    assert train(resume=run, settings=running[0]).rounds == 4


@pytest.fixture
def occupied(running: tuple[Settings, ClusterRecord]) -> Iterator[Callable[[], None]]:
    """Somebody else is on the only CPU, until this is called."""
    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    yield lambda: ray.kill(occupant)
    ray.kill(occupant)


def test_all_who_follow_one_run_hear_its_end(
    running: tuple[Settings, ClusterRecord], occupied: Callable[[], None], make_job: Callable[..., TrainingJob]
) -> None:
    run = prepare(make_job(privacy="none"), running[0]).run
    listeners = Listener(), Listener()
    with ThreadPoolExecutor(2) as pool:
        followers = [pool.submit(train, resume=run, settings=running[0], on_event=listener) for listener in listeners]
        try:
            assert all(listener.waits.wait(60) for listener in listeners)
        finally:
            occupied()
        assert [follower.result(120).rounds for follower in followers] == [4, 4]
    assert listeners[0].phases[1:] == listeners[1].phases[1:]


@pytest.mark.parametrize(("recorded", "said"), [(Diverged.code, Diverged.code), (None, "was lost")])
def test_who_follows_a_coordinator_that_is_gone_is_told_how_the_run_failed(
    running: tuple[Settings, ClusterRecord],
    occupied: Callable[[], None],
    make_job: Callable[..., TrainingJob],
    recorded: str | None,
    said: str,
) -> None:
    folder, listener = prepare(make_job(privacy="none"), running[0]), Listener()
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(train, resume=folder.run, settings=running[0], on_event=listener)
        assert listener.waits.wait(60)
        if recorded is not None:
            folder.write("result.json", {"status": "failed", "metrics": {}, "tags": {"qedge.error": recorded}})
        ray.kill(ray.get_actor(f"coordinator-{folder.run}", NAMESPACE))
        with pytest.raises(RoundFailed, match=said):
            follower.result(60)


def test_a_coordinator_that_died_again_and_again_after_the_run_was_finished_gives_its_result(
    running: tuple[Settings, ClusterRecord], make_job: Callable[..., TrainingJob]
) -> None:
    run = train(make_job(privacy="none"), backend="serial", settings=running[0]).run_id
    folder = RunFolder.open(running[0].home, run)
    folder.write(STARTS, {"rounds": 4, "starts": MOST_DEATHS})
    with RayBackend(running[0]) as backend:
        assert backend.run(run, lambda event: None) == folder.finished()


def test_cpus_asked_for_that_the_cluster_no_longer_has_are_not_waited_for(running: tuple[Settings, ClusterRecord]) -> None:
    """As when a node left before they were set aside."""
    ray.util.placement_group([{"CPU": CPUS_OF_AN_ACTOR}] * 3, strategy="SPREAD", name="asked-before")
    waited: list[bool] = []
    try:
        assert reserve("asked-before", lambda: waited.append(True)).bundle_count == 1
    finally:
        give_back("asked-before")
    assert not waited


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
