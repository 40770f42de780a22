"""What a quantum job tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step of a job. stage: what is under way; number: of `of`, None where nobody knows how many; value: what it stands at."""

    stage: str
    number: int
    of: int | None = None
    value: float | None = None


OnStep = Callable[[Step], None]


def untold(step: Step) -> None:
    """Nobody listens."""
