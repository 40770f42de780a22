"""The secrets of a member: what follows from them is the same for both of a pair, and for whoever has one root and the other's escrow."""

from __future__ import annotations

import hashlib
import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.secure_aggregation.member_secrets import (
    MemberSecrets,
    commitment,
    contribution,
    escrow,
    own_seed,
    pair_seed,
    part_of_mask,
    sign_of,
)

SESSION = hashlib.sha256(b"session").digest()
KEYS = st.binary(min_size=32, max_size=32)


@given(roots=st.tuples(KEYS, KEYS), members=st.lists(st.integers(0, 99), min_size=2, max_size=2, unique=True))
def test_both_sides_of_a_pair_have_the_same_seed_and_opposite_signs(roots: tuple[bytes, bytes], members: list[int]):
    (u, v), (one, other) = members, (contribution(roots[at], SESSION, members[1 - at]) for at in range(2))
    mine, theirs = part_of_mask(one), part_of_mask(other)
    assert pair_seed(SESSION, u, mine, v, theirs) == pair_seed(SESSION, v, theirs, u, mine)
    assert sign_of(u, v) == -sign_of(v, u)


@given(roots=st.tuples(KEYS, KEYS))
def test_the_root_of_a_lost_member_opens_what_a_survivor_left_in_escrow_for_it(roots: tuple[bytes, bytes]):
    part = part_of_mask(contribution(roots[0], SESSION, 1))
    left = escrow(part, contribution(roots[1], SESSION, 0))
    assert escrow(left, contribution(roots[1], SESSION, 0)) == part
    assert escrow(left, contribution(roots[1], SESSION, 2)) != part


def test_every_use_of_the_prf_and_each_session_and_peer_has_a_value_of_its_own():
    """And each is HMAC-SHA256 under its name, computed here from the text."""
    other, key = hashlib.sha256(b"another session").digest(), bytes(range(32))
    place = (7).to_bytes(4, "big")
    assert contribution(key, SESSION, 7) == hmac.new(key, b"contribution\0" + SESSION + place, "sha256").digest()
    assert pair_seed(SESSION, 7, key, 7, key) == hmac.new(key + key, b"seed\0" + SESSION + place + place, "sha256").digest()
    values = [
        part_of_mask(key),
        escrow(bytes(32), key),
        *(contribution(key, session, peer) for session in (SESSION, other) for peer in (1, 2)),
        *(own_seed(key, session) for session in (SESSION, other)),
        *(pair_seed(session, 1, key, peer, key) for session in (SESSION, other) for peer in (2, 3)),
        *(commitment(name, session, member, key) for name in ("root", "mask") for session in (SESSION, other) for member in (1, 2)),
    ]
    assert len(set(values)) == len(values)


def test_secrets_are_drawn_independently_each_time_and_not_pickled():
    drawn = [MemberSecrets.draw() for _ in range(3)]
    assert len({secret for one in drawn for secret in (one.root, one.mask)}) == 6
    assert drawn[0].root.hex() not in repr(drawn[0])
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(drawn[0])
