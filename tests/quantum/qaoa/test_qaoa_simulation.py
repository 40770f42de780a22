"""Mean gain, gradient and probabilities from diagonals, against the same circuit gate by gate on PennyLane's devices."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import TooManyQubits
from qedge.quantum.qaoa.circuit import circuit
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.problems import Problem, problem_of
from qedge.quantum.qaoa.simulation import Simulation, refuse_too_large
from qedge.quantum.resources import count


def cut(qubits: int, seed: int, *, weighted: bool = True) -> Problem:
    draw = np.random.default_rng(seed)
    graph = nx.compose(nx.path_graph(qubits), nx.gnp_random_graph(qubits, 0.3, seed=seed))
    return problem_of(QAOA(graph=[(a, b, float(draw.normal()) if weighted else 1.0) for a, b in graph.edges]))


def qubo(qubits: int, seed: int) -> Problem:
    return problem_of(QAOA(qubo=np.random.default_rng(seed).normal(size=(qubits, qubits))))


def points(layers: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng([seed, 7])
    return draw.uniform(-2, 2, layers), draw.uniform(-2, 2, layers)


def by_lightning(problem: Problem, gammas: np.ndarray, betas: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Adjoint differentiation of every gate, and the chain rule to the angles."""
    words = [qml.Z(a) @ qml.Z(b) for a, b in problem.pairs.tolist()] + [qml.Z(i) for i in range(problem.qubits)]
    gain = qml.Hamiltonian([*problem.couplings, *problem.fields], words)
    device = qml.device("lightning.qubit", wires=problem.qubits)
    tape = circuit(problem, gammas, betas, [qml.expval(gain)])
    per_layer = len(problem.couplings) + int(np.count_nonzero(problem.fields))
    scales = [*(2 * problem.couplings), *(2 * problem.fields[problem.fields != 0])]
    tape.trainable_params = range(len(tape.get_parameters(trainable_only=False)))[: len(gammas) * (per_layer + problem.qubits)]
    (transformed,), _ = qml.devices.preprocess.decompose(tape, stopping_condition=lambda _: True)
    value, slopes = device.execute_and_compute_derivatives(transformed, qml.devices.ExecutionConfig(gradient_method="adjoint"))
    slopes = np.array(slopes).reshape(len(gammas), per_layer + problem.qubits)
    return float(value) + problem.constant, slopes[:, :per_layer] @ scales, 2 * slopes[:, per_layer:].sum(axis=1)


