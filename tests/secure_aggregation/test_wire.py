"""What comes in is a message of the kind that is expected, or refused: nothing else ever happens."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import MessageRefused
from qedge.secure_aggregation import messages
from qedge.secure_aggregation.messages import Agreement, Announcement, Delivery, Keys, Survivors
from qedge.secure_aggregation.wire import VERSION, decode, encode, kind_of
from tests.secure_aggregation.sessions import Session, fields, packed, terms_of

KINDS = [kind for kind in vars(messages).values() if dataclasses.is_dataclass(kind) and kind.__module__ == messages.__name__]
SAID = Session.of(terms_of(3)).run()
CONTENTS = {kind_of(content): content for part in (SAID.sent, SAID.said) for of_step in part.values() for content in of_step.values()}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)


def refused(kind: type, content: bytes) -> bool:
    try:
        assert isinstance(decode(kind, content), kind)
    except MessageRefused:
        return True
    return False


def test_there_is_a_message_of_every_kind_here():
    assert {kind.__name__ for kind in KINDS} == set(CONTENTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_comes_back_equal_and_in_equal_bytes(kind: type):
    content = CONTENTS[kind.__name__]
    message = decode(kind, content)
    assert encode(message) == content
    assert fields(content)[:2] == [VERSION, kind.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_another_version_kind_or_number_of_fields_is_refused(kind: type):
    values = fields(CONTENTS[kind.__name__])
    for version in (0, VERSION + 1, True, "1", 1.0, None):
        with pytest.raises(MessageRefused, match="of version"):
            decode(kind, packed([version, *values[1:]]))
    for other in KINDS:
        assert refused(other, packed(values)) == (other is not kind)
    for wrong in (values[:-1], [*values, 0], values[:1], [], [values]):
        assert refused(kind, packed(wrong))


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_another_type_is_refused(kind: type):
    values = fields(CONTENTS[kind.__name__])
    for at in range(2, len(values)):
        for wrong in (None, True, 1.5, -1, 2**53, {}, {"a": 1}, msgpack.ExtType(5, b""), msgpack.Timestamp(1), [None], [[[]]]):
            assert refused(kind, packed([*values[:at], wrong, *values[at + 1 :]])), (at, wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_cut_off_is_refused(kind: type):
    content = CONTENTS[kind.__name__]
    for size in {*range(min(len(content), 200)), len(content) // 2, len(content) - 1}:
        assert refused(kind, content[:size])
    assert refused(kind, content + b"\0")


@settings(max_examples=300)
@given(kind=st.sampled_from(KINDS), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_message_of_that_kind_or_is_refused(kind: type, place: float, bit: int):
    content = bytearray(CONTENTS[kind.__name__])
    near = int(min(len(content), 80) * place) if bit % 2 else int(len(content) * place)  # half of them where the structure is
    content[near] ^= 1 << bit
    assert refused(kind, bytes(content)) or isinstance(decode(kind, bytes(content)), kind)
    assert isinstance(kind_of(bytes(content)), str)


@settings(max_examples=300)
@given(kind=st.sampled_from(KINDS), content=st.binary(max_size=60) | VALUES.map(msgpack.packb))
def test_any_other_bytes_are_refused(kind: type, content: bytes):
    assert refused(kind, content)
    assert kind_of(content) in ("", *(other.__name__ for other in KINDS)) or isinstance(kind_of(content), str)


@given(kind=st.sampled_from(KINDS), values=st.lists(VALUES, max_size=8))
def test_any_fields_behind_the_right_beginning_are_a_message_or_refused(kind: type, values: list[object]):
    content = packed([VERSION, kind.__name__, *values])
    assert refused(kind, content) or isinstance(decode(kind, content), kind)


@pytest.mark.parametrize(
    "content",
    [
        b"\x91" * 2000,
        b"\x81" * 2000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc1",
        b"\xd6\xff\0\0\0\0",
    ],
    ids=["deep arrays", "deep maps", "a huge array", "huge bytes", "a huge map", "never used", "a time"],
)
def test_content_made_to_exhaust_its_reader_is_refused(content: bytes):
    assert refused(Keys, content)
    assert kind_of(content) == ""


def test_a_whole_number_is_none_but_itself():
    assert decode(Survivors, encode(Survivors(b"s", (0, 2**53 - 1)))).members == (0, 2**53 - 1)
    assert refused(Survivors, packed([VERSION, "Survivors", b"s", [0, True]]))
    assert refused(Agreement, packed([VERSION, "Agreement", b"s", 1.0, b""]))
    assert refused(Survivors, packed([VERSION, "Survivors", "s", [0]]))


def test_a_message_within_a_message_is_checked_as_one():
    values = fields(CONTENTS["Announcement"])
    terms = list(values[2])
    for at in range(len(terms)):
        assert refused(Announcement, packed([*values[:2], [*terms[:at], None, *terms[at + 1 :]], values[3]]))
    assert refused(Announcement, packed([*values[:2], terms[:-1], values[3]]))
    delivery = fields(CONTENTS["Delivery"])
    assert refused(Delivery, packed([*delivery[:5], [b"", "text"], *delivery[6:]]))
