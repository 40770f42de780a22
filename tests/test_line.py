"""The line before a model that takes long: in order, one at a time, bounded, left by who hangs up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from qedge.errors import Overloaded
from serve_apps.line import MOST_WAITING, Line


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line("slow")
    yield made
    made.close(lambda: None)


@asynccontextmanager
async def held(line: Line) -> AsyncIterator[threading.Event]:
    """The line while somebody is being answered, until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def answer() -> bool:
        begun.set()
        return go_on.wait(30)

    first = asyncio.create_task(line.run(answer))
    await asyncio.to_thread(begun.wait, 30)
    try:
        yield go_on
    finally:
        go_on.set()
        assert await first


def test_answers_come_one_at_a_time_in_the_order_of_asking(line: Line) -> None:
    done: list[int] = []

    async def ask() -> None:
        async with held(line):
            waiting = [asyncio.create_task(line.run(done.append, number)) for number in range(MOST_WAITING)]
            await asyncio.sleep(0)
            assert done == []
        await asyncio.gather(*waiting)

    asyncio.run(ask())
    assert done == list(range(MOST_WAITING))


def test_who_finds_the_line_full_is_turned_away_at_once_and_who_hangs_up_makes_room(line: Line) -> None:
    async def ask() -> None:
        async with held(line):
            waiting = [asyncio.create_task(line.run(int)) for _ in range(MOST_WAITING)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="16 requests wait for slow"):
                await line.run(int)
            waiting.pop().cancel()
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(line.run(int)))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await line.run(int)
        assert await asyncio.gather(*waiting) == [0] * MOST_WAITING

    asyncio.run(ask())


def test_a_line_that_is_closed_answers_who_is_in_it_and_then_does_what_is_left() -> None:
    line, done = Line("slow"), list[str]()

    async def ask() -> None:
        async with held(line):
            waiting = asyncio.create_task(line.run(done.append, "answered"))
            await asyncio.sleep(0)
            line.close(lambda: done.append("ended"))
            line.close(lambda: done.append("twice"))
            with pytest.raises(Overloaded, match="just replaced"):
                await line.run(int)
        await waiting

    asyncio.run(ask())
    line._pool.shutdown(wait=True)
    assert done == ["answered", "ended"]


def test_what_the_answer_raises_is_raised_and_the_next_is_answered(line: Line) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(line.run(int, "x"))
    assert asyncio.run(line.run(int, "3")) == 3
