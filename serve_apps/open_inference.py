"""The Open Inference Protocol, version 2, over REST with JSON tensors.

Small requests are answered on the event loop, where a hop to a thread would cost more than the work; large ones in a
thread, so that they delay nobody's health check, and two at a time, because parsed JSON takes many times its bytes. A model for which
circuits have to be run has a line of its own.

Source: https://github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response
from pydantic import JsonValue
from pydantic_core import to_json

from qedge import __version__
from serve_apps import problems
from serve_apps.bodies import SMALL_BYTES, Bodies
from serve_apps.inference import InferenceServer
from serve_apps.served_model import ServedModel

_LARGE_AT_ONCE = 2


def build(server: InferenceServer) -> FastAPI:
    """The ASGI application that answers for `server`."""
    app = FastAPI(title="qedge", version=__version__, openapi_url=None, redirect_slashes=False)
    problems.install(app, server)
    _server_routes(app, server)
    bodies = Bodies(server.read_timeout_s)
    # A pool of its own: a caller who hangs up frees a place only when the thread is done, as a semaphore would not see to.
    pool = ThreadPoolExecutor(_LARGE_AT_ONCE, thread_name_prefix="large-request")
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        _model_routes(app, server, prefix)
        _infer_route(app, server, prefix, bodies, pool)
    return app


def _server_routes(app: FastAPI, server: InferenceServer) -> None:
    @app.get("/v2")
    async def metadata() -> Response:
        models: list[JsonValue] = [*sorted(server.served)]
        return _json({"name": "qedge", "version": __version__, "extensions": [], "models": models})

    @app.get("/v2/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return _json({"ready": not server.failures}, 503 if server.failures else 200)


def _model_routes(app: FastAPI, server: InferenceServer, prefix: str) -> None:
    @app.get(prefix)
    async def metadata(request: Request) -> Response:
        return _json(server.find(*_asked(request)).metadata())

    @app.get(prefix + "/ready")
    async def ready(request: Request) -> Response:
        source = server.find(*_asked(request)).source
        return _json({"name": source.name, "version": source.version, "ready": True})


def _infer_route(app: FastAPI, server: InferenceServer, prefix: str, bodies: Bodies, pool: ThreadPoolExecutor) -> None:
    @app.post(prefix + "/infer")
    async def infer(request: Request) -> Response:
        name, version = _asked(request)
        server.find(name, version)  # before the body is read
        async with bodies.read(request, server.max_body_bytes) as body:
            model = server.find(name, version)
            if model.line is not None:
                return await model.line.run(_answer, server, model, body)
            if len(body) <= SMALL_BYTES and model.at_once:
                return _answer(server, model, body)
            return await asyncio.get_running_loop().run_in_executor(pool, _answer, server, model, body)


def _asked(request: Request) -> tuple[str, str | None]:
    return request.path_params["name"], request.path_params.get("version")


def _answer(server: InferenceServer, model: ServedModel, body: bytearray) -> Response:
    return _json(server.answer(model, body))


def _json(value: JsonValue, status: int = 200) -> Response:
    return Response(to_json(value), status_code=status, media_type="application/json")
