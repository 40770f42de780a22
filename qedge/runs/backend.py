"""Carrying out a prepared run, and the backend that does so in this process."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from qedge.analytics.sums import LocalSums
from qedge.config import Settings
from qedge.data.federation import Rows
from qedge.errors import Diverged, Failed, Refused
from qedge.federated.client import FederatedClient
from qedge.federated.coordinator import Coordinator, MakeWorkers
from qedge.federated.events import Event, Phase, RoundFinished
from qedge.federated.messages import ClientSpec
from qedge.federated.run_folder import Json, RunFolder
from qedge.federated.workers import LocalWorkers
from qedge.records import Records
from qedge.registry.publisher import Publisher
from qedge.runs.completion import complete, record_failure
from qedge.runs.query import carry_out_query
from qedge.storage import locked

PUBLISH_TIMEOUT_S = 120.0
LOCK_TIMEOUT_S = 20.0


def carry_out(run: str, settings: Settings, make_workers: MakeWorkers, on_event: Callable[[Event], None]) -> Json:
    """Train a prepared run from wherever it stands, issue its model and receipt, publish it; the run's result.

    The registry is mirrored in the background; when it is away, the run finishes and is published later.

    Raises:
        Failed: the run cannot go on now; Tampered: its state is not what it was.
    """
    folder, records = RunFolder.open(settings.home, run), Records.open(settings.home)
    publisher = Publisher(settings, run)
    publisher.start()

    def tell(event: Event) -> None:
        if isinstance(event, RoundFinished):
            publisher.wake()
        on_event(event)

    try:
        with locked(folder.path / "lock", timeout_s=LOCK_TIMEOUT_S):  # two coordinators of one run would undo each other's files
            folder.forget_failure()
            coordinator = Coordinator(folder, records, make_workers, tell)
            result = complete(coordinator, coordinator.train(), tell)
    except Diverged as error:
        record_failure(folder, records, error)
        raise
    except Refused as error:  # what was refused before anything was held is for `prepare`; by now something may be charged
        raise Failed(f"run {run} cannot go on: {error.message}", run=run, cause=error.code) from error
    else:
        on_event(Phase(run, "publishing"))
    finally:  # of a run that failed, what there is
        publisher.finish(PUBLISH_TIMEOUT_S)
    return result


class SerialBackend:
    """The whole run in this process, one client chunk after another, no Ray; the oracle of every other backend."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __enter__(self) -> SerialBackend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is held."""

    def run(self, run: str, on_event: Callable[[Event], None]) -> Json:
        """See `training.Backend.run`."""
        return carry_out(run, self.settings, local_workers, on_event)

    def query(self, run: str, on_event: Callable[[Event], None]) -> Json:
        """See `training.Backend.query`."""
        return carry_out_query(run, self.settings, LocalSums, on_event)


def local_workers(spec: ClientSpec, train: Rows, test: Rows | None) -> LocalWorkers:
    """Workers in this process, as a coordinator makes them."""
    return LocalWorkers(FederatedClient(spec, train, test))
