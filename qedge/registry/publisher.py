"""The publisher: what a run wrote into its folder goes into MLflow, off the hot path, once.

Training writes files and never waits for MLflow. Publishing reads them and can be stopped at any instruction and repeated:
the MLflow run is found again by its tag, metrics carry the time of the file (MLflow's own key makes a repeat the same row),
a version is found again by its run and receipt. While MLflow is away nothing is lost: the folder waits.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from qedge.config import Settings
from qedge.errors import QEdgeError, UnknownRun
from qedge.registry.outbox import Outbox, Published, ResultRecord, RoundRecord, read_published, run_path, write_published
from qedge.registry.registration import register
from qedge.registry.registry import RUN_TAG
from qedge.registry.tracking import connection, experiment_id
from qedge.storage import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_Item = TypeVar("_Item")
log = logging.getLogger(__name__)

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100  # MLflow's limits of one batch
LONGEST_NAME, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 5000
ROUNDS_AT_ONCE = 100
STATUS = {"finished": "FINISHED", "tried": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "refused": "FAILED"}
FIRST_BACKOFF_S, LONGEST_BACKOFF_S, LAST_TRIES = 1.0, 60.0, 3


def publish(settings: Settings, run_id: str) -> Published:
    """Bring MLflow up to what the run's folder holds now; a repeat changes nothing.

    Raises:
        UnknownRun: there is no such run, or its run.json cannot be read.
        RegistryUnavailable: MLflow does not answer, or refuses; what was published stays so and the rest stays pending.
        ArtifactTampered: the model's files do not match its receipt.
    """
    path = run_path(settings.home, run_id)
    with locked(path / "published.lock"):  # one publisher of a run at a time, whichever process it is in
        folder, state = Outbox.read(path), read_published(path)
        if folder.is_whole_in(state):
            return state
        with connection(settings) as client:
            run = _mlflow_run(client, settings, folder)
            known = state if state.mlflow_run_id == run.info.run_id else Published()  # another store, or deleted there: it has nothing
            state = write_published(path, replace(known, mlflow_run_id=run.info.run_id, done=False))
            for batch in _batches(folder.news(state), ROUNDS_AT_ONCE):
                _log(client, run, batch)
                state = write_published(path, replace(state, rounds=state.rounds + len(batch), last_round=batch[-1].round))
            if folder.result is None:
                return write_published(path, replace(state, result=None))
            return _finish(client, run, folder, folder.result, state)


def _finish(client: MlflowClient, run: Run, folder: Outbox, result: ResultRecord, state: Published) -> Published:
    """Publish how the run ended: last metrics, tags, the model's version, the status."""
    last = folder.rounds[-1] if folder.rounds else None
    step, time_ms = (last.round, last.time_ms) if last else (0, folder.run.created_ms)
    # A moment after the last round's own line: where both name a metric, the result is the later one.
    said = last.metrics if last else {}
    metrics = {name: value for name, value in result.metrics.items() if said.get(name) != value}
    _log(client, run, [RoundRecord(round=step, time_ms=time_ms + 1, metrics=metrics)])
    if folder.has_model and state.version is None:
        tags = {**folder.run.tags, **result.tags, RUN_TAG: folder.run.run_id}
        state = write_published(folder.path, replace(state, version=register(client, run, folder.run.name, folder.path / "model", tags)))
    for path in folder.attached:
        client.log_artifact(run.info.run_id, str(path))
    version = {} if state.version is None else {"qedge.model_version": str(state.version)}
    _tag(client, run.info.run_id, {**result.tags, "qedge.status": result.status, **version})
    client.set_terminated(run.info.run_id, STATUS.get(result.status, "FAILED"), max(folder.result_ms, folder.run.created_ms))
    return write_published(folder.path, replace(state, result=folder.result_digest, done=True))


def pending(settings: Settings) -> list[str]:
    """Runs whose folder holds something that MLflow has not got, oldest first."""
    waiting = []
    for path in sorted((settings.home / "runs").glob("[!.]*/run.json")):
        with contextlib.suppress(UnknownRun):
            folder = Outbox.read(path.parent)
            if not folder.is_whole_in(read_published(path.parent)):
                waiting.append(folder.run)
    return [run.run_id for run in sorted(waiting, key=lambda run: run.created_ms)]


