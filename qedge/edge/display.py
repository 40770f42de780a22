"""What the terminal shows of edge nodes: a ladder's card, and what a compression came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from qedge.display import table
from qedge.edge.card import Card, RungCard
from qedge.search.space import shown

if TYPE_CHECKING:
    from qedge.edge.compression.table import Row
    from qedge.edge.search.front import Point


def show_card(console: Console, card: Card) -> None:
    """Every rung, and by which a dominated one is."""
    answers = [_answers(one) for one in card.rungs]
    rows = card.rungs[0].accuracy.rows
    table(console, f"{card.model} version {card.version}, on {rows} rows that no rung has seen", _ANSWERS, answers)
    if card.machine is None:
        console.print("not measured on this machine: `qedge edge measure` fills in what rungs cost here")
        return
    title = f"{card.machine.processor}, {card.machine.cores} cores, one row at a time"
    table(console, title, _COSTS, [_costs(one) for one in card.rungs])


def size(count: int) -> str:
    """Bytes for people.

    >>> size(2_697_712), size(800)
    ('2.6 MiB', '0.8 KiB')
    """
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


_ANSWERS = ("rung", "accuracy", "95 %", "as fp32", "file", "how")
_COSTS = ("rung", "p50 ms", "p95 ms", "p99 ms", "memory", "load ms", "CPU µs", "runs", "dominated by")


def _answers(one: RungCard) -> tuple[object, ...]:
    found = one.accuracy
    interval = f"{found.low:.3f}-{found.high:.3f}"
    return (one.rung, f"{found.value:.4f}", interval, f"{found.agreement:.4f}", size(one.file_bytes), one.how)


def _costs(one: RungCard) -> tuple[object, ...]:
    assert one.cost is not None
    single = one.cost.latency[1]
    times = [f"{value:.3f}" for value in (single.p50_ms, single.p95_ms, single.p99_ms)]
    where = [] if one.cost.provider == "CPUExecutionProvider" else [one.cost.provider.removesuffix("ExecutionProvider")]
    threads = [f"{one.cost.threads} threads"] if one.cost.threads > 1 else []
    runs = ", ".join([*where, "prepacked" if one.cost.prepacked else "mapped", *threads])
    cpu = f"{1e3 * one.cost.cpu_s_per_1000:.0f}"
    return (one.rung, *times, size(one.cost.pss_bytes), f"{one.cost.load_ms:.1f}", cpu, runs, one.dominated_by or "")


def show_compressed(console: Console, rows: Sequence[Row]) -> None:
    """What each step of a compression came to."""
    columns = ("network", "accuracy", "points lost (95 %)", "weights", "file", "packed", "p50 ms")
    table(console, "rows that none of them was trained by here", columns, [_compressed(row) for row in rows])


def show_front(console: Console, points: Sequence[Point], best: int) -> None:
    """The trials of an edge search that no other beats, fastest first, and how many there were."""
    rows = [_point(one, one.number == best) for one in sorted(points, key=lambda one: one.p50_ms) if one.on_front]
    columns = ("trial", "accuracy (95 %)", "p50 ms", "file", "network and rung")
    table(console, f"{len(rows)} of {len(points)} trials are beaten by none; accuracy on rows that nothing was decided by", columns, rows)


def _point(one: Point, best: bool) -> tuple[str, ...]:
    accuracy = f"{one.accuracy:.4f} ({one.interval[0]:.3f}-{one.interval[1]:.3f})"
    name = f"{one.number}{' (best)' if best else ''}"
    return (name, accuracy, f"{one.p50_ms:.4f}", size(one.file_bytes), shown(one.values) + (f"\nover: {one.over}" if one.over else ""))


def _compressed(row: Row) -> tuple[str, ...]:
    lost = "" if row.lost_interval == (0, 0) else f"{row.lost_points:+.2f} ({row.lost_interval[0]:+.2f} to {row.lost_interval[1]:+.2f})"
    sizes = (f"{row.parameters:,}", f"{row.file_bytes / 1024:.1f} KiB", f"{row.packed_bytes / 1024:.1f} KiB")
    return (row.name, f"{row.accuracy:.4f}", lost, *sizes, f"{row.p50_ms:.4f}")
