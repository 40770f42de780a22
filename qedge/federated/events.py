"""What a run says of itself while it goes on; everything here may be shown to anybody."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """The run has entered another phase: preparing, starting, waiting (for CPUs), training, evaluating, exporting, publishing."""

    run: str
    name: str


@dataclass(frozen=True)
class RoundFinished:
    """A round is over.

    expected_cohort: q·N, never the realised size; epsilon: spent by this run's releases; left: the most that a new job may ask of
    its scope beyond this run's plan; accuracy and loss: on rows declared public, else None.
    """

    run: str
    round: int
    rounds: int
    expected_cohort: float
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    left: float | None


Event = Phase | RoundFinished
