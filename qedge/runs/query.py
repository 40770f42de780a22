"""The one call that asks for statistics: `query`. Where clients are counted is the same backends' business as where they are trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import JsonValue

from qedge.config import Settings
from qedge.config import load as load_settings
from qedge.errors import Failed, InvalidConfig, Refused
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import Json, RunFolder, mapping
from qedge.job import Query
from qedge.records import Records
from qedge.registry.publisher import Publisher
from qedge.runs.query_preparation import prepare_query, reopen_query
from qedge.runs.querying import Inquiry, MakeSums, complete_query
from qedge.runs.training import find_backend
from qedge.storage import locked

PUBLISH_TIMEOUT_S = 120.0
LOCK_TIMEOUT_S = 20.0


class Line(NamedTuple):
    """One number of an answer: of which statistic, of what in it, its value and interval."""

    statistic: str
    of: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class QueryResult:
    """What a query came to.

    answers: for each statistic, in the order asked, `title`, `statistic` as asked, `estimates` (of, value, low, high), `noise_std_rows`,
    `note`;
    intervals: what the intervals cover; statement: what it cost and what is public by declaration; epsilon, delta: None without privacy.
    """

    run_id: str
    answers: list[Json]
    intervals: str
    statement: Json
    epsilon: float | None
    delta: float | None
    clients: int
    seconds: float

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return {**vars(self)}

    def lines(self) -> list[Line]:
        """Every number of every answer, in the order asked."""
        return [
            Line(str(one["title"]), str(number["of"]), *(float(str(number[name])) for name in ("value", "low", "high")))
            for one in self.answers
            for number in map(mapping, listed(one["estimates"]))
        ]


def query(
    asked: Query | None = None,
    *,
    resume: str | None = None,
    backend: str = "ray",
    settings: Settings | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> QueryResult:
    """Ask all clients for statistics of their rows, or go on with a query that was cut off.

    Example:
        >>> from qedge import Query, query
        >>> wine = Query.parse({
        ...     "name": "wine", "data": {"source": "wine"}, "privacy": "none", "max_rows": 50, "statistics": [{"kind": "count"}],
        ... })
        >>> query(wine, backend="serial").answers[0]["estimates"][0]["value"]
        178.0

    Raises:
        Refused: the query cannot be answered as asked; nothing was computed and nothing charged.
        Failed: it was begun and could not be finished; `query(resume=run)` goes on.
        Tampered: a ledger, log or record is not what it was.
    """
    settings = settings or load_settings()
    begun = time.perf_counter()
    if (asked is None) == (resume is None):
        raise InvalidConfig("query takes either a query or resume=RUN")
    with find_backend(backend)(settings) as runner:
        on_event(Phase(asked.name if asked else str(resume), "preparing"))
        folder = prepare_query(asked, settings) if asked else reopen_query(str(resume), settings)
        result = folder.finished() or runner.query(folder.run, on_event)
    statement = mapping(result["statement"])
    epsilon, delta = statement.get("epsilon"), statement.get("delta")
    return QueryResult(
        run_id=folder.run,
        answers=[mapping(one) for one in listed(result["answers"])],
        intervals=str(result["intervals"]),
        statement=statement,
        epsilon=None if epsilon is None else float(str(epsilon)),
        delta=None if delta is None else float(str(delta)),
        clients=int(str(result["clients"])),
        seconds=time.perf_counter() - begun,
    )


def carry_out_query(run: str, settings: Settings, make_sums: MakeSums, on_event: Callable[[Event], None]) -> Json:
    """Answer a prepared query from wherever it stands, and publish it; its result.

    Raises:
        Failed: it cannot go on now; Tampered: its state is not what it was.
    """
    folder, records = RunFolder.open(settings.home, run), Records.open(settings.home)
    publisher = Publisher(settings, run)
    try:
        with locked(folder.path / "lock", timeout_s=LOCK_TIMEOUT_S):  # two coordinators of one run would undo each other's files
            result = folder.finished() or complete_query(Inquiry(folder, records, make_sums, on_event))
    except Refused as error:  # what was refused before anything was held is for `prepare_query`; by now something may be charged
        raise Failed(f"run {run} cannot go on: {error.message}", run=run, cause=error.code) from error
    on_event(Phase(run, "publishing"))
    publisher.finish(PUBLISH_TIMEOUT_S)
    return result


def listed(value: JsonValue) -> list[JsonValue]:
    """A JSON value that must be a list, as one."""
    return value if isinstance(value, list) else []
