"""A ladder from a model version: each rung made, chosen among its ways, validated on rows it has not seen, and signed.

What a rung owes to rows is in its receipt: FP32 and FP16 see none but to be validated; the others are calibrated, chosen or trained by
rows, which are public by declaration or not covered. The parent's guarantee is about the parent's training alone.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from qedge.audit import receipt
from qedge.edge.building import floats, graph, integers, nbits
from qedge.edge.building.choice import agreement, answers, best
from qedge.edge.calibration import Calibration, Labelled, Taken
from qedge.edge.card import FILE as CARD
from qedge.edge.card import Accuracy, Card, RungCard
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import VALIDATING, Ladder, receipt_name
from qedge.edge.rung import Rows, RungName, Runner
from qedge.edge.session import OnnxRunner
from qedge.errors import EdgeError, HomeUnusable
from qedge.records import Records, derive
from qedge.storage import write_atomically

MODEL = "model.onnx"
NEED = 0.99  # of answers that must be FP32's, or weights are trained for the rung
FEWEST = 20  # rows to judge that by
Told = Callable[[RungName], None]
_USES: dict[RungName, str | None] = {
    "fp32": None,
    "fp16": None,
    "int8": "calibrating ranges of activations, and choosing among quantisations",
    "int4": "choosing among quantisations, and training weights for them where they lose",
    "int2": "choosing among quantisations, and training weights for them where they lose",
    "binary": "training, by labels and by the model's answers",
}


@dataclass(frozen=True)
class Asked:
    """Which version, which rungs, by which rows. public: those rows are declared public; otherwise nothing covers them."""

    name: str
    version: str
    rungs: tuple[RungName, ...]
    calibration: Calibration
    public: bool


@dataclass(frozen=True)
class Made:
    """A rung's files in the folder, how they came to be, and what answers as they do."""

    files: tuple[str, ...]
    how: str
    runner: Runner


def build(asked: Asked, source: Path, into: Path, records: Records, told: Told = lambda _: None) -> Ladder:
    """Write the ladder of the version in the folder `source` to `into`, which must not exist, whole or not at all.

    Raises:
        UnfitGraph: the graph, or one that a rung cannot be made of. Tampered: the version's files do not hold.
        ScopeConflict: rows that have a budget in the ledger, which making rungs would void.
        EdgeError: a rung that answers less well than chance. StorageFull, HomeUnusable: it cannot be written.
    """
    parent = receipt.Receipt.read(source / receipt.FILE)
    receipt.verify(parent, records.keys.public, source)
    model = graph.read(source / MODEL)
    taken = Taken.of(model)
    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in asked.calibration.identity)
    if prints:
        records.ledger.refuse_without_privacy(prints)
    if into.exists():
        raise HomeUnusable(f"{into} is there already; give a new folder", path=str(into))
    making = into.with_name(f".{into.name}-{secrets.token_hex(4)}")
    try:
        making.mkdir(mode=0o700, parents=True)
        if prints:
            records.ledger.record_without_privacy(f"ladder of {asked.name}/{asked.version}", prints)
        card = _rungs(asked, model, taken, making, told)
        _sign(card, parent, asked.public, making, records)
        making.rename(into)
    except OSError as error:
        raise HomeUnusable(f"{into} cannot be written: {error.strerror or error}", path=str(into)) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    records.log.append("edge.built", model=asked.name, version=asked.version, rungs=",".join(asked.rungs))
    return Ladder.open(into, records.keys.public)