@pytest.mark.parametrize("qubits", [2, 3, 5, 6, 7, 10, 11, 12])
@pytest.mark.parametrize("kind", [cut, qubo])
def test_gain_and_gradient_equal_lightning_s_adjoint_to_1e_10(kind: object, qubits: int) -> None:
    problem = kind(qubits, qubits)  # type: ignore[operator]
    gammas, betas = points(3, qubits)
    for ours, theirs in zip(Simulation(problem).gain_and_gradient(gammas, betas), by_lightning(problem, gammas, betas), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@given(qubits=st.integers(2, 6), layers=st.integers(1, 4), seed=st.integers(0, 10**6), warm=st.booleans(), quadratic=st.booleans())
@settings(max_examples=25, deadline=None)
def test_probabilities_equal_those_of_the_circuit_gate_by_gate(qubits: int, layers: int, seed: int, warm: bool, quadratic: bool) -> None:
    problem = qubo(qubits, seed) if quadratic else cut(qubits, seed)
    gammas, betas = points(layers, seed)
    thetas = np.random.default_rng(seed).uniform(0, np.pi, qubits) if warm else None
    tape = circuit(problem, gammas, betas, [qml.probs(wires=range(qubits))], thetas=thetas)
    (expected,) = qml.execute([tape], qml.device("default.qubit"))
    simulation = Simulation(problem, thetas)
    np.testing.assert_allclose(simulation.probabilities(gammas, betas), expected, atol=1e-12)
    assert simulation.gain(gammas, betas) == pytest.approx(expected @ problem.diagonal(), abs=1e-10)


@given(qubits=st.integers(2, 7), layers=st.integers(1, 4), seed=st.integers(0, 10**6), warm=st.booleans())
@settings(max_examples=25, deadline=None)
def test_gradients_equal_central_differences(qubits: int, layers: int, seed: int, warm: bool) -> None:
    problem = cut(qubits, seed)
    gammas, betas = points(layers, seed)
    simulation = Simulation(problem, np.random.default_rng(seed).uniform(0, np.pi, qubits) if warm else None)
    mean, by_gamma, by_beta = simulation.gain_and_gradient(gammas, betas)
    assert simulation.gain(gammas, betas) == pytest.approx(mean, abs=1e-10)
    step = 1e-5
    for layer in range(layers):
        shift = step * np.eye(layers)[layer]
        up, down = simulation.gain(gammas + shift, betas), simulation.gain(gammas - shift, betas)
        assert (up - down) / (2 * step) == pytest.approx(by_gamma[layer], abs=1e-5)
        up, down = simulation.gain(gammas, betas + shift), simulation.gain(gammas, betas - shift)
        assert (up - down) / (2 * step) == pytest.approx(by_beta[layer], abs=1e-5)


def test_one_layer_on_a_graph_without_triangles_meets_the_closed_form() -> None:
    """Wang, Hadfield, Jiang, Rieffel, Phys. Rev. A 97 (2018) 022304, corollary 1: for a d-regular graph without triangles the mean cut
    of an edge is 1/2 + sin(4 beta) sin(gamma) cos(gamma)^(d-1) / 2."""
    problem = problem_of(QAOA(graph=nx.petersen_graph()))
    for gamma, beta in [(0.3, 0.2), (0.61547970867, np.pi / 8), (-0.4, 0.9)]:
        expected = 15 * (0.5 + np.sin(4 * beta) * np.sin(gamma) * np.cos(gamma) ** 2 / 2)
        assert Simulation(problem).gain(np.array([gamma]), np.array([beta])) == pytest.approx(expected, abs=1e-12)


def test_a_second_call_does_not_remember_the_first() -> None:
    problem = cut(6, 1)
    simulation = Simulation(problem)
    before = simulation.gain_and_gradient(*points(3, 1))
    simulation.gain_and_gradient(*points(5, 2))
    simulation.probabilities(*points(1, 2))
    for ours, again in zip(before, simulation.gain_and_gradient(*points(3, 1)), strict=True):
        np.testing.assert_array_equal(ours, again)


def test_the_circuit_takes_two_cx_for_each_edge_and_layer() -> None:
    problem = cut(7, 3, weighted=False)
    taken = count(circuit(problem, *points(3, 0), []))
    assert taken.cx == 2 * 3 * len(problem.couplings)
    assert taken.gates == 7 + 3 * (3 * len(problem.couplings) + 7)


def test_too_many_qubits_are_refused_before_anything_is_allocated() -> None:
    problem = problem_of(QAOA(random_regular={"degree": 3, "nodes": 1000}))
    with pytest.raises(TooManyQubits, match="1000 qubits and 3 layers take an estimated") as refused:
        refuse_too_large(problem, 3)
    assert 20 < int(str(refused.value.facts["accepted"])) < 50


@pytest.mark.parametrize("warm", [False, True])
def test_the_limit_is_where_memory_ends(warm: bool) -> None:
    most = 10 if warm else 11
    limit = 16 * (2 * 3 + 12) * 2**10
    refuse_too_large(cut(most, 0), 3, warm=warm, limit=limit)
    with pytest.raises(TooManyQubits) as refused:
        refuse_too_large(cut(most + 1, 0), 3, warm=warm, limit=limit)
    assert refused.value.facts["accepted"] == most
