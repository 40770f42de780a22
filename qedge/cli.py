"""The command line: `qedge COMMAND`. The roof of the house: it alone may reach up into `actors` and `serve_apps`.

Every command takes `--json` and then prints one JSON object as its last line. Exit code: 0 done, 1 failed, 2 refused or bad
input (nothing written, nothing charged), 130 interrupted. Heavy packages are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qedge import __version__
from qedge.command import Commands, Context, Facts, command, listening, rates, taking_model
from qedge.edge_commands import edge
from qedge.errors import QEdgeError, Refused
from qedge.quantum_commands import quantum
from qedge.record_commands import budget, log, receipt, resolved
from qedge.run_commands import running

if TYPE_CHECKING:
    from qedge.registry.registry import ModelVersion
    from qedge.runs.edge_search import EdgeSearchResult
    from qedge.runs.search import SearchResult
    from serve_apps.model_folder import ModelFolder, OnBackend


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qedge")
def main() -> None:
    """Train on data that may not be collected, serve what was learned, with every privacy cost on the record."""


for below in (budget, receipt, log, quantum, edge, *running.commands.values()):
    main.add_command(below)


@command(main)
@click.argument("job", required=False, type=click.Path())
@click.option("--resume", metavar="SEARCH", help="Go on with a search that was cut off.")
@click.option("--seed", type=click.IntRange(0), help="Draw other values than search.seed says.")
def tune(context: Context, job: str | None, resume: str | None, seed: int | None) -> Facts:
    """Search the parameters of a job file that has a `search`; every trial is held in the ledger before it trains."""
    from actors.tuning import search_on_tune
    from qedge.errors import InvalidJob
    from qedge.job.search_space import SearchJob
    from qedge.search.display import SearchDisplay, how_to_go_on_searching

    if (job is None) == (resume is None) or (resume and seed is not None):
        raise InvalidJob("give either a job file, with --seed or without, or --resume SEARCH")
    asked = SearchJob.load(job).seeded(seed) if job else None
    display = SearchDisplay(context.console)
    try:
        with display:
            result: SearchResult = search_on_tune(asked, going_on=resume, settings=context.settings, on_progress=display.show)
    except (KeyboardInterrupt, QEdgeError) as error:
        if display.search and not isinstance(error, Refused):
            click.echo(f"go on with: {how_to_go_on_searching(display.search, context.settings.home)}", err=True)
        raise
    _show_search(context, result)
    return result.plain()


def _show_search(context: Context, result: SearchResult) -> None:
    from qedge.display import facts, number, table
    from qedge.search.space import shown

    rows = []
    for one in result.trials:
        figures = map(number, (one.metric, one.epsilon_held, one.epsilon_spent))
        rows.append((one.number, one.status, f"{one.rounds}/{one.of}", *figures, f"{shown(one.values)}\n{one.run}"))
    columns = ("trial", "status", "rounds", result.metric, "held", "spent", "values, and run")
    table(context.console, f"trials of {result.search}, held and spent in epsilon", columns, rows)
    said: Facts = {"best run": result.best.run, "version": result.version, f"best {result.metric}": number(result.best.metric)}
    if result.epsilon is not None:
        said |= {"epsilon of the search": f"{number(result.epsilon)} (could have been {number(result.epsilon_at_most)})"}
        said |= {"delta": result.delta}
    said |= {"compared on": f"the same rows for all {len(result.trials)} trials: the best one's {result.metric} is flattered by the choice"}
    facts(context.console, "done", said | {"table": result.trials_csv, "plot": result.plot})
    if not result.published:
        context.console.print(f"  the registry does not answer; `qedge tune --resume {result.search}` publishes it when it does")


@command(main)
@taking_model
@click.option("--alias", default="champion", show_default=True)
def promote(context: Context, model: str, alias: str) -> Facts:
    """Give a version of a model an alias."""
    from qedge.records import Records
    from qedge.registry.registry import Registry

    registry = Registry(context.settings)
    version = registry.resolve(model)
    registry.set_alias(version.name, alias, version.version)
    Records.open(context.settings.home).log.append("model.promoted", model=version.name, version=version.version, alias=alias)
    context.console.print(f"{version.name}@{alias} is now version {version.version}")
    return {"model": version.name, "version": version.version, "alias": alias}


@command(main)
@listening
def start(context: Context) -> Facts:
    """Start Ray on this machine, with what Serve needs; it outlives the command."""
    from actors.cluster import head, refuse_elsewhere, start_head
    from qedge.display import facts
    from qedge.errors import InvalidConfig

    if context.given_address and head(context.settings) is None:
        raise InvalidConfig("`qedge start` starts a Ray of its own and says where; --address is for commands that use one")
    record = start_head(context.settings, serve=True)
    refuse_elsewhere(record, address=context.given_address, host=context.given_host, port=context.given_port)
    facts(context.console, "Ray is up", {"address": record.address, "endpoint": record.serve_url, "stop it with": "qedge stop"})
    return {"address": record.address, "url": record.serve_url, "pid": record.pid}


@command(main)
def stop(context: Context) -> Facts:
    """Stop the cluster that `qedge start` started, and everything on it."""
    from actors.cluster import stop_head

    stopped = stop_head(context.settings)
    context.console.print("stopped" if stopped else "nothing was running")
    return {"stopped": stopped}


@command(main)
@taking_model
@listening
@click.option("--quantum-backend", metavar="NAME", help="Run its quantum layer there, by workers, instead of inside the graph.")
@click.option("--shots", type=int, help="With a backend: measurements of each circuit; default: exact.")
@click.option("--noise", metavar="KIND=RATE", callback=rates, multiple=True, help="With a backend: such as depolarizing=0.01.")
@click.option("--quantum-workers", type=click.IntRange(1, 64), help="With a backend: how many; default: 1.")
@click.option("--require", "required", metavar="NAME=VALUE,…", help="Answer by its ladder: the cheapest rung with accuracy=…,p95_ms=…")
def deploy(
    context: Context,
    model: str,
    quantum_backend: str | None,
    shots: int | None,
    noise: tuple[tuple[str, object], ...],
    quantum_workers: int | None,
    required: str | None,
) -> Facts:
    """Serve a model over HTTP on Ray Serve; starts Ray when none is running."""
    from actors.cluster import connect, refuse_elsewhere, start_head
    from actors.serving import quiet
    from qedge.audit.receipt import Receipt, verify
    from qedge.records import Records
    from serve_apps.app import deploy as deploy_model
    from serve_apps.app import refuse_unfit
    from serve_apps.model_folder import ModelFolder

    begun = time.perf_counter()
    settings = context.settings
    version, folder = resolved(context, model)
    records = Records.open(settings.home)
    verify(Receipt.read(folder / "receipt.json"), records.keys.public, folder)  # before anything is started for it
    on = _on_backend(quantum_backend, shots, dict(noise), quantum_workers)
    served = ModelFolder(version.name, str(version.version), str(folder), records.keys.public.hex(), on)
    if required is not None:
        served = _on_ladder(context, served, version, required)
    if on is not None or required is not None:
        refuse_unfit(served, settings)
    if settings.address is None:
        record = start_head(settings, serve=True)
        if record.serve_url is not None:
            refuse_elsewhere(record, host=context.given_host, port=context.given_port)
            settings = settings.model_copy(update={"serve": settings.serve.model_copy(update=record.listens)})
    with connect(settings, start=False):
        quiet()
        url = deploy_model(settings, served)
    records.log.append(
        "model.deployed", model=version.name, version=version.version, receipt=version.receipt_id, backend=quantum_backend or "none"
    )
    context.console.print(f"{version.name} version {version.version} answers at {url}/v2/models/{version.name}/infer", highlight=False)
    return {"model": version.name, "version": version.version, "url": url, "seconds": time.perf_counter() - begun}


@command(edge)
@click.argument("models", nargs=-1, required=True, metavar="MODEL[:REQUIREMENT]…")
@click.option("--memory", default="256MiB", show_default=True, metavar="BYTES", help="Most that rungs may take here.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8100, show_default=True, help="0: any free one.")
@click.option("--every", "every_s", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds between looks.")
@click.option("--key", metavar="HEX", help="Public key that receipts must be signed with; default: this home's own.")
def gateway(context: Context, models: tuple[str, ...], memory: str, host: str, port: int, every_s: float, key: str | None) -> Facts:
    """Answer over HTTP on this machine, without Ray: by ladders kept on its disk, in step with the registry.

    MODEL is as elsewhere; a requirement after a colon is met by the rung that answers: digits@champion:accuracy=0.96,p95_ms=5
    """
    from qedge.config import ensure_home
    from qedge.edge.selector import bytes_of
    from qedge.records import Records
    from qedge.registry.following import Followed
    from qedge.security.keys import public_key
    from serve_apps.gateway import Gateway

    followed = [Followed.parse(one) for one in models]
    ensure_home(context.settings.home)
    pinned = public_key(key) if key else Records.open(context.settings.home).keys.public
    serving = Gateway(context.settings, followed, pinned, bytes_of(memory))

    def say(url: str) -> None:
        for one in followed:
            context.console.print(f"{one.name} answers at {url}/v2/models/{one.name}/infer", highlight=False)

    serving.run(host, port, every_s=every_s, up=say)
    return {"models": [one.name for one in followed]}


@command(edge, "search")
@click.argument("job", required=False, type=click.Path())
@click.option("--latency-ms", type=float, metavar="MS", help="Most that one row may take on this machine.")
@click.option("--size-kb", type=float, metavar="KB", help="Most that the rung's files may take.")
@click.option("--trials", type=int, help="How many, in place of the file's.")
@click.option("--seed", type=int, help="In place of the file's.")
@click.option("--resume", metavar="SEARCH", help="Go on with a search that was cut off.")
def edge_search(
    context: Context,
    job: str | None,
    latency_ms: float | None,
    size_kb: float | None,
    trials: int | None,
    seed: int | None,
    resume: str | None,
) -> Facts:
    """Search networks and rungs for this machine: accuracy against measured latency and size, on Ray Tune with early stopping."""
    from actors.edge_search import edge_search as search
    from qedge.edge.display import show_front
    from qedge.edge.search.job import EdgeSearch
    from qedge.edge.search.trial import Limits
    from qedge.errors import InvalidJob

    changes = {name: value for name, value in (("trials", trials), ("seed", seed)) if value is not None}
    if (job is None) == (resume is None) or (resume and (changes or latency_ms or size_kb)):
        raise InvalidJob("give either a search file, with limits or without, or --resume SEARCH")
    asked = EdgeSearch.load(Path(job), changes) if job else None
    limits = Limits.asked(latency_ms, size_kb)
    found: EdgeSearchResult = search(
        asked,
        limits,
        going_on=resume,
        settings=context.settings,
        told=lambda line: context.console.print(line, highlight=False, soft_wrap=True),
    )
    show_front(context.console, found.points, found.best.number)
    named = f"version {found.version}" if found.version else "the registry does not answer; --resume publishes it"
    context.console.print(f"{found.model}: trial {found.best.number} is best, {named}; {found.front}", highlight=False, soft_wrap=True)
    return found.plain()


def _on_ladder(context: Context, served: ModelFolder, version: ModelVersion, required: str) -> ModelFolder:
    """The version's ladder in place of its graph."""
    from dataclasses import replace

    from qedge.edge.selector import Requirement
    from qedge.errors import InvalidJob
    from qedge.registry.registry import Registry

    if served.quantum is not None:
        raise InvalidJob("--require asks for the rungs of a ladder, --quantum-backend for circuits; give one of them")
    asked = Requirement.parse(required)
    folder = Registry(context.settings).fetch_ladder(version, context.settings.home / "models" / version.name / str(version.version))
    return replace(served, folder=str(folder), edge=asked)


