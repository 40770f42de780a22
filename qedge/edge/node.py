"""What a node keeps of a ladder: the card that it filled itself, by the ladder's id. Another machine's card is not believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qedge.edge.card import BATCHES, Card
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure
from qedge.errors import EdgeError
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


def own_card(ladder: Ladder, home: Path | None = None, given: Card | None = None) -> Card:
    """A card that was filled on this machine: the given one, else the kept one, else the rungs are measured now (and kept).

    Raises:
        EdgeError: the given card is of other rungs. Failed: a rung could not be run.
    """
    if given is not None and [one.files for one in given.rungs] != [one.files for one in ladder.card.rungs]:
        raise EdgeError(f"the card given for {ladder.card.model} is not of this ladder's files", model=ladder.card.model)
    card = given if given is not None else ladder.card if home is None else card_here(home, ladder)
    if card.is_of(this_machine()):
        return card
    rows = np.random.default_rng(0).random((max(BATCHES), card.features), np.float32)
    measured = measure(ladder, rows)
    if home is not None:
        keep_card(home, ladder.id, measured)
    return measured


def _place(home: Path, ladder_id: str) -> Path:
    return home / "edge" / "cards" / f"{ladder_id}.json"
