"""Minimisers on functions whose minimum is known, and searches that diverge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import rosen, rosen_der

from qedge.quantum.method import Method
from qedge.quantum.optimisers import descend, perturb
from qedge.quantum.progress import Step

Point = NDArray[np.float64]


def bowl(point: Point) -> tuple[float, Point]:
    """Its minimum is -1 at (1, 2, 3)."""
    off = point - np.array([1.0, 2.0, 3.0])
    return float(off @ off) - 1, 2 * off


def noisy_bowl(points: Sequence[Point]) -> list[float]:
    draw = np.random.default_rng(abs(hash(tuple(map(tuple, points)))) % 2**32)
    return [bowl(point)[0] + 0.02 * draw.normal() for point in points]


def test_lbfgs_goes_down_a_curved_valley_to_its_end() -> None:
    found = descend(lambda point: (float(rosen(point)), rosen_der(point)), np.zeros(4), Method("lbfgs", 500, 0.1, tolerance=1e-14), "lbfgs")
    assert found.value < 1e-12
    np.testing.assert_allclose(found.parameters, 1, atol=1e-5)
    assert found.history == sorted(found.history, reverse=True)
    assert not found.warnings


def test_adam_settles_in_a_bowl() -> None:
    found = descend(bowl, np.zeros(3), Method("adam", 3000, 0.05, tolerance=0), "adam")
    assert found.value == pytest.approx(-1, abs=1e-6)
    assert found.evaluations == len(found.history) == 3000


def test_perturbation_finds_the_bottom_of_a_noisy_bowl() -> None:
    """The noise of each value is 0.02, and nobody knows the slope; the seed is fixed."""
    found = perturb(noisy_bowl, np.zeros(3), Method("spsa", 400, 0.1), np.random.default_rng(7), "spsa")
    assert bowl(found.parameters)[0] < -0.97
    assert found.evaluations == 820
    assert not found.warnings


def test_perturbation_repeats_with_its_seed() -> None:
    runs = [perturb(noisy_bowl, np.zeros(3), Method("spsa", 30, 0.1), np.random.default_rng(seed), "spsa").parameters for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_search_that_climbs_is_stopped_and_its_best_is_kept() -> None:
    found = descend(bowl, np.full(3, 1.5), Method("adam", 500, 50.0), "adam")
    assert "diverged" in found.warnings[0]
    assert len(found.history) < 100
    assert found.value == min(found.history)
    assert bowl(found.parameters)[0] == found.value


def test_perturbation_that_climbs_is_stopped() -> None:
    found = perturb(noisy_bowl, np.array([1.0, 2.0, 3.0]), Method("spsa", 300, 30.0), np.random.default_rng(3), "spsa")
    assert "diverged" in found.warnings[0]
    assert len(found.history) < 300


@pytest.mark.parametrize("kind", ["lbfgs", "adam"])
def test_a_value_that_is_not_finite_ends_the_search_at_the_best_before(kind: str) -> None:
    seen = 0

    def breaks(point: Point) -> tuple[float, Point]:
        nonlocal seen
        seen += 1
        value, slope = bowl(point)
        return (value, slope) if seen < 3 else (np.nan, np.full(3, np.nan))

    found = descend(breaks, np.zeros(3), Method(kind, 50, 0.1), kind)
    assert np.isfinite(found.parameters).all()
    assert found.value <= bowl(np.zeros(3))[0]
    assert found.warnings


def test_perturbation_of_values_that_are_not_finite_ends_at_its_start() -> None:
    found = perturb(lambda points: [np.nan for _ in points], np.ones(2), Method("spsa", 50, 0.1), np.random.default_rng(0), "spsa")
    assert "not finite" in found.warnings[0]
    np.testing.assert_array_equal(found.parameters, 1)


def test_every_step_is_told() -> None:
    steps: list[Step] = []
    found = descend(bowl, np.zeros(3), Method("adam", 25, 0.05), "adam", steps.append)
    assert [step.value for step in steps] == found.history
    assert [step.number for step in steps] == list(range(1, 26))
    assert steps[0].of == 25


def test_a_slope_that_is_not_finite_ends_the_search() -> None:
    found = descend(lambda point: (bowl(point)[0], np.full(3, np.nan)), np.zeros(3), Method("lbfgs", 50, 0.1), "lbfgs")
    assert "not finite" in found.warnings[0]
    np.testing.assert_array_equal(found.parameters, 0)


def test_perturbation_that_begins_on_a_summit_takes_no_endless_step() -> None:
    """All slopes around it are equal by symmetry: what it measures of them is zero."""
    found = perturb(
        lambda points: [-float(point @ point) for point in points],
        np.zeros(2),
        Method("spsa", 5, 0.1, flat=0.5),
        np.random.default_rng(0),
        "spsa",
    )
    assert np.linalg.norm(found.parameters) < 1
