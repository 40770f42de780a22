"""What is wrong with a job or a query, as one of our own errors: which key, what was given, what would be accepted."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection

from pydantic import BaseModel, ValidationError

from qedge.errors import InvalidJob, InvalidPrivacy, Refused, UnknownKey, nearest

_BRANCHES = {"float", "str", "int", "constrained-float", "constrained-str"}  # how pydantic marks the arm of a union in a place


def explain(error: ValidationError, asked: type[BaseModel], what: str, private: Collection[str]) -> Refused:
    """The first thing that is wrong, an unknown key before others, since it is often why another is missing.

    asked: the class that was to be read; what: its name at the top; private: places whose error is an InvalidPrivacy.
    """
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    where = [str(step) for step in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _fields_at(asked, where[:-1])
        parent = ".".join(where[:-1]) or what
        return UnknownKey(f"{parent}: unknown key '{where[-1]}'; {nearest(where[-1], known)}", given=where[-1])
    place = ".".join(step for step in where if step not in _BRANCHES)
    if first["type"] == "missing":
        hint = "; write 'privacy: none' for a run without privacy" if place == "privacy" else ""
        return InvalidJob(f"'{place}' is missing{hint}", missing=place)
    if first["type"] == "model_type":
        accepted = ", ".join(_fields_at(asked, where)) + (", or 'none'" if place == "privacy" else "")
        return InvalidJob(f"{place}: must be a mapping with the keys {accepted}; given: {first['input']!r}", place=place)
    message = first["msg"].removeprefix("Value error, ")
    kind = InvalidPrivacy if place in private else InvalidJob
    return kind(f"{place}: {message[0].lower()}{message[1:]}; given: {first['input']!r}", place=place)


def _fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    for step in steps:
        annotation = model.model_fields[step].annotation
        kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