def _on_backend(name: str | None, shots: int | None, noise: dict[str, object], workers: int | None) -> OnBackend | None:
    from qedge.errors import InvalidJob
    from qedge.quantum.backend import Backend
    from serve_apps.model_folder import OnBackend

    if name is None:
        if shots is not None or noise or workers is not None:
            raise InvalidJob("--shots, --noise and --quantum-workers are of a quantum backend; name one with --quantum-backend")
        return None
    return OnBackend(Backend.model_validate({"name": name, "shots": shots, "noise": noise or None}), workers or 1)


@command(main)
@taking_model
def undeploy(context: Context, model: str) -> Facts:
    """Stop serving a model."""
    from actors.cluster import connect
    from actors.serving import quiet
    from qedge.errors import UnknownModel
    from qedge.records import Records
    from serve_apps.app import running
    from serve_apps.app import undeploy as undeploy_model

    name, version = _served(context, model)
    with connect(context.settings, start=False):
        quiet()
        plan = running()
        served = plan.models.get(name) if plan else None
        if served is not None and version not in (None, served.version):
            raise UnknownModel(f"version {version} of '{name}' is not served; version {served.version} is", model=name, version=version)
        undeploy_model(context.settings, name)
    Records.open(context.settings.home).log.append("model.undeployed", model=name)
    context.console.print(f"{name} is no longer served")
    return {"model": name}


