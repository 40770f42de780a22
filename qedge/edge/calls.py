"""What the calls on a node came to: metrics, told in bunches away from the call, and how the node fares beside its cards."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from qedge.edge.card import Card
from qedge.edge.rung import RungName

_TELLING = 8  # calls with one row that it takes to say how the node fares
_MOST_KEPT = 4096


class Record(Protocol):
    """Takes a value of the metrics table (`qedge.monitoring.metrics`)."""

    def __call__(self, name: str, value: float, **tags: str) -> None: ...


class Call(NamedTuple):
    """rung: that answered `rows` rows, `escalated` of which went on; seconds: in all; running: of them by the rung."""

    model: str
    rung: RungName
    rows: int
    escalated: int
    seconds: float
    running: float


class Calls:
    """Calls and evictions since they were last told; of a flood the latest."""

    def __init__(self, record: Record) -> None:
        self._calls: deque[Call] = deque(maxlen=_MOST_KEPT)
        self.note = self._calls.append  # takes a `Call`
        self._evicted: deque[tuple[str, RungName]] = deque()
        self._record = record
        self._shown: set[tuple[str, RungName]] = set()

    def evicted(self, model: str, rung: RungName) -> None:
        """A rung was put out for want of room."""
        self._evicted.append((model, rung))

    def tell(self, loaded: Mapping[str, Mapping[RungName, int]]) -> list[Call]:
        """Record what came since the last time, and bytes of what is loaded; the calls. By one thread at a time."""
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        mix: dict[tuple[str, RungName], int] = {}
        escalated: dict[str, int] = {}
        for call in calls:
            self._record("qedge_edge_call_seconds", call.seconds, model=call.model, rung=call.rung)
            mix[call.model, call.rung] = mix.get((call.model, call.rung), 0) + 1
            escalated[call.model] = escalated.get(call.model, 0) + call.escalated
        for (model, rung), count in mix.items():
            self._record("qedge_edge_calls_total", count, model=model, rung=rung)
        for model, rows in escalated.items():
            if rows:
                self._record("qedge_edge_rows_escalated_total", rows, model=model)
        while self._evicted:
            model, rung = self._evicted.popleft()
            self._record("qedge_edge_evictions_total", 1, model=model, rung=rung)
        self._tell_loaded({(model, rung): took for model, rungs in loaded.items() for rung, took in rungs.items()})
        return calls

    def _tell_loaded(self, taken: Mapping[tuple[str, RungName], int]) -> None:
        gone: Iterable[tuple[str, RungName]] = self._shown - taken.keys()
        for (model, rung), took in (*((one, 0) for one in gone), *taken.items()):
            self._record("qedge_edge_memory_bytes", took, model=model, rung=rung)
        self._shown = set(taken)


def slowdown(card: Card, calls: Sequence[Call]) -> float:
    """How much longer single rows took than the card says, by these calls of the card's model; 1 where too few tell."""
    medians = {one.rung: one.cost.latency[1].p50_ms / 1e3 for one in card.rungs if one.cost is not None}
    factors = [call.running / max(1e-6, medians[call.rung]) for call in calls if call.rows == 1 and call.rung in medians]
    return max(1.0, statistics.median(factors)) if len(factors) >= _TELLING else 1.0
