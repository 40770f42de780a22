"""The command line: `qedge COMMAND`. The roof of the house: it alone may reach up into `actors` and `serve_apps`.

Every command takes `--json` and then prints one JSON object as its last line. Exit code: 0 done, 1 failed, 2 refused or bad
input (nothing written, nothing charged). Heavy packages are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from qedge import __version__
from qedge.command import Context, Facts, command, listening


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qedge")
def main() -> None:
    """Train on data that may not be collected, serve what was learned, with every privacy cost on the record."""


@command(main)
@click.argument("job", required=False, type=click.Path())
@click.option("--resume", metavar="RUN", help="Go on with a run that was cut off.")
@click.option("--backend", default="ray", show_default=True, help="ray, or serial: this process, no Ray, the same bits.")
def train(context: Context, job: str | None, resume: str | None, backend: str) -> Facts:
    """Train the job of a YAML file, or go on with a run."""
    from qedge.display import RunDisplay, facts
    from qedge.errors import InvalidJob
    from qedge.job import TrainingJob
    from qedge.runs.training import train as run_training

    if (job is None) == (resume is None):
        raise InvalidJob("give either a job file or --resume RUN")
    asked = TrainingJob.load(job) if job else None
    with RunDisplay(context.console) as display:
        result = run_training(asked, resume=resume, backend=backend, settings=context.settings, on_event=display.show)
    values = result.plain()
    shown = {"run": result.run_id, "model": result.model, "version": result.version, "accuracy": result.accuracy}
    shown |= {"epsilon": result.epsilon, "delta": result.delta, "rounds": result.rounds, "clients": result.clients}
    shown |= {"seconds a round": f"{result.seconds_per_round:.4f}", "receipt": result.receipt}
    facts(context.console, "done", shown)
    if result.version is None:
        context.console.print("  the registry does not answer; the model is kept and will be published by `qedge runs --publish`")
    return values


@main.group()
def budget() -> None:
    """Privacy budgets: what a scope may spend, has spent, and by whom."""


@command(budget, "set")
@click.argument("scope")
@click.option("--epsilon", type=float, required=True)
@click.option("--delta", type=float, required=True)
@click.option("--order", type=int, help="Rényi order to freeze with a new scope; default: the best one for the budget.")
@click.option("--actor", default=None, help="Who sets it; default: the user of this machine.")
def budget_set(context: Context, scope: str, epsilon: float, delta: float, order: int | None, actor: str | None) -> Facts:
    """Open a scope, or change its epsilon (delta and order are frozen with it)."""
    import getpass

    from qedge.records import Records

    records = Records.open(context.settings.home)
    state = records.ledger.set_budget(scope, epsilon=epsilon, delta=delta, order=order, actor=actor or getpass.getuser())
    return _show_scopes(context, [state])


@command(budget, "show")
@click.argument("scope", required=False)
def budget_show(context: Context, scope: str | None) -> Facts:
    """What one scope, or each, has spent, reserved and left."""
    from qedge.records import Records

    ledger = Records.open(context.settings.home).ledger
    return _show_scopes(context, [ledger.scope(scope)] if scope else ledger.scopes())


@command(budget, "history")
@click.argument("scope", required=False)
def budget_history(context: Context, scope: str | None) -> Facts:
    """Every event of a scope, or of all, as the ledger's chain has them."""
    from qedge.display import table
    from qedge.records import Records

    events = [event.plain() for event in Records.open(context.settings.home).ledger.history(scope)]
    rows = [(event["seq"], event["time"], event["kind"], event["actor"], event["summary"]) for event in events]
    table(context.console, f"history of {scope or 'all scopes'}", ("seq", "time", "event", "actor", "what"), rows)
    return {"scope": scope, "events": events}


def _show_scopes(context: Context, scopes: list[Any]) -> Facts:
    from qedge.display import table

    rows = [
        {
            "scope": scope.name,
            "unit": scope.unit,
            "epsilon": scope.epsilon,
            "delta": scope.delta,
            "order": scope.order,
            "spent": scope.spent,
            "reserved": scope.reserved,
            "left": scope.left,
        }
        for scope in scopes
    ]
    columns = ("scope", "unit", "epsilon", "delta", "order", "spent", "reserved", "left")
    table(context.console, "privacy budgets", columns, [[_short(row[column]) for column in columns] for row in rows])
    return {"scopes": rows}


@command(main)
def models(context: Context) -> Facts:
    """Models in the registry, their versions, aliases and what they cost."""
    from dataclasses import asdict

    from qedge.display import table
    from qedge.registry.registry import Registry

    found = [asdict(version) for version in Registry(context.settings).models()]
    rows = [(m["name"], m["version"], ", ".join(m["aliases"]), m["epsilon"], m["delta"], m["run_id"], m["receipt_id"][:16]) for m in found]
    table(context.console, "models", ("model", "version", "aliases", "epsilon", "delta", "run", "receipt"), rows)
    return {"models": found}


