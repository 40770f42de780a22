"""What a client refuses, and that a refusal changes nothing: the right message is answered afterwards."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qedge.errors import MessageRefused
from qedge.secure_aggregation.client import SEALED_BYTES, SecureClient
from qedge.secure_aggregation.groups import CURIOUS
from qedge.secure_aggregation.identity import EnrolmentAuthority, Identity, Roster
from qedge.secure_aggregation.messages import (
    Agreements,
    Announcement,
    Delivery,
    Directory,
    Keys,
    Sealed,
    Shares,
    Survivors,
    keys_statement,
    sealed_statement,
    sealed_tree,
    survivors_statement,
)
from qedge.secure_aggregation.terms import Memory, Policy
from qedge.secure_aggregation.wire import decode, encode
from tests.secure_aggregation.sessions import STEPS, Session, client_of, federation, fields, packed, policy_of, terms_of

PATH = 2 * 32  # bytes of a proof among the four messages that each of five members seals
KINDS = {"join": Announcement, "seal": Directory, "mask": Delivery, "agree": Survivors, "reveal": Agreements}


def up_to(step: str, members: int = 5, lost: dict[str, list[int]] | None = None, **terms: Any) -> Session:
    """A session in which every client waits for a step's message, which the server has made."""
    session = Session.of(terms_of(members, **terms))
    steps = session.steps
    if step != "join":
        session.run(until=steps[steps.index(step) - 1], lost=lost)
    session.asked(step)
    return session


def refuses(session: Session, step: str, message: bytes, match: str) -> bool:
    """Whether member 0 does, for that reason, and then answers what it should have been sent."""
    with pytest.raises(MessageRefused, match=match):
        session.answer(step, 0, message)
    return session.answer(step, 0, session.sent[step][0]) is not None


def changed(session: Session, step: str, /, **values: Any) -> bytes:
    """Member 0's message of a step, with other values."""
    return encode(replace(decode(KINDS[step], session.sent[step][0]), **values))


def swapped(content: bytes, size: int, place: int, by: bytes) -> bytes:
    return content[: size * place] + by + content[size * (place + 1) :]


# Joining.


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ({"least_members": 6}, "members: 5 announced"),
        ({"threshold": 0.81}, "threshold: 4 announced; this client's policy accepts 5 at least"),
        ({"colluders": 0.4}, "colluders: 1 announced; .* accepts 2"),
        ({"survivors": 1.0}, "survivors: 4 announced; .* accepts 5"),
        ({"run": "another"}, "run: 'run' announced; this client takes part in 'another'"),
        ({"rounds": 0}, "round 1 announced; this client takes part in 0"),
        ({"honest": 4}, "survivors that do not collude: 3 announced; .* accepts 4"),
        ({"noise": "Skellam, 3 grid units"}, "noise: '' announced; this client adds 'Skellam, 3 grid units'"),
        ({"authority": bytes(32)}, "not signed by the authority"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_session_below_a_client_s_own_policy_is_refused(policy: dict[str, Any], match: str):
    terms = terms_of(5, colluders=1, threshold=4)
    member = SecureClient(federation(5).identities[0], replace(policy_of(terms), **policy), Memory())
    with pytest.raises(MessageRefused, match=match):
        member.join(encode(Announcement(terms, federation(5).roster())))
    assert member.step == "join"


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({"server": CURIOUS}, "server: 'honest-but-curious' announced; this client's policy accepts 'malicious'"),
        ({"server": "kind"}, "server: 'kind'"),
        ({"threshold": 3, "colluders": 1}, "2t > n \\+ c"),
        ({"threshold": 6, "survivors": 6}, "t <= n"),
        ({"survivors": 2}, "survivors: 2 announced; .* accepts 3"),
        ({"bits": 15}, "a ring of 15 bits"),
        ({"bits": 48}, "a ring of 48 bits"),
        ({"members": 6}, "not the one that the session names"),
        ({"roster": bytes(32)}, "not the one that the session names"),
    ],
    ids=str,
)
def test_terms_that_protect_nobody_or_contradict_the_roster_are_refused(terms: dict[str, Any], match: str):
    policy = Policy(federation(5).authority.public, 0.5, 0.0)
    member = SecureClient(federation(5).identities[0], policy, Memory())
    with pytest.raises(MessageRefused, match=match):
        member.join(encode(Announcement(replace(terms_of(5), **terms), federation(5).roster())))


