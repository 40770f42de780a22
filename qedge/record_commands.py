"""The commands about what is on record: privacy budgets, receipts, the audit log."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qedge.command import Context, Facts, command, taking_model

if TYPE_CHECKING:
    from qedge.audit.receipt import Receipt
    from qedge.registry.registry import ModelVersion


@click.group()
def budget() -> None:
    """Privacy budgets: what a scope may spend, has spent, and by whom."""


@command(budget, "set")
@click.argument("scope")
@click.option("--epsilon", type=float, required=True)
@click.option("--delta", type=float, required=True)
@click.option("--unit", type=click.Choice(["client", "example"]), help="What a new scope protects; default: whole clients.")
@click.option("--order", type=int, help="Rényi order to freeze with a new scope; default: the best one for the budget.")
@click.option("--actor", default=None, help="Who sets it; default: the user of this machine.")
def budget_set(context: Context, scope: str, epsilon: float, delta: float, unit: str | None, order: int | None, actor: str | None) -> Facts:
    """Open a scope, or change its epsilon (delta, order and unit are frozen with it)."""
    import getpass

    from qedge.display import show_budgets
    from qedge.privacy.filter import most_epsilon
    from qedge.records import Records

    records = Records.open(context.settings.home)
    state = records.ledger.set_budget(scope, unit=unit, epsilon=epsilon, delta=delta, order=order, actor=actor or getpass.getuser())
    warnings = []
    if most_epsilon(state) == 0:
        told = (
            f"{epsilon:g} is not above the {state.reserved:.4g} that is spent or held: no new job fits; what is held may still be released"
        )
        warnings.append(f"scope '{scope}': {told}")
        click.echo(f"warning: {warnings[0]}", err=True)
    return {"scopes": show_budgets(context.console, [state]), "warnings": warnings}


@command(budget, "show")
@click.argument("scope", required=False)
def budget_show(context: Context, scope: str | None) -> Facts:
    """What one scope, or each, has spent and reserved, and the most epsilon that a new job may ask."""
    from qedge.display import show_budgets
    from qedge.records import Records

    ledger = Records.open(context.settings.home).ledger
    return {"scopes": show_budgets(context.console, [ledger.scope(scope)] if scope else ledger.scopes())}


@command(budget, "history")
@click.argument("scope", required=False)
def budget_history(context: Context, scope: str | None) -> Facts:
    """Every event of a scope, or of all, as the ledger's chain has them: what it cost, and the total after it."""
    from qedge.display import show_history
    from qedge.privacy.statement import statement
    from qedge.records import Records

    lines = statement(Records.open(context.settings.home).ledger.history(scope))
    show_history(context.console, scope, lines)
    return {"scope": scope, "events": [line.plain() for line in lines]}


@click.group()
def receipt() -> None:
    """The signed privacy receipt of a model version."""


@command(receipt, "show")
@taking_model
def receipt_show(context: Context, model: str) -> Facts:
    """Print the receipt of a model, or of a folder with a receipt.json, if it holds."""
    import rich.json

    from qedge.audit.receipt import Receipt, verify
    from qedge.display import shortened

    folder = _fetch(context, model)
    read = Receipt.read(folder / "receipt.json")
    verify(read, None, folder)
    values = read.plain()
    if context.console.is_terminal:
        context.console.print(rich.json.JSON(shortened(json.dumps(values))))
    elif not context.as_json:  # whole, to be read by another program
        click.echo(json.dumps(values, indent=1))
    return values


@command(receipt, "verify")
@taking_model
@click.option("--key", metavar="PUBLIC", help="The public key to trust (`qedge doctor` prints a home's); default: this home's own.")
def receipt_verify(context: Context, model: str, key: str | None) -> Facts:
    """Check the signature of a receipt, a model's or a folder's, and the digest of every file it names."""
    from qedge.audit.receipt import Receipt, verify
    from qedge.display import facts
    from qedge.errors import InvalidConfig
    from qedge.records import Records
    from qedge.security.keys import Keys, public_key

    folder = _fetch(context, model)
    own = context.settings.home / "keys" / "signing.ed25519"
    pinned = public_key(key) if key else Keys.open(context.settings.home).public if own.exists() else None
    if pinned is None:
        raise InvalidConfig("a receipt holds for whoever trusts its key, and there is none to trust here; give --key PUBLIC")
    read = Receipt.read(folder / "receipt.json")
    checked = verify(read, pinned, folder)
    values: Facts = {"model": model, "receipt": read.id, "signature": "holds", "files": sorted(read.artifacts), "key": checked.key_id}
    values["pinned"] = "given key" if key else "this home's key"
    values["unlisted"] = [*checked.unlisted]
    if own.exists() and (context.settings.home / "ledger.db").exists():
        values["unlisted"] += _unlisted_releases(Records.open(context.settings.home).ledger.releases(read.run), read)
    facts(context.console, "the receipt holds", values)
    return values


@click.group()
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
    rows = [
        (entry["seq"], str(entry["time"])[:19].replace("T", " "), entry["actor"], entry["event"], json.dumps(entry["facts"]))
        for entry in entries
    ]
    table(context.console, "audit log", ("seq", "time, UTC", "actor", "event", "facts"), rows)
    return {"entries": entries}


def resolved(context: Context, model: str) -> tuple[ModelVersion, Path]:
    """The version that a reference names, and the folder of its files."""
    from qedge.registry.registry import Registry

    registry = Registry(context.settings)
    version = registry.resolve(model)
    return version, registry.fetch(version, context.settings.home / "models" / version.name / str(version.version))


def _fetch(context: Context, model: str) -> Path:
    folder = Path(model)
    return folder if (folder / "receipt.json").is_file() else resolved(context, model)[1]


def _unlisted_releases(releases: Iterable[int], receipt: Receipt) -> list[str]:
    """What the ledger charged to the receipt's run and the receipt says nothing about; its evaluation comes after its rounds."""
    evaluated = any(use.what == "evaluation" and use.covered == "charged" for use in receipt.uses)
    listed = (receipt.mechanism.rounds if receipt.mechanism else 0) + evaluated
    return [f"release {number} of run {receipt.run}" for number in sorted(releases) if number > listed]
