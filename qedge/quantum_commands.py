"""The commands of quantum jobs: `qedge quantum …`. Each takes a job file, options in its place, or options that go before what it says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from qedge.command import Context, Facts, command, rates

if TYPE_CHECKING:
    from qedge.quantum.asked import QuantumJob

Given = dict[str, object]
TABLES = (".csv", ".npz", ".parquet", ".pq")


@click.group()
def quantum() -> None:
    """Quantum jobs, each beside its classical baseline: vqe, qaoa, qsvm, qnn; circuits; backends."""


@dataclass(frozen=True)
class Running:
    """Where circuits run, with what, and where the answer is written. job: a file, whose place the options take."""

    job: Path | None
    backend: str | None
    shots: int | None
    noise: tuple[tuple[str, object], ...]
    seed: int | None
    workers: int
    output: Path | None

    def given(self) -> Given:
        """As a job names it."""
        noise = dict(self.noise)
        name = self.backend or ("default.mixed" if noise else None)
        return {"backend": {"name": name, "shots": self.shots, "seed": self.seed, "noise": noise or None}, "seed": self.seed}


def _running(function: Callable[..., Facts]) -> Callable[..., Facts]:
    """Gives the function a `Running`, in place of the options that are common to all jobs."""

    @functools.wraps(function)
    def gathered(context: Context, **arguments: object) -> Facts:
        own = {name: arguments.pop(name) for name in Running.__dataclass_fields__}
        return function(context, Running(**own), **arguments)  # type: ignore[arg-type]

    options = (
        click.argument("job", required=False, type=click.Path(path_type=Path)),
        click.option("--backend", metavar="NAME", help="One of `qedge quantum backends`."),
        click.option("--shots", type=int, help="Measurements of each circuit; default: exact expectation values."),
        click.option(
            "--noise",
            metavar="KIND=RATE",
            callback=rates,
            multiple=True,
            help="Such as depolarizing=0.01, on default.mixed; may be repeated.",
        ),
        click.option("--seed", type=int, help="Of all that is drawn."),
        click.option("--workers", type=click.IntRange(0), default=0, help="Quantum workers on Ray; default: this process, no Ray."),
        click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the whole result as JSON."),
    )
    return functools.reduce(lambda taken, option: option(taken), reversed(options), gathered)


def _labelled(function: Callable[..., Facts]) -> Callable[..., Facts]:
    """The options that name a table and its columns."""
    options = (
        click.option("--data", metavar="TABLE", help="digits, wine, breast-cancer, or a .csv, .npz or .parquet file."),
        click.option("--label", metavar="COLUMN", help="The column of classes."),
        click.option("--drop", metavar="COLUMN", multiple=True, default=None, help="A column that is no feature; may be repeated."),
    )
    return functools.reduce(lambda taken, option: option(taken), reversed(options), function)


@command(quantum)
@_running
@click.option("--molecule", metavar="NAME", help="H2, LiH or BeH2.")
@click.option("--bond-length", type=float, metavar="Å", help="Default: near equilibrium.")
@click.option("--ising", type=int, metavar="SITES", help="A transverse-field Ising chain instead.")
@click.option("--field", type=float, help="Of the chain; its coupling is 1.")
@click.option("--ansatz", metavar="KIND", help="givens, uccsd, adapt or hardware-efficient.")
def vqe(
    context: Context,
    running: Running,
    molecule: str | None,
    bond_length: float | None,
    ising: int | None,
    field: float | None,
    ansatz: str | None,
) -> Facts:
    """Find a ground energy by a variational circuit, beside exact diagonalisation."""
    from qedge.errors import InvalidJob
    from qedge.quantum.vqe.job import VQE

    if ising is not None and (molecule is not None or bond_length is not None):
        raise InvalidJob("give either a molecule or --ising")
    problem = {"kind": "ising", "sites": ising, "field": field} if ising is not None else {"name": molecule, "bond_length": bond_length}
    return _solve(context, VQE, running, {"problem": problem, "ansatz": {"kind": ansatz}})


@command(quantum)
@_running
@click.option("--random-regular", nargs=2, type=int, metavar="DEGREE NODES", help="MaxCut of a random regular graph.")
@click.option("--layers", type=int, help="p, each of a cost and a mixer.")
@click.option("--warm-start", is_flag=True, default=None, help="Begin near a greedy solution.")
def qaoa(context: Context, running: Running, random_regular: tuple[int, int] | None, layers: int | None, warm_start: bool | None) -> Facts:
    """Cut a graph, or minimise a QUBO, beside greedy search and annealing. JOB: a job (.yaml), or a graph (.json)."""
    from qedge.quantum.qaoa.job import QAOA

    regular = dict(zip(("degree", "nodes"), random_regular, strict=True)) if random_regular else {}
    return _solve(context, QAOA, running, {"layers": layers, "warm_start": warm_start, "random_regular": regular}, graph=(".json",))


@command(quantum)
@_running
@_labelled
@click.option("--qubits", type=int, help="Wires of the quantum layer, 12 at most.")
@click.option("--layers", type=int, help="Of rotations and CNOT ring.")
@click.option("--epochs", type=int, help="Of Adam, for each fit.")
@click.option("--splits", type=int, help="How often the rows are split anew.")
def qnn(context: Context, running: Running, **given: object) -> Facts:
    """Train a classifier with a quantum layer on a table, beside an MLP of the same size. JOB: a job (.yaml), or a table."""
    from qedge.quantum.qnn.job import QNN

    return _solve(context, QNN, running, given, data=TABLES)


@command(quantum)
@_running
@_labelled
@click.option("--feature-map", metavar="KIND", help="zz, iqp or angle.")
@click.option("--kernel", metavar="KIND", help="fidelity or projected.")
@click.option("--qubits", type=int, help="Principal components that are encoded; default: at most 8.")
@click.option("--splits", type=int, help="How often the rows are split anew.")
@click.option("--save", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep a machine fitted on all rows, with its receipt.")
def qsvm(context: Context, running: Running, feature_map: str | None, kernel: str | None, save: Path | None, **given: object) -> Facts:
    """Classify a table with a quantum kernel, beside an RBF SVM and logistic regression. JOB: a job (.yaml), or a table."""
    from qedge.quantum.qsvm.job import QSVM

    parts = {"feature_map": {"kind": feature_map}, "kernel": {"kind": kernel}}
    return _solve(context, QSVM, running, given | parts, save, data=TABLES)


def _solve(
    context: Context, kind: type[QuantumJob], running: Running, given: Given, save: Path | None = None, **files: tuple[str, ...]
) -> Facts:
    """Carry out a job, show it and write it. files: keys whose file may stand in the job's place, with their endings."""
    from qedge.output_file import refuse_output
    from qedge.quantum_display import StepDisplay, show_result
    from qedge.runs.quantum import solve

    path = running.job
    for key, endings in files.items():
        if path is not None and path.suffix.lower() in endings:
            path, given[key] = None, str(path)
    if running.output is not None:
        refuse_output(running.output, (".json",))
    job = kind(**_over(kind.read(path) if path is not None else {}, given | running.given()))
    with StepDisplay(context.console) as display:
        done = solve(job, workers=running.workers, settings=context.settings, on_step=display.show, save=save)
    show_result(context.console, done.result)
    if not done.published:
        context.console.print("  the registry does not answer; the run is kept and will be published by `qedge runs --publish`")
    if running.output is not None:
        done.result.save(running.output)
    return done.plain()