def _stranger(roster: Roster) -> Roster:
    return replace(roster, keys=(*roster.keys[:-1], Identity("ed25519", bytes(32)).public))


def _other_authority(roster: Roster) -> Roster:
    authority = EnrolmentAuthority("wards", bytes(32))
    authority.enrol(roster.keys)
    return authority.roster(roster.places)


ROSTERS: dict[str, tuple[Callable[[Roster], Roster], str]] = {
    "a key that is not enrolled": (_stranger, "a key that is not enrolled"),
    "the same key for two members": (
        lambda r: replace(r, keys=(*r.keys[:3], r.keys[1])),
        "the same key for two members",
    ),
    "a member twice": (lambda r: replace(r, places=(0, 1, 2, 2)), "names a member twice"),
    "members out of order": (lambda r: replace(r, places=(0, 2, 1, 3), keys=tuple(r.keys[at] for at in (0, 2, 1, 3))), "not in order"),
    "a key too few": (lambda r: replace(r, keys=r.keys[:-1]), "without a key"),
    "a proof cut short": (lambda r: replace(r, proof=r.proof[:-1]), "not enrolled"),
    "a proof too long": (lambda r: replace(r, proof=(*r.proof, bytes(32))), "not enrolled"),
    "members who are at other places": (lambda r: replace(r, places=(0, 1, 2, 4)), "not enrolled"),
    "an authority of its own": (_other_authority, "not signed by the authority"),
    "an enrolment of more": (lambda r: replace(r, enrolment=replace(r.enrolment, count=6)), "not signed by the authority"),
}


@pytest.mark.parametrize(("change", "match"), ROSTERS.values(), ids=ROSTERS.keys())
def test_a_roster_is_refused_with(change: Callable[[Roster], Roster], match: str):
    enrolled = federation(5)
    roster = change(enrolled.roster(range(4)))
    terms = replace(terms_of(4), roster=roster.digest() if len(roster.keys) == 4 else b"")
    member = SecureClient(enrolled.identities[0], Policy(enrolled.authority.public, 0.5, 0.0), Memory())
    with pytest.raises(MessageRefused, match=match):
        member.join(encode(Announcement(terms, roster)))


def test_a_roster_without_this_client_or_of_another_kind_of_key_is_refused():
    enrolled, terms = federation(5), replace(terms_of(4), roster=federation(5).roster(range(4)).digest())
    announcement = encode(Announcement(terms, enrolled.roster(range(4))))
    for identity in (enrolled.identities[4], federation(3, "ml-dsa-65").identities[0]):
        member = SecureClient(identity, Policy(enrolled.authority.public, 0.5, 0.0), Memory())
        with pytest.raises(MessageRefused, match="not in the roster"):
            member.join(announcement)


def test_a_used_session_an_older_one_and_another_attempt_after_a_sum_was_opened_are_refused():
    memory = Memory()

    def join(**terms: Any) -> None:
        there = terms_of(3, **terms)
        client_of(0, there, memory).join(encode(Announcement(there, federation(3).roster())))

    join(round=2, attempt=2)
    with pytest.raises(MessageRefused, match="another attempt at round 2 names other members"):
        memory.join(replace(terms_of(3, round=2, attempt=3), roster=bytes(32)))
    for used in (
        {"round": 2, "attempt": 2},
        {"round": 2, "attempt": 2, "group": 1},
        {"round": 2, "attempt": 1},
        {"round": 1, "attempt": 9},
    ):
        with pytest.raises(MessageRefused, match="no later than what this client took part in"):
            join(**used)
    join(round=2, attempt=3)
    memory.reveal(terms_of(3, round=2, attempt=3))
    with pytest.raises(MessageRefused, match="shares of round 2 were revealed"):
        join(round=2, attempt=4)
    join(round=3)
    join(round=1, run="another")


def test_a_session_that_was_left_for_a_later_one_reveals_nothing():
    session = up_to("reveal", 3)
    member, later = session.clients[0], terms_of(3, attempt=2)
    client_of(0, later, member._memory).join(encode(Announcement(later, federation(3).roster())))
    with pytest.raises(MessageRefused, match="left for a later session"):
        session.answer("reveal", 0, session.sent["reveal"][0])


