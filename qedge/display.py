"""What the terminal shows: the live table of a run, and the tables of what is on record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from qedge.federated.events import ClientsFailed, Event, KernelReplaced, Phase, RoundFinished, SumLost, WentBack
from qedge.federated.profile import PHASES as PROFILED
from qedge.privacy.filter import least_epsilon, most_epsilon, rounded_down
from qedge.privacy.ledger_events import Scope
from qedge.privacy.statement import Line
from qedge.uncertainty import plus_minus

if TYPE_CHECKING:
    from qedge.prediction import Answers
    from qedge.runs.query import QueryResult
    from qedge.runs.training import TrainingResult

ROWS_SHOWN = 20
LINES_SHOWN = 60
_FAILURES_SHOWN = 3
PHASES = {
    "preparing": "reading the data, holding the budget",
    "starting": "starting Ray",
    "waiting": "waiting for CPUs of the cluster",
    "training": "training",
    "counting": "asking the clients",
    "scaling": "asking the clients for means and standard deviations",
    "evaluating": "evaluating",
    "exporting": "exporting the model, signing its receipt",
    "publishing": "publishing to the registry",
}


_DIGEST = re.compile(r"(?<!ed25519:)\b([0-9a-f]{12})[0-9a-f]{52,}\b")
_BUDGETS = (
    "a new job: more than the first and at most the second, at the scope's delta. Costs\n"
    "add as Rényi divergence at the scope's order, so that with what is spent it may\n"
    "come to more than the cap; small jobs need a scope with a higher order."
)


class RunDisplay:
    """A live view of one run: rounds, accuracy, epsilon spent and left, expected cohort. Prints plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self.task = self.progress.add_task("preparing", total=None)
        self.last: RoundFinished | None = None
        self.run = ""  # once it has begun
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
            self.run = "" if event.name == "preparing" else event.run
            self.progress.update(self.task, description=PHASES.get(event.name, event.name))
            if not self.console.is_terminal:
                self.console.print(f"{PHASES.get(event.name, event.name)} …", highlight=False)
            return
        if not isinstance(event, RoundFinished):
            self.console.print(_warning(event), style="yellow", highlight=False)
            return
        self.last = event
        self.progress.update(self.task, completed=event.round, total=event.rounds)
        if not self.console.is_terminal and (event.round == event.rounds or event.round % max(1, event.rounds // 6) == 0):
            self.console.print(f"round {event.round}/{event.rounds}  {_facts(event)}", highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        return Group(self.progress, Text("  " + _facts(self.last), style="cyan") if self.last else Text(""))


def _warning(event: ClientsFailed | KernelReplaced | WentBack | SumLost) -> str:
    if isinstance(event, SumLost):
        return f"round {event.round} has no update, what it cost stays spent: {event.reason}"
    if isinstance(event, WentBack):
        return f"round {event.round} made the model worse: going on from that of round {event.to}"
    if isinstance(event, KernelReplaced):
        return f"kernel '{event.kernel}' is {event.difference:.2g} from the oracle on this processor; going on with '{event.instead}'"
    named = [f"client '{client}': {reason}" for client, reason in list(event.reasons.items())[:_FAILURES_SHOWN]]
    if (more := len(event.reasons) - len(named)) > 0:
        named.append(f"and {more} more")
    if event.quarantined:
        named.append(f"drawn no more: {', '.join(event.quarantined)}")
    return f"round {event.round}, left out: " + "; ".join(named)


def _facts(event: RoundFinished) -> str:
    parts = [f"expected cohort {event.expected_cohort:g}"]
    if event.accuracy is not None:
        parts.insert(0, f"accuracy {event.accuracy:.4f} (rows declared public)")
    if event.staleness is not None:
        parts.append(f"staleness {event.staleness:.2f}")
    if event.epsilon is not None:
        parts.append(f"epsilon spent {event.epsilon:.3f}")
    if event.left is not None:
        parts.append(f"left for a new job {rounded_down(event.left) if event.left else 'nothing'}")
    return "   ".join(parts)


def table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, more: str = "") -> None:
    """Print rows under a title, digests shortened; an empty table says so. more: a line about what is not shown."""
    drawn = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        drawn.add_column(column, overflow="fold", no_wrap=column == "run")  # to be copied in one piece
    for row in rows:
        drawn.add_row(*("" if value is None else shortened(value) for value in row))
    console.print(drawn if drawn.row_count else f"{title}: none yet")
    if more:
        console.print(more, highlight=False)


def facts(console: Console, title: str, values: Mapping[str, object]) -> None:
    """Print names and values under a title, digests shortened, a value that is too long on a line of its own."""
    console.print(f"[bold]{title}[/bold]")
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        text = "—" if value is None else ", ".join(map(str, value)) or "none" if isinstance(value, list) else shortened(value)
        line = f"  {name:<{width}}  {text}"
        shown = line if len(line) <= console.width else f"  {name}\n    {text}"
        console.print(shown, highlight=False, markup=False, soft_wrap=True)


def shortened(value: object) -> str:
    """A value with every digest in it cut to its first 12 hex digits; a key is left whole, for it is to be copied."""
    return _DIGEST.sub(r"\1", str(value))


def number(value: float | None) -> str | None:
    """A figure in at most four digits."""
    return None if value is None else f"{value:.4g}"


def show_budgets(console: Console, scopes: Sequence[Scope]) -> list[dict[str, object]]:
    """Print what each scope has spent, reserved, and what a new job may ask; the same as plain values."""
    rows: list[dict[str, object]] = [
        {
            "scope": scope.name,
            "unit": scope.unit,
            "epsilon": scope.epsilon,
            "delta": scope.delta,
            "order": scope.order,
            "spent": scope.spent,
            "reserved": scope.reserved,
            "new_job_epsilon": most_epsilon(scope),
            "least_job_epsilon": least_epsilon(scope),
        }
        for scope in scopes
    ]
    shown = [
        (
            one.name,
            one.unit,
            number(one.epsilon),
            number(one.spent),
            number(one.reserved),
            f"{number(least_epsilon(one))} to {rounded_down(most_epsilon(one))}" if most_epsilon(one) else "none",
            one.delta,
            one.order,
        )
        for one in scopes
    ]
    columns = ("scope", "unit", "epsilon", "spent", "spent or held", "a new job", "delta", "order")
    table(console, "privacy budgets, in epsilon", columns, shown, more=_BUDGETS if rows else "")
    return rows


def show_result(console: Console, result: TrainingResult) -> None:
    """Print what a run came to."""
    accuracy = None if result.accuracy is None else plus_minus(result.accuracy, result.accuracy_std)
    noisy = " (one standard deviation of its noise)" if result.accuracy_std else ""
    shown: dict[str, object] = {
        "run": result.run_id,
        "model": result.model,
        "version": result.version,
        "accuracy": accuracy and accuracy + noisy,
    }
    shown |= {"epsilon": number(result.epsilon), "delta": result.delta, "rounds": result.rounds, "clients": result.clients}
    shown |= {"seconds a round": f"{result.seconds_per_round:.4f}", "receipt": result.receipt}
    shown |= {name.replace("_", " "): number(value) for name, value in result.of_clients.items()}
    facts(console, "done", shown)
    if result.version is None:
        console.print("  the registry does not answer; the model is kept and will be published by `qedge runs --publish`")


def show_statistics(console: Console, result: QueryResult) -> None:
    """Print the numbers of a query with their intervals, what these cover, and what it cost."""
    lines = result.lines()
    rows = [(*map(_plainly, line[:2]), number(line.value), f"{number(line.low)} to {number(line.high)}") for line in lines[:LINES_SHOWN]]
    rows += [(_plainly(str(one["title"])), "nothing found", None, None) for one in result.answers if not one["estimates"]]
    rest = len(lines) - min(len(lines), LINES_SHOWN)
    more = f"… and {rest} more (--output FILE for all)" if rest else ""
    table(console, "answers", ("statistic", "of", "value", "interval, 95 %"), rows, more=more)
    console.print(result.intervals, highlight=False)
    for one in result.answers:
        if one["note"]:
            console.print(_plainly(f"{one['title']}: {one['note']}"), highlight=False)
    shown: dict[str, object] = {"run": result.run_id, "clients": result.clients, "rows a client, at most": result.statement["max_rows"]}
    if result.epsilon is not None:
        shown |= {"epsilon": number(result.epsilon), "delta": result.delta, "against": result.statement["adversary"]}
    facts(console, "answered", shown)


def _plainly(text: str) -> str:
    """Text that clients' rows may have written, with nothing in it that a terminal, or rich, would obey."""
    return escape("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text))


def show_profile(console: Console, profile: Mapping[str, float]) -> None:
    """Print where the time of a round went."""
    whole = profile.get("round", 0.0)
    rows = [
        (name, f"{seconds * 1000:.2f}", f"{seconds / whole:.0%}" if whole else "", PROFILED.get(name, "median of the rounds"))
        for name, seconds in profile.items()
    ]
    table(console, "a round, mean ms", ("phase", "ms", "of a round", "what"), rows)


def show_answers(console: Console, answers: Answers, output: str | None) -> None:
    """Print the first of a model's answers, and where the others are."""
    rows = [(row, label, f"{probability:.4f}") for row, label, probability in answers[:ROWS_SHOWN]]
    rest = len(answers) - len(rows)
    more = f"… and {rest} more ({f'all are in {output}' if output else '--output FILE for all'})" if rest else ""
    table(console, "predictions", ("row", "label", "probability"), rows, more=more)


def show_history(console: Console, name: str | None, lines: Sequence[Line]) -> None:
    """Print what each event of the ledger cost, and the totals after it."""
    rows = [
        (line.event.seq, _minute(line.event.time), _said(line), *map(number, (line.cost or None, line.spent, line.reserved)))
        for line in lines
    ]
    table(console, f"history of {name or 'all scopes'}, in epsilon", ("seq", "time, UTC", "what", "cost", "spent", "spent or held"), rows)


def _said(line: Line) -> str:
    """What happened, and below it to which run, or to which scope."""
    return f"{line.what}\n{line.event.run or f'scope {line.event.scope}'}"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
