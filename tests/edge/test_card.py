"""The card: intervals, who is dominated, what it says of other machines."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qedge.edge.card import Accuracy, Card, Cost, Latency, RungCard, wilson
from qedge.edge.hardware import this_machine
from qedge.edge.rung import RUNGS, in_order
from qedge.errors import ArtifactTampered, UnknownRung

LATENCIES = st.floats(0.001, 10).map(lambda p50: Latency(p50_ms=p50, p95_ms=2 * p50, p99_ms=3 * p50))
COSTS = st.builds(
    lambda latency, pss: Cost(latency={1: latency}, pss_bytes=pss, load_ms=1, cpu_s_per_1000=1), LATENCIES, st.integers(1, 1000)
)


def card_of(rights: list[int], sizes: list[int]) -> Card:
    rungs = [
        RungCard(rung=rung, how="", files={"x": "y"}, file_bytes=size, accuracy=Accuracy.of(right, 100, 1.0))
        for rung, right, size in zip(RUNGS, rights, sizes, strict=False)
    ]
    return Card(model="m", version="1", features=2, labels=(0, 1), rungs=tuple(rungs))


@given(st.integers(1, 10_000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_the_interval_is_wilsons_as_scipy_has_it(counts: tuple[int, int]) -> None:
    theirs = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert wilson(*counts) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=6), st.data())
def test_a_rung_is_dominated_exactly_when_another_is_nowhere_worse_and_somewhere_better(rights: list[int], data: st.DataObject) -> None:
    costs = {rung: data.draw(COSTS) for rung in RUNGS[: len(rights)]}
    card = card_of(rights, [data.draw(st.integers(1, 3)) for _ in rights]).measured(costs, this_machine())

    def better(one: RungCard, other: RungCard) -> bool:
        mine, theirs = (
            (rung.accuracy.value, -rung.cost.latency[1].p95_ms, -rung.cost.pss_bytes, -rung.file_bytes)
            for rung in (one, other)
            if rung.cost is not None
        )
        return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    for one in card.rungs:
        assert (one.dominated_by is not None) == any(better(other, one) for other in card.rungs)
    assert not all(one.dominated_by for one in card.rungs)
    for one, other in itertools.product(card.rungs, repeat=2):
        if one.dominated_by == other.rung:
            assert better(other, one)


def test_a_card_of_another_machine_or_one_that_was_not_measured_is_not_of_this_one() -> None:
    here = this_machine()
    costs = {rung: Cost(latency={1: Latency(p50_ms=1, p95_ms=1, p99_ms=1)}, pss_bytes=1, load_ms=1, cpu_s_per_1000=1) for rung in RUNGS[:2]}
    card = card_of([90, 80], [2, 1])
    assert not card.is_of(here)
    assert card.measured(costs, here).is_of(here)
    assert not card.measured(costs, here.model_copy(update={"cores": here.cores + 1})).is_of(here)
    assert Card.parse(card.content(), "x") == card


def test_bytes_that_are_no_card_and_rungs_that_are_not_there_are_refused() -> None:
    with pytest.raises(ArtifactTampered, match="not the card of a ladder"):
        Card.parse(b'{"model": "m"}', "x")
    with pytest.raises(UnknownRung, match="it has fp32, fp16"):
        card_of([1, 1], [1, 1])["int8"]


def test_rungs_are_put_in_order_and_unknown_ones_are_refused() -> None:
    assert in_order(["int2", " fp32", "int2"]) == ("fp32", "int2")
    with pytest.raises(UnknownRung, match="did you mean 'int8'"):
        in_order(["fp32", "int9"])
    with pytest.raises(UnknownRung, match="no rung is named"):
        in_order([""])
