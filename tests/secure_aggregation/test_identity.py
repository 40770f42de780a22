"""A roster proves that its keys are enrolled under the authority's key; a signature is for one purpose."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import InvalidKey, MessageRefused
from qedge.secure_aggregation.identity import SIGNATURES, EnrolmentAuthority, Identity, signed
from qedge.secure_aggregation.messages import Announcement
from qedge.secure_aggregation.wire import decode, encode
from tests.secure_aggregation.sessions import Session, federation, terms_of


@pytest.mark.parametrize("kind", SIGNATURES)
def test_a_signature_holds_for_its_key_purpose_and_message_and_nothing_else(kind: str):
    one, other = Identity(kind, bytes(32)), Identity(kind, b"\1" * 32)
    signature = one.sign("keys", b"message")
    assert (len(one.public), len(signature)) == SIGNATURES[kind]
    assert signed(kind, one.public, "keys", b"message", signature)
    assert not signed(kind, other.public, "keys", b"message", signature)
    assert not signed(kind, one.public, "sealed", b"message", signature)
    assert not signed(kind, one.public, "keys", b"another", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(len(signature))):
        assert not signed(kind, one.public, "keys", b"message", wrong)
    for wrong in (b"", one.public[:-1], bytes(len(one.public))):
        assert not signed(kind, wrong, "keys", b"message", signature)


def test_a_purpose_and_the_beginning_of_a_message_are_told_apart():
    identity = Identity("ed25519", bytes(32))
    assert not signed("ed25519", identity.public, "keys", b"\0message", identity.sign("keys\0", b"message"))


@settings(max_examples=40)
@given(data=st.data(), members=st.integers(1, 20))
def test_every_part_of_the_members_is_proven_enrolled_and_nobody_else_is(data: st.DataObject, members: int):
    enrolled = federation(20)
    places = sorted(data.draw(st.sets(st.integers(0, 19), min_size=members, max_size=members)))
    roster = enrolled.roster(places)
    roster.check(enrolled.authority.public)
    stranger = Identity("ed25519", b"\2" * 32).public
    at = data.draw(st.integers(0, members - 1))
    with pytest.raises(MessageRefused, match="a key that is not enrolled"):
        replace(roster, keys=(*roster.keys[:at], stranger, *roster.keys[at + 1 :])).check(enrolled.authority.public)
    with pytest.raises(MessageRefused, match="not signed by the authority"):
        roster.check(federation(20, name="strangers").authority.public)


def test_rosters_that_differ_have_other_digests():
    enrolled = federation(5)
    rosters = [enrolled.roster(places) for places in ([0, 1, 2], [0, 1, 3], [0, 1, 2, 3])] + [
        federation(5, name="strangers").roster([0, 1, 2])
    ]
    assert len({roster.digest() for roster in rosters}) == len(rosters)


def test_a_roster_comes_whole_through_a_message():
    roster = federation(5).roster([1, 3, 4])
    announcement = Announcement(terms_of(5), roster)
    assert decode(Announcement, encode(announcement)) == announcement


def test_a_whole_session_runs_under_post_quantum_signatures():
    enrolled = federation(4, "ml-dsa-65")
    session = Session.of(terms_of(4), kind_of_keys="ml-dsa-65").run(lost={"mask": [2]})
    total, survivors = session.total()
    assert session.server.roster == enrolled.roster()
    assert survivors == (0, 1, 3)
    assert (total == session.vectors[[0, 1, 3]].sum(axis=0)).all()


def test_what_cannot_be_an_identity_or_a_roster_is_refused():
    with pytest.raises(InvalidKey, match="unknown kind of signature 'ed448'"):
        Identity("ed448", bytes(32))
    with pytest.raises(InvalidKey, match="nobody is enrolled yet"):
        EnrolmentAuthority("wards", bytes(32)).roster([0])


def test_an_identity_is_not_pickled():
    with pytest.raises(TypeError, match="stays where it was made"):
        pickle.dumps(Identity("ed25519", bytes(32)))