# Sealing.


def test_a_directory_with_another_key_or_commitment_of_the_client_s_own_is_refused():
    for name, size in (("channels", 1216), ("commitments", 32)):
        session = up_to("seal")
        content = getattr(decode(Directory, session.sent["seal"][0]), name)
        other = content[size : 2 * size]
        assert refuses(
            session, "seal", changed(session, "seal", **{name: swapped(content, size, 0, other)}), "other keys for this client than its own"
        )


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"members": (1, 2, 3, 4)}, "one key and one commitment"),
        ({"members": (0, 1, 2, 3, 3)}, "named twice"),
        ({"members": (1, 0, 2, 3, 4)}, "not in order"),
        ({"members": (0, 1, 2, 3, 5)}, "not of those who came this far"),
        ({"members": (0, 1), "channels": bytes(2 * 1216), "commitments": bytes(64)}, "2 members are left; accepted: 3 at least"),
        ({"members": (1, 2, 3, 4), "channels": bytes(4 * 1216), "commitments": bytes(4 * 32)}, "leaves this client out"),
        ({"channels": bytes(5 * 1216 - 1)}, "one key and one commitment"),
        ({"commitments": bytes(5 * 32 + 1)}, "one key and one commitment"),
        ({"session": bytes(32)}, "another session"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_a_directory_is_refused_with(values: dict[str, Any], match: str):
    session = up_to("seal")
    assert refuses(session, "seal", changed(session, "seal", **values), match)


@pytest.mark.parametrize("useless", ["no lattice key", "a point of small order"])
def test_a_key_that_nobody_can_seal_to_is_refused_by_clients_and_by_an_honest_server(useless: str):
    session = up_to("seal")
    directory = decode(Directory, session.sent["seal"][0])
    key = b"\xff" * 1216 if useless == "no lattice key" else directory.channels[1216 : 1216 + 1184] + bytes(32)
    assert refuses(
        session, "seal", changed(session, "seal", channels=swapped(directory.channels, 1216, 1, key)), "channel key of member 1 is none"
    )
    joining = up_to("join")
    keys = decode(Keys, joining.answer("join", 1, joining.sent["join"][1]))
    signature = federation(5).identities[1].sign("keys", keys_statement(keys.session, 1, key, keys.commitments))
    with pytest.raises(MessageRefused, match="the channel key of member 1 is none"):
        joining.server.take(encode(replace(keys, channel=key, signature=signature)))


# Masking.


@pytest.mark.parametrize(
    "vector",
    [np.zeros(2, np.int64), np.zeros(4, np.int64), np.zeros((3, 1), np.int64), np.zeros(3), np.zeros(3, np.int32), np.zeros(3, np.uint64)],
    ids=lambda vector: f"{vector.shape} {vector.dtype}",
)
def test_a_vector_of_another_length_or_type_is_refused(vector: np.ndarray):
    session = up_to("mask")
    with pytest.raises(MessageRefused, match=r"accepted: \(3,\) int64"):
        session.clients[0].mask(session.sent["mask"][0], vector)
    session.answer("mask", 0, session.sent["mask"][0])


def test_a_delivery_without_what_the_client_itself_sealed_is_refused():
    session = up_to("mask")
    assert refuses(session, "mask", changed(session, "mask", members=(1, 2, 3, 4)), "what this client sealed was left out")


@pytest.mark.parametrize("part", ["sealed", "proofs", "signatures", "another's proof", "another's signature"])
def test_a_delivery_with_anything_that_its_sender_has_not_signed_for_this_directory_is_refused(part: str):
    session = up_to("mask")
    delivery = decode(Delivery, session.sent["mask"][0])
    values: dict[str, Any] = {
        "sealed": {"sealed": bytes([delivery.sealed[0] ^ 1]) + delivery.sealed[1:]},
        "proofs": {"proofs": bytes([delivery.proofs[0] ^ 1]) + delivery.proofs[1:]},
        "signatures": {"signatures": bytes([delivery.signatures[0] ^ 1]) + delivery.signatures[1:]},
        "another's proof": {"proofs": delivery.proofs[PATH : 2 * PATH] + delivery.proofs[PATH:]},
        "another's signature": {"signatures": delivery.signatures[64:128] + delivery.signatures[64:]},
    }[part]
    assert refuses(session, "mask", changed(session, "mask", **values), "member 1 has not signed this for this directory")


def test_a_sealed_message_in_the_place_of_another_of_the_same_sender_does_not_open():
    """All that member 1 sealed has one root; what it sealed for member 2 is shown, with a true proof, to member 0."""
    session = up_to("mask")
    mine, other = (decode(Delivery, session.sent["mask"][member]) for member in (0, 2))
    sealed = swapped(mine.sealed, SEALED_BYTES, 0, other.sealed[SEALED_BYTES : 2 * SEALED_BYTES])
    moved = changed(session, "mask", sealed=sealed, proofs=other.proofs[PATH : 2 * PATH] + mine.proofs[PATH:])
    assert refuses(session, "mask", moved, "member 1 has not signed this")


def test_absent_members_keys_are_refused_unless_they_signed_them():
    session = up_to("mask", lost={"seal": [4]})
    signature = decode(Delivery, session.sent["mask"][0]).absent[0]
    for other in (bytes(64), signature[:-1], bytes([signature[0] ^ 1]) + signature[1:]):
        with pytest.raises(MessageRefused, match="the keys of member 4 are not its own"):
            session.answer("mask", 0, changed(session, "mask", absent=(other,)))
    assert refuses(session, "mask", changed(session, "mask", absent=()), "one sealed message, proof and signature")


def test_what_a_member_sealed_that_does_not_open_is_refused_by_its_name():
    """Member 1 signs what it sealed, of which nothing opens for member 0: an honest server cannot tell, and all others go on."""
    session = up_to("seal")
    for member in range(5):
        said = session.answer("seal", member, session.sent["seal"][member])
        if member == 1:
            sealed = decode(Sealed, said)
            garbled = swapped(sealed.sealed, SEALED_BYTES, 0, bytes(SEALED_BYTES))
            seen = decode(Directory, session.sent["seal"][1]).digest()
            statement = sealed_statement(sealed.session, 1, seen, sealed_tree(garbled, SEALED_BYTES).root)
            said = encode(replace(sealed, sealed=garbled, signature=federation(5).identities[1].sign("sealed", statement)))
        session.server.take(said)
    session.asked("mask")
    with pytest.raises(MessageRefused, match="what member 1 sealed for 0 does not open"):
        session.answer("mask", 0, session.sent["mask"][0])
    session.answer("mask", 2, session.sent["mask"][2])


# Agreeing and revealing.


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ((0, 1), "2 members are left; accepted: 3 at least"),
        ((1, 2, 3, 4), "left out; it reveals nothing"),
        ((0, 1, 2, 2), "named twice"),
        ((2, 1, 0), "not in order"),
        ((0, 1, 2, 5), "not of those who came this far"),
        ((), "accepted: 3 at least"),
    ],
    ids=str,
)
def test_survivors_are_refused_that_are_too_few_or_named_twice_or_unknown_or_without_the_client(members: tuple[int, ...], match: str):
    session = up_to("agree")
    assert refuses(session, "agree", changed(session, "agree", members=members), match)


