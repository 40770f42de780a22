"""The commands of edge nodes: `qedge edge …`. A ladder is built once, with the registry; each node measures it for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qedge.command import Context, Facts, command, taking_model

Command = TypeVar("Command", bound=Callable[..., Any])
if TYPE_CHECKING:
    from typing import Literal

    from qedge.edge.card import Card
    from qedge.edge.ladder import Ladder
    from qedge.edge.rung import Rows
    from qedge.job import Model
    from qedge.runs.compression import Pruning

    Importance = Literal["taylor", "norm"]

_ALL = "fp32,fp16,int8,int4,int2,binary"


@click.group()
def edge() -> None:
    """Models for small machines: ladders of precisions, what each rung costs on this node, and the cheapest that will do."""


@command(edge)
@taking_model
@click.option("--calibration", required=True, metavar="TABLE", help="Rows to make rungs by: the model's columns, and labels.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="The column of labels.")
@click.option("--validation", metavar="TABLE", help="Rows to validate rungs by; default: half of the calibration rows, kept apart.")
@click.option("--rungs", default=_ALL, show_default=True, help="Which, from the most precise to the least.")
@click.option("--public", is_flag=True, help="Declare these rows public; else the receipts say that nothing covers their use.")
def build(context: Context, model: str, calibration: str, label: str, validation: str | None, rungs: str, public: bool) -> Facts:
    """Make the ladder of a model's version, measure it here, and keep it with the version in the registry."""
    import secrets
    import shutil

    from qedge.edge.building.build import MODEL, Asked
    from qedge.edge.building.build import build as build_ladder
    from qedge.edge.building.graph import read as read_graph
    from qedge.edge.calibration import Taken
    from qedge.edge.calibration import read as read_rows
    from qedge.edge.measurement import measure as measure_ladder
    from qedge.edge.node import keep_card
    from qedge.edge.rung import in_order
    from qedge.record_commands import resolved
    from qedge.records import Records
    from qedge.registry.registry import Registry

    named = in_order(rungs.split(","))
    version, folder = resolved(context, model)
    rows = read_rows(calibration, label, Taken.of(read_graph(folder / MODEL)), validation)
    asked = Asked(version.name, str(version.version), named, rows, public)
    home, say = context.settings.home, context.console.print
    making = home / "edge" / f".{secrets.token_hex(8)}"
    try:
        ladder = build_ladder(asked, folder, making, Records.open(home), lambda rung: say(f"making {rung}"))
        card = measure_ladder(ladder, rows.held.rows, lambda rung: say(f"measuring {rung}"))
        Registry(context.settings).attach_ladder(version, making, ladder.id)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    keep_card(home, ladder.id, card)
    return _shown(context, ladder, card)


@command(edge)
@taking_model
@click.option("--rows", metavar="TABLE", help="Rows with the model's columns, to measure by; default: rows drawn at random.")
@click.option("--provider", metavar="NAME", help="Execution provider to run rungs by; default: each rung's fastest here.")
def measure(context: Context, model: str, rows: str | None, provider: str | None) -> Facts:
    """Measure every rung on this machine: latency, memory, load time, CPU."""
    from qedge.edge.measurement import measure as measure_ladder
    from qedge.edge.node import keep_card

    ladder = _ladder(context, model)
    given = _rows(ladder, rows)
    card = measure_ladder(ladder, given, lambda rung: context.console.print(f"measuring {rung}"), provider=provider)
    keep_card(context.settings.home, ladder.id, card)
    return _shown(context, ladder, card)


@command(edge)
@taking_model
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw accuracy against latency: .png, .svg or .pdf.")
def card(context: Context, model: str, plot: str | None) -> Facts:
    """Show what each rung answers, and what it costs on this machine."""
    from qedge.edge.node import card_here

    ladder = _ladder(context, model)
    found = card_here(context.settings.home, ladder)
    if plot is not None:
        from qedge.edge.plot import draw

        draw(found, Path(plot))
    return _shown(context, ladder, found)


