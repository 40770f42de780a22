"""The Ray backend of `qedge.train`: start or find the run's coordinator, then follow it to the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import ray
from ray.exceptions import RayActorError

from actors.cluster import Connection, connect
from actors.coordinator import CoordinatorActor
from actors.nodes import HEAD, refuse_off_head
from actors.session import NAMESPACE
from qedge.config import Settings
from qedge.errors import RoundFailed
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import Json, RunFolder


class RayBackend:
    """Runs prepared runs on the cluster that the settings name, or on a Ray of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection: Connection | None = None

    def __enter__(self) -> RayBackend:
        """Reach a cluster that was named, or that this process is part of; one of our own is started when it is needed.

        Raises:
            HomeUnusable: this is a node of it other than the head.
        """
        if self.settings.address is not None or ray.is_initialized():
            with ExitStack() as undo:
                self.connection = undo.enter_context(connect(self.settings, start=True))
                refuse_off_head()
                undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Disconnect."""
        if self.connection is not None:
            self.connection.close()

    def run(self, run: str, on_event: Callable[[Event], None]) -> Json:
        """See `qedge.runs.training.Backend.run`."""
        if self.connection is None:
            on_event(Phase(run, "starting"))
            self.connection = connect(self.settings, start=True)
        coordinator = CoordinatorActor.options(
            name=f"coordinator-{run}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            resources={HEAD: 0.001},  # beside the state: the ledger and the run's folder
        ).remote(run, self.settings.model_dump_json())
        incarnation, seen = "", 0
        while True:
            try:
                news = ray.get(coordinator.follow.remote(incarnation, seen))
            except RayActorError as error:
                if (result := RunFolder.open(self.settings.home, run).read("result.json")) is not None:
                    return result  # it had ended, and another follower has let it go
                raise RoundFailed(f"the coordinator of run {run} was lost: {error}; resume the run", run=run) from error
            seen = len(news.events) + (seen if news.incarnation == incarnation else 0)
            incarnation = news.incarnation
            for event in news.events:
                on_event(event)
            if news.error is not None or news.result is not None:
                break
        ray.kill(coordinator)  # its end has been heard
        if news.error is not None:
            raise news.error
        return news.result