@command(main)
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
        folder = RunFolder(home, run)
        result = folder.read("result.json")
        done = len(folder.metrics_by_round())
        status = str(result["status"]) if result else "unfinished"
        found.append({"run": run, "status": status, "rounds": done, "of": folder.job().rounds, "published": run not in unpublished})
    table(context.console, "runs", ("run", "status", "rounds", "of", "published"), [tuple(row.values()) for row in found])
    return {"runs": found}


@command(main)
@click.argument("model")
@click.option("--alias", default="champion", show_default=True)
def promote(context: Context, model: str, alias: str) -> Facts:
    """Give a version (NAME/3) an alias."""
    from qedge.records import Records
    from qedge.registry.registry import Registry

    registry = Registry(context.settings)
    version = registry.resolve(model)
    registry.set_alias(version.name, alias, version.version)
    Records.open(context.settings.home).log.append("model.promoted", model=version.name, version=version.version, alias=alias)
    context.console.print(f"{version.name}@{alias} is now version {version.version}")
    return {"model": version.name, "version": version.version, "alias": alias}


@main.group()
def receipt() -> None:
    """The signed privacy receipt of a model version."""


@command(receipt, "show")
@click.argument("model")
def receipt_show(context: Context, model: str) -> Facts:
    """Print a model's receipt (NAME, NAME@alias, NAME/version, or a folder with receipt.json), if it holds."""
    import rich.json

    from qedge.audit.receipt import Receipt, verify

    folder = _fetch(context, model)
    read = Receipt.read(folder / "receipt.json")
    verify(read, None, folder)
    values = read.plain()
    context.console.print(rich.json.JSON(json.dumps(values)))
    return values


@command(receipt, "verify")
@click.argument("model")
@click.option("--key", metavar="PUBLIC", help="The public key to trust (`qedge doctor` prints a home's); default: this home's own.")
def receipt_verify(context: Context, model: str, key: str | None) -> Facts:
    """Check the signature of a receipt (NAME@alias, NAME/version, or a folder) and the digest of every file it names."""
    from qedge.audit.receipt import Receipt, verify
    from qedge.display import facts
    from qedge.security.keys import Keys, public_key

    folder = _fetch(context, model)
    own = context.settings.home / "keys" / "signing.ed25519"
    pinned = public_key(key) if key else Keys.open(context.settings.home).public if own.exists() else None
    read = Receipt.read(folder / "receipt.json")
    checked = verify(read, pinned, folder)
    values = {"model": model, "receipt": read.id, "signature": "holds", "files": sorted(read.artifacts), "key": checked.key_id}
    values["pinned"] = "given key" if key else "this home's key" if pinned else "NOT PINNED: the key came with the receipt"
    facts(context.console, "the receipt holds", values)
    return values


@main.group()
def log() -> None:
    """The audit log."""


@command(log, "verify")
@click.option("--file", type=click.Path(path_type=Path), help="A copy of an audit log, verified offline with --key alone.")
@click.option("--key", metavar="PUBLIC", help="The public key it must be signed with.")
def log_verify(context: Context, file: Path | None, key: str | None) -> Facts:
    """Check the chain of the log and of the ledger, their signatures, and that neither is older than was seen."""
    from qedge.audit.log import verify
    from qedge.display import facts
    from qedge.errors import InvalidConfig
    from qedge.records import Records
    from qedge.security.keys import public_key, public_text

    if (file is None) != (key is None):
        raise InvalidConfig("--file and --key go together: a copy is verified with the public key of the home it came from")
    if file is not None:
        report = verify(file, public_key(str(key)))
        values: Facts = {"entries": report.entries, "signed up to": report.signed, "log_head": report.head.hash}
        facts(context.console, "the copy holds", values)
        return values
    records = Records.open(context.settings.home)
    records.refuse_older_than_receipts()
    records.log.checkpoint()
    report, head = records.log.verify(), records.ledger.head()
    values = {"entries": report.entries, "checkpoints": report.checkpoints, "log_head": report.head.hash, "ledger_events": head.seq}
    values |= {"ledger_head": head.hash, "public_key": public_text(records.keys.public)}
    facts(context.console, "log and ledger hold", values)
    return values


@command(log, "show")
@click.option("--last", type=int, default=30, show_default=True)
def log_show(context: Context, last: int) -> Facts:
    """The last entries of the log."""
    from qedge.display import table
    from qedge.records import Records

    entries = [entry.body() for entry in Records.open(context.settings.home).log.entries()][-last:]
    rows = [(entry["seq"], entry["time"], entry["actor"], entry["event"], json.dumps(entry["facts"])) for entry in entries]
    table(context.console, "audit log", ("seq", "time", "actor", "event", "facts"), rows)
    return {"entries": entries}


