"""What a node keeps of a ladder: the card that it filled itself, by the ladder's id. Another machine's card is not believed."""

from __future__ import annotations

from pathlib import Path

from qedge.edge.card import Card
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder
from qedge.storage import write_atomically


def keep_card(home: Path, ladder_id: str, card: Card) -> None:
    """Keep a card that was measured on this machine.

    Raises:
        StorageFull, HomeUnusable: it cannot be written.
    """
    path = _place(home, ladder_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, card.content())


def card_here(home: Path, ladder: Ladder) -> Card:
    """The card that was measured on this machine for these very rungs; without one, the ladder's own, whose costs are unknown."""
    path = _place(home, ladder.id)
    if not path.is_file():
        return ladder.card
    kept = Card.parse(path.read_bytes(), str(path))
    unmeasured = kept.model_copy(
        update={
            "machine": None,
            "rungs": tuple(one.model_copy(update={"cost": None, "dominated_by": None}) for one in kept.rungs),
        }
    )
    return kept if kept.is_of(this_machine()) and unmeasured == ladder.card else ladder.card


def _place(home: Path, ladder_id: str) -> Path:
    return home / "edge" / "cards" / f"{ladder_id}.json"
