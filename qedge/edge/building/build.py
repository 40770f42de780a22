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
FEWEST = 20  # rows to judge by whether that helped
Told = Callable[[RungName], None]
_USES: dict[RungName, str | None] = {
    "fp32": None,
    "fp16": None,
    "int8": "calibrating ranges of activations, and choosing among quantisations",
    "int4": "choosing among quantisations",
    "int2": "choosing among quantisations",
    "binary": "training, by labels and by the model's answers",
}
_FEW_BITS: dict[RungName, int] = {"int4": 4, "int2": 2}


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
    """A rung's files in the folder, how they came to be, and what answers as they do. use: what rows went into it for, if any did."""

    files: tuple[str, ...]
    how: str
    runner: Runner
    use: str | None


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
        card, uses = _rungs(asked, model, taken, making, told)
        _sign(card, uses, parent, asked.public, making, records)
        making.rename(into)
    except OSError as error:
        raise HomeUnusable(f"{into} cannot be written: {error.strerror or error}", path=str(into)) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    records.log.append("edge.built", model=asked.name, version=asked.version, rungs=",".join(asked.rungs))
    return Ladder.open(into, records.keys.public)


def _rungs(asked: Asked, model: onnx.ModelProto, taken: Taken, folder: Path, told: Told) -> tuple[Card, dict[RungName, str | None]]:
    """Every rung's files in `folder`, the card of them, not yet measured, and what rows went into each for."""
    clean = cleaned_graph(model)
    features, _ = graph.width_of(model)
    held = asked.calibration.held
    graph.write(clean, folder, "fp32")
    reference = OnnxRunner.load(folder / "fp32.onnx")
    expected = answers(reference, held.rows)
    cards = []
    uses: dict[RungName, str | None] = {}
    for rung in asked.rungs:
        told(rung)
        made = make_rung(rung, clean, asked.calibration.fitting, reference, folder)
        uses[rung] = made.use
        right, found = _answered(made, rung, held, folder)
        accuracy = Accuracy.of(right, len(held), agreement(found, expected))
        if accuracy.high <= 1 / len(taken.labels):
            raise EdgeError(f"{rung}: {right} of {len(held)} labels are right, no more than by chance; leave the rung out", rung=rung)
        files = receipt.artifact_digests(folder, made.files)
        size = graph.total_bytes(folder, made.files)
        cards.append(RungCard(rung=rung, how=made.how, files=files, file_bytes=size, accuracy=accuracy))
    if "fp32" not in asked.rungs:
        for name in ("fp32.onnx", "fp32.data"):
            (folder / name).unlink(missing_ok=True)
    card = Card(
        model=asked.name,
        version=asked.version,
        features=features,
        columns=taken.features,
        standardised=taken.standardised,
        labels=taken.labels,
        rungs=tuple(cards),
    )
    return card, uses


def _answered(made: Made, rung: RungName, held: Labelled, folder: Path) -> tuple[int, Rows]:
    """How many labels are right, and the answers. Prepacked, kernels of few bits round activations too: then the worse of both counts."""
    every = [answers(made.runner, held.rows)]
    made.runner.close()
    if rung in _FEW_BITS:
        packed = OnnxRunner.load(folder / f"{rung}.onnx", prepacked=True)
        every.append(answers(packed, held.rows))
        packed.close()
    if not all(np.isfinite(one).all() for one in every):
        raise EdgeError(f"{rung}: its answers are not finite numbers", rung=rung)
    right = [int((one.argmax(axis=1) == held.labels).sum()) for one in every]
    worst = int(np.argmin(right))
    return right[worst], every[worst]


