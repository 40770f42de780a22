"""Each check and each step of the protocol is needed: without it an attack succeeds that fails on the real client."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from qedge.secure_aggregation import client as client_module
from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.terms import Memory
from tests.secure_aggregation import attacks, broken, views
from tests.secure_aggregation import coalition as coalition_module
from tests.secure_aggregation.attacks import Loot
from tests.secure_aggregation.coalition import Unchecked

RUNS = 200
Attack = Callable[[type[SecureClient]], Loot]
ATTACKS: dict[str, tuple[type[SecureClient], Attack]] = {
    "the entry of its own in the directory": (broken.NoOwnEntryCheck, attacks.altered_entries),
    "signatures of what was sealed": (broken.NoSealedSignatureCheck, attacks.forged_seeds),
    "the directory in those signatures": (
        broken.NoSealedSignatureCheck,
        partial(attacks.two_directories, threshold=4, policy=Unchecked),
    ),
    "proofs that this was sealed": (broken.NoMerkleProof, partial(attacks.forged_seeds, bare=True)),
    "signatures of absent members' keys": (broken.NoAbsentCheck, attacks.false_keys),
    "keys of absent members are of this session": (broken.NoAbsentCheck, partial(attacks.false_keys, replayed=True)),
    "one set of survivors is signed": (broken.SignsAnySurvivors, attacks.many_survivor_sets),
    "t signatures of it": (broken.TooFewSigners, attacks.many_survivor_sets),
    "as many survivors as planned": (broken.TooFewSurvivors, attacks.fewer_than_planned),
    "as many survivors as signatures, t": (broken.BelowThreshold, attacks.only_two_left),
    "one share of each member": (broken.RevealsAgain, attacks.asked_twice),
    "a mask of its own": (broken.NoOwnMask, attacks.late_vector),
    "a pad for what is left in escrow": (broken.EscrowInTheClear, attacks.clear_escrow),
    "a pad of its own for each peer": (broken.EscrowReused, attacks.one_pad_for_all),
    "fresh secrets": (broken.ReusesSecrets, attacks.secrets_of_later_rounds),
}


@pytest.mark.parametrize(("variant", "attack"), ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_that_fails_on_the_real_client_succeeds_without(variant: type[SecureClient], attack: Attack):
    assert attack(SecureClient).harmless
    assert not attack(variant).harmless


@pytest.mark.parametrize(
    ("memory", "opened_first"),
    [(broken.OpensAnAbandonedAttempt, False), (broken.JoinsAfterRevealing, True)],
    ids=["an abandoned attempt is not opened", "a round that was opened is not attempted again"],
)
def test_two_attempts_at_a_round_are_opened_by_members_with_a_worse_memory_only(memory: type[Memory], opened_first: bool):
    assert attacks.attempts(SecureClient, Memory, opened_first=opened_first).harmless
    assert not attacks.attempts(SecureClient, memory, opened_first=opened_first).harmless


def test_who_was_not_asked_for_shares_is_in_no_second_sum_of_a_round_with_others():
    """Members 3 and 4; the others of the second attempt are in no other sum, and enough to go on without them."""
    first, second, without = (attacks.MOVED[some].sum(axis=0).tolist() for some in (slice(5), slice(3, 8), slice(5, 8)))
    assert [total.tolist() for total in attacks.attempt_with_others(Memory)] == [first, without]
    assert [total.tolist() for total in attacks.attempt_with_others(broken.JoinsWithOthers)] == [first, second]


def test_a_policy_that_does_not_check_the_numbers_lets_split_views_open_one_member():
    assert frozenset({0}) in attacks.two_survivor_sets(SecureClient, threshold=4, policy=Unchecked).opened[0]
    assert attacks.two_survivor_sets(SecureClient, threshold=5, policy=Unchecked).harmless


def test_a_generator_that_repeats_itself_repeats_masks_only_where_they_are_not_bound_to_a_session():
    assert not attacks.masks_repeat(broken.ReusesSecrets)
    assert attacks.masks_repeat(broken.BoundToNoSession)


def test_the_server_s_view_is_not_uniform_where_parts_of_masks_pad_each_other():
    """A view that is uniform is called otherwise with a probability of 1e-6 at most, by the same statistics as in test_view."""
    assert views.surprises(views.taken(RUNS, SecureClient)) == []
    assert views.surprises(views.taken(RUNS, broken.EscrowUnderThePart)) != []


@pytest.mark.parametrize(
    ("function", "worse"),
    [("pair_seed", lambda *_: bytes(32)), ("add_masks", views.add_narrow_masks)],
    ids=["the same for all pairs", "narrower than the ring"],
)
def test_the_server_s_view_is_not_uniform_with_worse_masks(monkeypatch: pytest.MonkeyPatch, function: str, worse: Callable[..., object]):
    """The server knows how masks are made. False alarm: see above."""
    for module in (client_module, coalition_module):
        monkeypatch.setattr(module, function, worse)
    assert views.surprises(views.taken(RUNS, SecureClient)) != []
