"""The tables of the README, made from the live objects. `python -m tests.readme_tables` writes them."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel

from qedge.cli import main
from qedge.config import Settings
from qedge.edge.search.job import EdgeSearch
from qedge.errors import QEdgeError
from qedge.job import Query, TrainingJob
from qedge.job.explanation import models_of
from qedge.job.part import NOW
from qedge.job.statistics import Statistic
from qedge.monitoring.metrics import METRICS
from qedge.quantum import QAOA, QNN, QSVM, VQE, Backend

README = Path(__file__).parent.parent / "README.md"
_PLACE = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def render(text: str) -> str:
    """The README with every table as the code has it now."""
    return _PLACE.sub(lambda found: f"<!-- table: {found[1]} -->\n{_TABLES[found[1]]()}<!-- end -->", text)


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _commands() -> str:
    def walk(group: click.Group, prefix: str) -> Iterator[tuple[str, ...]]:
        for name, command in sorted(group.commands.items()):
            if isinstance(command, click.Group):
                yield from walk(command, f"{prefix}{name} ")
            else:
                arguments = [
                    parameter.make_metavar(click.Context(command)) for parameter in command.params if isinstance(parameter, click.Argument)
                ]
                yield f"`{' '.join([f'qedge {prefix}{name}', *arguments])}`", command.get_short_help_str(200)

    return _table(("command", "what it does"), walk(main, ""))


def _settings() -> str:
    def walk(group: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
        for name, field in group.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from walk(inner, f"{prefix}{name}.")
            else:
                variable = "QEDGE_" + (prefix + name).replace(".", "__").upper()
                yield f"`{prefix}{name}`", f"`{variable}`", f"`{field.get_default(call_default_factory=True)}`", field.description or ""

    return _table(("setting", "variable", "default", "what"), walk(Settings, ""))


def _job() -> str:
    return _table(("key", "default", "what"), _keys(TrainingJob, ""))


def _query() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        yield from (row for row in _keys(Query, "") if row[0] != "`statistics`")
        for kind in typing.get_args(Statistic):
            name = kind.model_fields["kind"].default
            yield f"`kind: {name}`", "", (kind.__doc__ or "").strip().splitlines()[0]
            yield from (row for row in _keys(kind, f"{name}: ") if not row[0].endswith(" kind`"))

    return _table(("key", "default", "what"), rows())


def _edge_search() -> str:
    return _table(("key", "default", "what"), _keys(EdgeSearch, ""))


def _quantum() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for part in (VQE, QAOA, QSVM, QNN, Backend):
            name = part.__name__ if part is not Backend else "`backend` of each"
            yield f"**{name}**", "", (part.__doc__ or "").strip().splitlines()[0]
            yield from _parts(part, "" if part is not Backend else "backend.")

    return _table(("key", "default", "what"), rows())


def _parts(part: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    """As `_keys`, with every arm of a part that there are several kinds of; a graph or QUBO is told and not taken apart."""
    for name, field in part.model_fields.items():
        arms = [] if name in ("graph", "qubo") else list(models_of(field.annotation))
        if arms == [Backend]:
            continue
        for arm in arms:
            yield from _parts(arm, f"{prefix}{name}." if len(arms) == 1 else f"{prefix}{name}, {arm.model_fields['kind'].default}: ")
        if not arms:
            literals = [kind for kind in (field.annotation, *typing.get_args(field.annotation)) if _is_literal(kind)]
            values = [value for kind in literals for value in typing.get_args(kind)]
            default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
            said = [field.description or "", f"one of {', '.join(map(str, sorted(values)))}" if values else ""]
            yield f"`{prefix}{name}`", default, "; ".join(part for part in said if part)


def _keys(part: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in part.model_fields.items():
        kinds = [kind for kind in (field.annotation, *typing.get_args(field.annotation)) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
            continue
        values = NOW.get(prefix + name) or next((typing.get_args(kind) for kind in [field.annotation] if _is_literal(kind)), ())
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        said = [field.description or "", f"one of {', '.join(map(str, sorted(values)))}" if values else ""]
        yield f"`{prefix}{name}`", default, "; ".join(part for part in said if part)


def _is_literal(kind: object) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _metrics() -> str:
    return _table(("metric", "kind", "unit", "what"), ((f"`ray_{m.name}`", m.kind, m.unit, m.help) for m in METRICS))


def _errors() -> str:
    def walk(kind: type[QEdgeError]) -> Iterator[tuple[str, ...]]:
        yield f"`{kind.code}`", str(kind.exit_code), (kind.__doc__ or "").strip().splitlines()[0]
        for child in kind.__subclasses__():
            yield from walk(child)

    return _table(("code", "exit", "meaning"), walk(QEdgeError))


_TABLES = {
    "commands": _commands,
    "edge_search": _edge_search,
    "job": _job,
    "query": _query,
    "quantum": _quantum,
    "settings": _settings,
    "metrics": _metrics,
    "errors": _errors,
}

if __name__ == "__main__":
    README.write_text(render(README.read_text()))
