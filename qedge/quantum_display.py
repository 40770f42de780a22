"""What the terminal shows of a quantum job: its steps, and its answer beside the classical one."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qedge.display import facts, table
from qedge.quantum.progress import Step
from qedge.quantum.result import Result
from qedge.uncertainty import plus_minus

if TYPE_CHECKING:
    from qedge.quantum.circuit_run import CircuitRun
    from qedge.quantum.compilation.compiler import Compiled
    from qedge.quantum.resources import Resources

_BITSTRINGS = 16  # shown
_LINES = 8  # of a stage, where there is no terminal


class StepDisplay:
    """A bar for each stage; where there is no terminal, some lines of each."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[value]}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console)
        self.tasks: dict[str, object] = {}

    def __enter__(self) -> StepDisplay:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def show(self, step: Step) -> None:
        """Take in one step."""
        value = "" if step.value is None else f"{step.value:.8g}"
        if not self.console.is_terminal:
            if step.of is None or step.number in (1, step.of) or step.number % max(1, step.of // _LINES) == 0:
                of = "" if step.of is None else f"/{step.of}"
                self.console.print(f"{step.stage} {step.number}{of}  {value}".rstrip(), highlight=False)
            return
        if step.stage not in self.tasks:
            self.tasks[step.stage] = self.progress.add_task(step.stage, total=step.of, value=value)
        self.progress.update(self.tasks[step.stage], completed=step.number, total=step.of, value=value)  # type: ignore[arg-type]


def show_result(console: Console, result: Result) -> None:
    """Print the answer beside the classical ones, who won, and what it took."""
    rows = [(result.title, _measured(result.value, result.error), "")]
    rows += [(one.name, _measured(one.value, one.error), one.how) for one in (result.baseline, *result.others)]
    table(console, result.quantity, ("", "value", "how"), rows)
    compared, taken = result.compared, result.resources
    interval = f"{compared.advantage:.4g} (95 %: {compared.low:.4g} to {compared.high:.4g})"
    shown: dict[str, object] = {"verdict": str(result.verdict), f"advantage over {result.baseline.name}": interval}
    shown |= {"qubits": taken.qubits, "gates": taken.gates, "CX": taken.cx, "depth": taken.depth, "shots": taken.shots or "none: exact"}
    shown |= {"seconds": f"{taken.seconds:.2f}"}
    shown |= {name.replace("_", " "): _shown(one) for name, one in result.details.items() if isinstance(one, int | float | str)}
    facts(console, "answered", shown)
    for warning in warnings_of(result):
        console.print(f"[yellow]{warning}[/yellow]", highlight=False)


def show_circuit(console: Console, name: str, before: Resources, compiled: Compiled | None) -> None:
    """Print what a circuit takes, before and after."""
    kinds = ("qubits", "gates", "cx", "depth")
    columns = [("as written", before), *([("compiled", compiled.after)] if compiled else [])]
    rows = [(kind.replace("cx", "CX"), *(str(getattr(taken, kind)) for _, taken in columns)) for kind in kinds]
    table(console, name, ("", *(column for column, _ in columns)), rows)
    if compiled:
        facts(console, "compiled", {"passes": compiled.by})
        for warning in compiled.warnings:
            console.print(f"[yellow]{warning}[/yellow]", highlight=False)


def show_run(console: Console, run: CircuitRun) -> None:
    """Print the bitstrings that a circuit yields."""
    most = list(run.probabilities.items())[:_BITSTRINGS]
    rows = [(bits, _measured(value, error)) for bits, (value, error) in most]
    table(console, f"on {run.backend}", ("bits", "probability"), rows)
    told: dict[str, object] = {"bitstrings": len(run.probabilities), "shots": run.shots or "none: exact"}
    told |= {} if run.fidelity is None else {"fidelity to the ideal": f"{run.fidelity:.6g}"}
    facts(console, "measured", told)


def warnings_of(result: Result) -> list[str]:
    """What is to be known before the answer is used."""
    said = result.details.get("warnings", [])
    return [str(one) for one in said] if isinstance(said, list) else []


def _measured(value: float, error: float) -> str:
    return plus_minus(value, error) if error else f"{value:.10g}"


def _shown(value: float | str) -> str:
    return str(value) if isinstance(value, str | bool) else f"{value:.9g}"
