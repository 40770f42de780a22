"""How messages are put on the wire: MessagePack arrays that begin with the version and the kind of message.

What comes in is checked whole before anything looks at it: version, kind, number and types of fields.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable
from functools import lru_cache
from typing import TypeVar, cast

import msgpack

from qedge.errors import MessageRefused

VERSION = 1
Message = TypeVar("Message")


def encode(message: object) -> bytes:
    """A message, a frozen dataclass of whole numbers, text, bytes, tuples and other such, as bytes; equal ones as equal bytes."""
    content: bytes = msgpack.packb([VERSION, type(message).__name__, *_plain(message)])
    return content


def decode(kind: type[Message], content: bytes) -> Message:
    """The message of that kind.

    Raises:
        MessageRefused: not MessagePack, another version or kind, or fields that do not fit.
    """
    try:
        values = msgpack.unpackb(content, use_list=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException):
        raise MessageRefused("a message is not MessagePack") from None
    if not isinstance(values, tuple) or len(values) < 2:
        raise MessageRefused("a message is an array of its version, its kind and its fields")
    if values[0] != VERSION or type(values[0]) is not int:
        raise MessageRefused(f"a message of version {values[0]!r}; accepted: {VERSION}", accepted=VERSION)
    if values[1] != kind.__name__:
        raise MessageRefused(f"a message of another kind; expected {kind.__name__}")
    return _read(kind, values[2:])


def kind_of(content: bytes) -> str:
    """The kind that a message says it is; "" where it says none."""
    try:
        values = msgpack.unpackb(content, use_list=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException):
        return ""
    return values[1] if isinstance(values, tuple) and len(values) > 1 and isinstance(values[1], str) else ""


def _plain(message: object) -> list[object]:
    values = [getattr(message, name) for name, _ in _fields(cast(Hashable, type(message)))]
    return [_plain(value) if dataclasses.is_dataclass(value) else value for value in values]


@lru_cache
def _fields(kind: Hashable) -> tuple[tuple[str, object], ...]:
    hints = typing.get_type_hints(cast(type, kind))
    return tuple((one.name, hints[one.name]) for one in dataclasses.fields(cast(type, kind)))


def _read(kind: type[Message], values: object) -> Message:
    fields = _fields(cast(Hashable, kind))
    if not isinstance(values, tuple) or len(values) != len(fields):
        raise MessageRefused(f"{kind.__name__} has {len(fields)} fields")
    return kind(*(_value(hint, value, f"{kind.__name__}.{name}") for (name, hint), value in zip(fields, values, strict=True)))


def _value(hint: object, value: object, where: str) -> object:
    if isinstance(hint, types.GenericAlias):
        (item, _) = typing.get_args(hint)  # tuple[item, ...]
        if isinstance(value, tuple):
            return tuple(_value(item, one, where) for one in value)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value)
    elif type(value) is hint and (hint is not int or 0 <= cast(int, value) < 2**53):
        return value
    raise MessageRefused(f"{where} is not what it should be")
