"""The coordinator of one run on Ray: a named, detached actor that outlives its driver and restarts where it stood."""

from __future__ import annotations

import secrets
import threading

import ray

from actors.federated_client import RayWorkers
from actors.metrics import record
from qedge.config import Settings
from qedge.federated.events import Event, RoundFinished
from qedge.federated.run_folder import Json, RunFolder
from qedge.runs.backend import carry_out

NAMESPACE = "qedge"
FOLLOW_WAIT_S = 10.0
ORPHAN_LINGERS_S = 300.0


class Following:
    """What a follower is told: the events since it last asked, and how the run ended once it has.

    incarnation: changes when the coordinator was restarted, and its events begin anew.
    """

    def __init__(self, incarnation: str, events: list[Event], result: Json | None, error: BaseException | None) -> None:
        self.incarnation, self.events, self.result, self.error = incarnation, events, result, error


@ray.remote(num_cpus=0, max_restarts=100, max_task_retries=-1, max_concurrency=8)
class CoordinatorActor:
    """Runs one prepared run on a thread of its own from the moment it exists, whoever listens."""

    def __init__(self, run: str, settings: str) -> None:
        self.run, self.settings = run, Settings.model_validate_json(settings)
        self.model = RunFolder.open(self.settings.home, run).job().name
        self.incarnation = secrets.token_hex(4)
        self.events: list[Event] = []
        self.result: Json | None = None
        self.error: BaseException | None = None
        self.collected = threading.Event()
        self.changed = threading.Condition()
        self.handle = ray.get_runtime_context().current_actor
        threading.Thread(target=self._carry_out, daemon=True).start()

    def follow(self, incarnation: str, seen: int) -> Following:
        """What is new since `seen` events of `incarnation`; waits a while for something to be."""
        with self.changed:
            seen = seen if incarnation == self.incarnation else 0
            self.changed.wait_for(lambda: len(self.events) > seen or self._ended(), timeout=FOLLOW_WAIT_S)
            return Following(self.incarnation, self.events[seen:], self.result, self.error)

    def collect(self) -> None:
        """Say that the end has been heard: the actor may go."""
        self.collected.set()

    def _ended(self) -> bool:
        return self.result is not None or self.error is not None

    def _tell(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()
        if isinstance(event, RoundFinished):
            record("qedge_rounds_total", 1, model=self.model)
            record("qedge_clients_expected", event.expected_cohort, model=self.model)
            for name, value in (("qedge_accuracy", event.accuracy), ("qedge_epsilon_spent", event.epsilon)):
                if value is not None:
                    record(name, value, model=self.model)

    def _carry_out(self) -> None:
        try:
            result, error = carry_out(self.run, self.settings, RayWorkers, self._tell), None
        except Exception as raised:  # noqa: BLE001 - the edge of the process: whoever follows gets it as it is
            result, error = None, raised
        with self.changed:
            self.result, self.error = result, error
            self.changed.notify_all()
        # Whoever follows says when it has heard the end; a driver that died never will.
        self.collected.wait(ORPHAN_LINGERS_S)
        ray.kill(self.handle)
