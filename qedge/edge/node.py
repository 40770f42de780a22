"""What a node keeps of a ladder, by the ladder's id: the card that it filled itself, and the cascade that was fitted there.

Another machine's card is not believed. A cascade has a receipt, for rows went into its threshold.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qedge.audit import receipt
from qedge.edge.card import BATCHES, Card
from qedge.edge.cascade import Cascade
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure
from qedge.errors import ArtifactTampered, EdgeError
from qedge.storage import write_atomically

if TYPE_CHECKING:
    from qedge.records import Records

FITTING = "fitting the threshold of the cascade"


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


def keep_cascade(home: Path, ladder: Ladder, cascade: Cascade, covered: receipt.Covered, records: Records) -> None:
    """Keep a cascade of this ladder's rungs, signed; covered: the use of the rows that it was fitted by.

    Raises:
        StorageFull, HomeUnusable: it cannot be written.
    """
    from qedge.records import derive  # the ledger, which no node that serves needs

    place = _place(home, ladder.id, "cascades")
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = cascade.model_dump_json(indent=1).encode()
    use = receipt.Use(what=FITTING, covered=covered, note=f"{cascade.rows} rows")
    digests = {place.name: hashlib.sha256(content).hexdigest()}
    issued = derive(receipt.Receipt.read(ladder.folder / receipt.FILE), [use], digests, records)
    place.with_suffix(".receipt.json").unlink(missing_ok=True)  # until it is there again the cascade does not hold
    write_atomically(place, content)
    issued.write(place.with_suffix(".receipt.json"))


def cascade_here(home: Path | None, ladder: Ladder, card: Card, *, covered_only: bool = False) -> Cascade | None:
    """The cascade that is kept here for this very ladder, its costs by `card`; covered_only: unless nothing covers the rows it owes to.

    Raises:
        ReceiptTampered, ArtifactTampered: it does not hold.
    """
    place = _place(home, ladder.id, "cascades") if home is not None else None
    if place is None or not place.is_file() or not place.with_suffix(".receipt.json").is_file():
        return None
    content = place.read_bytes()
    issued = receipt.Receipt.read(place.with_suffix(".receipt.json"))
    receipt.verify(issued)
    if issued.parent != ladder.id or issued.artifacts.get(place.name) != hashlib.sha256(content).hexdigest():
        raise ArtifactTampered(f"{place} does not match its receipt", path=str(place))
    if covered_only and any(use.what == FITTING and use.covered == "NOT COVERED" for use in issued.uses):
        return None
    cascade = Cascade.model_validate_json(content)
    has = {one.rung for one in card.rungs}
    return cascade.on(card) if {cascade.cheap, cascade.dear} <= has else None


def _place(home: Path, ladder_id: str, kind: str = "cards") -> Path:
    return home / "edge" / kind / f"{ladder_id}.json"
