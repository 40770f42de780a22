"""What mitigation came to: raw and mitigated value, error bars, cost, and whether it made things better or worse.

Mitigation trades bias for variance. Where the ideal value is known, distances from it decide. Where it is not, the squared bias of the raw
value is estimated by (raw - mitigated)^2 less the variance that shots alone give that difference, and the mitigated value is taken for
unbiased, which favours it: what is said to be worse is worse even so. The raw value is given all shots that mitigation took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue


class Effect(StrEnum):
    """What mitigation did to the value."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Estimate:
    """A mean and its variance; shots and circuits: what it took."""

    value: float
    variance: float
    shots: int
    circuits: int

    @property
    def error(self) -> float:
        """One standard deviation."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class Mitigated:
    """A mitigated expectation value.

    raw: what the circuit gave without mitigation, from the shots that were its own; value, error: after mitigation, one standard
    deviation of what shots alone leave open: how far a curve that does not fit leads astray is not in it; shots, circuits: of everything, the raw value too; ideal: where it is known; details: what belongs to the technique.
    """

    technique: str
    raw: Estimate
    value: float
    error: float
    shots: int
    circuits: int
    ideal: float | None = None
    details: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def raw_error(self) -> float:
        """That of the raw value with all the shots that mitigation took, one standard deviation."""
        return self.raw.error * math.sqrt(self.raw.shots / self.shots) if self.shots else 0.0

    @property
    def effect(self) -> Effect:
        """Better or worse, where that can be said."""
        if self.ideal is not None:
            gain = abs(self.raw.value - self.ideal) - abs(self.value - self.ideal)
            if abs(gain) <= max(2 * math.hypot(self.error, self.raw.error), 1e-12):
                return Effect.UNDECIDED
            return Effect.BETTER if gain > 0 else Effect.WORSE
        spread = self.error**2 + self.raw.variance
        bias = max(0.0, (self.raw.value - self.value) ** 2 - spread)
        if self.error**2 > self.raw_error**2 + (self.raw.value - self.value) ** 2:
            return Effect.WORSE
        return Effect.BETTER if bias > 4 * spread else Effect.UNDECIDED

    @property
    def statement(self) -> str:
        """In a sentence, what was gained and for how much."""
        cost = f"{self.circuits} circuits, {self.shots} shots" if self.shots else f"{self.circuits} circuits, exact"
        if self.ideal is not None:
            before, after = abs(self.raw.value - self.ideal), abs(self.value - self.ideal)
            why = f"{after:.2g} from the ideal value, {before:.2g} before; error bar {self.error:.2g}"
        else:
            why = f"moved by {self.value - self.raw.value:+.2g}; error bar {self.error:.2g}, raw {self.raw_error:.2g} with as many shots"
        return f"{self.technique}: {self.effect} ({why}; {cost})"

    def plain(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "technique": self.technique,
            "raw": self.raw.value,
            "raw_error": self.raw.error,
            "mitigated": self.value,
            "error": self.error,
            "shots": self.shots,
            "circuits": self.circuits,
            "ideal": self.ideal,
            "effect": str(self.effect),
            "statement": self.statement,
            **self.details,
        }
