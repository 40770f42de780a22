"""The one call that runs a job: `train`.

Where it runs is a backend behind one interface, found by name among the entry points `qedge.backends`: `ray` (the default) and
`serial`, which runs the same round in this process and gives the same bits.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol

from pydantic import JsonValue

from qedge.config import Settings
from qedge.config import load as load_settings
from qedge.errors import InvalidConfig, nearest
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import Json, RunFolder, mapping
from qedge.job import TrainingJob
from qedge.runs.preparation import prepare, reopen

_SUMMARY = ("model", "accuracy", "accuracy_std", "loss", "epsilon", "delta", "rounds", "clients", "receipt")


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run comes to.

    version: in the registry, or None while it has not been published; accuracy and loss: None where nothing was evaluated;
    accuracy_std: one standard deviation of the noise on an accuracy that was charged, None where it has none; epsilon, delta: of
    the released models, as the ledger counts them, or None without privacy; clients: in the federation; of_clients: what the model
    is worth to each (`qedge.federated.evaluation.per_client`), where that may be looked at; profile: mean seconds of a round
    by what was done (`qedge.federated.profile.PHASES`), and the median of whole rounds as "round".
    """

    run_id: str
    model: str
    version: int | None
    accuracy: float | None
    accuracy_std: float | None
    loss: float | None
    epsilon: float | None
    delta: float | None
    rounds: int
    clients: int
    seconds: float
    seconds_per_round: float
    of_clients: dict[str, float]
    profile: dict[str, float]
    receipt: str | None

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return asdict(self)


class Backend(Protocol):
    """Runs prepared runs to their end, between entering and leaving it; made with the settings."""

    def __enter__(self) -> Backend:
        """Reach what was asked for; raises AddressUnreachable before anything is held."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let go of it."""

    def run(self, run: str, on_event: Callable[[Event], None]) -> Json:
        """The run's result, as in its `result.json`; raises what the run raised."""

    def query(self, run: str, on_event: Callable[[Event], None]) -> Json:
        """The same for a query."""


def train(
    job: TrainingJob | None = None,
    *,
    resume: str | None = None,
    backend: str = "ray",
    settings: Settings | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> TrainingResult:
    """Train a job, or go on with a run that was cut off.

    Example:
        >>> from qedge import TrainingJob, train
        >>> job = TrainingJob.parse({
        ...     "name": "wine", "data": {"source": "wine", "partition": {"clients": 6}, "test": 0.2}, "model": {"kind": "linear"},
        ...     "cohort": {"sampling": "uniform", "size": 3}, "privacy": "none", "rounds": 2,
        ... })
        >>> train(job, backend="serial").rounds
        2

    Raises:
        Refused: the job cannot be run as asked; nothing was computed and nothing charged.
        Failed: the run was begun and could not be finished; `train(resume=run)` goes on.
        Tampered: a ledger, log or checkpoint is not what it was.
    """
    settings = settings or load_settings()
    begun = time.perf_counter()
    if (job is None) == (resume is None):
        raise InvalidConfig("train takes either a job or resume=RUN")
    with find_backend(backend)(settings) as runner:
        on_event(Phase(job.name if job else str(resume), "preparing"))
        folder = prepare(job, settings) if job else reopen(str(resume), settings)
        result = folder.finished() or runner.run(folder.run, on_event)
    return _result(folder, mapping(result["summary"]), time.perf_counter() - begun)


def find_backend(name: str) -> Callable[[Settings], Backend]:
    """What makes a backend of that name.

    Raises:
        InvalidConfig: there is none.
    """
    known = {point.name: point for point in importlib.metadata.entry_points(group="qedge.backends")}
    if name not in known:
        raise InvalidConfig(f"unknown backend '{name}'; {nearest(name, known)}", given=name)
    backend: Callable[[Settings], Backend] = known[name].load()
    return backend


def _result(folder: RunFolder, result: Json, seconds: float) -> TrainingResult:
    """The run's result with the version that the registry gave it, once it has."""
    version = (folder.read("published.json") or {}).get("version")
    known = {name: result.get(name) for name in _SUMMARY}
    return TrainingResult(
        run_id=folder.run,
        version=int(str(version)) if version is not None else None,
        seconds=seconds,
        seconds_per_round=float(str(result["seconds_per_round"])),
        of_clients={name: float(str(value)) for name, value in mapping(result["of_clients"]).items()},
        profile={name: float(str(seconds)) for name, seconds in mapping(result["profile"]).items()},
        **known,  # type: ignore[arg-type]
    )
