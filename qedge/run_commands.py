"""The commands about runs: train, query, and what they read and leave behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qedge.command import Context, Facts, command, how_to_go_on
from qedge.errors import QEdgeError, Refused

if TYPE_CHECKING:
    from qedge.federated.run_folder import RunFolder


@click.group()
def running() -> None:
    """Its commands are those of `qedge` itself."""


@command(running)
@click.argument("job", required=False, type=click.Path())
@click.option("--resume", metavar="RUN", help="Go on with a run that was cut off.")
@click.option("--backend", default="ray", show_default=True, help="ray, or serial: this process, no Ray.")
@click.option("--profile", is_flag=True, help="Show where the time of a round went.")
def train(context: Context, job: str | None, resume: str | None, backend: str, *, profile: bool) -> Facts:
    """Train the job of a YAML file, or go on with a run."""
    from qedge.display import RunDisplay, show_profile, show_result
    from qedge.errors import InvalidJob
    from qedge.job import TrainingJob
    from qedge.runs.training import train as run_training

    if (job is None) == (resume is None):
        raise InvalidJob("give either a job file or --resume RUN")
    asked = TrainingJob.load(job) if job else None
    display = RunDisplay(context.console)
    try:
        with display:
            result = run_training(asked, resume=resume, backend=backend, settings=context.settings, on_event=display.show)
    except KeyboardInterrupt:
        if display.run:
            click.echo(f"go on with: {how_to_go_on(display.run, context.settings.home)}", err=True)
        raise
    show_result(context.console, result)
    if profile:
        show_profile(context.console, result.profile)
    return result.plain()


@command(running)
@click.argument("query", required=False, type=click.Path())
@click.option("--resume", metavar="RUN", help="Go on with a query that was cut off.")
@click.option("--backend", default="ray", show_default=True, help="ray, or serial: this process, no Ray.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the answers: .json all of it, .csv the numbers.")
def query(context: Context, query: str | None, resume: str | None, backend: str, output: Path | None) -> Facts:
    """Ask all clients for the statistics of a YAML file: counts, means, histograms, quantiles, heavy hitters."""
    from qedge.display import RunDisplay, show_statistics
    from qedge.errors import InvalidJob
    from qedge.job import Query
    from qedge.output_file import refuse_output
    from qedge.runs.answers_file import FORMATS, write_answers_file
    from qedge.runs.query import query as run_query

    if (query is None) == (resume is None):
        raise InvalidJob("give either a query file or --resume RUN")
    if output is not None:
        refuse_output(output, FORMATS)
    asked = Query.load(query) if query else None
    display = RunDisplay(context.console)
    try:
        with display:
            result = run_query(asked, resume=resume, backend=backend, settings=context.settings, on_event=display.show)
    except (KeyboardInterrupt, QEdgeError) as error:
        if display.run and not isinstance(error, Refused):
            click.echo(f"go on with: {how_to_go_on(display.run, context.settings.home, 'query')}", err=True)
        raise
    show_statistics(context.console, result)
    if output is not None:
        write_answers_file(output, result)
    return result.plain() | ({"output": str(output)} if output else {})


@command(running)
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--client", required=True, metavar="COLUMN", help="Column that says whose row it is.")
@click.option("--label", required=True, metavar="COLUMN", help="Column to predict.")
@click.option("--drop", multiple=True, metavar="COLUMN", help="A column that is not a feature; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Default: beside the table, named for it, ending in .index.")
def index(context: Context, table: Path, client: str, label: str, drop: tuple[str, ...], out: Path | None) -> Facts:
    """Index a table, for jobs that read a client's rows when they need them instead of all at once."""
    from qedge.data.indexing import make_index
    from qedge.display import facts

    begun = time.perf_counter()
    made = make_index(table, client, label, drop, out)
    values: Facts = {"index": str(made.path), "clients": made.clients, "rows": made.rows, "features": made.features}
    facts(context.console, "indexed; a job names it as data.source", values)
    return values | {"seconds": time.perf_counter() - begun}


@command(running)
def models(context: Context) -> Facts:
    """Models in the registry, their versions, aliases and what they cost."""
    from dataclasses import asdict

    from qedge.display import number, table
    from qedge.registry.registry import Registry

    found = Registry(context.settings).models()
    rows = [
        (
            f"{one.name}/{one.version}",
            ", ".join(one.aliases),
            one.epsilon and number(float(one.epsilon)),
            one.delta,
            one.run_id,
            one.receipt_id,
        )
        for one in found
    ]
    table(context.console, "models", ("model", "aliases", "epsilon", "delta", "run", "receipt"), rows)
    return {"models": [asdict(one) for one in found]}


@command(running)
@click.option("--publish", is_flag=True, help="First publish what the registry has not got yet.")
@click.option("--limit", type=int, default=20, show_default=True)
def runs(context: Context, publish: bool, limit: int) -> Facts:
    """Runs under the home: how far each is, and whether the registry has it."""
    from qedge.display import table
    from qedge.federated.run_folder import RunFolder, run_ids
    from qedge.registry.publisher import pending
    from qedge.registry.publisher import publish as publish_run

    home = context.settings.home
    if publish:
        for run in pending(context.settings):
            publish_run(context.settings, run)
    unpublished = set(pending(context.settings)) if (home / "runs").exists() else set()
    found = []
    for run in run_ids(home)[-limit:]:
        try:
            found.append(_run_row(RunFolder(home, run)) | {"published": run not in unpublished})
        except QEdgeError as error:  # one that was altered does not hide the others
            found.append({"run": run, "status": error.code, "rounds": None, "of": None, "published": None})
    table(context.console, "runs", ("run", "status", "rounds", "of", "published"), [tuple(row.values()) for row in found])
    return {"runs": found}


def _run_row(folder: RunFolder) -> Facts:
    result = folder.read("result.json")
    status = str(result["status"]) if result else "unfinished"
    if folder.at_once:
        return {"run": folder.run, "status": status, "rounds": None, "of": None}
    planned = (folder.read("record.json") or {}).get("rounds") if folder.is_query else folder.job().rounds
    return {"run": folder.run, "status": status, "rounds": len(folder.metrics_by_round()), "of": planned}