def _rungs(asked: Asked, model: onnx.ModelProto, taken: Taken, folder: Path, told: Told) -> Card:
    """Every rung's files in `folder`, and the card of them, not yet measured."""
    clean = cleaned_graph(model)
    features, _ = graph.width_of(model)
    held = asked.calibration.held
    graph.write(clean, folder, "fp32")
    reference = OnnxRunner.load(folder / "fp32.onnx")
    expected = answers(reference, held.rows)
    cards = []
    for rung in asked.rungs:
        told(rung)
        made = make_rung(rung, clean, asked.calibration.fitting, reference, folder)
        found = answers(made.runner, held.rows)
        made.runner.close()
        if not np.isfinite(found).all():
            raise EdgeError(f"{rung}: its answers are not finite numbers", rung=rung)
        right = int((found.argmax(axis=1) == held.labels).sum())
        accuracy = Accuracy.of(right, len(held), agreement(found, expected))
        if accuracy.high <= 1 / len(taken.labels):
            raise EdgeError(f"{rung}: {right} of {len(held)} labels are right, no more than by chance; leave the rung out", rung=rung)
        files = receipt.artifact_digests(folder, made.files)
        size = graph.total_bytes(folder, made.files)
        cards.append(RungCard(rung=rung, how=made.how, files=files, file_bytes=size, accuracy=accuracy))
    if "fp32" not in asked.rungs:
        for name in ("fp32.onnx", "fp32.data"):
            (folder / name).unlink(missing_ok=True)
    return Card(
        model=asked.name,
        version=asked.version,
        features=features,
        columns=taken.features,
        standardised=taken.standardised,
        labels=taken.labels,
        rungs=tuple(cards),
    )


def cleaned_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that rungs are made from: constants folded, what is not needed gone, Gemm as MatMul and Add."""
    return graph.named(graph.with_matmul(graph.named(graph.cleaned(model))))


def make_rung(rung: RungName, clean: onnx.ModelProto, rows: Labelled, reference: OnnxRunner, folder: Path) -> Made:
    """A rung's files in `folder`. clean: as `cleaned_graph` leaves it; rows: to make it by; reference: its FP32 rung, loaded.

    Raises:
        UnfitGraph: a graph that the rung cannot be made of.
    """
    if rung == "binary":
        from qedge.edge.building.binary import binary

        return Made(*binary(clean, rows, reference, folder))
    fitting, saturates = rows.rows, this_machine().saturates
    ways: Sequence[integers.Made]
    match rung:
        case "fp32":
            ways = [floats.fp32(clean)]
        case "fp16":
            ways = [floats.fp16(clean)]
        case "int8":
            ways = integers.int8(clean, fitting, saturates=saturates)
        case _:
            ways = nbits.nbits(clean, 4 if rung == "int4" else 2, fitting, saturates=saturates)
    expected = answers(reference, fitting) if len(ways) > 1 else None
    chosen, how = ways[0] if expected is None else best(ways, fitting, expected)
    if expected is not None and rung in ("int4", "int2") and _agrees(chosen, fitting, expected) < NEED:
        chosen, how = _with_fine_tuning(clean, 4 if rung == "int4" else 2, rows, ways, expected)
    files = graph.write(chosen, folder, rung)
    return Made(files, how, OnnxRunner.load(folder / f"{rung}.onnx"))


def _agrees(model: onnx.ModelProto, rows: Rows, expected: Rows) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        graph.write(model, Path(scratch), "tried")
        return agreement(answers(OnnxRunner.load(Path(scratch) / "tried.onnx"), rows), expected)


def _with_fine_tuning(clean: onnx.ModelProto, bits: int, rows: Labelled, ways: Sequence[integers.Made], expected: Rows) -> integers.Made:
    """The best of the ways and of those that train weights for it, by the fifth of the rows that nothing was trained by."""
    judging = np.arange(len(rows)) % 5 == 0
    if judging.sum() < FEWEST:
        return best(ways, rows.rows, expected)
    learnt = nbits.fine_tuned_nbits(clean, bits, rows.part(np.flatnonzero(~judging)))
    return best([*ways, *learnt], rows.rows[judging], expected[judging])


def _sign(card: Card, parent: receipt.Receipt, public: bool, folder: Path, records: Records) -> None:
    """A receipt for each rung, and one for the card with all of those."""
    covered: receipt.Covered = "public by declaration" if public else "NOT COVERED"
    validating = receipt.Use(what=VALIDATING, covered=covered, note=f"{card.rungs[0].accuracy.rows} rows")
    listed = [CARD]
    write_atomically(folder / CARD, card.content(), mode=0o644)
    every: list[receipt.Use] = [validating]
    for one in card.rungs:
        what = _USES[one.rung]
        uses = [receipt.Use(what=f"{one.rung}: {what}", covered=covered)] if what else []
        derive(parent, [*uses, validating], dict(one.files), records).write(folder / receipt_name(one.rung))
        every += uses
        listed.append(receipt_name(one.rung))
    derive(parent, every, receipt.artifact_digests(folder, tuple(listed)), records).write(folder / receipt.FILE)