@command(edge)
@taking_model
@click.argument("rows", type=click.Path())
@click.option("--require", "required", default="", metavar="NAME=VALUE,…", help="Of accuracy, accuracy_low, p50_ms, p95_ms, p99_ms.")
@click.option("--memory", default="256MiB", show_default=True, metavar="BYTES", help="Most that rungs may take here.")
@click.option("--explain", is_flag=True, help="Say why each other rung was passed over.")
@click.option("--output", type=click.Path(), metavar="FILE", help="Write all labels and their probabilities: .csv, .json or .parquet.")
def run(context: Context, model: str, rows: str, required: str, memory: str, explain: bool, output: str | None) -> Facts:
    """Answer the rows of an array (.npy) or a table on this machine, by the cheapest rung that meets what is required."""
    from qedge.display import facts, show_answers
    from qedge.edge.engine import EdgeEngine
    from qedge.edge.selector import Requirement, bytes_of
    from qedge.prediction import refuse_output, write_answers

    if output is not None:
        refuse_output(Path(output))
    asked, budget = Requirement.parse(required), bytes_of(memory)
    ladder = _ladder(context, model)
    given = _rows(ladder, rows)
    with EdgeEngine(budget, home=context.settings.home, covered_only=context.settings.edge.covered_only) as engine:
        engine.add(ladder.card.model, ladder, asked)
        answer = engine.infer(ladder.card.model, given)
        why = engine.explain(ladder.card.model)
        took = engine.loaded[ladder.card.model][answer.rung]
    probability = [float(share) for share in answer.probabilities.max(axis=1)]
    answers = list(zip(range(len(given)), answer.label, probability, strict=True))
    show_answers(context.console, answers, output)
    if output is not None:
        write_answers(Path(output), answers)
    values: Facts = {"model": ladder.card.model, "version": ladder.card.version, "rung": answer.rung, "receipt": answer.receipt}
    facts(context.console, "answered here", values | {"rows": len(given), "bytes": took})
    if explain:
        context.console.print(str(why), highlight=False)
    passed = {str(rung): reason for rung, reason in why.choice.passed.items()}
    return values | {"rows": len(given), "bytes": took, "labels": answer.label, "probability": probability, "passed_over": passed}


@command(edge)
@taking_model
@click.argument("file", type=click.Path())
def export(context: Context, model: str, file: str) -> Facts:
    """Write a version's network as an ExecuTorch program (.pte), with a receipt beside it; takes the extra `executorch`."""
    import hashlib

    from qedge.audit.receipt import FILE
    from qedge.edge.executorch import export_pte
    from qedge.errors import EdgeError
    from qedge.network import rebuilt
    from qedge.record_commands import resolved
    from qedge.records import Records, derive

    path = Path(file)
    if path.suffix != ".pte" or not path.resolve().parent.is_dir():
        raise EdgeError(f"{file}: accepted: a file that ends in .pte, in a folder that there is", given=file)
    version, folder = resolved(context, model)
    records = Records.open(context.settings.home)
    network = rebuilt(folder, version.name, records.keys.public)
    content = export_pte(network, path)
    issued = derive(network.receipt, [], {path.name: hashlib.sha256(content).hexdigest()}, records)
    issued.write(path.with_suffix(f".{FILE}"))
    records.log.append("edge.exported", model=version.name, version=version.version, receipt=issued.id)
    context.console.print(f"{path}: {len(content)} bytes; its receipt lies beside it", highlight=False)
    return {"model": version.name, "version": version.version, "file": file, "bytes": len(content), "receipt": issued.id}


@command(edge)
@taking_model
@click.option("--rows", required=True, metavar="TABLE", help="Rows that no rung was made by: the model's columns, and labels.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="The column of labels.")
@click.option("--lost", default=0.003, show_default=True, metavar="SHARE", help="Most accuracy that may be lost, of the dearer rung's.")
@click.option("--public", is_flag=True, help="Declare these rows public; else the receipt says that nothing covers their use.")
def cascade(context: Context, model: str, rows: str, label: str, lost: float, public: bool) -> Facts:
    """Fit a cascade for this machine: a cheap rung first, a dearer one for the rows that it is unsure of."""
    from qedge.display import facts
    from qedge.edge.building.choice import answers
    from qedge.edge.calibration import Taken, read_rows
    from qedge.edge.cascade import fit_best
    from qedge.edge.ladder import Ladder
    from qedge.edge.node import keep_cascade, own_card
    from qedge.records import Records

    ladder, home = _ladder(context, model), context.settings.home
    records = Records.open(home)
    given, identity = read_rows(rows, label, Taken(ladder.card.columns, ladder.card.labels, ladder.card.standardised))
    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in identity)
    if prints:
        records.ledger.refuse_without_privacy(prints)
        records.ledger.record_without_privacy(f"cascade of {ladder.card.model}/{ladder.card.version}", prints)
    card = own_card(ladder, home)
    as_run = Ladder(ladder.folder, ladder.id, card, ladder.receipts)  # threads and layout of weights move the last bits of answers
    answered = {one.rung: answers(as_run.load(one.rung), given.rows) for one in card.rungs}
    found = fit_best(card, answered, given.labels, most_lost=lost)
    keep_cascade(home, ladder, found, "public by declaration" if public else "NOT COVERED", records)
    records.log.append("edge.cascade", model=ladder.card.model, version=ladder.card.version, cheap=found.cheap, dear=found.dear)
    low, high = (100 * one for one in found.lost_interval)
    told: Facts = {
        "first": found.cheap,
        "for unsure rows": f"{found.dear}, {found.share:.1%} of {found.rows}",
        "accuracy": f"{found.accuracy:.4f}",
        "points lost": f"{100 * found.lost:.2f} (95 % interval {low:.2f} to {high:.2f})",
        "ms a row": f"{found.cost_ms:.4g}, where {found.dear} alone takes {found.dear_ms:.4g}",
    }
    facts(context.console, "used from now on wherever this home's ladder is", told)
    return {"model": ladder.card.model, "version": ladder.card.version, **found.model_dump(mode="json")}


