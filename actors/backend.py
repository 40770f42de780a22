"""The Ray backend of `qedge.train`: start or find the run's coordinator, then follow it to the end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType

import ray
from ray.actor import ActorHandle

from actors.client_sums import RaySums
from actors.client_workers import LOST
from actors.cluster import Connection, connect
from actors.coordinator import CoordinatorActor
from actors.nodes import HEAD, refuse_off_head
from actors.reservation import give_back, reserve
from actors.session import NAMESPACE
from qedge.config import Settings
from qedge.data.client_columns import ClientColumns
from qedge.errors import RoundFailed
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import Json, RunFolder, mapping
from qedge.job import SecureAggregation
from qedge.runs.query import carry_out_query

_GOING_S = 30.0


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
        coordinator = self._coordinator(run)
        incarnation, seen = "", 0
        while True:
            try:
                news = ray.get(coordinator.follow.remote(incarnation, seen))
            except LOST as error:
                return self._left_behind(run, error)
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

    def query(self, run: str, on_event: Callable[[Event], None]) -> Json:
        """See `qedge.runs.training.Backend.query`: a query is short, so this process coordinates it; its actors end with it."""
        if self.connection is None:
            on_event(Phase(run, "starting"))
            self.connection = connect(self.settings, start=True)
        reservation = f"query-{run}-{secrets.token_hex(4)}"

        def sums(columns: ClientColumns, secure: SecureAggregation | None) -> RaySums:
            return RaySums(columns, reserve(reservation, lambda: on_event(Phase(run, "waiting"))), secure)

        try:
            return carry_out_query(run, self.settings, sums, on_event)
        finally:
            give_back(reservation)

    def _coordinator(self, run: str) -> ActorHandle:
        """The coordinator of a run under way; a new one where there is none, or where the one there is only tells of an earlier end."""
        name = f"coordinator-{run}"
        end = time.monotonic() + _GOING_S
        with suppress(ValueError):  # none of that name is left
            while time.monotonic() < end:
                try:
                    found = ray.get_actor(name, NAMESPACE)
                    if not ray.get(found.has_ended.remote()):
                        break
                    ray.kill(found)
                except LOST:  # Ray says so before it frees the name
                    time.sleep(0.05)
        return CoordinatorActor.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            resources={HEAD: 0.001},  # beside the state: the ledger and the run's folder
        ).remote(run, self.settings.model_dump_json())

    def _left_behind(self, run: str, error: Exception) -> Json:
        """The result of a run whose coordinator is gone: it had ended, and another follower has let it go.

        Raises:
            RoundFailed: it had failed, or had not ended.
        """
        folder = RunFolder.open(self.settings.home, run)
        if (result := folder.finished()) is not None:
            return result
        if (failed := folder.read("result.json")) is not None:
            how = mapping(failed["tags"]).get("qedge.error", failed["status"])
            raise RoundFailed(f"run {run} failed ({how})", run=run) from None
        raise RoundFailed(f"the coordinator of run {run} was lost ({type(error).__name__}); resume the run", run=run) from None
