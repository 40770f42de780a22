"""The numbers of a session: which protect, what a session is named by, what a client remembers."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qedge.errors import InvalidPrivacy
from qedge.secure_aggregation.groups import CURIOUS, MALICIOUS, SERVERS, colluders_of, refuse_unsafe, threshold_of
from qedge.secure_aggregation.terms import Terms
from tests.secure_aggregation.sessions import safe_threshold, terms_of

COUNTS = st.integers(0, 120)


def safe(members: int, threshold: int, colluders: int, server: str) -> bool:
    try:
        refuse_unsafe(members, threshold, colluders, server)
    except InvalidPrivacy:
        return False
    return True


@st.composite
def safe_counts(draw: st.DrawFn, server: str) -> tuple[int, int, int]:
    """Members, threshold and colluders that are accepted, for most colluders that there may be."""
    members = draw(st.integers(3, 120))
    colluders = draw(st.integers(0, members - 3))
    least = safe_threshold(members, colluders, server)
    threshold = draw(st.integers(least or 0, members))
    assume(safe(members, threshold, colluders, server))
    return members, threshold, colluders


@given(counts=safe_counts(MALICIOUS))
def test_against_a_malicious_server_two_sets_of_signatures_take_more_members_than_there_are(counts: tuple[int, int, int]):
    members, threshold, colluders = counts
    honest = members - colluders
    assert 2 * (threshold - colluders) > honest  # each honest member signs one set
    assert members - threshold + colluders < threshold  # false keys for all who are absent, and those of the colluders
    assert threshold <= members


@given(counts=st.one_of(*map(safe_counts, SERVERS)))
def test_two_honest_members_hide_each_other_in_every_sum(counts: tuple[int, int, int]):
    members, threshold, colluders = counts
    assert threshold - colluders >= 2
    assert threshold > colluders
    assert members >= 3


@given(members=st.integers(3, 120), threshold=COUNTS, colluders=COUNTS, server=st.sampled_from(SERVERS))
def test_a_refusal_names_the_least_threshold_that_would_do(members: int, threshold: int, colluders: int, server: str):
    assume(not safe(members, threshold, colluders, server))
    with pytest.raises(InvalidPrivacy) as refusal:
        refuse_unsafe(members, threshold, colluders, server)
    least = refusal.value.facts["accepted"]
    if least is None:
        assert not any(safe(members, other, colluders, server) for other in range(members + 1))
    else:
        assert safe(members, least, colluders, server)
        assert not safe(members, least - 1, colluders, server)
        assert least == safe_threshold(members, colluders, server)


@pytest.mark.parametrize(("members", "threshold", "colluders"), [(2, 2, 0), (1, 1, 0), (3, 2, 1), (0, 0, 0)])
def test_a_group_too_small_to_hide_anyone_is_refused(members: int, threshold: int, colluders: int):
    with pytest.raises(InvalidPrivacy, match="is refused"):
        refuse_unsafe(members, threshold, colluders, CURIOUS)


@pytest.mark.parametrize(
    ("share", "members", "count"), [(0.67, 100, 67), (0.07, 100, 7), (0.67, 3, 3), (0.2, 5, 1), (0.2, 6, 2), (1.0, 9, 9), (0.0, 9, 0)]
)
def test_shares_of_a_group_are_rounded_up_and_not_by_what_floats_add(share: float, members: int, count: int):
    assert threshold_of(members, share) == colluders_of(members, share) == count


def test_a_session_is_another_for_whatever_differs_in_its_terms():
    terms = terms_of(5)
    others = {
        one.name: replace(
            terms, **{one.name: type(value)(value + (b"x" if isinstance(value, bytes) else "x" if isinstance(value, str) else 1))}
        )
        for one in fields(Terms)
        for value in [getattr(terms, one.name)]
    }
    names = {name: other.session() for name, other in others.items()}
    assert len({terms.session(), *names.values()}) == len(fields(Terms)) + 1
    assert {len(name) for name in names.values()} == {32}


def test_terms_that_read_alike_when_joined_name_different_sessions():
    assert terms_of(5, run="a", noise="b").session() != terms_of(5, run="ab", noise="").session()
    assert terms_of(5, round=1, attempt=11).session() != terms_of(5, round=11, attempt=1).session()
