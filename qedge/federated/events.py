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
    its scope beyond this run's plan; accuracy and loss: on rows declared public, else None; staleness: how many server steps ago
    this round's updates were begun, on average, where clients do not wait for each other.
    """

    run: str
    round: int
    rounds: int
    expected_cohort: float
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    left: float | None
    staleness: float | None = None


@dataclass(frozen=True)
class ClientsFailed:
    """The user's model or loop raised on the rows of some clients: they were left out of the round. Never told under privacy.

    reasons: what it raised, by the client's id; quarantined: the ids of those that are drawn no more.
    """

    run: str
    round: int
    reasons: dict[str, str]
    quarantined: tuple[str, ...]


@dataclass(frozen=True)
class KernelReplaced:
    """A kernel differed from the oracle on made-up rows, on some worker's processor: the run goes on with the oracle.

    difference: of their updates, over the oracle's largest.
    """

    run: str
    kernel: str
    instead: str
    difference: float


@dataclass(frozen=True)
class WentBack:
    """A round left the model so much worse, on public rows, that the run goes on from that of an earlier one."""

    run: str
    round: int
    to: int


@dataclass(frozen=True)
class SumLost:
    """Too few clients were left to open a secure sum after shares of it were asked for: the round is charged, and has no update."""

    run: str
    round: int
    reason: str


Event = Phase | RoundFinished | ClientsFailed | KernelReplaced | WentBack | SumLost
