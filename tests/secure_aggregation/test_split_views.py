"""A malicious server with as many puppets as members are counted on to collude: it opens one sum of enough honest members, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.secure_aggregation.client import SecureClient
from qedge.secure_aggregation.terms import Memory, Policy
from tests.secure_aggregation import attacks
from tests.secure_aggregation.attacks import Loot, loot, masked
from tests.secure_aggregation.coalition import Coalition, Unchecked
from tests.secure_aggregation.sessions import safe_threshold, terms_of

WITHOUT_LOOT: dict[str, Callable[[type[SecureClient]], Loot]] = {
    "two sets of survivors": attacks.two_survivor_sets,
    "many sets of survivors": attacks.many_survivor_sets,
    "one other survivor": attacks.only_two_left,
    "fewer survivors than planned": attacks.fewer_than_planned,
    "own entries altered": attacks.altered_entries,
    "two directories": attacks.two_directories,
    "false keys of absent members": attacks.false_keys,
    "keys of an attempt before": partial(attacks.false_keys, replayed=True),
    "forged seeds": attacks.forged_seeds,
    "forged seeds under true roots": partial(attacks.forged_seeds, bare=True),
    "secrets of later rounds": attacks.secrets_of_later_rounds,
}


@pytest.mark.parametrize("attack", WITHOUT_LOOT.values(), ids=WITHOUT_LOOT.keys())
def test_nothing_is_opened_by(attack: Callable[[type[SecureClient]], Loot]):
    assert [*map(set, attack(SecureClient).opened)] == [set()]


def test_the_adversary_of_these_tests_opens_what_is_meant_to_be_opened():
    assert attacks.honest_server(SecureClient).opened == (frozenset({frozenset({0, 1, 2})}),)


def test_both_shares_of_a_member_are_not_had_by_asking_twice():
    assert attacks.asked_twice(SecureClient).opened == (frozenset({frozenset({0, 1, 2, 3})}),)


def test_a_vector_that_came_though_its_member_is_called_lost_stays_hidden():
    assert attacks.late_vector(SecureClient).opened == (frozenset({frozenset({1, 2, 3})}),)


def test_one_of_two_attempts_at_a_round_is_opened():
    later, first = attacks.attempts(SecureClient), attacks.attempts(SecureClient, opened_first=True)
    assert later.opened == (frozenset(), frozenset({frozenset({1, 2, 3, 4})}))
    assert first.opened == (frozenset({frozenset({0, 1, 2, 3, 4})}), frozenset())


@pytest.mark.parametrize(("members", "puppets"), [(5, 1), (6, 2), (7, 1)])
def test_two_survivor_sets_open_a_member_with_every_threshold_below_the_least_safe_one(members: int, puppets: int):
    """So that each of these thresholds is refused for a reason, and the least safe one is no larger than it must be."""
    least = safe_threshold(members, puppets)
    for threshold in range(puppets + 2, least + 1):
        terms = terms_of(members, colluders=puppets, threshold=threshold)
        coalition = masked(Coalition(terms, range(members - puppets, members), policy=Unchecked))
        half = (members - puppets) // 2
        everybody, but_one = range(members), range(1, members)
        views = {place: everybody if place < half else but_one for place in coalition.honest}
        opened = loot(coalition.agree(views).reveal(coalition.honest))
        assert opened.harmless == (threshold == least)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), members=st.integers(4, 6), puppets=st.integers(0, 1))
def test_whatever_lists_of_survivors_are_shown_one_sum_at_most_is_opened(data: st.DataObject, members: int, puppets: int):
    terms = terms_of(members, colluders=puppets)
    coalition = masked(Coalition(terms, range(members - puppets, members)))
    lists = [some for size in range(terms.threshold, members + 1) for some in combinations(range(members), size)]
    shown = st.lists(st.sampled_from(lists), min_size=1, max_size=3)
    told = {place: data.draw(shown) for place in coalition.honest}
    for turn in range(3):
        coalition.agree({place: views[min(turn, len(views) - 1)] for place, views in told.items()}).reveal(coalition.honest)
    opened = loot(coalition)
    assert opened.harmless
    agreed = [view for view, signatures in coalition.signed.items() if len(signatures) >= terms.threshold]
    assert opened.opened[0] <= {frozenset(view) & frozenset(coalition.honest) for view in agreed}


def test_no_message_of_one_attempt_is_taken_in_another():
    """Everything that an honest server sent in the first attempt is sent again in the second, and refused."""
    memories = {place: Memory() for place in range(3)}
    first = masked(Coalition(terms_of(3), memories=memories))
    second = Coalition(terms_of(3, attempt=2), memories=memories)
    second.join().seal({0: first.directory()})
    assert "another session" in second.refusals[-1]
    directory = second.directory()
    second.seal(dict.fromkeys(second.honest, directory))
    second.sealed[1] = first.sealed[1]
    second.mask([0])
    assert "has not signed this for this directory" in second.refusals[-1]
    second.sealed[1] = second.sealed[1][0], directory
    assert second.masked == {}


def test_a_client_with_a_policy_joins_no_session_whose_threshold_does_not_protect():
    coalition = Coalition(terms_of(6, colluders=2, threshold=4), policy=Policy).join()
    assert coalition.keys == {}
    assert all("2t > n + c" in refusal for refusal in coalition.refusals)
