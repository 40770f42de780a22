"""The coordinator of one run on Ray: a named, detached actor that outlives its driver and restarts where it stood.

Ray restarts it, whatever it died of. One that dies again and again before a round is done would go on so, and whoever follows would
wait: it counts its starts in the run's folder (starts.json) and gives up at the fourth of one place. However a run ends, whoever
follows is told, and by one of our own errors: others may not travel, and their text may hold values of private rows.
"""

from __future__ import annotations

import pickle
import secrets
import threading
import time
import traceback

import ray

from actors.client_workers import RayWorkers
from actors.metrics import record
from actors.reservation import give_back, reserve
from qedge.config import Settings
from qedge.data.federation import Rows
from qedge.errors import QEdgeError, RoundFailed
from qedge.federated.events import Event, Phase, RoundFinished
from qedge.federated.messages import ClientSpec
from qedge.federated.run_folder import Json, RunFolder

FOLLOW_WAIT_S = 10.0
TOGETHER_S = 0.05
ORPHAN_LINGERS_S = 300.0
MOST_DEATHS = 3
STARTS = "starts.json"


class Following:
    """What a follower is told: the events since it last asked, and how the run ended once it has.

    incarnation: changes when the coordinator was restarted, and its events begin anew.
    """

    def __init__(self, incarnation: str, events: list[Event], result: Json | None, error: QEdgeError | None) -> None:
        self.incarnation, self.events, self.result, self.error = incarnation, events, result, error


@ray.remote(num_cpus=0, max_restarts=100, max_task_retries=-1, max_concurrency=8)
class CoordinatorActor:
    """Runs one prepared run on a thread of its own from the moment it exists, whoever listens."""

    def __init__(self, run: str, settings: str) -> None:
        self.run, self.settings = run, Settings.model_validate_json(settings)
        self.folder = RunFolder.open(self.settings.home, run)
        job = self.folder.job()
        self.model, self.private = job.name, job.privacy is not None
        self.reservation = f"clients-{run}-{ray.get_runtime_context().get_actor_id()}"
        self.incarnation = secrets.token_hex(4)
        self.events: list[Event] = []
        self.result: Json | None = None
        self.error: QEdgeError | None = None
        self.changed = threading.Condition()
        self.ended = threading.Event()
        self.handle = ray.get_runtime_context().current_actor
        threading.Thread(target=self._carry_out, daemon=True).start()

    def follow(self, incarnation: str, seen: int) -> Following:
        """What is new since `seen` events of `incarnation`; waits a while for something to be.

        Rounds may take less time than telling of one does: what comes within a moment is told together.
        """
        with self.changed:
            seen = seen if incarnation == self.incarnation else 0
            self.changed.wait_for(lambda: len(self.events) > seen or self.has_ended(), timeout=FOLLOW_WAIT_S)
        self.ended.wait(TOGETHER_S)
        with self.changed:
            return Following(self.incarnation, self.events[seen:], self.result, self.error)

    def has_ended(self) -> bool:
        """Whether the run is over, and this coordinator only waits for those who have not heard."""
        return self.result is not None or self.error is not None

    def _tell(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()  # nobody is woken who is waiting for more to tell together
        if isinstance(event, RoundFinished):
            record("qedge_rounds_total", 1, model=self.model)
            record("qedge_clients_expected", event.expected_cohort, model=self.model)
            for name, value in (("qedge_accuracy", event.accuracy), ("qedge_epsilon_spent", event.epsilon)):
                if value is not None:
                    record(name, value, model=self.model)

    def _carry_out(self) -> None:
        result: Json | None = None
        error: QEdgeError | None = None
        try:
            result = self._result()
        except BaseException as raised:  # noqa: BLE001 - the edge of the process: a model may raise anything, SystemExit too
            error = as_told(raised, self.run, private=self.private)
        try:
            self._let_go()
        finally:  # what could not be given back is no reason for silence
            with self.changed:
                self.result, self.error = result, error
                self.ended.set()
                self.changed.notify_all()
            time.sleep(ORPHAN_LINGERS_S)  # whoever hears the end ends this actor; a driver that died never will
            ray.kill(self.handle)

    def _let_go(self) -> None:
        try:
            (self.folder.path / STARTS).unlink(missing_ok=True)
        finally:
            give_back(self.reservation)

    def _workers(self, spec: ClientSpec, train: Rows, test: Rows | None) -> RayWorkers:
        return RayWorkers(spec, train, test, reserve(self.reservation, lambda: self._tell(Phase(self.run, "waiting"))))

    def _result(self) -> Json:
        """The run carried out from where it stands.

        Raises:
            RoundFailed: so many starts before this one ended in death, with no round between them.
        """
        done, before = len(self.folder.metrics_by_round()), self.folder.read(STARTS)
        deaths = int(str(before["starts"])) if before is not None and before["rounds"] == done else 0
        if deaths < MOST_DEATHS:
            from qedge.runs.backend import carry_out  # not for all who load this class, as they do who get a handle: client actors

            self.folder.write(STARTS, {"rounds": done, "starts": deaths + 1})
            return carry_out(self.run, self.settings, self._workers, self._tell)
        if (finished := self.folder.finished()) is not None:  # it died of publishing it, which can be done later
            return finished
        raise RoundFailed(
            f"the coordinator of run {self.run} died {deaths} times after round {done}, before another was done: out of memory, or a "
            "model that ends its process? `qedge train --resume` tries again",
            run=self.run,
            deaths=deaths,
        )


def as_told(error: BaseException, run: str, *, private: bool) -> QEdgeError:
    """The end of a run as its followers hear it: an error of ours as it is, any other as a RoundFailed that names it.

    private: without its text.
    """
    if isinstance(error, QEdgeError):
        try:
            pickle.dumps(error)
        except (pickle.PicklingError, TypeError, AttributeError):
            pass  # facts that do not travel
        else:
            return error
    kind = type(error).__name__
    said = kind if private else "".join(traceback.format_exception_only(error)).strip()
    return RoundFailed(f"run {run} was ended by {said}; resume it when that is mended", run=run, cause=kind)
