"""What is wrong with a job or a query, as one of our own errors: which key, what was given, what would be accepted."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator

from pydantic import BaseModel, ValidationError

from qedge.errors import InvalidJob, InvalidPrivacy, Refused, UnknownKey, nearest

_BRANCHES = {"float", "str", "int", "constrained-float", "constrained-str"}  # how pydantic marks the arm of a union in a place


def explain(error: ValidationError, asked: type[BaseModel], what: str, private: Collection[str]) -> Refused:
    """The first thing that is wrong, an unknown key before others, since it is often why another is missing.

    asked: the class that was to be read; what: its name at the top; private: places whose error is an InvalidPrivacy.
    """
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    where, below = _walked(asked, [str(step) for step in first["loc"]])
    place = ".".join(where)
    if first["type"] == "extra_forbidden":
        parent = ".".join(where[:-1]) or what
        return UnknownKey(f"{parent}: unknown key '{where[-1]}'; {nearest(where[-1], below)}", given=where[-1])
    if first["type"] == "missing":
        hint = "; write 'privacy: none' for a run without privacy" if place == "privacy" else ""
        return InvalidJob(f"'{place}' is missing{hint}", missing=place)
    if first["type"] in ("model_type", "model_attributes_type"):
        accepted = ", ".join(below) + (", or 'none'" if place == "privacy" else "")
        return InvalidJob(f"{place}: must be a mapping with the keys {accepted}; given: {first['input']!r}", place=place)
    message = first["msg"].removeprefix("Value error, ")
    kind = InvalidPrivacy if place in private else InvalidJob
    return kind(f"{place}: {message[0].lower()}{message[1:]}; given: {first['input']!r}", place=place)


def _walked(model: type[BaseModel], steps: list[str]) -> tuple[list[str], list[str]]:
    """The steps of a place without those that only say which arm of a union was tried; the keys where it ends."""
    kept: list[str] = []
    models = [model]
    for step in steps:
        holder = next((one for one in models if step in one.model_fields), None)
        arm = [one for one in models if len(models) > 1 and step in (one.__name__, _kind(one))]
        if holder is not None:
            kept.append(step)
            models = list(models_of(holder.model_fields[step].annotation))
        elif arm:
            models = arm
        elif models or step not in _BRANCHES:
            kept.append(step)  # a key that there is not, or a place in a list
    return kept, [name for one in models for name in one.model_fields]


def _kind(model: type[BaseModel]) -> object:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def models_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The parts that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_of(inner)