@command(main)
@listening
def start(context: Context) -> Facts:
    """Start Ray on this machine, with what Serve needs; it outlives the command."""
    from actors.cluster import start_head
    from qedge.display import facts

    record = start_head(context.settings, serve=True)
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
@click.argument("model")
@listening
def deploy(context: Context, model: str) -> Facts:
    """Serve a model (NAME@champion) over HTTP on Ray Serve; starts Ray when none is running."""
    from actors.cluster import connect, serve_url, start_head
    from qedge.audit.receipt import Receipt, verify
    from qedge.errors import InvalidConfig
    from qedge.records import Records
    from serve_apps.app import deploy as deploy_model
    from serve_apps.inference import ModelFolder

    begun = time.perf_counter()
    settings = context.settings
    version, folder = _resolve(context, model)
    records = Records.open(settings.home)
    verify(Receipt.read(folder / "receipt.json"), records.keys.public, folder)  # before anything is started for it
    if settings.address is None:
        record = start_head(settings, serve=True)
        if record.serve_url not in (None, serve_url(settings)) and context.listening:
            raise InvalidConfig(f"this home's endpoint is at {record.serve_url}; `qedge stop` it first, or leave out --host and --port")
    with connect(settings, start=False):
        url = deploy_model(settings, ModelFolder(version.name, str(version.version), str(folder), records.keys.public.hex()))
    records.log.append("model.deployed", model=version.name, version=version.version, receipt=version.receipt_id)
    context.console.print(f"{version.name} version {version.version} answers at {url}/v2/models/{version.name}/infer", highlight=False)
    return {"model": version.name, "version": version.version, "url": url, "seconds": time.perf_counter() - begun}


@command(main)
@click.argument("model")
def undeploy(context: Context, model: str) -> Facts:
    """Stop serving a model."""
    from actors.cluster import connect
    from qedge.records import Records
    from serve_apps.app import undeploy as undeploy_model

    with connect(context.settings, start=False):
        undeploy_model(context.settings, model)
    Records.open(context.settings.home).log.append("model.undeployed", model=model)
    context.console.print(f"{model} is no longer served")
    return {"model": model}


@command(main)
@click.argument("model")
@click.argument("rows", required=False, type=click.Path())
@click.option("--job", type=click.Path(), help="Send the held-out rows of this job, and count how many labels are right.")
@click.option("--client", "column", metavar="COLUMN", help="Standardise rows per client of this column, for a model of scale: local.")
@click.option("--url", default=None, help="Endpoint (default: that of this home).")
def predict(context: Context, model: str, rows: str | None, job: str | None, column: str | None, url: str | None) -> Facts:
    """Send the rows of a table (or a job's held-out rows) to a served model over HTTP."""
    from qedge.display import facts, table
    from qedge.errors import InvalidRequest
    from qedge.prediction import held_out_rows, table_rows, takes_standardised
    from qedge.sdk import Client

    if (rows is None) == (job is None):
        raise InvalidRequest("give either a table of rows or --job JOB")
    if column is not None and job is not None:
        raise InvalidRequest("--client goes with a table of rows; the held-out rows of a job are as the model takes them")
    if url is None:
        from actors.cluster import head, serve_url

        own = head(context.settings)
        listens = own.serve_url if own and context.settings.address in (None, own.address) else None
        url = listens or serve_url(context.settings)
    with Client(url) as client:
        described = client.model(model)
        features, labels = held_out_rows(Path(job)) if job else (table_rows(Path(str(rows)), described, column), None)
        answer = client.infer(model, features)
    if labels is None and takes_standardised(described):
        whose = f"each client's own rows ('{column}')" if column else "this table"
        context.console.print(f"rows were standardised by the mean and standard deviation of {whose} (scale: local)", highlight=False)
    predicted = [label if isinstance(label, str) else int(label) for label in answer.labels]
    values: Facts = {"model": model, "version": answer.version, "receipt": answer.receipt, "rows": len(predicted)}
    if labels is not None:
        values["accuracy"] = sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(labels)
    else:
        table(context.console, "predictions", ("row", "label"), list(enumerate(predicted))[:20])
    facts(context.console, "answered over HTTP", values)
    return values | {"labels": predicted}


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
    from qedge.display import facts
    from qedge.federated.run_folder import RunFolder, run_ids
    from qedge.records import Records

    home = context.settings.home
    values: Facts = dict(cluster_status(context.settings))
    started = run_ids(home)
    unfinished = [run for run in started if RunFolder(home, run).read("result.json") is None]
    values |= {"runs": len(started), "unfinished runs": unfinished}
    facts(context.console, f"home {home}", values)
    return values | _show_scopes(context, Records.open(home).ledger.scopes() if (home / "ledger.db").exists() else [])


@command(main)
def doctor(context: Context) -> Facts:
    """Versions, cores, memory, execution providers, and what is missing."""
    from qedge.display import facts
    from qedge.doctor import examine

    values: Facts = examine(context.settings)
    facts(context.console, "qedge doctor", values)
    return values


def _resolve(context: Context, model: str) -> tuple[Any, Path]:
    """The version that a reference names, and the folder of its files."""
    from qedge.registry.registry import Registry

    registry = Registry(context.settings)
    version = registry.resolve(model)
    return version, registry.fetch(version, context.settings.home / "models" / version.name / str(version.version))


def _fetch(context: Context, model: str) -> Path:
    folder = Path(model)
    return folder if (folder / "receipt.json").is_file() else _resolve(context, model)[1]


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
