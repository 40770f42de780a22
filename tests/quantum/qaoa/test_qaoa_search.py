"""Classical searches keep to their effort and find what there is; angles begin where the papers say; optimisers climb, or stop."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.quantum.qaoa import angles
from qedge.quantum.qaoa.classical import anneal, ascend, best_of_random, bounds, greedy, repeated
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.problems import Problem, problem_of
from qedge.quantum.qaoa.simulation import Simulation


def qubo(qubits: int, seed: int) -> Problem:
    return problem_of(QAOA(qubo=np.random.default_rng(seed).normal(size=(qubits, qubits))))


def regular(nodes: int) -> Problem:
    return problem_of(QAOA(random_regular={"degree": 3, "nodes": nodes}))


@given(st.integers(2, 7), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_brute_force_is_the_largest_and_the_smallest_of_all_bitstrings(qubits: int, seed: int) -> None:
    problem = qubo(qubits, seed)
    gains = [float(problem.gains(np.array(bits))) for bits in itertools.product([0, 1], repeat=qubits)]
    found = bounds(problem, 0)
    assert (found.best, found.worst) == (pytest.approx(max(gains)), pytest.approx(min(gains)))
    assert found.exact
    assert found.optima == sum(gain > max(gains) - 1e-9 for gain in gains)


@pytest.mark.parametrize(
    ("graph", "best", "optima"),
    [
        (nx.petersen_graph(), 12, None),
        (nx.cycle_graph(5), 4, 10),
        (nx.complete_bipartite_graph(3, 4), 12, 2),
        (nx.complete_graph(6), 9, math.comb(6, 3)),
        (nx.cycle_graph(20), 20, 2),
    ],
)
def test_largest_cuts_of_known_graphs(graph: nx.Graph, best: int, optima: int | None) -> None:
    found = bounds(problem_of(QAOA(graph=graph)), 0)
    assert (found.best, found.worst) == (best, 0)
    assert optima in (None, found.optima)


def test_beyond_brute_force_the_bounds_are_said_to_be_searched_and_hold_for_every_known_gain() -> None:
    found = bounds(problem_of(QAOA(graph=nx.cycle_graph(26))), 0, [26.0])
    assert found.best == 26
    assert found.worst == 0
    assert not found.exact
    assert found.optima is None


@given(st.integers(2, 12), st.integers(0, 10**6), st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_searches_keep_to_their_evaluations_and_report_what_their_bits_are_worth(qubits: int, seed: int, evaluations: int) -> None:
    problem = qubo(qubits, seed)
    for search in (greedy, anneal):
        found = search(problem, np.random.default_rng(seed), evaluations)
        assert found.gain == pytest.approx(float(problem.gains(found.bits)))
        assert found.gain <= bounds(problem, 0).best + 1e-9
        assert found.evaluations <= max(evaluations, 2)


def test_the_best_of_random_bitstrings_is_what_drawing_them_gives() -> None:
    """Five standard deviations of 4000 draws: a false alarm below 1e-6, were the seed not fixed."""
    problem = qubo(6, 2)
    drawn = np.random.default_rng(0).choice(problem.diagonal(), (4000, 20)).max(axis=1)
    assert abs(best_of_random(problem, 20) - drawn.mean()) < 5 * drawn.std() / math.sqrt(4000)
    assert best_of_random(problem, 1) == pytest.approx(problem.constant)


def test_a_greedy_ascent_ends_where_no_single_flip_helps() -> None:
    problem = qubo(12, 4)
    found = ascend(problem, np.random.default_rng(0))
    for place in range(12):
        flipped = found.bits.copy()
        flipped[place] ^= 1
        assert float(problem.gains(flipped)) <= found.gain + 1e-9


def test_annealing_keeps_the_best_on_its_way_which_is_never_worse_than_its_beginning() -> None:
    """Of a few flips while it is hot, the last is often a step down."""
    problem = qubo(8, 5)
    for seed in range(200):
        begun = np.random.default_rng(seed).choice(np.array([1.0, -1.0]), 8)
        found = anneal(problem, np.random.default_rng(seed), 5)
        assert found.gain >= float(problem.gains(((1 - begun) / 2).astype(np.int8))) - 1e-9


def test_greedy_with_restarts_and_annealing_reach_the_optimum_of_a_small_graph() -> None:
    """The seeds are fixed: no chance is left."""
    problem = regular(14)
    best = bounds(problem, 0).best
    for search in (greedy, anneal):
        assert max(found.gain for found in repeated(search, problem, 0, 2000)) == best


def test_interpolated_angles_are_those_of_the_paper() -> None:
    """Zhou et al. 2020, appendix B.1, by hand for p = 2: (g1, (g1 + g2) / 2, g2)."""
    np.testing.assert_allclose(angles.one_more(np.array([0.2, 0.6, 0.5, 0.1])), [0.2, 0.4, 0.6, 0.5, 0.3, 0.1])
    np.testing.assert_allclose(angles.one_more(np.array([0.3, 0.7])), [0.3, 0.3, 0.7, 0.7])


def test_the_angles_of_one_layer_are_the_best_on_a_graph_without_triangles() -> None:
    problem = problem_of(QAOA(graph=nx.petersen_graph()))
    gammas, betas = angles.split(problem, angles.one_layer(problem))
    gain, by_gamma, by_beta = Simulation(problem).gain_and_gradient(gammas, betas)
    assert gain / 15 == pytest.approx(0.6924500897)  # 1/2 + 1 / (3 sqrt 3), Farhi et al. 2014, section IV
    assert abs(by_gamma[0]) + abs(by_beta[0]) < 1e-10


@given(st.floats(0.01, 100), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_angles_mean_the_same_whatever_the_unit_of_the_weights(factor: float, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(5, 5))
    point = angles.at_random(2, np.random.default_rng(seed))
    one, scaled = (problem_of(QAOA(qubo=unit * matrix)) for unit in (1.0, factor))
    expected = Simulation(one).gain(*angles.split(one, point))
    assert Simulation(scaled).gain(*angles.split(scaled, point)) == pytest.approx(factor * expected, rel=1e-6, abs=1e-9 * factor)


def test_a_warm_start_begins_near_its_bits() -> None:
    problem = qubo(5, 3)
    bits = np.array([0, 1, 1, 0, 1], dtype=np.int8)
    chances = Simulation(problem, angles.warm(bits)).probabilities(np.zeros(1), np.zeros(1))
    assert int(chances.argmax()) == 0b01101
    assert chances.max() == pytest.approx(0.75**5)