class Publisher:
    """One background thread that publishes a run while it goes on; training calls `wake` and never waits.

    When MLflow is away it tries again, ever less often up to a minute, and training does not notice.
    """

    def __init__(self, settings: Settings, run_id: str, interval_s: float = 2.0) -> None:
        self._settings, self._run_id, self._interval_s = settings, run_id, interval_s
        self._news, self._ending, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._complete = False
        self._thread = threading.Thread(target=self._work, name=f"publisher-{run_id}", daemon=True)

    def start(self) -> None:
        """Begin; what is already in the folder is published first."""
        self._news.set()
        self._thread.start()

    def wake(self) -> None:
        """Say that the folder holds something new. Returns at once."""
        self._news.set()

    def finish(self, timeout_s: float) -> bool:
        """Publish what is left, and stop: True when all of it is in MLflow, False when it waits on disk (see `pending`).

        Returns before `timeout_s` when a few tries in a row found MLflow away: the end of a run is no time to wait for it.
        """
        self._ending.set()
        self._news.set()
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join(timeout_s)
        self._stop.set()
        return self._complete

    def _work(self) -> None:
        failures, last_failures = 0, 0
        while not self._stop.is_set():
            self._news.wait()
            self._news.clear()
            ending = self._ending.is_set()
            try:
                publish(self._settings, self._run_id)
            except (QEdgeError, OSError) as error:
                if failures == 0:
                    log.warning("run %s is not in MLflow yet and stays on disk: %s", self._run_id, error)
                failures, last_failures = failures + 1, last_failures + ending
                if last_failures == LAST_TRIES:
                    return
                self._news.set()
                backoff_s = min(FIRST_BACKOFF_S * 2 ** min(failures - 1, 10), LONGEST_BACKOFF_S)
                (self._stop if ending else self._ending).wait(FIRST_BACKOFF_S if ending else backoff_s)
                continue
            failures = 0
            if ending:
                self._complete = True
                return
            self._ending.wait(self._interval_s)


def _mlflow_run(client: MlflowClient, settings: Settings, folder: Outbox) -> Run:
    """The run in MLflow: found by its tag or created, with the parameters and tags it lacks, and running again if resumed."""
    from mlflow.entities import Param

    experiment, ours = experiment_id(client, settings), folder.run
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{ours.run_id}'", max_results=1)
    tags = {RUN_TAG: ours.run_id}
    run = found[0] if found else client.create_run(experiment, start_time=ours.created_ms, tags=tags, run_name=ours.name)
    params = {_name(key): value[:LONGEST_PARAM] for key, value in ours.params.items()}
    # Only what is missing: MLflow refuses a parameter that comes back with another value.
    for some in _batches([Param(key, value) for key, value in params.items() if key not in run.data.params], MOST_PARAMS):
        client.log_batch(run.info.run_id, params=some)
    _tag(client, run.info.run_id, {key: value for key, value in ours.tags.items() if key not in run.data.tags})
    if folder.result is None and run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    return run


def _tag(client: MlflowClient, mlflow_run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    for some in _batches([RunTag(_name(key), value[:LONGEST_TAG]) for key, value in tags.items()], MOST_TAGS):
        client.log_batch(mlflow_run_id, tags=some)


def _log(client: MlflowClient, run: Run, rounds: Sequence[RoundRecord]) -> None:
    """Metrics at the round's number and the file's time: the same point again is the same row in MLflow."""
    from mlflow.entities import Metric

    points = [Metric(_name(name), value, line.time_ms, line.round) for line in rounds for name, value in line.metrics.items()]
    for some in _batches(points, MOST_METRICS):
        client.log_batch(run.info.run_id, metrics=some)


def _name(text: str) -> str:
    """The nearest name that MLflow takes: its own letters only, and where there is a slash, the shape of a plain path."""
    name = re.sub(r"[^\w .:/-]", "_", text)[:LONGEST_NAME]
    plain = name and posixpath.normpath(name) == name and not name.startswith(("/", ".."))
    return name if plain and name != "." else name.replace("/", "_").replace(".", "_") or "_"


def _batches(items: Sequence[_Item], most: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
