"""A ladder's card as a picture: accuracy, with its interval, against the latency of one row; the size of a dot is that of the file."""

from __future__ import annotations

import io
from pathlib import Path

from qedge.edge.card import Card
from qedge.errors import EdgeError
from qedge.storage import write_atomically

_KINDS = (".png", ".svg", ".pdf")


def draw(card: Card, path: Path) -> None:
    """Write the picture.

    Raises:
        EdgeError: an ending of no known format, or a card without costs. StorageFull, HomeUnusable: it cannot be written.
    """
    if path.suffix.lower() not in _KINDS:
        raise EdgeError(f"{path}: the ending says no known picture; accepted: {', '.join(_KINDS)}", given=path.suffix)
    if card.machine is None:
        raise EdgeError("the card says nothing of this machine yet; `qedge edge measure` fills it in")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="p50 latency of one row, ms", ylabel="accuracy, 95 % interval", title=f"{card.model} {card.version}")
    largest = max(one.file_bytes for one in card.rungs)
    for one in card.rungs:
        assert one.cost is not None
        at, found = one.cost.latency[1].p50_ms, one.accuracy
        colour = "tab:grey" if one.dominated_by else "tab:blue"
        spread = [[found.value - found.low], [found.high - found.value]]
        axes.errorbar(at, found.value, yerr=spread, fmt="none", ecolor=colour, elinewidth=1)
        axes.scatter(at, found.value, s=20 + 200 * one.file_bytes / largest, color=colour, alpha=0.7)
        axes.annotate(one.rung, (at, found.value), xytext=(6, 6), textcoords="offset points")
    axes.set_xscale("log")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower()[1:])
    write_atomically(path, drawn.getvalue(), mode=0o644)
