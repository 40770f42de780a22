"""Ladders for the tests: cards with costs as given, and signed folders of small graphs that anyone can compute by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qedge.audit.receipt import Body, Data, HeadOf, Use, artifact_digests, issue
from qedge.edge.binary.network import BinaryNetwork
from qedge.edge.building.graph import write as write_graph
from qedge.edge.card import BATCHES, Accuracy, Card, Cost, Latency, RungCard
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder, receipt_name
from qedge.edge.rung import RungName
from qedge.security.keys import Keys

LABELS = ("ham", "spam", "eggs")
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Told:
    """What the card says of a rung: of 1000 validation rows, so many right; p95_ms at one row, from which the rest follow."""

    right: int = 900
    p95_ms: float = 1.0
    pss_bytes: int = 1 << 20
    cpu_s_per_1000: float | None = None

    def cost(self) -> Cost:
        p95 = {batch: batch * self.p95_ms for batch in BATCHES}
        latency = {batch: Latency(p50_ms=0.8 * took, p95_ms=took, p99_ms=2 * took) for batch, took in p95.items()}
        cpu = self.p95_ms if self.cpu_s_per_1000 is None else self.cpu_s_per_1000
        return Cost(latency=latency, pss_bytes=self.pss_bytes, load_ms=1.0, cpu_s_per_1000=cpu)


def card(
    rungs: dict[RungName, Told],
    *,
    name: str = "m",
    features: int = 4,
    labels: tuple[str | int, ...] = LABELS,
    files: dict[RungName, dict[str, str]] | None = None,
) -> Card:
    """A card that was filled here."""
    cards = tuple(
        RungCard(
            rung=rung,
            how="by hand",
            files=(files or {}).get(rung, {f"{rung}.onnx": _EMPTY}),
            file_bytes=told.pss_bytes,
            accuracy=Accuracy.of(told.right, 1000, 1.0),
            cost=told.cost(),
        )
        for rung, told in rungs.items()
    )
    return Card(model=name, version="1", features=features, labels=labels, rungs=cards, machine=this_machine())


def weights(seed: int, features: int = 4, hidden: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """[features, hidden] and [hidden, classes] float32."""
    generator = np.random.default_rng(seed)
    first = generator.standard_normal((features, hidden), dtype=np.float32) / np.float32(np.sqrt(features))
    return first, generator.standard_normal((hidden, len(LABELS)), dtype=np.float32)


def answer(rows: np.ndarray, seed: int, hidden: int = 8) -> np.ndarray:
    """Probabilities [batch, classes] computed without ONNX Runtime."""
    first, second = weights(seed, rows.shape[1], hidden)
    scores = np.maximum(rows @ first, 0) @ second
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def graph(seed: int, features: int = 4, hidden: int = 8) -> onnx.ModelProto:
    """`features` [batch, F] → MatMul → Relu → MatMul → Softmax → `probabilities` [batch, classes]."""
    first, second = weights(seed, features, hidden)
    nodes = [
        helper.make_node("MatMul", ["features", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    takes = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features])
    gives = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(LABELS)])
    constants = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    made = helper.make_graph(nodes, "two layers", [takes], [gives], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def ladder(
    folder: Path,
    rungs: dict[RungName, tuple[onnx.ModelProto | BinaryNetwork, Told]],
    keys: Keys,
    *,
    name: str = "m",
    features: int = 4,
    labels: tuple[str | int, ...] = LABELS,
    uncovered: Collection[RungName] = (),
) -> tuple[Ladder, Card]:
    """A signed ladder of these graphs in `folder`, its costs unknown, and a card of this machine with those told.

    uncovered: rungs that were made by rows which nothing covers.
    """
    folder.mkdir(parents=True)
    files = {rung: artifact_digests(folder, _written(model, folder, rung)) for rung, (model, _) in rungs.items()}
    filled = card({rung: told for rung, (_, told) in rungs.items()}, name=name, features=features, labels=labels, files=files)
    bare = filled.model_copy(update={"machine": None, "rungs": tuple(one.model_copy(update={"cost": None}) for one in filled.rungs)})
    (folder / "card.json").write_bytes(bare.content())
    for rung, listed in files.items():
        more = (Use(what=f"{rung}: choosing", covered="NOT COVERED"),) if rung in uncovered else ()
        issue(_body(name, listed, more), keys).write(folder / receipt_name(rung))
    listed = artifact_digests(folder, ("card.json", *(receipt_name(rung) for rung in files)))
    issue(_body(name, listed), keys).write(folder / "receipt.json")
    return Ladder.open(folder, keys.public), filled


def _written(model: onnx.ModelProto | BinaryNetwork, folder: Path, rung: str) -> tuple[str, ...]:
    if isinstance(model, onnx.ModelProto):
        return write_graph(model, folder, rung)
    model.save(folder / "binary.npz")
    return ("binary.npz",)


def _body(name: str, artifacts: dict[str, str], more: tuple[Use, ...] = ()) -> Body:
    return Body(
        model=name,
        run="run-1",
        created="2026-01-01T00:00:00Z",
        code_version="0",
        job=_EMPTY,
        artifacts=artifacts,
        data=Data(source="test", unit="client", relation="zero-out", clients=2, fingerprint=_EMPTY, labels="declared"),
        privacy="no privacy guarantee",
        uses=(Use(what="training", covered="NOT COVERED"), *more),
        trust_model="a test",
        ledger=HeadOf(seq=0, hash=_EMPTY),
        log=HeadOf(seq=0, hash=_EMPTY),
        parent=_EMPTY,
    )
