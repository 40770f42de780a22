"""The Ray backend of `qedge.train`: start or find the run's coordinator, then follow it to the end."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.exceptions import RayActorError

from actors.cluster import connect
from actors.coordinator import NAMESPACE, CoordinatorActor
from qedge.config import Settings
from qedge.errors import RoundFailed
from qedge.federated.events import Event
from qedge.federated.run_folder import Json


class RayBackend:
    """Runs a prepared run on the cluster that the settings name, or on a Ray of its own."""

    def run(self, run: str, settings: Settings, on_event: Callable[[Event], None]) -> Json:
        """See `qedge.federated.training.Backend.run`."""
        with connect(settings, start=True):
            coordinator = CoordinatorActor.options(
                name=f"coordinator-{run}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                resources={"node:__internal_head__": 0.001},  # beside the state: the ledger and the run's folder
            ).remote(run, settings.model_dump_json())
            incarnation, seen = "", 0
            while True:
                try:
                    news = ray.get(coordinator.follow.remote(incarnation, seen))
                except RayActorError as error:
                    raise RoundFailed(f"the coordinator of run {run} was lost: {error}; resume the run", run=run) from error
                seen = len(news.events) + (seen if news.incarnation == incarnation else 0)
                incarnation = news.incarnation
                for event in news.events:
                    on_event(event)
                if news.result is not None or news.error is not None:
                    ray.kill(coordinator)
                    break
        if news.error is not None:
            raise news.error
        return news.result
