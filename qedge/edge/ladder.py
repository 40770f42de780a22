"""A ladder on disk: the files of its rungs, the card, and receipts for all of them.

    fp32.onnx, fp32.data     a rung: its graph, and its weights beside it
    binary.npz               the rung of our own engine
    fp32.receipt.json        a rung's receipt: its files, how it came to be, its parent (the model's receipt)
    card.json                what each rung answers and, once measured, costs
    receipt.json             the ladder's receipt: the digests of the card and of the rungs' receipts

A rung is loaded from bytes whose digest its receipt names. The folder is the node's own: whoever can exchange a file between the check
and the load can exchange the program too.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qedge.audit import receipt
from qedge.edge.card import FILE as CARD
from qedge.edge.card import Card, RungCard
from qedge.edge.rung import RungName, Runner
from qedge.errors import ArtifactTampered, UnknownModel

VALIDATING = "validating the rung"  # a use of rows, on the receipt of each rung
COMPRESSING = "compressing: "  # begins each use of rows by which a version was made of another
_RUNNING: set[str] = set()  # runtimes that this process has loaded

_TICK_NS = 10**9  # a file that changed within it may change again and not show it


@dataclass(frozen=True)
class Ladder:
    """A verified ladder. receipts: of each rung; id: of the ladder's own receipt."""

    folder: Path
    id: str
    card: Card
    receipts: dict[RungName, receipt.Receipt]
    _seen: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, key: bytes | None = None) -> Ladder:
        """Verify card and receipts under `key`, or under the receipt's own; rungs are verified when they are loaded.

        Raises:
            UnknownModel: there is no ladder. ReceiptTampered, ArtifactTampered: something does not hold.
        """
        if not (folder / receipt.FILE).is_file():
            raise UnknownModel(f"{folder} holds no ladder; `qedge edge build` makes one", path=str(folder))
        whole = receipt.Receipt.read(folder / receipt.FILE)
        receipt.verify(whole, key, folder)
        card = Card.parse((folder / CARD).read_bytes(), str(folder / CARD))
        receipts = {one.rung: receipt.Receipt.read(folder / receipt_name(one.rung)) for one in card.rungs}
        for one in card.rungs:
            issued = receipts[one.rung]
            receipt.verify(issued, bytes.fromhex(whole.public_key))
            if issued.artifacts != one.files or issued.model != card.model or issued.parent != whole.parent:
                raise ArtifactTampered(f"{folder}: the receipt of {one.rung} is not of what the card lists", path=str(folder))
        return cls(folder, whole.id, card, receipts)

    def load(self, rung: str, *, prepacked: bool | None = None, threads: int | None = None, provider: str | None = None) -> Runner:
        """A rung, verified and ready; prepacked, threads, provider: as the card says unless given.

        Raises:
            UnknownRung: it is not in the ladder. ArtifactTampered: its files are not those on its receipt.
            EdgeError: an execution provider that this machine has not. ModelError: it cannot be loaded.
        """
        one = self.card[rung]
        self.check(one)
        if one.rung == "binary":
            from qedge.edge.binary.network import BinaryNetwork

            if provider is not None:
                from qedge.edge.session import refuse_provider  # ONNX Runtime, which this rung does without

                refuse_provider(provider)
            return BinaryNetwork.load(self.folder / "binary.npz")
        from qedge.edge.session import CPU, OnnxRunner

        asked = one.cost
        packs = prepacked if prepacked is not None else bool(asked and asked.prepacked)
        count, where = threads or (asked.threads if asked else 1), provider or (asked.provider if asked else CPU)
        return OnnxRunner.load(self.folder / f"{one.rung}.onnx", threads=count, prepacked=packs, provider=where)

    def uncovered(self) -> dict[RungName, str]:
        """Rungs that owe to rows which nothing covers, beyond what the first training of all owes, and for what.

        The receipt of a rung lists its own uses of rows (how it was made, under its name, and its validation) and those of every version
        that it came from.
        """
        found: dict[RungName, str] = {}
        for rung, issued in self.receipts.items():
            own = [
                use for use in issued.uses if use.what.startswith((f"{rung}: ", VALIDATING, COMPRESSING)) and use.covered == "NOT COVERED"
            ]
            if own:
                found[rung] = ", ".join(use.what.removeprefix(f"{rung}: ") for use in own)
        return found

    def load_runtime(self, rung: str) -> None:
        """Load what any rung of its kind needs, once in a process: it is not the rung's own, and its bytes are not charged to it.

        ONNX Runtime with what its first session brings along, or our own engine's kernels, which its first answer does.

        Raises:
            As `load`.
        """
        kind = "binary" if rung == "binary" else "onnx"
        if kind in _RUNNING:
            return
        if kind == "binary":
            runner = self.load(rung)
            runner.run(np.zeros((1, self.card.features), np.float32))
            runner.close()
        else:
            from qedge.edge.session import warm_up

            warm_up()
        _RUNNING.add(kind)

    def check(self, one: RungCard) -> None:
        """Refuse a rung whose files are missing, cut short or altered. A file is read again only if it was touched since.

        Raises:
            ArtifactTampered: one is.
        """
        for name, expected in sorted(one.files.items()):
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    state = os.fstat(file.fileno())
                    mark = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                    if self._seen.get(name) == mark:
                        continue
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ArtifactTampered(f"{path} cannot be read: {error.strerror}", path=str(path)) from None
            if found != expected:
                raise ArtifactTampered(f"{path} does not match its digest on the receipt of {one.rung}", path=str(path))
            if time.time_ns() - state.st_ctime_ns > _TICK_NS:
                self._seen[name] = mark


def receipt_name(rung: str) -> str:
    """The file of a rung's receipt."""
    return f"{rung}.receipt.json"
