"""Canonical JSON: one value, one sequence of bytes, so that a digest or a signature over it means something.

Keys sorted by code point, no spaces, UTF-8, no floats: a number that is not an integer travels as a decimal string, because
two writers of the same float need not write the same text. Close to RFC 8785, which has floats and sorts by UTF-16.
"""

from __future__ import annotations

import hashlib
import json
import math

from pydantic import JsonValue


def canonical(value: object) -> bytes:
    """The bytes of a JSON value.

    Raises:
        TypeError: a float, a key that is not a string, text that is not Unicode, or anything that is not JSON.
    """
    _refuse_unfit(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise TypeError("canonical JSON holds Unicode text only; given a lone surrogate") from None


def digest(value: object) -> str:
    """SHA-256 of the canonical bytes, in hex.

    Raises:
        TypeError: as `canonical`.
    """
    return hashlib.sha256(canonical(value)).hexdigest()


def parse(content: bytes) -> JsonValue:
    """The value whose canonical bytes these are: other spellings of the same value are not accepted.

    Raises:
        ValueError: not JSON, or not its canonical form (a space, a repeated key, a float, keys out of order).
    """
    try:
        value: JsonValue = json.loads(content.decode())
        spelled = canonical(value)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not canonical JSON: {error}") from None
    if spelled != content:
        raise ValueError("not canonical JSON")
    return value


def decimal(number: float) -> str:
    """The shortest decimal string that reads back as the same float.

    Raises:
        ValueError: NaN or infinite.
    """
    if not math.isfinite(number):
        raise ValueError(f"{number} has no decimal string")
    return repr(float(number))


def _refuse_unfit(value: object) -> None:
    if value is None or isinstance(value, str | int):
        return
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_unfit(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON has text keys only; given {type(key).__name__}")
            _refuse_unfit(item)
    else:
        raise TypeError(f"canonical JSON has no {type(value).__name__}; give integers, or a number as a decimal string")
