"""Which trials no other beats: against the definition, tried one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qedge.edge.search.front import Point, best, front, nearest, picture

FIGURES = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 3), st.booleans())


def points(figures: list[tuple[int, int, int, bool]]) -> list[Point]:
    return [
        Point(number, {"rung": "fp32"}, 0.9 + right / 100, 0.9, (0.88, 0.92), float(ms), size, "over" if over else "")
        for number, (right, ms, size, over) in enumerate(figures)
    ]


@given(st.lists(FIGURES, min_size=1, max_size=12))
def test_who_is_beaten_is_beaten_by_somebody_on_the_front_and_who_is_on_it_by_nobody(figures: list[tuple[int, int, int, bool]]) -> None:
    every = points(figures)
    unbeaten = front(every)
    assert unbeaten
    for one in every:
        better = [
            other
            for other in every
            if other.chosen_by >= one.chosen_by
            and other.p50_ms <= one.p50_ms
            and other.file_bytes <= one.file_bytes
            and (other.chosen_by, other.p50_ms, other.file_bytes) != (one.chosen_by, one.p50_ms, one.file_bytes)
        ]
        assert (one.number in unbeaten) == (not better)
        assert not better or any(other.number in unbeaten for other in better)


@given(st.lists(FIGURES, min_size=1, max_size=12))
def test_the_best_is_the_most_accurate_within_the_limits(figures: list[tuple[int, int, int, bool]]) -> None:
    every = points(figures)
    found, within = best(every), [one for one in every if not one.over]
    assert (found is None) == (not within)
    if found is not None:
        assert found.chosen_by == max(one.chosen_by for one in within)
        assert found.p50_ms == min(one.p50_ms for one in within if one.chosen_by == found.chosen_by)


def test_the_nearest_is_over_by_the_smallest_factor() -> None:
    every = points([(3, 4, 1, True), (1, 2, 30, True), (0, 3, 3, True)])
    assert nearest(every, 1.0, 2).number == 2
    assert nearest(every, 1.0, None).number == 1


def test_the_picture_is_one() -> None:
    assert picture("digits", points([(1, 1, 1, False), (2, 2, 2, True)]), 1.5).startswith(b"\x89PNG")