@command(main)
@taking_model
@click.argument("rows", required=False, type=click.Path())
@click.option("--job", type=click.Path(), help="Send the held-out rows of this job, and count how many labels are right.")
@click.option("--client", "column", metavar="COLUMN", help="Standardise rows per client of this column, for a model of scale: local.")
@click.option("--url", default=None, help="Endpoint (default: that of this home).")
@click.option("--output", type=click.Path(), metavar="FILE", help="Write all labels and their probabilities: .csv, .json or .parquet.")
def predict(
    context: Context, model: str, rows: str | None, job: str | None, column: str | None, url: str | None, output: str | None
) -> Facts:
    """Send the rows of a table (or a job's held-out rows) to a served model over HTTP."""
    from qedge.display import facts, show_answers
    from qedge.errors import InvalidRequest
    from qedge.prediction import held_out_rows, refuse_output, table_rows, takes_standardised, write_answers
    from qedge.sdk import Client

    if (rows is None) == (job is None):
        raise InvalidRequest("give either a table of rows or --job JOB")
    if column is not None and job is not None:
        raise InvalidRequest("--client goes with a table of rows; the held-out rows of a job are as the model takes them")
    if output is not None:
        refuse_output(Path(output))
    name, version = _served(context, model)
    with Client(url or _own_url(context)) as client:
        described = client.model(name, version)
        features, labels = (
            held_out_rows(Path(job), context.settings.home) if job else (table_rows(Path(str(rows)), described, column), None)
        )
        answer = client.infer(name, features, version)
    if labels is None and takes_standardised(described):
        whose = f"each client's own rows ('{column}')" if column else "this table"
        context.console.print(f"rows were standardised by the mean and standard deviation of {whose} (scale: local)", highlight=False)
    predicted = [label if isinstance(label, str) else int(label) for label in answer.labels]
    probability = [float(share) for share in answer.probability]
    answers = list(zip(range(len(predicted)), predicted, probability, strict=True))
    values: Facts = {"model": name, "version": answer.version, "receipt": answer.receipt, "rows": len(predicted)}
    if labels is not None:
        values["accuracy"] = sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(labels)
    else:
        show_answers(context.console, answers, output)
    if output is not None:
        write_answers(Path(output), answers)
        values["output"] = output
    facts(context.console, "answered over HTTP", values)
    return values | {"labels": predicted, "probability": probability}


