"""The budget of bytes: charged before a load, corrected after it, never passed, and nothing taken away from under a call."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.edge.memory import Key, Memory
from qedge.edge.rung import Rows
from qedge.errors import EdgeError, Failed, OverBudget
from tests.endpoint import eventually


class Bytes:
    """A rung of which only the bytes matter. It knows whether it was closed while it was used."""

    def __init__(self, process: Process, size: int) -> None:
        self.process, self.size, self.running, self.closed = process, size, 0, False
        process.grow(size)

    def run(self, rows: Rows) -> Rows:
        assert not self.closed
        return rows

    def close(self) -> None:
        assert not self.closed
        assert not self.running
        self.closed = True
        self.process.grow(-self.size)


class Process:
    """What grows by what is loaded."""

    def __init__(self) -> None:
        self.bytes, self.most, self.lock = 1000, 1000, threading.Lock()

    def grow(self, size: int) -> None:
        with self.lock:
            self.bytes += size

    def taken(self) -> int:
        self.most = max(self.most, self.bytes)
        return self.bytes

    def memory(self, budget: int, **more: object) -> Memory:
        self.out: list[Key] = []
        return Memory(budget, evicted=self.out.append, measure=self.taken, patience_s=0.0, **more)  # type: ignore[arg-type]


def key(name: str) -> Key:
    return (name, "fp32")


def put(memory: Memory, process: Process, name: str, size: int, estimate: int | None = None) -> None:
    """Load and let the call end."""
    memory.release(memory.load(key(name), size if estimate is None else estimate, lambda: Bytes(process, size)))


def test_the_rung_used_longest_ago_goes_first_and_its_bytes_are_gone_before_the_next_is_loaded() -> None:
    process = Process()
    memory = process.memory(100)
    for name in "abc":
        put(memory, process, name, 30)
    again = memory.load(key("a"), 30, lambda: pytest.fail("it is loaded"))
    memory.release(again)
    put(memory, process, "d", 30)
    assert process.out == [key("b")]
    assert set(memory.loaded) == {key("a"), key("c"), key("d")}
    assert (process.bytes, process.most) == (1090, 1090)


def test_what_does_not_fit_is_refused_before_it_is_loaded_and_nothing_goes_for_it() -> None:
    process = Process()
    memory = process.memory(100)
    put(memory, process, "a", 60)
    with pytest.raises(OverBudget, match="it takes by the estimate 101 bytes; 40 of 100 are left") as refused:
        memory.load(key("b"), 101, lambda: pytest.fail("it was loaded"))
    assert refused.value.facts == {"rung": "fp32", "estimate_bytes": 101, "left_bytes": 40, "budget_bytes": 100}
    assert (set(memory.loaded), memory.charged) == ({key("a")}, 60)


def test_a_rung_that_answers_a_call_is_not_put_out_and_one_that_must_go_does_so_when_the_call_ends() -> None:
    process = Process()
    memory = process.memory(100)
    busy = memory.load(key("a"), 60, lambda: Bytes(process, 60))
    with pytest.raises(OverBudget, match="what else is loaded answers calls"):
        memory.load(key("b"), 60, lambda: pytest.fail("it was loaded"))
    memory.drop("a")
    assert not memory.hold(busy)
    assert (memory.loaded, memory.charged, process.bytes) == ({}, 60, 1060)
    memory.release(busy)
    assert (memory.charged, process.bytes) == (0, 1000)


def test_a_load_waits_for_the_call_that_holds_what_it_needs() -> None:
    process = Process()
    memory = Memory(100, measure=process.taken, patience_s=30.0)
    busy = memory.load(key("a"), 60, lambda: Bytes(process, 60))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(memory.load, key("b"), 60, lambda: Bytes(process, 60))
        assert eventually(lambda: memory._waiting == 1)
        assert not waiting.done()
        memory.release(busy)
        assert waiting.result(timeout=20).key == key("b")
    assert process.most <= 1100


def test_a_rung_that_took_more_than_its_estimate_is_charged_for_it_and_others_go() -> None:
    process = Process()
    memory = process.memory(100)
    put(memory, process, "a", 40)
    put(memory, process, "b", 80, estimate=50)
    assert memory.loaded == {key("b"): 80}
    put(memory, process, "c", 10, estimate=15)  # less than the estimate may be bytes that the process had kept
    assert memory.loaded == {key("b"): 80, key("c"): 15}
    with pytest.raises(OverBudget, match="it took 120 bytes"):
        put(memory, process, "d", 120, estimate=20)
    assert process.bytes == 1000 + sum(10 if name == key("c") else took for name, took in memory.loaded.items())


def test_while_a_call_runs_an_overrun_stands_and_goes_with_its_end() -> None:
    process = Process()
    memory = process.memory(100)
    busy = memory.load(key("a"), 60, lambda: Bytes(process, 60))
    put(memory, process, "b", 70, estimate=30)
    assert memory.loaded == {key("a"): 60}  # the newcomer was idle first
    memory.release(busy)
    assert memory.charged == 60


def test_a_load_that_fails_leaves_nothing_charged_and_may_be_tried_again() -> None:
    process = Process()
    memory = process.memory(100)

    def fails() -> Bytes:
        raise Failed("no")

    with pytest.raises(Failed):
        memory.load(key("a"), 60, fails)
    assert memory.charged == 0
    put(memory, process, "a", 60)


def test_threads_that_want_one_rung_load_it_once() -> None:
    process, gate, loads = Process(), threading.Barrier(4), []
    memory = process.memory(100)

    def make() -> Bytes:
        loads.append(1)
        return Bytes(process, 60)

    def want() -> object:
        gate.wait()
        return memory.load(key("a"), 60, make)

    with ThreadPoolExecutor(4) as pool:
        found = [future.result(timeout=20) for future in [pool.submit(want) for _ in range(4)]]
    assert len(set(map(id, found))) == len(loads) == 1
    assert found[0].users == 4  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=40), st.integers(40, 120))
def test_the_process_never_holds_more_than_the_budget(wanted: list[tuple[int, int]], budget: int) -> None:
    process = Process()
    memory = process.memory(budget)
    sizes: dict[int, int] = {}
    for name, size in wanted:
        sizes.setdefault(name, size)
        if sizes[name] > budget:
            with pytest.raises(OverBudget):
                put(memory, process, str(name), sizes[name])
        else:
            put(memory, process, str(name), sizes[name])
            assert key(str(name)) in memory.loaded
        assert process.bytes - 1000 == memory.charged <= budget
    memory.close()
    assert (process.bytes, memory.charged) == (1000, 0)


def test_many_threads_never_pass_the_budget_nor_use_what_was_closed() -> None:
    process = Process()
    memory = Memory(100, measure=process.taken, patience_s=60.0)
    generator = np.random.default_rng(0)
    guard = threading.Lock()

    def calls(names: list[int]) -> None:
        for name in names:
            held = memory.load(key(str(name)), 18, lambda: Bytes(process, 18))
            runner = held.runner
            assert isinstance(runner, Bytes)
            with guard:
                runner.running += 1
            runner.run(np.zeros((1, 1), np.float32))
            with guard:
                runner.running -= 1
            memory.release(held)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(calls, generator.integers(0, 20, 200).tolist()) for _ in range(4)]:
            done.result(timeout=120)
    assert process.most <= 1100
    memory.close()
    assert process.bytes == 1000


@pytest.mark.parametrize("budget", [0, -1, True, 1.5, "64MiB"])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: object) -> None:
    with pytest.raises(EdgeError, match="accepted: a number of bytes over 0"):
        Memory(budget)  # type: ignore[arg-type]
