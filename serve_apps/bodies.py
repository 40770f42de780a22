"""Request bodies, bounded while they are read: each in size and time, and all that a replica holds at once in their sum.

A caller who sends without end, says nothing of the length, or sends a byte a minute costs at most the limits. Memory is
counted as it arrives, not as it is announced: an announcement alone takes nothing from others. Small bodies are not counted
(Serve bounds how many requests there are), so that a flood of large ones never keeps a small one out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from qedge.errors import InvalidRequest, Overloaded, RequestTimeout, RequestTooLarge, UnsupportedMediaType

SMALL_BYTES = 64 * 1024
_LARGEST_AT_ONCE = 8
_LENGTH = re.compile(r"[0-9]{1,18}")


class Bodies:
    """The bodies that one replica is reading or answering. Used from one event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytearray]:
        """The whole body of a JSON request of at most `limit` bytes; it counts as held until the context is left.

        Raises:
            UnsupportedMediaType: the content type is not application/json.
            InvalidRequest: a content length that is no number.
            RequestTooLarge: more than `limit` bytes, announced or sent.
            RequestTimeout: the body was not there in time.
            Overloaded: with it, more than eight times `limit` would be held.
        """
        _check_headers(request, limit)
        body = bytearray()
        try:
            await self._fill(body, request, limit)
            yield body
        finally:
            self._held -= _weight(len(body))

    async def _fill(self, body: bytearray, request: Request, limit: int) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for part in request.stream():
                    self._make_room(len(body), len(body) + len(part), limit)
                    body += part
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive in {self._timeout_s:g} s; send fewer rows at a time") from None

    def _make_room(self, before: int, after: int, limit: int) -> None:
        if after > limit:
            raise _too_large(limit)
        more = _weight(after) - _weight(before)
        if self._held + more > _LARGEST_AT_ONCE * limit:
            raise Overloaded("the bodies being read and answered take all the memory there is for them; try again in a moment")
        self._held += more


def _weight(size: int) -> int:
    return size if size > SMALL_BYTES else 0


def _check_headers(request: Request, limit: int) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(f"the content type is '{kind}'; expected application/json", given=kind, expected="application/json")
    announced = request.headers.get("content-length", "0")
    if not _LENGTH.fullmatch(announced):
        raise InvalidRequest(f"the content length is '{announced}'; expected a number of bytes", given=announced)
    if int(announced) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is larger than {limit} bytes; send fewer rows at a time", expected=limit)