def training(function: Command) -> Command:
    """The options of commands that train a smaller network by rows."""
    options = (
        click.option("--rows", required=True, metavar="TABLE", help="Rows to train by: the model's columns, and labels."),
        click.option("--label", default="label", show_default=True, metavar="COLUMN", help="The column of labels."),
        click.option("--validation", metavar="TABLE", help="Rows to compare by; default: half of the rows, kept apart."),
        click.option("--steps", type=click.IntRange(0, 10**7), help="Batches to train by; default: 2000, to teach a student 6000."),
        click.option("--labels-alone", is_flag=True, help="Train by labels alone, not by the larger model's answers too."),
        click.option("--public", is_flag=True, help="Declare these rows public; else the receipt says that nothing covers their use."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of first weights and of the order of rows."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command(edge)
@taking_model
@click.option("--prune", type=float, required=True, metavar="SHARE", help="How much to take out, from 0 to below 1.")
@click.option("--structured", is_flag=True, help="Take out whole units and channels, which makes it faster, not single weights.")
@click.option("--importance", type=click.Choice(["taylor", "norm"]), default="taylor", show_default=True, help="What units count by.")
@training
def compress(context: Context, model: str, prune: float, structured: bool, importance: Importance, **course: Any) -> Facts:
    """Take parts out of a version's network, train on what is left, and register it as a new version, a challenger."""
    from qedge.edge.compression.pruning import refuse_share
    from qedge.runs.compression import Pruning

    refuse_share(prune)
    return _compressed(context, model, Pruning(prune, structured, importance), **course)


@command(edge)
@click.option("--teacher", "model", required=True, metavar="MODEL", help="Whose answers teach: NAME, NAME@alias or NAME/version.")
@click.option("--student", required=True, type=click.Path(), metavar="FILE", help="YAML of the small network: as a job's 'model'.")
@training
def distil(context: Context, model: str, student: str, **course: Any) -> Facts:
    """Teach a small network by a version's answers, and register it as a new version of the same name, a challenger."""
    from qedge.runs.compression import read_student

    return _compressed(context, model, read_student(Path(student)), **course)


def _compressed(
    context: Context,
    reference: str,
    how: Pruning | Model,
    rows: str,
    label: str,
    validation: str | None,
    steps: int | None,
    labels_alone: bool,
    public: bool,
    seed: int,
) -> Facts:
    from dataclasses import asdict

    from qedge.edge.building.graph import read as read_graph
    from qedge.edge.calibration import Taken
    from qedge.edge.calibration import read as read_rows
    from qedge.edge.compression.training import Course
    from qedge.edge.display import show_compressed
    from qedge.job import Model
    from qedge.record_commands import resolved
    from qedge.registry.registry import MODEL_FILE
    from qedge.runs.compression import Asked
    from qedge.runs.compression import compress as carry_out

    version, folder = resolved(context, reference)
    table = read_rows(rows, label, Taken.of(read_graph(folder / MODEL_FILE)), validation)
    lasting = steps if steps is not None else 6000 if isinstance(how, Model) else 2000
    asked = Asked(version, folder, how, table, public, Course(steps=lasting), not labels_alone, seed)
    done = carry_out(asked, context.settings, lambda what: context.console.print(what))
    show_compressed(context.console, done.rows)
    named = f"{done.model} version {done.version}" if done.version else f"run {done.run_id}, which the registry has not got yet,"
    context.console.print(f"{named} is a challenger of version {version.version}", highlight=False)
    told = [asdict(one) for one in done.rows]
    return {
        "model": done.model,
        "version": done.version,
        "parent": version.version,
        "run": done.run_id,
        "receipt": done.receipt,
        "table": told,
    }


def _ladder(context: Context, model: str) -> Ladder:
    from qedge.registry.ladders import open_ladder

    return open_ladder(model, context.settings)


def _shown(context: Context, ladder: Ladder, found: Card) -> Facts:
    from qedge.edge.display import show_card

    show_card(context.console, found)
    return {"model": found.model, "version": found.version, "ladder": ladder.id, "rungs": found.plain()}


def _rows(ladder: Ladder, rows: str | None) -> Rows:
    """Rows as the model takes them: of an array or a table, or drawn at random; what a rung costs hardly depends on them."""
    import tokenize

    import numpy as np

    from qedge.data import tables
    from qedge.data.federation import standardised
    from qedge.errors import InvalidRequest

    if rows is None:
        return np.random.default_rng(0).random((32, ladder.card.features), np.float32)
    if not rows.endswith(".npy"):
        found = tables.features(tables.read(Path(rows)), ladder.card.columns)
        return standardised(found, np.zeros(len(found), np.int64)) if ladder.card.standardised else found
    try:
        array = np.load(rows, allow_pickle=False)
        return np.atleast_2d(array).astype(np.float32, casting="same_kind")
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, tokenize.TokenError) as error:  # numpy parses headers as Python
        raise InvalidRequest(f"{rows} holds no array of numbers: {error}", path=rows) from None
