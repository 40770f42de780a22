"""Everything that can refuse a query, before anything is computed: read the columns, plan the noise, hold the whole plan in the ledger.

As with a job (`qedge.runs.preparation`), one that is refused leaves nothing but a line in the audit log, and one that is accepted a run
folder from which it can be begun, or gone on with, at any time.
"""

from __future__ import annotations

import time
from pathlib import Path

from qedge.analytics.plan import QueryPlan, hunting_rounds, plan_query, read_plan
from qedge.config import Settings
from qedge.data.client_columns import Population, read_columns
from qedge.data.federation import default_scope
from qedge.errors import Failed, Refused, ScopeConflict
from qedge.federated.run_folder import Json, RunFolder, data_digest, mapping, terms_digest
from qedge.job import Data, Query
from qedge.job.statistics import Count, HeavyHitters, Histogram
from qedge.privacy.accounting import RenyiCost
from qedge.privacy.ledger import Opening, Plan
from qedge.records import Records
from qedge.runs.preparation import description, refuse_other_clients, refuse_other_terms, scope_to_charge, versions


def population_of(query: Query) -> Population:
    """Whom a query asks, with the columns that it asks about.

    Raises:
        DataNotFound, InvalidValue, InvalidJob, DataError: as `qedge.data.client_columns.read_columns`.
    """
    numbers: set[str] = set()
    texts: dict[str, int] = {}
    for statistic in query.statistics:
        if isinstance(statistic, HeavyHitters):
            texts[statistic.column] = max(statistic.length, texts.get(statistic.column, 0))
        elif isinstance(statistic, Histogram) and statistic.categories is not None:
            width = 1 + max(len(str(value).encode()) for value in statistic.categories)  # so that nothing cut looks like a category
            texts[statistic.column] = max(width, texts.get(statistic.column, 0))
        elif not isinstance(statistic, Count):
            numbers.add(statistic.column)
    return read_columns(query.data, numbers, texts, query.max_rows, query.seed)


def prints_of(population: Population, records: Records) -> frozenset[str]:
    """By which the ledger knows the data."""
    return frozenset(records.keys.mac("fingerprint", message).hex() for message in population.identity)


def prepare_query(query: Query, settings: Settings) -> RunFolder:
    """Check the query, hold its budget, and make its run folder.

    Raises:
        Refused: any of its kinds; nothing was computed, nothing is held, no folder is left.
        Tampered: the ledger or the log is not what it was.
    """
    population = population_of(query)
    if query.privacy is not None:
        plan_query(query, len(population.clients), order=None)  # refuses before the home is touched
    records = Records.open(settings.home)
    records.refuse_older_than_receipts()
    folder: RunFolder | None = None
    try:
        prints = prints_of(population, records)
        scope, plan = _terms(query, population, prints, records, settings)
        folder = RunFolder.create(settings.home, query)
        folder.write("run.json", description(folder.run, query, time.time_ns() // 1_000_000))
        folder.write("record.json", _record(query, population, scope, plan) | {"data": data_digest(prints, records.keys)})
        folder = folder.settle()
        hold_query(folder, query, prints, records)
    except Refused as error:
        if folder is not None and records.ledger.plan(folder.run) is not None:  # held, though not all of it could be written
            raise Failed(f"run {folder.run} is held and could not be begun: {error.message}; resume it", run=folder.run) from error
        if folder is not None:
            folder.remove()
        records.log.append("query.refused", query=query.name, code=error.code, reason=error.message)
        raise
    records.log.append("query.prepared", run=folder.run, scope=scope or "", privacy=query.privacy is not None)
    return folder


def reopen_query(run: str, settings: Settings) -> RunFolder:
    """The folder of a query that was cut off, with its plan held if the cut came before that.

    As with a job (`qedge.runs.preparation.reopen`), one that the ledger does not hold is planned anew.

    Raises:
        UnknownRun: no such query; Refused, Tampered: as `prepare_query`.
        CheckpointTampered: it is not held yet, and what its folder says of scope, noise or cost is not what would be held now.
    """
    folder = RunFolder.open(settings.home, run)
    query, records = folder.query(), Records.open(settings.home)
    population = population_of(query)
    prints = prints_of(population, records)
    if query.privacy is not None and records.ledger.plan(run) is None:
        scope, plan = _terms(query, population, prints, records, settings)
        refuse_other_terms(folder, {"scope": scope, "plan": plan.plain() if plan else None})
    hold_query(folder, query, prints, records)
    records.log.append("query.resumed", run=run)
    return folder


def hold_query(folder: RunFolder, query: Query, prints: frozenset[str], records: Records) -> None:
    """Hold the query's whole plan in the ledger, rounds for heavy hitters included, unless it is held already.

    Raises:
        BudgetExceeded: it does not fit.
    """
    if records.ledger.plan(folder.run) is not None or folder.run in records.ledger.runs_without_privacy(prints):
        return
    plan = recorded_plan(folder)
    if plan is None or query.privacy is None:
        records.ledger.record_without_privacy(folder.run, prints)
        return
    once = plan.once.cost if plan.once else None
    held = Plan(
        run=folder.run,
        scope=str((folder.read("record.json") or {})["scope"]),
        rounds=plan.rounds or 1,
        per_round=plan.hunting.cost if plan.hunting else once or RenyiCost.zero(),
        final=once if plan.hunting else None,
        participation=f"query everybody, every round terms={terms_digest(folder)}",
    )
    records.ledger.hold(held, prints, opening=Opening(query.privacy.epsilon, query.privacy.delta, plan.order))


def recorded_plan(folder: RunFolder) -> QueryPlan | None:
    """The plan on record, or None for a query without privacy."""
    record = folder.read("record.json") or {}
    return read_plan(mapping(record["plan"])) if record.get("plan") is not None else None


def _terms(
    query: Query, population: Population, prints: frozenset[str], records: Records, settings: Settings
) -> tuple[str | None, QueryPlan | None]:
    """The scope to charge and the plan under its frozen order."""
    if query.privacy is None:
        records.ledger.refuse_without_privacy(prints)
        return None, None
    default = default_scope(Data.model_construct(source=query.data.source))
    name, scope = scope_to_charge(query.privacy, default, len(population.clients), prints, records, settings)
    if scope is not None and scope.unit != "client":
        raise ScopeConflict(
            f"scope '{scope.name}' counts what single examples lose, and a query protects whole clients; accepted: data whose scope counts "
            "clients",
            scope=scope.name,
            unit=scope.unit,
        )
    refuse_other_clients(scope, population.identity, records)
    return name, plan_query(query, len(population.clients), scope.order if scope else None)


def _record(query: Query, population: Population, scope: str | None, plan: QueryPlan | None) -> Json:
    return {
        "clients": len(population.clients),
        "source": Path(population.source).name,
        "scope": scope,
        "plan": plan.plain() if plan else None,
        "rounds": hunting_rounds(query) + (len(query.hunts) < len(query.statistics)),
        "versions": versions(),
    }
