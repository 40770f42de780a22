"""A figure shows no digit that its noise hides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge.uncertainty import plus_minus, rounded


@given(value=st.floats(0, 1), deviation=st.floats(1e-6, 10))
def test_rounding_moves_a_figure_by_less_than_its_noise_and_leaves_no_finer_digit(value: float, deviation: float) -> None:
    shown = rounded(value, deviation)
    assert abs(shown - value) <= 0.5 * deviation * (1 + 1e-9)
    text, _, noise = plus_minus(value, deviation).partition(" ± ")
    assert float(text) == shown
    assert len(text.partition(".")[2]) == len(noise.partition(".")[2])
    assert float(noise) > 0


@pytest.mark.parametrize(
    ("value", "deviation", "said"),
    [(0.4359375, 0.0312, "0.44 ± 0.03"), (0.9611111, None, "0.9611"), (0.5, 0.0996, "0.50 ± 0.10"), (1.0, 1.7, "1 ± 2")],
)
def test_the_noise_is_told_beside_the_figure(value: float, deviation: float | None, said: str) -> None:
    assert plus_minus(value, deviation) == said