@command(main)
@click.option("--port", type=int, default=5000, show_default=True)
def ui(context: Context, port: int) -> Facts:
    """Open the MLflow UI on this home's registry, until interrupted."""
    from qedge.registry.ui import serve_ui

    context.console.print(f"MLflow UI at http://127.0.0.1:{port} — Ctrl-C ends it", highlight=False)
    serve_ui(context.settings, port)
    return {"port": port}


@command(main)
def status(context: Context) -> Facts:
    """The cluster, what is served, the runs and the budgets of this home."""
    from actors.cluster import status as cluster_status
    from qedge.display import facts, show_budgets
    from qedge.federated.run_folder import RunFolder, run_ids
    from qedge.records import Records

    home = context.settings.home
    values: Facts = dict(cluster_status(context.settings))
    started = run_ids(home)
    unfinished = [run for run in started if RunFolder(home, run).read("result.json") is None]
    values |= {"runs": len(started), "unfinished runs": unfinished}
    facts(context.console, f"home {home}", values)
    scopes = Records.open(home).ledger.scopes() if (home / "ledger.db").exists() else []
    return values | {"scopes": show_budgets(context.console, scopes)}


@command(main)
def doctor(context: Context) -> Facts:
    """Versions, cores, memory, execution providers, and what is missing."""
    from qedge.display import facts
    from qedge.doctor import examine

    values: Facts = examine(context.settings)
    facts(context.console, "qedge doctor", values)
    return values


def _served(context: Context, model: str) -> tuple[str, str | None]:
    """Name and version of what a reference asks of an endpoint; without a version: whichever is served."""
    from qedge.registry.registry import Registry, split_reference

    name, alias, version = split_reference(model)
    if alias is not None:
        version = Registry(context.settings).resolve(model).version
    return name, None if version is None else str(version)


def _own_url(context: Context) -> str:
    """Where the endpoint of this home listens, or would."""
    from actors.cluster import head, serve_url

    own = head(context.settings)
    listens: str | None = own.serve_url if own and context.settings.address in (None, own.address) else None
    return listens or serve_url(context.settings)


if __name__ == "__main__":
    main()
