"""The gap that sends rows on: fitted to lose no more than it may, told by folds it has not seen, and off where it gains nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.edge.card import Card, Latency
from qedge.edge.cascade import Answered, Cascade, cost_ms, fit, gaps, threshold
from qedge.errors import EdgeError, InvalidCalibration, UnknownRung
from tests.edge_ladders import Told, card

CARD = card({"fp32": Told(p95_ms=10.0), "int8": Told(p95_ms=1.0)})


def answered(seed: int, rows: int = 3000, noise: float = 1.0) -> Answered:
    """Ten classes; the cheap rung sees the scores through more noise than the dear one."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, rows)
    scores = 6.0 * np.eye(10)[labels] + generator.standard_normal((rows, 10))
    cheap = scores + noise * generator.standard_normal((rows, 10))
    return Answered(_softmax(cheap), _softmax(scores), labels)


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def by_hand(cascade: Cascade, given: Answered) -> np.ndarray:
    """Places of the labels that it answers."""
    unsure = cascade.unsure(given.cheap)
    return np.where(unsure, given.dear.argmax(axis=1), given.cheap.argmax(axis=1))


def test_on_rows_that_it_has_not_seen_it_loses_what_it_said_and_passes_on_few() -> None:
    """A loss measured on 20000 rows has a standard error under 0.0005; false alarms of these bounds are under 1e-6."""
    cascade = fit(CARD, "int8", "fp32", answered(0, noise=1.3), most_lost=0.003)
    fresh = answered(1, rows=20000, noise=1.3)
    lost = (fresh.dear.argmax(axis=1) == fresh.labels).mean() - (by_hand(cascade, fresh) == fresh.labels).mean()
    cheap_lost = (fresh.dear.argmax(axis=1) == fresh.labels).mean() - (fresh.cheap.argmax(axis=1) == fresh.labels).mean()
    assert cheap_lost > 0.01
    assert lost < 0.004
    assert cascade.lost_interval[0] <= cascade.lost <= cascade.lost_interval[1] < 0.008
    share = cascade.unsure(fresh.cheap).mean()
    assert abs(share - cascade.share) < 0.1
    assert 0 < share < 0.6
    assert cascade.pays


@settings(max_examples=60)
@given(st.data(), st.integers(1, 60), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_the_threshold_is_the_least_that_loses_no_more_on_the_rows_it_is_fitted_by(data: st.DataObject, rows: int, most: float) -> None:
    gap = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0]), min_size=rows, max_size=rows)))
    costlier = np.array(data.draw(st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=rows, max_size=rows)))
    found = threshold(gap, costlier, most)
    left = {least: costlier[gap >= least] for least in np.unique(gap)}
    keeps = {least: stay.sum() + np.sqrt(np.count_nonzero(stay) + 1) <= most * rows for least, stay in left.items()}
    good = [least for least, kept in keeps.items() if kept]
    least = min(good, default=None)
    assert found > 1 if least is None else found == (0 if least == gap.min() else least)


def test_a_cheap_rung_that_is_always_right_passes_nothing_on_and_one_that_is_never_sure_passes_all() -> None:
    right = answered(3)
    same = Answered(right.dear, right.dear, right.labels)
    cascade = fit(CARD, "int8", "fp32", same)
    assert (cascade.share, cascade.lost, cascade.unsure(right.dear).sum()) == (0.0, 0.0, 0)
    none = np.full_like(right.dear, 0.1)
    cascade = fit(CARD, "int8", "fp32", Answered(none, right.dear, right.labels), most_lost=0.0)
    assert (cascade.share, cascade.lost) == (1.0, 0.0)
    assert cascade.unsure(none).all()
    assert not cascade.pays


def test_what_it_is_said_to_pass_on_is_what_the_kept_gap_passes_on() -> None:
    """Two rows that the cheap rung has wrong and is surest of: those folds that know of one of them may leave it, the others may not."""
    labels = np.zeros(1000, np.int64)
    dear = np.tile(np.array([0.99, 0.01], np.float32), (1000, 1))
    cheap = dear.copy()
    cheap[[0, 1]] = [0.001, 0.999]
    cascade = fit(CARD, "int8", "fp32", Answered(cheap, dear, labels), most_lost=0.004)
    assert cascade.share == cascade.unsure(cheap).mean() == 1.0
    assert not cascade.pays
    assert cascade.cost_ms > cascade.dear_ms


