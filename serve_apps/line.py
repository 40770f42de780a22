"""A line before a model that takes long: one request at a time, a few who wait in the order in which they came, the rest turned away.

A line of its own for each such model: nobody waits for another model's circuits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from qedge.errors import Overloaded

MOST_WAITING = 16
_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


class Line:
    """What is asked of one model, name: of that."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"line-{name}")
        self._lock = threading.Lock()
        self._there, self._closed = 0, False

    async def run(self, answer: Callable[_Asked, _Answer], *asked: _Asked.args, **named: _Asked.kwargs) -> _Answer:
        """The answer, once it is this request's turn. Who is cancelled while waiting leaves the line.

        Raises:
            Overloaded: the line is full, or its model was just replaced.
            What `answer` raises.
        """
        with self._lock:
            if self._closed:
                raise Overloaded(f"{self.name} was just replaced; ask again", model=self.name)
            if self._there > MOST_WAITING:
                raise Overloaded(f"{MOST_WAITING} requests wait for {self.name} already; try again later", model=self.name)
            self._there += 1
            place = self._pool.submit(answer, *asked, **named)
        place.add_done_callback(self._leave)
        return await asyncio.wrap_future(place)

    def close(self, after: Callable[[], None]) -> None:
        """Take no more requests; do `after` when those that are there have been answered. Does not wait for that."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._pool.submit(after)
                self._pool.shutdown(wait=False)

    def _leave(self, _: Future[_Answer]) -> None:
        with self._lock:
            self._there -= 1