def test_who_did_not_seal_cannot_be_named_as_a_survivor():
    session = up_to("agree", lost={"seal": [4]})
    assert refuses(session, "agree", changed(session, "agree", members=(0, 1, 2, 3, 4)), "not of those who came this far")


def test_a_survivor_and_a_lost_member_at_once_cannot_be_expressed():
    """There is one list: whoever sealed and is not on it is lost, so that lists cannot overlap, and each member gets one share."""
    assert fields(encode(Survivors(bytes(32), (0, 1, 2))))[1:] == ["Survivors", bytes(32), (0, 1, 2)]
    session = up_to("reveal", lost={"mask": [4]})
    received = dict(session.clients[0]._received)
    revealed = decode(Shares, session.answer("reveal", 0, session.sent["reveal"][0])).shares
    assert revealed == b"".join(received[peer].mask for peer in range(4)) + received[4].root


@pytest.mark.parametrize("step", STEPS)
def test_a_message_answered_before_gets_the_same_bytes_and_another_in_its_place_is_refused(step: str):
    session = up_to(step)
    first = session.answer(step, 0, session.sent[step][0])
    session.vectors = session.vectors + 1
    assert session.answer(step, 0, session.sent[step][0]) == first
    values = fields(session.sent[step][0])
    other = [*values[:2], bytes(32) if isinstance(values[2], bytes) else values[2], *values[3:]]
    with pytest.raises(MessageRefused, match=f"'{step}' was asked for before, by another message"):
        session.answer(step, 0, packed(other) if other != values else session.sent[step][0] + b"\0")


