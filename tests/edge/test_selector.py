"""The choice of a rung: what is required holds, nothing much cheaper was passed over, and figures that waver do not make it waver."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qedge.edge.card import Card
from qedge.edge.rung import RUNGS, RungName
from qedge.edge.selector import MARGIN, Choice, Load, Requirement, bytes_of, choose
from qedge.errors import EdgeError, NoRungFits, OverBudget, Refused
from tests.edge_ladders import Told, card

MIB = 2**20
told = st.builds(
    Told,
    right=st.integers(500, 1000),
    p95_ms=st.floats(0.01, 50),
    pss_bytes=st.integers(MIB // 10, 200 * MIB),
    cpu_s_per_1000=st.floats(0.01, 50),
)
cards = st.dictionaries(st.sampled_from(RUNGS), told, min_size=1).map(card)
requirements = st.builds(
    Requirement,
    accuracy=st.none() | st.floats(0.4, 1),
    accuracy_low=st.none() | st.floats(0.4, 1),
    p95_ms=st.none() | st.floats(0.1, 60),
    p99_ms=st.none() | st.floats(0.1, 100),
    memory_bytes=st.none() | st.integers(MIB // 10, 300 * MIB),
)
loads = st.builds(Load, free_bytes=st.none() | st.integers(0, 300 * MIB), slowdown=st.floats(1, 5))


def p95(of: Card, rung: str) -> float:
    cost = of[rung].cost
    assert cost is not None
    return cost.latency[1].p95_ms


def meets(of: Card, rung: RungName, requirement: Requirement, load: Load, *, late: bool = False) -> bool:
    one, cost = of[rung], of[rung].cost
    assert cost is not None
    latency, slowdown = cost.latency[1], 1.0 if late else load.slowdown
    free = [limit for limit in (requirement.memory_bytes, load.free_bytes) if limit is not None]
    return (
        one.accuracy.value >= (requirement.accuracy or 0)
        and one.accuracy.low >= (requirement.accuracy_low or 0)
        and all(cost.pss_bytes <= limit for limit in free)
        and (requirement.p95_ms is None or slowdown * latency.p95_ms <= requirement.p95_ms)
        and (requirement.p99_ms is None or slowdown * latency.p99_ms <= requirement.p99_ms)
    )


@given(cards, requirements, loads, st.none() | st.builds(Choice, st.sampled_from(RUNGS), st.booleans()))
def test_what_is_chosen_meets_the_requirement_and_a_refusal_means_that_nothing_does(
    of: Card, requirement: Requirement, load: Load, current: Choice | None
) -> None:
    every = [one.rung for one in of.rungs]
    try:
        chosen = choose(of, requirement, load, current)
    except OverBudget:
        assert not any(meets(of, rung, requirement, load, late=True) for rung in every)
        assert any(meets(of, rung, requirement, Load()) for rung in every)
    except NoRungFits:
        assert not any(meets(of, rung, requirement, Load()) for rung in every)
    else:
        in_time = [rung for rung in every if meets(of, rung, requirement, load)]
        assert meets(of, chosen.rung, requirement, load, late=not in_time)
        assert set(chosen.passed) == set(every) - {chosen.rung}
        assert all(chosen.passed.values())


@given(cards, requirements, st.none() | st.integers(0, 300 * MIB))
@example(card({"fp32": Told(p95_ms=1.0, pss_bytes=9 * MIB), "int8": Told(p95_ms=1.04)}), Requirement(), None)
def test_without_load_the_choice_is_within_ten_percent_of_the_fastest_and_never_slower_than_fp32(
    of: Card, requirement: Requirement, free: int | None
) -> None:
    load = Load(free)
    fitting = [one.rung for one in of.rungs if meets(of, one.rung, requirement, load)]
    assume(fitting)
    chosen = choose(of, requirement, load).rung
    assert p95(of, chosen) <= 1.1 * min(p95(of, rung) for rung in fitting)
    assert "fp32" not in fitting or p95(of, chosen) <= p95(of, "fp32")


@given(cards, requirements, loads)
def test_what_was_chosen_stays_chosen_under_the_same_load(of: Card, requirement: Requirement, load: Load) -> None:
    try:
        chosen = choose(of, requirement, load)
    except Refused:
        return
    again = choose(of, requirement, load, chosen)
    assert choose(of, requirement, load, again).rung == again.rung == chosen.rung


@given(cards, requirements, st.integers(MIB, 200 * MIB), st.lists(st.floats(0.97, 1.03), min_size=2, max_size=20))
def test_a_load_that_wavers_by_a_few_percent_moves_the_choice_at_most_once(
    of: Card, requirement: Requirement, free: int, factors: list[float]
) -> None:
    current: Choice | None = None
    seen: list[str] = []
    for factor in factors:
        try:
            current = choose(of, requirement, Load(int(free * factor)), current)
        except Refused:
            return
        seen.append(current.rung)
    assert sum(one != other for one, other in itertools.pairwise(seen)) <= 1


def test_it_degrades_as_memory_goes_and_recovers_as_it_comes_back_but_not_below_the_floor() -> None:
    rungs: dict[RungName, Told] = {
        "fp32": Told(970, 1.0, 80 * MIB),
        "int8": Told(960, 1.2, 20 * MIB),
        "int2": Told(800, 1.3, 5 * MIB),
    }
    of, requirement, current = card(rungs), Requirement(accuracy=0.95), None
    went = []
    for free in (100, 79, 30, 79, 87, 89, 100):
        current = choose(of, requirement, Load(free * MIB), current)
        went.append(current.rung)
    assert went == ["fp32", "int8", "int8", "int8", "int8", "fp32", "fp32"]
    with pytest.raises(OverBudget, match=r"int8 takes 20\.0 MiB by the estimate, and 10\.0 MiB are left") as refused:
        choose(of, requirement, Load(10 * MIB), current)
    assert refused.value.facts["estimate_bytes"] == 20 * MIB


def test_under_load_the_rung_that_takes_least_cpu_answers_until_the_load_is_gone() -> None:
    of = card(
        {
            "fp32": Told(p95_ms=2.0, cpu_s_per_1000=2.0),
            "fp16": Told(p95_ms=1.0, cpu_s_per_1000=3.0),
            "int8": Told(p95_ms=1.5, cpu_s_per_1000=1.4),
        }
    )
    current, went = None, []
    for slowdown in (1.0, 1.9, 2.1, 1.5, 1.2):
        current = choose(of, Requirement(), Load(slowdown=slowdown), current)
        went.append(current.rung)
    assert went == ["fp16", "fp16", "int8", "int8", "fp16"]


def test_when_load_makes_all_too_slow_the_fastest_answers_and_a_limit_that_nothing_ever_meets_is_refused() -> None:
    of = card({"fp32": Told(970, 4.0), "int8": Told(960, 2.0)})
    late = choose(of, Requirement(p95_ms=5), Load(slowdown=4))
    assert (late.rung, late.pressed) == ("int8", True)
    with pytest.raises(NoRungFits, match=r"no rung meets accuracy ≥ 0.96, p95_ms ≤ 1 ms; nearest: int8 with accuracy 0.96, p95_ms 2 ms"):
        choose(of, Requirement(accuracy=0.96, p95_ms=1))


def test_the_floor_is_of_the_value_or_of_the_lower_end_of_the_interval_as_asked() -> None:
    of = card({"fp32": Told(970, 2.0), "int8": Told(961, 1.0)})
    assert choose(of, Requirement(accuracy=0.96)).rung == "int8"
    chosen = choose(of, Requirement(accuracy_low=0.95))
    assert chosen.rung == "fp32"
    assert chosen.passed == {"int8": "its accuracy_low is 0.9471, under 0.95"}


def test_each_other_is_told_why_it_was_passed_over() -> None:
    rungs: dict[RungName, Told] = {
        "fp32": Told(970, 1.0, 80 * MIB),
        "fp16": Told(970, 3.0, 80 * MIB),
        "int8": Told(960, 0.5, 20 * MIB),
        "int4": Told(960, 0.49, 30 * MIB),
        "int2": Told(900, 0.1, 5 * MIB),
        "binary": Told(960, 0.2, 70 * MIB),
    }
    chosen = choose(card(rungs), Requirement(accuracy=0.95, p95_ms=2, memory_bytes=64 * MIB))
    assert chosen.rung == "int8"
    assert chosen.passed == {
        "fp32": "it takes 80.0 MiB, over 64.0 MiB",
        "fp16": "it takes 80.0 MiB, over 64.0 MiB",
        "int4": "it is hardly faster than int8 and takes more memory, 30.0 MiB",
        "int2": "its accuracy is 0.9, under 0.95",
        "binary": "it takes 70.0 MiB, over 64.0 MiB",
    }


def test_a_card_from_elsewhere_chooses_nothing() -> None:
    bare = card({"fp32": Told()})
    unknown = bare.model_copy(update={"rungs": tuple(one.model_copy(update={"cost": None}) for one in bare.rungs)})
    with pytest.raises(EdgeError, match="fp32 was not measured on this machine"):
        choose(unknown, Requirement())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy=0.9", "did you mean 'accuracy'"),
        ("accuracy=1.5", "accepted: a share from 0 to 1"),
        ("accuracy=nan", "accepted: a share"),
        ("p95_ms=0", "accepted: a number over 0"),
        ("p95_ms=inf", "accepted: a number over 0"),
        ("p95_ms=fast", "accepted: a number"),
        ("accuracy", "accepted: a number"),
    ],
)
def test_a_requirement_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        Requirement.parse(text)


@pytest.mark.parametrize("text", ["", "MiB", "64 miles", "1e400MB", "-"])
def test_bytes_that_are_no_number_are_refused(text: str) -> None:
    with pytest.raises(EdgeError, match="is no number of bytes"):
        bytes_of(text)


def test_choosing_takes_far_less_than_a_millisecond() -> None:
    of = card({rung: Told(p95_ms=1 + place) for place, rung in enumerate(RUNGS)})
    requirement, load = Requirement(accuracy=0.5, p95_ms=100), Load(10**9)
    taken = []
    for _ in range(50):
        began = time.perf_counter()
        choose(of, requirement, load)
        taken.append(time.perf_counter() - began)
    assert sorted(taken)[25] < 1e-3
    assert MARGIN == 1.1
