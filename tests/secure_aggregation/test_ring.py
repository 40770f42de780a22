"""The ring holds what it says, in as few bits, and refuses what could wrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.errors import InvalidPrivacy
from qedge.secure_aggregation.ring import Ring

BITS = st.sampled_from([*range(16, 33), 64])


@given(bits=BITS, entries=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_what_is_packed_is_unpacked_reduced(bits: int, entries: int, seed: int):
    ring = Ring(bits)
    vector = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, entries, endpoint=True)
    content = ring.pack(ring.elements(vector))
    assert len(content) == ring.wire_bytes(entries)
    unpacked = ring.unpack(content, entries)
    assert unpacked.dtype == ring.dtype
    assert [int(entry) for entry in unpacked] == [int(entry) % 2**bits for entry in vector]


@given(bits=BITS)
def test_an_entry_takes_its_bits_on_the_wire(bits: int):
    assert Ring(bits).wire_bytes(8000) == 1000 * bits


@given(bits=BITS, data=st.data())
def test_the_integers_within_reach_are_what_comes_back_and_one_more_wraps(bits: int, data: st.DataObject):
    ring = Ring(bits)
    inside = [*data.draw(st.lists(st.integers(-ring.reach, ring.reach), min_size=1, max_size=20)), ring.reach, -ring.reach]
    assert ring.centred(ring.elements(np.array(inside))).tolist() == inside
    if bits < 64:
        assert ring.centred(ring.elements(np.array([ring.reach + 1]))).tolist() == [-ring.reach - 1]


@given(bits=BITS, data=st.data(), members=st.integers(1, 30))
def test_a_sum_within_reach_is_exact_in_whatever_order_it_wraps(bits: int, data: st.DataObject, members: int):
    ring = Ring(bits)
    parts = data.draw(st.lists(st.integers(-(ring.reach // members), ring.reach // members), min_size=members, max_size=members))
    mask = ring.elements(np.array([data.draw(st.integers(-(2**62), 2**62))]))
    total = mask.copy()
    for part in parts:
        total = ring.unpack(ring.pack(total + ring.elements(np.array([part]))), 1)
    assert ring.centred(total - mask).tolist() == [sum(parts)]


@given(reach=st.integers(0, 2**31 - 1))
def test_the_smallest_ring_that_holds_a_sum_is_chosen(reach: int):
    ring = Ring.holding(reach)
    assert ring.reach >= reach
    assert ring.bits == 16 or Ring(ring.bits - 1).reach < reach


def test_sums_that_could_wrap_are_refused_with_the_largest_that_do_not():
    with pytest.raises(InvalidPrivacy, match="accepted: at most 2147483647"):
        Ring.holding(2**31)
    with pytest.raises(InvalidPrivacy, match="would wrap in a ring of 20 bits; accepted: at most 524287"):
        Ring.holding(2**19, most_bits=20)
    assert Ring.holding(2**19 - 1, most_bits=20).bits == 20


@pytest.mark.parametrize("bits", [0, 15, 33, 63, 65, 2**40])
def test_a_ring_of_other_bits_is_refused(bits: int):
    with pytest.raises(InvalidPrivacy, match="accepted: 16 to 32, or 64"):
        Ring(bits)