@pytest.mark.parametrize(("rows", "most"), [(10, 0.003), (416, 0.003), (124, 0.01)])
def test_few_rows_show_no_small_loss_and_more_of_them_no_certainty(rows: int, most: float) -> None:
    few, more = answered(3, rows), answered(3, rows + 800)
    with pytest.raises(InvalidCalibration, match="rows or more"):
        fit(CARD, "int8", "fp32", Answered(few.dear, few.dear, few.labels), most_lost=most)
    low, high = fit(CARD, "int8", "fp32", Answered(more.dear, more.dear, more.labels), most_lost=most).lost_interval
    assert low < 0 < high


def test_it_is_off_where_the_dear_rung_costs_little_more() -> None:
    given = answered(0, noise=1.3)
    near = card({"fp32": Told(p95_ms=1.3), "int8": Told(p95_ms=1.0)})
    assert fit(CARD, "int8", "fp32", given).pays
    assert not fit(near, "int8", "fp32", given).pays


def test_the_predicted_cost_is_that_of_calls_by_the_card() -> None:
    cheap, dear = CARD["int8"].cost, CARD["fp32"].cost
    assert cheap is not None
    assert dear is not None
    assert cost_ms(cheap, dear, 0.25) == pytest.approx(0.8 + 0.25 * 8.0)
    assert cost_ms(cheap, dear, 0.0, batch=32) == pytest.approx(0.8 * 32)
    assert cost_ms(cheap, dear, 0.5, batch=32) == pytest.approx(0.8 * 32 + 0.5 * 8.0 * 32)  # its times grow with rows: linear
    flat = dear.model_copy(update={"latency": dict.fromkeys((1, 8, 32), Latency(p50_ms=8, p95_ms=8, p99_ms=8))})
    assert cost_ms(cheap, flat, 0.5, batch=8) == pytest.approx(0.8 * 8 + 8.0 * (1 - 0.5**8))


def test_it_survives_a_file() -> None:
    cascade = fit(CARD, "int8", "fp32", answered(0))
    assert Cascade.model_validate_json(cascade.model_dump_json()) == cascade


def test_the_gap_is_of_the_two_likeliest() -> None:
    np.testing.assert_allclose(gaps(np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]], np.float32)), [0.5, 0.0], atol=1e-7)


GOOD = answered(0, rows=20)


@pytest.mark.parametrize(
    ("given", "more", "kind", "message"),
    [
        (Answered(GOOD.cheap[:10], GOOD.dear, GOOD.labels), {}, InvalidCalibration, r"\[10, 10\] and \[20, 10\] to 20 labels"),
        (Answered(GOOD.cheap[:, :1], GOOD.dear[:, :1], GOOD.labels), {}, InvalidCalibration, r"two of \[rows, classes\]"),
        (Answered(GOOD.cheap, GOOD.dear * np.nan, GOOD.labels), {}, InvalidCalibration, "not a finite number"),
        (GOOD, {"folds": 21}, InvalidCalibration, "20 rows in 21 folds"),
        (GOOD, {"most_lost": 1.0}, EdgeError, "accepted: a share from 0 up to 1"),
    ],
)
def test_what_no_cascade_can_be_fitted_by_is_refused(given: Answered, more: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fit(CARD, "int8", "fp32", given, **more)


def test_rungs_that_are_one_or_not_measured_or_not_there_are_refused() -> None:
    bare: Card = CARD.model_copy(update={"rungs": tuple(one.model_copy(update={"cost": None}) for one in CARD.rungs)})
    for of, cheap in ((CARD, "fp32"), (bare, "int8")):
        with pytest.raises(EdgeError, match="two rungs that were measured on this machine"):
            fit(of, cheap, "fp32", GOOD)  # type: ignore[arg-type]
    with pytest.raises(UnknownRung):
        fit(CARD, "int2", "fp32", GOOD)
