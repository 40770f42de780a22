"""What the terminal shows: the live table of a run, and the tables of what is on record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from qedge.federated.events import Event, Phase, RoundFinished

PHASES = {
    "preparing": "reading the data, holding the budget",
    "starting": "starting Ray",
    "training": "training",
    "evaluating": "evaluating",
    "exporting": "exporting the model, signing its receipt",
    "publishing": "publishing to the registry",
}


class RunDisplay:
    """A live view of one run: rounds, accuracy, epsilon spent and left, expected cohort. Prints plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self.task = self.progress.add_task("preparing", total=None)
        self.last: RoundFinished | None = None
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)

    def __enter__(self) -> RunDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def show(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Phase):
            self.progress.update(self.task, description=PHASES.get(event.name, event.name))
            if not self.console.is_terminal:
                self.console.print(f"{PHASES.get(event.name, event.name)} …", highlight=False)
            return
        self.last = event
        self.progress.update(self.task, completed=event.round, total=event.rounds)
        if not self.console.is_terminal and (event.round == event.rounds or event.round % max(1, event.rounds // 6) == 0):
            self.console.print(f"round {event.round}/{event.rounds}  {_facts(event)}", highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        return Group(self.progress, Text("  " + _facts(self.last), style="cyan") if self.last else Text(""))


def _facts(event: RoundFinished) -> str:
    parts = [f"expected cohort {event.expected_cohort:g}"]
    if event.accuracy is not None:
        parts.insert(0, f"accuracy {event.accuracy:.4f} (rows declared public)")
    if event.epsilon is not None:
        parts.append(f"epsilon spent {event.epsilon:.3f}")
    if event.left is not None:
        parts.append(f"left in the scope after this run {event.left:.3f}")
    return "   ".join(parts)


def table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a title; an empty table says so."""
    drawn = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    count = 0
    for row in rows:
        drawn.add_row(*("" if value is None else str(value) for value in row))
        count += 1
    console.print(drawn if count else f"{title}: none yet")


def facts(console: Console, title: str, values: Mapping[str, object]) -> None:
    """Print names and values under a title."""
    console.print(f"[bold]{title}[/bold]")
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        console.print(f"  {name:<{width}}  {'—' if value is None else value}", highlight=False, markup=False, soft_wrap=True)
