"""Everything that can refuse a job, before anything is computed.

Read the data, build the model, plan the privacy cost, hold the whole plan in the ledger. A job that is refused leaves nothing
but a line in the audit log; one that is accepted leaves a run folder from which it can be begun, or gone on with, at any time.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import JsonValue

from qedge.algorithms.choice import ALGORITHMS
from qedge.config import Settings
from qedge.data.federation import Federation, default_scope, fingerprints
from qedge.data.federation import load as load_data
from qedge.data.table_fingerprint import content_and_dealing
from qedge.errors import CheckpointTampered, Failed, InvalidJob, InvalidPrivacy, Refused, ScopeConflict, UnknownScope
from qedge.federated.example_guarantee import plan_for, refuse_hopeless
from qedge.federated.guarantee import Guarantee, read_guarantee
from qedge.federated.run_folder import Json, RunFolder, data_digest, mapping, terms_digest
from qedge.federated.selection.client_facts import client_facts
from qedge.federated.selection.drawing import expected_cohort
from qedge.federated.workers import chunk_size
from qedge.job import Privacy, TrainingJob
from qedge.job.query import Query, QueryPrivacy
from qedge.kernels.choice import choose_kernel
from qedge.kernels.per_example.choice import choose_sums
from qedge.models import build, parameters_vector, refuse_if_not_private
from qedge.privacy.ledger import Opening, Plan, Scope
from qedge.records import Records

_VERSIONS = ("qedge", "torch", "numpy", "ray", "onnxruntime", "mlflow")


def prepare(job: TrainingJob, settings: Settings, search: Json | None = None) -> RunFolder:
    """Check the job, hold its budget, and make its run folder.

    search: of a trial, what its record and receipt say of the search; the ledger's plan names it by the digest of the record.

    Raises:
        Refused: any of its kinds; nothing was computed, nothing is held, no folder is left.
        Tampered: the ledger or the log is not what it was.
    """
    federation = load_data(job.data, job.seed)
    module = build(job.model, len(federation.schema.features), len(federation.schema.labels), job.seed)
    params = len(parameters_vector(module))
    if ":" in job.model.kind:
        _refuse_if_not_exportable(module, federation)
    if job.cohort.size is not None and job.cohort.size > len(federation.clients):
        raise InvalidJob(f"cohort.size is {job.cohort.size}; accepted: at most the {len(federation.clients)} clients there are")
    if job.cohort.period is not None and job.cohort.period > len(federation.clients):
        raise InvalidJob(f"cohort.period is {job.cohort.period}; accepted: at most the {len(federation.clients)} clients there are")
    if job.cohort.informed:
        client_facts(job, federation)  # refuses before the home is touched
    if job.privacy is not None:
        refuse_if_not_private(module)
        refuse_hopeless(job, len(federation.clients), params)  # before the home is touched
    expected, private = expected_cohort(job.cohort, len(federation.clients)), job.privacy is not None
    sgd, schema = ALGORITHMS[job.algorithm.kind].client_update(job.algorithm), federation.schema
    together = chunk_size(expected, params, stacked=True)
    if job.privacy is not None and job.privacy.unit == "example":
        kernel = choose_sums(module, job.algorithm, len(schema.features), len(schema.labels))
    else:
        kernel = choose_kernel(module, job.algorithm, sgd, len(schema.features), len(schema.labels), together, private=private)
    chunk = together if kernel == "stacked" else chunk_size(expected, params, stacked=False)
    records = Records.open(settings.home)
    records.refuse_older_than_receipts()
    folder: RunFolder | None = None
    try:
        prints = _prints(federation, records)
        scope, guarantee = _terms(job, federation, params, prints, records, settings)
        folder = RunFolder.create(settings.home, job)
        folder.write("run.json", description(folder.run, job, time.time_ns() // 1_000_000))
        record = _record(job, federation, params, chunk, kernel, scope, guarantee)
        folder.write("record.json", record | {"data": data_digest(prints, records.keys)} | ({"search": search} if search else {}))
        folder = folder.settle()
        hold(folder, job, prints, records)
    except Refused as error:
        if folder is not None and records.ledger.plan(folder.run) is not None:  # held, though not all of it could be written
            raise Failed(f"run {folder.run} is held and could not be begun: {error.message}; resume it", run=folder.run) from error
        if folder is not None:
            folder.remove()
        records.log.append("job.refused", job=job.name, code=error.code, reason=error.message)
        raise
    records.log.append("run.prepared", run=folder.run, scope=scope or "", privacy=job.privacy is not None)
    return folder


def reopen(run: str, settings: Settings) -> RunFolder:
    """The folder of a run that was cut off, with its plan held if the cut came before that.

    What a run would have cost is believed from its own folder only where the ledger holds it; else it is planned anew.

    Raises:
        UnknownRun: no such run; Refused, Tampered: as `prepare`.
        CheckpointTampered: it is not held yet, and what its folder says of scope, noise or cost is not what would be held now.
    """
    folder = RunFolder.open(settings.home, run)
    job, records = folder.job(), Records.open(settings.home)
    federation = load_data(job.data, job.seed)
    prints = _prints(federation, records)
    if job.privacy is not None and records.ledger.plan(run) is None:
        module = build(job.model, len(federation.schema.features), len(federation.schema.labels), job.seed)
        scope, guarantee = _terms(job, federation, len(parameters_vector(module)), prints, records, settings)
        refuse_other_terms(folder, {"scope": scope, "guarantee": guarantee.plain() if guarantee else None})
    began = folder.read("run.json") or {}
    # Made again from the job, which the ledger's plan names by its digest: what the registry shows is what was asked for.
    folder.write("run.json", description(run, job, int(str(began.get("created_ms", time.time_ns() // 1_000_000)))))
    hold(folder, job, prints, records)
    records.log.append("run.resumed", run=run)
    return folder


def refuse_other_terms(folder: RunFolder, now: Json) -> None:
    """Refuse a folder whose word the ledger has nothing to hold against: it was altered, or the budget is another than it was then.

    now: by its name in the run's record, what would be held now.

    Raises:
        CheckpointTampered: the record says other than that.
    """
    record = folder.read("record.json") or {}
    if any(record.get(name) != value for name, value in json.loads(json.dumps(now)).items()):
        raise CheckpointTampered(
            f"run {folder.run} is not held in the ledger, and its folder says other than what would be held now: it was altered, or the "
            "budget was changed since it was cut off; begin a new run",
            run=folder.run,
        )


def hold(folder: RunFolder, job: TrainingJob, prints: frozenset[str], records: Records) -> None:
    """Hold the run's whole plan in the ledger, unless it is held already.

    Raises:
        BudgetExceeded: it does not fit; the error says how many rounds would.
    """
    record = folder.read("record.json")
    if record is None or records.ledger.plan(folder.run) is not None or folder.run in records.ledger.runs_without_privacy(prints):
        return
    if job.privacy is None:
        records.ledger.record_without_privacy(folder.run, prints)
        return
    guarantee = read_guarantee(mapping(record["guarantee"]))
    plan = Plan(
        run=folder.run,
        scope=str(record["scope"]),
        rounds=job.rounds,
        per_round=guarantee.per_round,
        final=guarantee.evaluation,
        first=guarantee.scaling.cost if guarantee.scaling else None,
        participation=f"{_pattern(job, guarantee)} terms={terms_digest(folder)}",
    )
    opening = Opening(job.privacy.epsilon, job.privacy.delta, guarantee.order, guarantee.unit)
    records.ledger.hold(plan, prints, opening=opening)


def _pattern(job: TrainingJob, guarantee: Guarantee) -> str:
    """Who takes part in which rounds, as the accounting takes it."""
    if guarantee.steps:
        return f"every round, {guarantee.steps} steps, poisson examples rate={guarantee.rate!r}, at most {guarantee.max_rows} rows a client"
    if guarantee.strategy:
        return f"cyclic separation={guarantee.separation} coefficients={','.join(map(str, guarantee.strategy))}"
    return f"{job.cohort.sampling} rate={guarantee.rate!r}"


def _terms(
    job: TrainingJob, federation: Federation, params: int, prints: frozenset[str], records: Records, settings: Settings
) -> tuple[str | None, Guarantee | None]:
    """The scope to charge and the guarantee under its frozen order."""
    if job.privacy is None:
        records.ledger.refuse_without_privacy(prints)
        return None, None
    name, scope = scope_to_charge(job.privacy, default_scope(job.data), len(federation.clients), prints, records, settings)
    refuse_other_clients(scope, federation.identity, records)
    return name, plan_for(job, len(federation.clients), params, scope)


def scope_to_charge(
    privacy: Privacy | QueryPrivacy, default: str, clients: int, prints: frozenset[str], records: Records, settings: Settings
) -> tuple[str, Scope | None]:
    """The name of the scope that data with these fingerprints charge, and the scope, or None where it is to be opened.

    Raises:
        UnknownScope: it would have to be opened, and the settings say who may. InvalidPrivacy: its delta is not the job's to have.
        ScopeConflict: the data belong to another, or to several.
    """
    name = privacy.budget or default
    scope = records.ledger.find(prints, privacy.budget)
    if scope is None:
        scope = next((known for known in records.ledger.scopes() if known.name == name), None)
    if scope is None and not settings.ledger.open_by_job:
        unit = "" if privacy.unit == "client" else f" --unit {privacy.unit}"
        told = f"{name} --epsilon {privacy.epsilon:g} --delta {privacy.delta:g}{unit}"
        raise UnknownScope(f"no budget for these data; first: qedge budget set {told}", scope=name)
    if scope is not None and (scope.delta > privacy.delta or scope.delta >= 1 / clients):
        raise InvalidPrivacy(
            f"scope '{scope.name}' counts at delta {scope.delta}; accepted here: at most the job's {privacy.delta}, below 1/clients",
            scope=scope.name,
        )
    return (scope.name if scope else name), scope


def refuse_other_clients(scope: Scope | None, identity: Sequence[bytes], records: Records) -> None:
    """Refuse a table that a scope of clients knows, where another column says now who a client is.

    Its budget would be charged for what a visit loses, say, by noise for a visit, and count it as what a whole hospital does.

    Raises:
        ScopeConflict: its rows were dealt to clients otherwise.
    """
    of_table = content_and_dealing(identity)
    if scope is None or scope.unit != "client" or of_table is None:
        return
    content, dealing = (frozenset({records.keys.mac("fingerprint", message).hex()}) for message in of_table)
    if records.ledger.find(content, None) is not None and records.ledger.find(dealing, None) is None:
        raise ScopeConflict(
            f"scope '{scope.name}' counts what its clients lose, and here the same rows belong to others; accepted: as 'data.client' "
            "the column that the scope was charged with first",
            scope=scope.name,
        )


def description(run: str, job: TrainingJob | Query, created_ms: int) -> Json:
    """What the registry shows of the run from its first round on: every parameter of the job by its dotted name."""
    return {
        "run_id": run,
        "name": job.name,
        "created_ms": created_ms,
        "params": dict(_flat("", job.plain())),
        "tags": {"qedge.run_id": run, "qedge.privacy": "none" if job.privacy is None else job.privacy.unit},
    }


def _flat(prefix: str, value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _record(
    job: TrainingJob, federation: Federation, params: int, chunk: int, kernel: str, scope: str | None, guarantee: Guarantee | None
) -> Json:
    return {
        "clients": len(federation.clients),
        "features": len(federation.schema.features),
        "params": params,
        "chunk": chunk,
        "kernel": kernel,
        "threads": 1,
        "scope": scope,
        "guarantee": guarantee.plain() if guarantee else None,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> Json:
    """Of what computes, for the record."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS}


def _refuse_if_not_exportable(module: torch.nn.Module, federation: Federation) -> None:
    """A user's own model that cannot be exported is better refused now than when its budget is spent."""
    from qedge.export import to_onnx

    with tempfile.TemporaryDirectory() as scratch:
        to_onnx(module, federation.schema, Path(scratch) / "model.onnx")


def _prints(federation: Federation, records: Records) -> frozenset[str]:
    return fingerprints(federation, lambda message: records.keys.mac("fingerprint", message))
