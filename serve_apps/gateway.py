"""An edge gateway: a process of its own, without Ray, that answers for the champions of a registry from this machine's disk.

GET  /v2/…        the Open Inference Protocol, as the endpoint on Ray Serve answers it
GET  /gateway     which version answers for each model, and whether the registry said so just now
GET  /metrics     for Prometheus
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import prometheus_client
from fastapi import FastAPI, Response
from pydantic import JsonValue
from pydantic_core import to_json

from qedge.config import Settings
from qedge.edge.engine import EdgeEngine
from qedge.errors import PortInUse
from qedge.registry.following import EVERY_S, Followed, Follower, Standing
from qedge.registry.ladder_cache import FOLDER, Cached, LadderCache
from qedge.registry.registry import Registry
from serve_apps import open_inference
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder
from serve_apps.prometheus import Exported

if TYPE_CHECKING:
    import uvicorn


class Gateway:
    """Models that follow a registry, answered by one engine."""

    def __init__(self, settings: Settings, followed: Sequence[Followed], key: bytes, budget_bytes: int) -> None:
        """key: public, of whoever signs receipts. budget_bytes: most that rungs may take.

        Raises:
            EdgeError: as `Follower`, or a budget that is no number of bytes over 0.
        """
        self._key, self._plan = key, dict[str, ModelFolder]()
        self.metrics = Exported()
        engine = EdgeEngine(budget_bytes, home=settings.home, record=self.metrics.record, covered_only=settings.edge.covered_only)
        self.server = InferenceServer(
            max_body_bytes=settings.serve.max_body_bytes,
            max_batch_rows=settings.serve.max_batch_rows,
            record=self.metrics.record,
            make_engine=lambda: engine,
        )
        self.follower = Follower(LadderCache(Registry(settings), settings.home / FOLDER, key), followed, self._serve)

    def build(self) -> FastAPI:
        """The ASGI application."""
        app = open_inference.build(self.server)

        @app.get("/gateway")
        async def state() -> Response:
            return Response(to_json([_plain(one) for one in self.follower.standing]), media_type="application/json")

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(self.metrics.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

        return app

    def run(self, host: str, port: int, *, every_s: float = EVERY_S, up: Callable[[str], None] = lambda _: None) -> None:
        """Answer until SIGINT or SIGTERM. up: told the URL once it listens; port 0: any free one.

        Raises:
            PortInUse: something else listens there.
        """
        listening = _bound(host, port)
        with listening:
            self.follower.begin()
            self.follower.start(every_s)
            try:
                up(f"http://{host}:{listening.getsockname()[1]}")
                _web(self.build()).run([listening])
            finally:
                self.follower.close()

    def _serve(self, one: Followed, found: Cached) -> None:
        source = ModelFolder(one.name, found.version, str(found.ladder.folder), self._key.hex(), edge=one.requirement)
        self.server.serve([*(self._plan | {one.name: source}).values()])
        error = self.server.failures.get(one.name)
        if error is not None:
            raise error
        self._plan[one.name] = source


def _web(app: FastAPI) -> uvicorn.Server:
    import uvicorn

    return uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5))


def _bound(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise PortInUse(f"{host}:{port} cannot be listened on: {error.strerror}; give another --port", given=port) from None
    return listening


def _plain(one: Standing) -> dict[str, JsonValue]:
    error: JsonValue = None if one.error is None else {"code": one.error.code, "message": one.error.message}
    return {
        "reference": one.reference,
        "version": one.version,
        "ladder": one.ladder,
        "fresh": one.fresh,
        "at": one.at,
        "error": error,
    }
