"""Canonical JSON: one value, one spelling."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.audit.canonical import canonical, decimal, digest, parse

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_reads_back_equal_and_is_json(value: object) -> None:
    assert parse(canonical(value)) == value
    assert json.loads(canonical(value)) == value


@settings(deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_the_order_in_which_keys_were_put_in_does_not_matter(value: dict[str, object]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)
    assert digest(value) == hashlib.sha256(canonical(value)).hexdigest()


@settings(deadline=None)
@given(VALUES, VALUES)
def test_different_values_have_different_bytes(one: object, other: object) -> None:
    assert (canonical(one) == canonical(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


@settings(deadline=None)
@given(VALUES, st.data())
def test_a_changed_byte_is_another_value_or_no_value(value: object, data: st.DataObject) -> None:
    content = canonical(value)
    position = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        assert canonical(parse(bytes(changed))) != content


@pytest.mark.parametrize("value", [1.5, [0.0], {"a": math.nan}, {1: 2}, b"bytes", {1, 2}, "\ud800", {"\udfff": 1}, object()])
def test_what_has_no_single_spelling_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="canonical JSON"):
        canonical(value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"01", b"[1, 2]", b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"1.0", b"NaN", b"1e3", b'"\\u0061"', b"\xff", b" 1", b"1\n"],
)
def test_other_spellings_are_not_accepted(content: bytes) -> None:
    with pytest.raises(ValueError):
        parse(content)


def test_a_bottomless_value_is_refused_and_not_a_crash() -> None:
    with pytest.raises(ValueError, match="canonical"):
        parse(b"[" * 100_000 + b"]" * 100_000)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_decimal_string_reads_back_as_the_same_float(number: float) -> None:
    assert float(decimal(number)) == number


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_decimal_string(number: float) -> None:
    with pytest.raises(ValueError, match="no decimal string"):
        decimal(number)
