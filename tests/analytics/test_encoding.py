"""What one client may move, whatever its rows are; that rounding is fair; that sums do not depend on who sums."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qedge.analytics.encoding import FINEST, bounds_of
from qedge.analytics.measurements import Bins, Categories, Continuations, Moment, Occurrences, RowCount
from tests.analytics.populations import MEASUREMENTS, WORDS, clients_rows, columns_of, encoder_of, rows_of

BOUNDS = st.integers(1, 50) | st.sampled_from([1 << 16, FINEST])


@hypothesis_settings(max_examples=300)
@given(data=st.data(), rows=clients_rows())
def test_no_rows_whatever_move_the_vector_by_more_than_the_declared_norm(data, rows):
    measurements = data.draw(st.lists(st.sampled_from(MEASUREMENTS), min_size=1, unique=True))
    bounds = data.draw(st.lists(BOUNDS, min_size=len(measurements), max_size=len(measurements)))
    encoder = encoder_of(measurements, bounds, max_rows=data.draw(st.integers(max(1, rows.count), 40)), seed=data.draw(st.integers(0, 99)))
    sent = encoder.encode(rows, data.draw(st.integers(0, 1000)))
    assert sent.dtype == np.int64
    assert sent.shape == (encoder.dimensions,)
    assert sum(int(number) ** 2 for number in sent) <= encoder.sensitivity_squared
    for scale, part in encoder.split(sent):
        assert sum(int(number) ** 2 for number in part) <= scale.bound**2
    if not rows.count:
        assert not sent.any()


def test_the_declared_norm_is_reached_so_none_of_the_budget_is_wasted():
    measurements = [RowCount(), Moment("x", -1.0, 3.0, 1), Moment("x", -1.0, 3.0, 2), Bins("x", -1.0, 3.0, 8), Categories("word", (b"ab",))]
    encoder = encoder_of(measurements, [7, 300, 41, 9, 5], max_rows=6)
    sent = encoder.encode(rows_of([99.0] * 6, [b"ab"] * 6), 0)
    assert int((sent**2).sum()) == encoder.sensitivity_squared


@given(st.lists(clients_rows(most=6), min_size=1, max_size=6), st.data())
def test_emptying_a_client_moves_the_sum_by_what_it_sent_and_nobody_elses_part(everyone, data):
    whom = data.draw(st.integers(0, len(everyone) - 1))

    def total(skipped: int | None) -> np.ndarray:
        kept = [rows_of([], []) if place == skipped else rows for place, rows in enumerate(everyone)]
        sizes = np.array([rows.count for rows in kept])
        columns = columns_of(sizes, np.concatenate([r.numbers["x"] for r in kept]), np.concatenate([r.texts["word"] for r in kept]))
        return encoder.total(columns, range(len(kept)))

    encoder = encoder_of(MEASUREMENTS, [13] * len(MEASUREMENTS), max_rows=6)
    moved = total(None) - total(whom)
    assert (moved == encoder.encode(everyone[whom], whom)).all()
    assert int((moved**2).sum()) <= encoder.sensitivity_squared


def test_more_rows_than_the_cap_are_refused_by_the_client_itself():
    with pytest.raises(ValueError, match="at most 2 rows"):
        encoder_of([RowCount()], [5], max_rows=2).encode(rows_of([1.0] * 3, [b"a"] * 3), 0)


def test_rounding_is_fair_for_every_number_that_a_client_sends():
    """Over 4,000 roundings each mean is within 5.6 standard errors of what is sent: false alarm below 1e-6 for all 50 together.

    A rounded number takes one of two neighbouring values, so that its standard deviation is 1/2 at most.
    """
    generator = np.random.default_rng(5)
    rows = rows_of(generator.normal(1, 1, 9).tolist(), [WORDS[place] for place in generator.integers(0, len(WORDS), 9)])
    measurements = [one for one in MEASUREMENTS if not isinstance(one, Continuations)]
    encoder = encoder_of(measurements, [7] * len(measurements), max_rows=11)
    exact = encoder_of(measurements, [None] * len(measurements), max_rows=11)
    wanted = np.concatenate([part * exact.step(scale) * 7 / 11 for scale, part in exact.split(exact.encode(rows, 0))])
    sent = np.stack([encoder.encode(rows, client) for client in range(4000)])
    assert np.abs(sent - wanted).max() < 1
    assert np.abs(sent.mean(axis=0) - wanted).max() < 5.6 * 0.5 / np.sqrt(4000)
    assert (sent.std(axis=0) > 0).any()


@given(st.data())
def test_the_sum_is_the_same_for_any_grouping_and_when_clients_are_asked_again(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = generator.integers(0, 5, 12)
    columns = columns_of(sizes, generator.normal(0, 2, sizes.sum()), np.array(WORDS, "S9")[generator.integers(0, len(WORDS), sizes.sum())])
    encoder = encoder_of(MEASUREMENTS, [17] * len(MEASUREMENTS), max_rows=5)
    order = data.draw(st.permutations(range(12)))
    cut = data.draw(st.integers(0, 12))
    parts = encoder.total(columns, order[:cut]) + encoder.total(columns, order[cut:])
    assert (parts == encoder.total(columns, range(12))).all()


def test_without_privacy_counts_are_exact_and_sums_are_to_a_billionth():
    generator = np.random.default_rng(1)
    numbers, words = generator.normal(1, 2, 50), np.array(WORDS, "S9")[generator.integers(0, len(WORDS), 50)]
    rows = rows_of(numbers.tolist(), words.tolist())
    measurements = [RowCount(), Moment("x", -1.0, 3.0, 1), Bins("x", -2.0, 2.0, 4), Occurrences("word", (b"a", b"mail"), 9)]
    encoder = encoder_of(measurements, [None] * 4, max_rows=50)
    (_, rows_counted), (moment, y), (_, bins), (_, occurrences) = encoder.split(encoder.encode(rows, 0))
    assert rows_counted.tolist() == [50]
    assert float(y[0]) * encoder.step(moment) == pytest.approx(((np.clip(numbers, -1, 3) - 1) / 2).sum(), abs=50 * 2**-31)
    assert bins.tolist() == np.histogram(np.clip(numbers, -2, 2), bins=4, range=(-2, 2))[0].tolist()
    assert occurrences.tolist() == [(words == b"a").sum(), (words == b"mail").sum()]


@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_continuations_count_the_bytes_that_follow_each_beginning(words):
    beginnings = (b"ab", b"ma")
    counts = Continuations("word", beginnings, 2).counts(rows_of([0.0] * len(words), words)).reshape(2, 256)
    for place, beginning in enumerate(beginnings):
        following = Counter(word[2] if len(word) > 2 else 0 for word in words if word[:2] == beginning)
        assert {byte: int(counts[place, byte]) for byte in np.flatnonzero(counts[place])} == following


@given(st.lists(st.fractions(Fraction(1, 20), 1), min_size=1, max_size=20), st.floats(0.01, 1000))
def test_every_measurement_has_its_share_of_the_squared_norm(shares, multiplier):
    bounds = bounds_of(shares, multiplier, 1 << 20)
    whole = sum(bound**2 for bound in bounds)
    assert all(1 <= bound <= FINEST for bound in bounds)
    if min(bounds) >= 100:
        for bound, share in zip(bounds, shares, strict=True):
            assert bound**2 / whole == pytest.approx(float(share / sum(shares)), rel=0.03)
