"""The search for frequent values: it finds them, hardly ever anything else, and counts what it found without flattery."""

from __future__ import annotations

import numpy as np
import pytest

from qedge.analytics.answers import answer, read_off
from qedge.analytics.heavy_hitters import Hunt
from qedge.data.client_columns import ClientColumns
from qedge.job.statistics import HeavyHitters
from qedge.privacy.mechanisms import DiscreteGaussian, NoiseSource, SeededNoise
from tests.analytics.populations import encoder_of

BOUND, MOST_ROWS = 40, 5


def _columns(counts: dict[bytes, int], width: int = 8) -> ClientColumns:
    """Clients of five rows each, the last of them of fewer."""
    words = np.repeat(np.array(list(counts), f"S{width}"), list(counts.values()))
    np.random.default_rng(0).shuffle(words)
    offsets = np.append(np.arange(0, len(words), MOST_ROWS), len(words))
    return ClientColumns(offsets, {}, {"app": words})


def _searched(statistic: HeavyHitters, columns: ClientColumns, variance: int, source: NoiseSource) -> Hunt:
    hunt, number, clients = Hunt(statistic), 0, len(columns.offsets) - 1
    while (measurement := hunt.measurement) is not None:
        number += 1
        encoder = encoder_of([measurement], [BOUND if variance else None], MOST_ROWS, seed=number)
        total = encoder.total(columns, range(clients))
        if variance:
            total = total + DiscreteGaussian(variance).sample(len(total), source)
        found = read_off(encoder, total, variance, clients)[measurement]
        hunt = hunt.after(found.values, found.deviation, encoder.step(encoder.scales[0]))
    assert number <= statistic.length + 1
    return hunt


def test_without_privacy_every_value_is_found_with_its_exact_count():
    counts = {b"maps": 12, b"map": 3, b"mail": 7, "mü".encode(): 2, b"a": 1}
    hunt = _searched(HeavyHitters(column="app", length=8), _columns(counts), 0, SeededNoise(0))
    estimates = {one.of: (one.value, one.low, one.high) for one in answer(hunt.statistic, {}, hunt).estimates}
    assert estimates == {name.decode(): (count,) * 3 for name, count in counts.items()}


def test_values_longer_than_the_public_length_are_known_by_their_beginning():
    hunt = _searched(HeavyHitters(column="app", length=3), _columns({b"maps": 4, b"mapper": 3, b"abc": 2, b"ab": 1}), 0, SeededNoise(0))
    assert [(one.of, one.value) for one in answer(hunt.statistic, {}, hunt).estimates] == [("map…", 7), ("abc…", 2), ("ab", 1)]


def test_only_so_many_beginnings_are_followed_and_those_are_the_most_frequent():
    counts = {bytes([97 + place]) * 2: place + 1 for place in range(20)}
    hunt = _searched(HeavyHitters(column="app", length=2, most=3), _columns(counts), 0, SeededNoise(0))
    assert hunt.found == (b"rr", b"ss", b"tt")


def test_under_noise_frequent_values_are_found_and_rare_ones_are_not():
    """Frequent: 25 standard deviations over the threshold; rare: one row. A chance of 1e-9 is stated: false alarm 5e-9 over 5 searches."""
    source = SeededNoise(2)
    for _ in range(5):
        columns = _columns({b"maps": 1500, b"mail": 1250, b"x": 1})
        hunt = _searched(HeavyHitters(column="app", length=4, false_positive=1e-9), columns, 300**2, source)
        assert set(hunt.found) == {b"maps", b"mail"}
        assert max(hunt.thresholds) == pytest.approx(7.1 * 300 * MOST_ROWS / BOUND, rel=0.03)


def test_what_nobody_has_is_found_no_more_often_than_stated():
    """600 searches among clients without rows, false positive 0.3 stated: more than 253 would be 6 standard deviations: below 1e-8.

    Not for want of candidates: the threshold is no laxer than need be, a few hundred searches find something.
    """
    source, nobody = SeededNoise(3), ClientColumns(np.zeros(4, np.int64), {}, {"app": np.array([], "S8")})
    statistic = HeavyHitters(column="app", length=2, false_positive=0.3)
    found = [max(map(len, _searched(statistic, nobody, 50**2, source).found), default=0) for _ in range(600)]
    assert sum(map(bool, found)) <= 253
    began = sum(bool(Hunt(statistic).after(DiscreteGaussian(50**2).sample(256, source) * 1.0, 50.0, 1.0).beginnings) for _ in range(600))
    assert 30 <= began <= 180  # 0.15 is stated for one round: 90 of 600; 30 and 180 are 6 and 9 standard deviations off


def test_the_count_of_a_value_that_noise_let_through_is_not_flattered():
    """A value just below the threshold: among searches that find it the mean count is the true one within 5.5 standard errors (1e-6)."""
    source, columns, statistic = SeededNoise(4), _columns({b"z": 330}, width=1), HeavyHitters(column="app", length=1, false_positive=0.2)
    hunts = [_searched(statistic, columns, 1000**2, source) for _ in range(400)]
    counts = [hunt.counts[0] for hunt in hunts if hunt.found == (b"z",)]
    assert 20 < len(counts) < 380
    values = np.array([count.value for count in counts])
    assert abs(values.mean() - 330) < 5.5 * counts[0].deviation / np.sqrt(len(values))
