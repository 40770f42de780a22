"""The card of a ladder: what each rung answers, what it costs, and on which machine that was measured.

What a rung answers (accuracy) is of its file; what it costs (time, bytes) is of one machine, so a card that was filled on another
machine says nothing here: `Card.is_of` tells, and the node measures anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from qedge.edge.hardware import Machine
from qedge.edge.rung import RungName
from qedge.errors import ArtifactTampered, UnknownRung

SCHEMA = "qedge.edge-card/1"
FILE = "card.json"
BATCHES = (1, 8, 32)
Measure = Literal["accuracy", "p95_ms", "pss_bytes"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Accuracy(_Part):
    """Share of validation rows whose label is right, with its 95 % confidence interval (Wilson 1927), and of those it was taken from.

    agreement: share of the same rows on which the rung names the label that FP32 names.
    """

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    rows: int = Field(ge=1)
    agreement: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, right: int, rows: int, agreement: float) -> Accuracy:
        """Of `right` right answers to `rows` rows."""
        low, high = wilson(right, rows)
        return cls(value=right / rows, low=low, high=high, rows=rows, agreement=agreement)


class Latency(_Part):
    """Of one call with a batch of rows, in milliseconds."""

    p50_ms: float = Field(ge=0)
    p95_ms: float = Field(ge=0)
    p99_ms: float = Field(ge=0)


class Cost(_Part):
    """What a rung takes on one machine.

    latency: by batch size. pss_bytes: what loading it and answering adds to a process. cpu_s_per_1000: CPU seconds of 1000 calls with
    one row, as a stand-in for energy. provider, prepacked, threads: how it runs best there; tried: p50_ms of one row in each way to run it.
    """

    latency: dict[int, Latency]
    pss_bytes: int = Field(ge=0)
    load_ms: float = Field(ge=0)
    cpu_s_per_1000: float = Field(ge=0)
    provider: str = "CPUExecutionProvider"
    prepacked: bool = False
    threads: int = Field(1, ge=1)
    tried: dict[str, float] = Field(default_factory=dict)


class RungCard(_Part):
    """One rung. how: how it was made, in words; files: digests by name; dominated_by: a rung that is nowhere worse and somewhere better."""

    rung: RungName
    how: str
    files: dict[str, str] = Field(min_length=1)
    file_bytes: int = Field(ge=0)
    accuracy: Accuracy
    cost: Cost | None = None
    dominated_by: RungName | None = None


class Card(_Part):
    """A ladder's rungs, from the most precise to the least. machine: where `cost` was measured, None while it was not.

    columns: the features by name, where the model names them; standardised: callers standardise rows first (`scale: local`).
    """

    schema_: Literal["qedge.edge-card/1"] = Field(default="qedge.edge-card/1", alias="schema")
    model: str
    version: str
    features: int = Field(ge=1)
    columns: tuple[str, ...] = ()
    standardised: bool = False
    labels: tuple[str | int, ...] = Field(min_length=2)
    rungs: tuple[RungCard, ...] = Field(min_length=1)
    machine: Machine | None = None

    @classmethod
    def parse(cls, content: bytes, where: str) -> Card:
        """A card from its bytes.

        Raises:
            ArtifactTampered: they are none.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtifactTampered(f"{where} is not the card of a ladder: {place}: {first['msg']}", path=where) from None

    def content(self) -> bytes:
        """The bytes of its file."""
        return self.model_dump_json(by_alias=True, indent=1).encode() + b"\n"

    def __getitem__(self, rung: str) -> RungCard:
        """The card of one rung.

        Raises:
            UnknownRung: it is not in this ladder.
        """
        for one in self.rungs:
            if one.rung == rung:
                return one
        has = [one.rung for one in self.rungs]
        raise UnknownRung(f"the ladder of {self.model} has no rung '{rung}'; it has {', '.join(has)}", given=rung, expected=has)

    def is_of(self, machine: Machine) -> bool:
        """Whether all rungs were measured, on a machine like this one and by execution providers that it has."""
        return self.machine == machine and all(one.cost is not None and one.cost.provider in machine.providers for one in self.rungs)

    def measured(self, costs: dict[RungName, Cost], machine: Machine) -> Card:
        """The card with these costs, and who is dominated by whom."""
        filled = [one.model_copy(update={"cost": costs[one.rung]}) for one in self.rungs]
        marked = tuple(one.model_copy(update={"dominated_by": _dominating(one, filled)}) for one in filled)
        return self.model_copy(update={"rungs": marked, "machine": machine})

    def plain(self) -> dict[str, dict[str, JsonValue]]:
        """Each rung's figures by name, as `--json` shows them; batch 1."""
        return {one.rung: _plain(one) for one in self.rungs}


def wilson(right: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a share, right / rows.

    Source: Wilson, JASA 22 (1927), 209.

    >>> tuple(round(bound, 4) for bound in wilson(95, 100))
    (0.8882, 0.9785)
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = right / rows, z * z / rows
    centre, half = share + spread / 2, z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def _figures(one: RungCard) -> tuple[float, ...]:
    """What counts, smaller is better: errors, p95 of one row, bytes in memory and on disk."""
    assert one.cost is not None
    return (-one.accuracy.value, one.cost.latency[1].p95_ms, float(one.cost.pss_bytes), float(one.file_bytes))


def _dominating(one: RungCard, others: Sequence[RungCard]) -> RungName | None:
    mine = _figures(one)
    for other in others:
        theirs = _figures(other)
        if theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)):
            return other.rung
    return None


def _plain(one: RungCard) -> dict[str, JsonValue]:
    told: dict[str, JsonValue] = {
        "accuracy": one.accuracy.value,
        "accuracy_interval": [one.accuracy.low, one.accuracy.high],
        "agreement": one.accuracy.agreement,
        "rows": one.accuracy.rows,
        "how": one.how,
        "file_bytes": one.file_bytes,
        "dominated": one.dominated_by is not None,
        "dominated_by": one.dominated_by,
    }
    if one.cost is None:
        return told | dict.fromkeys(("p50_ms", "p95_ms", "p99_ms", "latency", *_TOLD))
    latency: dict[str, JsonValue] = {str(batch): found.model_dump() for batch, found in one.cost.latency.items()}
    return told | one.cost.latency[1].model_dump() | {"latency": latency} | {name: getattr(one.cost, name) for name in _TOLD}


_TOLD = ("pss_bytes", "load_ms", "cpu_s_per_1000", "provider", "prepacked", "threads", "tried")
