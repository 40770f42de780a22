"""Errors as RFC 9457 problems: the one table of which error is which HTTP status.

A problem carries `code` (stable, the class of the error) and the error's facts, so that a client can raise the same class
again, and `error`, where clients of the Open Inference Protocol look. What went wrong inside is logged, never shown.

Source: RFC 9457 (Problem Details for HTTP APIs); Open Inference Protocol, section "Inference Response JSON Error Object".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from qedge.errors import (
    BudgetExceeded,
    Failed,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    QEdgeError,
    Refused,
    RegistryUnavailable,
    RequestTimeout,
    RequestTooLarge,
    ScopeConflict,
    StorageFull,
    Tampered,
    UnknownModel,
    UnknownPath,
    UnknownRun,
    UnknownScope,
    UnsupportedMediaType,
)
from serve_apps.inference import InferenceServer

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:qedge:problem:"

STATUS: Mapping[type[QEdgeError], int] = {
    QEdgeError: 500,
    Refused: 400,
    InvalidRequest: 400,
    UnknownModel: 404,
    UnknownRun: 404,
    UnknownScope: 404,
    UnknownPath: 404,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    BudgetExceeded: 409,
    ScopeConflict: 409,
    RequestTooLarge: 413,
    UnsupportedMediaType: 415,
    Tampered: 500,
    Failed: 500,
    RegistryUnavailable: 503,
    Overloaded: 503,
    StorageFull: 507,
}

_RETRY_AFTER_S = "1"
_log = logging.getLogger(__name__)


def status_of(error: QEdgeError) -> int:
    """The HTTP status of an error: its own row, else its nearest ancestor's."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(error: QEdgeError) -> Response:
    """The error as a problem body with its status. From 500 on, facts stay inside: they may hold paths."""
    status = status_of(error)
    title = (type(error).__doc__ or type(error).__name__).splitlines()[0].rstrip(".")
    facts = error.facts if status < 500 else {}
    body = {
        **facts,
        "type": TYPE_PREFIX + error.code,
        "title": title,
        "status": status,
        "detail": error.message if status < 500 else title,
        "code": error.code,
        "error": error.message if status < 500 else title,
    }
    headers = {"Retry-After": _RETRY_AFTER_S} if isinstance(error, Overloaded) else None
    return Response(to_json(body, fallback=str), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI, server: InferenceServer) -> None:
    """Answer every error of `app` as a problem, and count it."""

    async def typed(request: Request, error: Exception) -> Response:
        return answered(error if isinstance(error, QEdgeError) else Failed(str(error)))

    async def routing(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return answered(Failed(str(error)))
        path = request.url.path
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            response = answered(MethodNotAllowed(f"{path} does not take {request.method}; it takes {allowed}", allowed=allowed))
            response.headers["Allow"] = allowed
            return response
        if error.status_code == 404:
            return answered(UnknownPath(f"no endpoint {path}; GET /v2 says what is served", path=path))
        return answered(InvalidRequest(str(error.detail)))

    async def unforeseen(request: Request, error: Exception) -> Response:
        _log.error("request failed: %s", request.url.path, exc_info=error)
        return answered(Failed("internal error"))

    def answered(error: QEdgeError) -> Response:
        if status_of(error) >= 500 and not isinstance(error, Overloaded):  # a flood is counted, and does not flood the log as well
            _log.error("%s: %s", error.code, error.message)
        server.refused(error)
        return problem(error)

    app.add_exception_handler(QEdgeError, typed)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unforeseen)
