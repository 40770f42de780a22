"""Readout errors undone, against confusion matrices that are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from qedge.errors import InvalidValue
from qedge.quantum.mitigation.readout import of_rates, on_simplex

RATES = st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(RATES, st.integers(0, 1000))
def test_what_was_misread_comes_back(rates: list[tuple[float, float]], seed: int) -> None:
    true = np.random.default_rng(seed).dirichlet(np.ones(2 ** len(rates)))
    whole = np.ones((1, 1))
    for up, down in rates:
        whole = np.kron(whole, [[1 - up, down], [up, 1 - down]])
    found = of_rates(*np.transpose(rates))
    assert found.inverted(whole @ true) == pytest.approx(true, abs=1e-9)
    assert found.condition == pytest.approx(np.linalg.cond(whole, 1), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=16))
def test_the_nearest_distribution_is_one_and_no_other_is_nearer(quasi: list[float]) -> None:
    """Nearest on a convex set: every vertex makes an obtuse angle with the way to it."""
    given_, found = np.array(quasi), on_simplex(np.array(quasi))
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    assert ((np.eye(len(given_)) - found) @ (given_ - found) <= 1e-9).all()


def test_the_nearest_distribution_is_the_one_that_a_general_solver_finds() -> None:
    quasi = np.array([0.7, 0.5, -0.3, 0.1])
    solved = minimize(
        lambda p: np.sum((p - quasi) ** 2), np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints={"type": "eq", "fun": lambda p: p.sum() - 1}
    )
    assert on_simplex(quasi) == pytest.approx(solved.x, abs=1e-4)


def test_a_qubit_that_is_read_the_same_whatever_it_is_is_refused() -> None:
    with pytest.raises(InvalidValue, match="qubit 1 is read the same"):
        of_rates([0.1, 0.4], [0.1, 0.6])
    with pytest.raises(InvalidValue, match="between 0 and 1"):
        of_rates([1.2], [0.1])


def test_a_wire_that_says_too_little_for_its_shots_is_refused() -> None:
    with pytest.raises(InvalidValue, match="as far as can be told"):
        of_rates([0.49], [0.49], shots=1000)
    assert of_rates([0.49], [0.49], shots=1_000_000).condition > 10
    with pytest.raises(InvalidValue, match="qubit 1"):
        of_rates([0.1, 0.5], [0.1, 0.5])