def _over(values: Mapping[str, object], given: Mapping[str, object]) -> Given:
    """`values` with what is given, at every depth, and is not None."""
    merged = dict(values)
    for name, value in given.items():
        if isinstance(value, Mapping):
            below = merged.get(name)
            if inner := _over(below if isinstance(below, Mapping) else {}, value):
                merged[name] = inner
        elif value is not None:
            merged[name] = value
    return merged


@command(quantum)
@click.argument("program", type=click.Path(path_type=Path))
@click.option("--optimise", is_flag=True, help="Compile it: fewer CNOTs, then less depth.")
@click.option("--gate-budget", type=click.IntRange(1), default=1000, show_default=True, help="More gates after compilation are refused.")
@click.option("--over", type=click.Choice(["refuse", "warn"]), default="refuse", show_default=True, help="Where the budget is exceeded.")
@click.option("--backend", metavar="NAME", help="Run it there, as the program measures.")
@click.option("--shots", type=int, help="Measurements; default: exact probabilities.")
@click.option("--noise", metavar="KIND=RATE", callback=rates, multiple=True, help="Such as depolarizing=0.01; may be repeated.")
@click.option("--seed", type=int, help="Of the shots.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the circuit as OpenQASM 2.")
def circuit(
    context: Context,
    program: Path,
    optimise: bool,
    gate_budget: int,
    over: Literal["refuse", "warn"],
    output: Path | None,
    backend: str | None,
    shots: int | None,
    noise: tuple[tuple[str, object], ...],
    seed: int | None,
) -> Facts:
    """Read an OpenQASM 2 program, say what it takes, and compile or run it."""
    from qedge.output_file import refuse_output
    from qedge.quantum import qasm
    from qedge.quantum.backend import Backend
    from qedge.quantum.circuit_run import run_circuit
    from qedge.quantum.compilation.compiler import compile_circuit
    from qedge.quantum.resources import count
    from qedge.quantum_display import show_circuit, show_run
    from qedge.storage import write_atomically

    if output is not None:
        refuse_output(output, (".qasm",))
    script, qubits = qasm.read(program), qasm.declared_qubits(program)
    compiled = compile_circuit(script, gate_budget=gate_budget, on_over=over) if optimise else None
    before = count(script)
    show_circuit(context.console, program.name, before, compiled)
    facts: Facts = {"before": before.plain(), **(compiled.after if compiled else before).plain()}
    if compiled:
        script = compiled.script
        facts |= {"by": compiled.by, "warnings": list(compiled.warnings)}
    if backend is not None or shots is not None or noise:
        named = backend or ("default.mixed" if noise else None)
        given = _over({}, {"name": named, "shots": shots, "noise": dict(noise) or None, "seed": seed})
        run = run_circuit(script, Backend.model_validate(given), qubits=qubits)
        show_run(context.console, run)
        facts |= run.plain()
    if output is not None:
        write_atomically(output, qasm.write(script, qubits=qubits).encode())
    return facts


@command(quantum)
def backends(context: Context) -> Facts:
    """What circuits may run on, and what is missing."""
    from dataclasses import asdict

    from rich.markup import escape

    from qedge.display import table
    from qedge.quantum.backend import available

    found = available()
    marks = [
        (one.name, _mark(one.installed), _mark(one.shots), _mark(one.noise), _mark(one.hardware), escape(one.missing)) for one in found
    ]
    table(context.console, "backends", ("name", "installed", "shots", "noise models", "hardware", "missing"), marks)
    return {"backends": [asdict(one) for one in found]}


def _mark(yes: bool) -> str:
    return "yes" if yes else ""
