"""The Open Inference Protocol, version 2, over REST with JSON tensors.

The body is bounded while it is read, so a caller who sends without end, or says nothing of the length, costs at most the
limit. Small requests are answered on the event loop, where a hop to a thread would cost more than the work; large ones in
a thread, so that they delay nobody's health check.

Source: https://github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md`.
"""

from __future__ import annotations

import asyncio
import re

from fastapi import FastAPI, Request, Response
from pydantic import JsonValue
from pydantic_core import to_json

from qedge import __version__
from qedge.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType
from serve_apps import problems
from serve_apps.inference import InferenceServer

_INLINE_BYTES = 64 * 1024
_LENGTH = re.compile(r"[0-9]{1,18}")


def build(server: InferenceServer) -> FastAPI:
    """The ASGI application that answers for `server`."""
    app = FastAPI(title="qedge", version=__version__, openapi_url=None, redirect_slashes=False)
    problems.install(app, server)
    _server_routes(app, server)
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        _model_routes(app, server, prefix)
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

    @app.post(prefix + "/infer")
    async def infer(request: Request) -> Response:
        name, version = _asked(request)
        server.find(name, version)
        body = await read_body(request, server.max_body_bytes)
        if len(body) <= _INLINE_BYTES:
            return _answer(server, name, version, body)
        return await asyncio.to_thread(_answer, server, name, version, body)


def _asked(request: Request) -> tuple[str, str | None]:
    return request.path_params["name"], request.path_params.get("version")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body of a JSON request.

    Raises:
        UnsupportedMediaType: the content type is not application/json.
        RequestTooLarge: more than `limit` bytes, announced or sent.
        InvalidRequest: a content length that is no number.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(f"the content type is '{kind}'; expected application/json", given=kind, expected="application/json")
    announced = request.headers.get("content-length", "0")
    if not _LENGTH.fullmatch(announced):
        raise InvalidRequest(f"the content length is '{announced}'; expected a number of bytes", given=announced)
    too_large = RequestTooLarge(f"the body is larger than {limit} bytes; send fewer rows at a time", expected=limit)
    if int(announced) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _answer(server: InferenceServer, name: str, version: str | None, body: bytes) -> Response:
    return _json(server.infer(name, version, body))


def _json(value: JsonValue, status: int = 200) -> Response:
    return Response(to_json(value), status_code=status, media_type="application/json")
