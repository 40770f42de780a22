"""Where the time of a run's rounds goes, by what is done."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PHASES = {
    "sampling": "draw the cohort and cut it into pieces",
    "ahead": "draw the next cohort, for whoever is done to make it ready",
    "broadcast": "the way to the workers and back",
    "gather": "put the clients' batches together, where that was not done ahead",
    "train": "clients' local steps, on the worker that took longest",
    "sum": "clip, round to integers and add up",
    "noise": "sample the noise and add it",
    "record": "write the noised sum ahead, behind the next phases",
    "ledger": "commit it, behind the next phases",
    "step": "the server's step",
    "evaluate": "the model on public rows",
    "charge": "wait until record and ledger are done",
    "logging": "metrics, and whoever follows the run",
    "checkpoint": "the run's state, about once a second",
}
_KEPT = 1000  # rounds


class Profile:
    """Seconds of each phase of each of the last thousand rounds; threads may note at once."""

    def __init__(self) -> None:
        self.rounds: deque[dict[str, float]] = deque(maxlen=_KEPT)
        self.current: dict[str, float] = {}
        self.lock = threading.Lock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done within to a phase of this round."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds to a phase of this round."""
        with self.lock:
            self.current[name] = self.current.get(name, 0.0) + seconds

    def workers(self, begun: float, seconds: Mapping[str, float]) -> None:
        """Count what the slowest worker said it did since `begun`, and the rest of the time to the way there and back."""
        for name, took in seconds.items():
            self.add(name, took)
        self.add("broadcast", max(0.0, time.perf_counter() - begun - sum(seconds.values())))

    def end_round(self, seconds: float) -> None:
        """The round is over; it took so long."""
        with self.lock:
            self.rounds.append({**self.current, "round": seconds})
            self.current = {}

    def means(self) -> dict[str, float]:
        """Mean seconds a round of each phase, in the order of `PHASES`, and the median seconds of a whole round as "round"."""
        rounds = list(self.rounds)
        if not rounds:
            return {}
        names = [name for name in PHASES if any(name in one for one in rounds)]
        means = {name: statistics.fmean(one.get(name, 0.0) for one in rounds) for name in names}
        return {**means, "round": statistics.median(one["round"] for one in rounds)}
