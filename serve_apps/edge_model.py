"""A model that is answered by the rungs of its ladder: the cheapest that meets what is required, under the process's budget of bytes."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import JsonValue

from qedge.config import Edge
from qedge.edge.engine import EdgeEngine, Explanation
from qedge.edge.ladder import Ladder
from qedge.edge.session import INPUT, OUTPUT
from qedge.errors import ArtifactTampered, OverBudget, Overloaded
from qedge.security.keys import public_key
from serve_apps.model_folder import ModelFolder
from serve_apps.requests import InferenceRequest
from serve_apps.served_model import Answered, ServedModel
from serve_apps.tensors import Tensor, TensorSpec

_LABEL = "label"
_AT_ONCE_MS = 0.5  # what a row may take to be answered without another thread


@dataclass(frozen=True, eq=False)
class EdgeModel(ServedModel):
    """A `ServedModel` on an engine that it shares with others. It leaves the engine when the last request that it answers has ended."""

    engine: EdgeEngine
    ladder: Ladder
    added: Explanation

    platform: ClassVar[str] = "qedge_edge"

    @classmethod
    def load(cls, source: ModelFolder, engine: EdgeEngine) -> EdgeModel:
        """Verify the ladder and have the engine answer by it; rungs are verified when they are loaded.

        Raises:
            UnknownModel: there is no ladder. Tampered: it does not hold, or is another model's.
            NoRungFits, OverBudget: no rung meets the requirement, or none that does fits in the engine's budget.
        """
        ladder = opened(source)
        key = _key(source)
        added = engine.add(key, ladder, source.edge)
        labels = ladder.card.labels
        inputs = {INPUT: TensorSpec(INPUT, "FP32", ("batch", ladder.card.features))}
        outputs = {
            OUTPUT: TensorSpec(OUTPUT, "FP32", ("batch", len(labels))),
            _LABEL: TensorSpec(_LABEL, "BYTES" if isinstance(labels[0], str) else "INT64", ("batch",)),
        }
        made = cls(source, ladder.id, inputs, outputs, engine, ladder, added)
        weakref.finalize(made, engine.remove, key, added)
        return made

    @property
    def at_once(self) -> bool:
        """See `ServedModel.at_once`; loading a rung takes longer than that."""
        return self.engine.takes_ms(_key(self.source)) <= _AT_ONCE_MS

    def _answer(self, feed: dict[str, Tensor], wanted: list[str], request: InferenceRequest) -> Answered:
        rows = np.asarray(feed[INPUT], dtype=np.float32)
        try:
            answer = self.engine.infer(_key(self.source), rows)
        except OverBudget as error:  # no fault of the caller: other models are in use
            raise Overloaded(f"{error.message}; try again later", model=self.source.name) from None
        tensors: dict[str, Tensor] = {OUTPUT: answer.probabilities}
        if _LABEL in wanted:
            kind = object if isinstance(answer.labels[0], str) else np.int64
            tensors[_LABEL] = np.array(answer.label, dtype=kind)
        return Answered(tensors, {"rung": answer.rung, "rung_receipt": answer.receipt, "escalated": answer.escalated})

    def facts(self) -> dict[str, JsonValue]:
        card = self.ladder.card
        properties = {"labels": json.dumps(card.labels), "scale": "local" if card.standardised else "none"}
        if card.columns:
            properties["features"] = json.dumps(card.columns)
        rungs: JsonValue = {str(rung): issued.id for rung, issued in self.ladder.receipts.items()}
        return {"properties": dict(properties), "requires": dict(self.added.requirement.given()), "rungs": rungs}


def opened(source: ModelFolder) -> Ladder:
    """The ladder of a version.

    Raises:
        UnknownModel: there is none. Tampered: it does not hold, or is of another version.
    """
    ladder = Ladder.open(Path(source.folder), public_key(source.key) if source.key else None)
    if (ladder.card.model, ladder.card.version) != (source.name, source.version):
        found = f"{ladder.card.model}/{ladder.card.version}"
        raise ArtifactTampered(f"{source.folder} is the ladder of {found}, not of {source.name}/{source.version}", model=source.name)
    return ladder


def refuse_rungs(source: ModelFolder, home: Path, settings: Edge) -> None:
    """Refuse a ladder none of whose rungs would do, before anything is started for it; home: where measured cards are kept.

    Raises:
        As `EdgeModel.load`.
    """
    with EdgeEngine(settings.replica_bytes, home=home, covered_only=settings.covered_only) as engine:
        EdgeModel.load(source, engine)


def _key(source: ModelFolder) -> str:
    return f"{source.name}/{source.version}"
