"""A ladder's card as a table."""

from __future__ import annotations

from rich.console import Console

from qedge.display import table
from qedge.edge.card import Card, RungCard


def show_card(console: Console, card: Card) -> None:
    """Every rung, the dominated ones named as such."""
    if card.machine is None:
        console.print("not measured on this machine: `qedge edge measure` fills in what rungs cost here")
    columns = ("rung", "accuracy (95 %)", "as FP32", "p50 ms", "p95 ms", "p99 ms", "memory", "file", "load ms", "CPU µs", "how")
    rows = [_row(one) for one in card.rungs]
    where = "" if card.machine is None else f" on {card.machine.processor}, {card.machine.cores} cores"
    table(console, f"{card.model} version {card.version}, one row at a time{where}", columns, rows)


def size(count: int) -> str:
    """Bytes for people.

    >>> size(2_697_712), size(800)
    ('2.6 MiB', '0.8 KiB')
    """
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _row(one: RungCard) -> tuple[object, ...]:
    found = one.accuracy
    name = one.rung if one.dominated_by is None else f"{one.rung}, dominated by {one.dominated_by}"
    answers = (f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})", f"{found.agreement:.3f}")
    if one.cost is None:
        return (name, *answers, "", "", "", "", size(one.file_bytes), "", "", one.how)
    single, runs = one.cost.latency[1], "prepacked" if one.cost.prepacked else "mapped"
    threads = f", {one.cost.threads} threads" if one.cost.threads > 1 else ""
    times = [f"{value:.3f}" for value in (single.p50_ms, single.p95_ms, single.p99_ms)]
    cpu = f"{1e3 * one.cost.cpu_s_per_1000:.0f}"
    how = f"{one.how}; {runs}{threads}"
    return (name, *answers, *times, size(one.cost.pss_bytes), size(one.file_bytes), f"{one.cost.load_ms:.1f}", cpu, how)