def cleaned_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that rungs are made from: constants folded, what is not needed gone, Gemm as MatMul and Add."""
    return graph.named(graph.with_matmul(graph.named(graph.cleaned(model))))


def make_rung(
    rung: RungName, clean: onnx.ModelProto, rows: Labelled, reference: OnnxRunner, folder: Path, *, training: bool = True
) -> Made:
    """A rung's files in `folder`. clean: as `cleaned_graph` leaves it; rows: to make it by; reference: its FP32 rung, loaded.

    training: of weights for their rounding, where it loses; BINARY is trained in any case.

    Raises:
        UnfitGraph: a graph that the rung cannot be made of.
    """
    if rung == "binary":
        from qedge.edge.building.binary import binary

        return Made(*binary(clean, rows, reference, folder), _USES[rung])
    ways, use = _ways(rung, clean, rows.rows), _USES[rung]
    chosen = ways[0]
    if use is not None:
        expected = answers(reference, rows.rows)
        chosen = best(ways, rows.rows, expected)
        if training and _agrees(chosen, rows.rows, expected) < NEED:
            chosen, trained = _with_fine_tuning(rung, clean, rows, ways, chosen, expected)
            use += ", and training weights for them" if trained else ""
    model, how = chosen
    files = graph.write(model, folder, rung)
    return Made(files, how, OnnxRunner.load(folder / f"{rung}.onnx"), use)


def _ways(rung: RungName, clean: onnx.ModelProto, rows: Rows) -> Sequence[integers.Made]:
    saturates = this_machine().saturates
    match rung:
        case "fp32":
            return [floats.fp32(clean)]
        case "fp16":
            return [floats.fp16(clean)]
        case "int8":
            return integers.int8(clean, rows, saturates=saturates)
        case _:
            return nbits.nbits(clean, _FEW_BITS[rung], rows, saturates=saturates)


def _agrees(made: integers.Made, rows: Rows, expected: Rows) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        graph.write(made[0], Path(scratch), "tried")
        return agreement(answers(OnnxRunner.load(Path(scratch) / "tried.onnx", prepacked=True), rows), expected)


def _with_fine_tuning(
    rung: RungName, clean: onnx.ModelProto, rows: Labelled, ways: Sequence[integers.Made], chosen: integers.Made, expected: Rows
) -> tuple[integers.Made, bool]:
    """What was chosen, or one of weights trained for their rounding if that agrees more on the fifth of the rows that trained nothing.

    And whether anything was trained.
    """
    from qedge.edge.building.fine_tuning import fine_tuned  # torch

    judging = np.arange(len(rows)) % 5 == 0
    model, how = chosen
    if judging.sum() < FEWEST:
        return (model, f"{how}; not trained for it: {judging.sum()} rows would judge that, fewer than {FEWEST}"), False
    part, learnt = rows.part(np.flatnonzero(~judging)), []
    for place, (way, described) in enumerate(ways):
        tuned = fine_tuned(clean, way, part)
        if tuned is not None:
            again, _ = _ways(rung, tuned, part.rows)[place]
            learnt.append((again, f"{described}; trained for it on {len(part)} rows by FP32's answers and labels"))
    if not learnt:
        return (model, f"{how}; not trained for it: the graph is no chain of layers that can be, or it diverged"), False
    seen, right = rows.rows[judging], expected[judging]
    found = best(learnt, seen, right)
    if _agrees(found, seen, right) > _agrees(chosen, seen, right):
        return found, True
    return (model, f"{how}; training for it gained nothing"), True


def _sign(card: Card, uses_of: dict[RungName, str | None], parent: receipt.Receipt, public: bool, folder: Path, records: Records) -> None:
    """A receipt for each rung, and one for the card with all of those."""
    covered: receipt.Covered = "public by declaration" if public else "NOT COVERED"
    validating = receipt.Use(what=VALIDATING, covered=covered, note=f"{card.rungs[0].accuracy.rows} rows")
    listed = [CARD]
    write_atomically(folder / CARD, card.content(), mode=0o644)
    every: list[receipt.Use] = [validating]
    for one in card.rungs:
        what = uses_of[one.rung]
        uses = [receipt.Use(what=f"{one.rung}: {what}", covered=covered)] if what else []
        derive(parent, [*uses, validating], dict(one.files), records).write(folder / receipt_name(one.rung))
        every += uses
        listed.append(receipt_name(one.rung))
    derive(parent, every, receipt.artifact_digests(folder, tuple(listed)), records).write(folder / receipt.FILE)