def test_a_second_list_of_survivors_is_refused_before_and_after_revealing():
    session = up_to("reveal")
    fewer = encode(Survivors(session.terms.session(), (0, 1, 2)))
    for _ in range(2):
        with pytest.raises(MessageRefused, match="'agree' was asked for before, by another message"):
            session.answer("agree", 0, fewer)
        session.answer("reveal", 0, session.sent["reveal"][0])
    assert session.clients[0].step == "done"


def test_an_honest_but_curious_server_too_gets_one_share_of_each_member():
    session = up_to("agree", server=CURIOUS)
    first = session.answer("agree", 0, session.sent["agree"][0])
    with pytest.raises(MessageRefused, match="before, by another message"):
        session.answer("agree", 0, changed(session, "agree", members=(0, 1, 2)))
    assert session.answer("agree", 0, session.sent["agree"][0]) == first
    with pytest.raises(MessageRefused, match="'reveal' was asked for where 'done' comes next"):
        session.answer("reveal", 0, b"")


def test_nothing_is_revealed_for_fewer_signatures_than_the_threshold_or_ones_of_another_set():
    session = up_to("reveal")
    true = decode(Agreements, session.sent["reveal"][0])
    assert len(true.signers) == session.terms.threshold == 3
    other = Survivors(true.session, (0, 1, 2, 3))
    of_another_set = b"".join(federation(5).identities[signer].sign("survivors", survivors_statement(other)) for signer in true.signers)
    of_another_purpose = b"".join(
        federation(5).identities[signer].sign("shares", survivors_statement(session.clients[0]._survivors)) for signer in true.signers
    )
    for values, match in (
        ({"signers": true.signers[:2], "signatures": true.signatures[:128]}, "2 members are left; accepted: 3 at least"),
        ({"signers": (0, 0, 1)}, "named twice"),
        ({"signers": (0, 1, 7)}, "not of those"),
        ({"signatures": true.signatures[:128]}, "not all of these members have signed"),
        ({"signatures": true.signatures[:64] * 3}, "not all of these members have signed"),
        ({"signatures": of_another_set}, "not all of these members have signed"),
        ({"signatures": of_another_purpose}, "not all of these members have signed"),
        ({"session": bytes(32)}, "another session"),
    ):
        with pytest.raises(MessageRefused, match=match):
            session.answer("reveal", 0, changed(session, "reveal", **values))
    session.answer("reveal", 0, session.sent["reveal"][0])


# At every step.


@pytest.mark.parametrize("step", STEPS)
def test_a_message_of_another_version_kind_session_or_round_is_refused(step: str):
    session, before = up_to(step, round=2), up_to(step, round=1)
    values = fields(session.sent[step][0])
    assert refuses(session, step, packed([2, *values[1:]]), "a message of version 2; accepted: 1")
    session = up_to(step, round=2)
    assert refuses(session, step, packed([1, "Shares", *values[2:]]), "another kind")
    if step != "join":
        session = up_to(step, round=2)
        assert refuses(session, step, before.sent[step][0], "another session")


def test_steps_are_answered_in_their_order_only():
    session = up_to("seal")
    for step in ("mask", "agree", "reveal"):
        with pytest.raises(MessageRefused, match=f"'{step}' was asked for where 'seal' comes next"):
            session.answer(step, 0, session.sent["seal"][0])


def test_secrets_are_gone_once_shares_were_revealed_and_are_never_pickled():
    session = up_to("reveal")
    member = session.clients[0]
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(member._secrets)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(member._identity)
    session.answer("reveal", 0, session.sent["reveal"][0])
    assert not hasattr(member, "_secrets")
    assert not hasattr(member, "_channel")
    assert member._received == {}
