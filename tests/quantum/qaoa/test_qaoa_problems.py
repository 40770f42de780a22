"""Graphs and QUBOs: every form gives the same costs, and what is unsound is refused with its reason."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qedge.errors import DataNotFound, InvalidJob, InvalidProblem, TooManyQubits
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.problems import problem_of

SQUARE = [(0, 1), (1, 2), (2, 3), (3, 0, 2.5)]
weights = st.integers(-5, 5).map(float) | st.floats(-10, 10)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(2, 6))
    matrix = np.array(draw(st.lists(weights, min_size=size**2, max_size=size**2))).reshape(size, size)
    matrix[np.arange(size), np.arange(size)] += 20  # no variable is in no term
    return matrix


@given(matrices())
@settings(max_examples=40, deadline=None)
def test_the_diagonal_holds_the_cost_of_each_bitstring_first_bit_most_significant(matrix: np.ndarray) -> None:
    problem = problem_of(QAOA(qubo=matrix))
    bits = np.array(list(itertools.product([0, 1], repeat=len(matrix))))
    expected = [x @ matrix @ x for x in bits]
    np.testing.assert_allclose(-problem.diagonal(), expected, atol=1e-9)
    np.testing.assert_allclose(-problem.gains(bits), expected, atol=1e-9)
    np.testing.assert_allclose(-problem.diagonal(half=True), expected[: len(bits) // 2], atol=1e-9)
    assert -problem.constant == pytest.approx(np.mean(expected))
    assert problem.spread == pytest.approx(np.std(expected))


@given(matrices())
@settings(max_examples=20, deadline=None)
def test_a_matrix_a_dict_and_a_graph_give_the_same_costs(matrix: np.ndarray) -> None:
    size = len(matrix)
    keys = {(i, j): matrix[i, j] for i in range(size) for j in range(size)}
    graph = nx.Graph()
    graph.add_nodes_from(range(size))
    graph.add_weighted_edges_from((i, j, matrix[i, j] + matrix[j, i] * (i != j)) for i in range(size) for j in range(i, size))
    first, *others = (problem_of(QAOA(qubo=one)).diagonal() for one in (matrix, matrix.tolist(), keys, graph))
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-9)


def test_the_cut_of_a_graph_is_the_weight_of_the_edges_it_crosses() -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([(*edge, 1.0)[:3] for edge in SQUARE])
    problem = problem_of(QAOA(graph=graph))
    for bits in itertools.product([0, 1], repeat=4):
        left = [node for node, bit in zip(graph, bits, strict=True) if bit]
        assert problem.gains(np.array(bits)) == pytest.approx(nx.cut_size(graph, left, weight="weight"))
    assert problem.is_symmetric


@pytest.mark.parametrize("edges", ["links", "edges"])
def test_a_file_of_node_link_data_or_of_edges_is_read(tmp_path: Path, edges: str) -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([("a", "b", 1.5), ("b", "c", 1.0)])
    (tmp_path / "graph.json").write_text(json.dumps(nx.node_link_data(graph, edges=edges)))
    (tmp_path / "edges.json").write_text(json.dumps([["a", "b", 1.5], ["b", "c"]]))
    from_file, from_list = (QAOA(graph=tmp_path / name) for name in ("graph.json", "edges.json"))
    assert from_file == from_list == QAOA(graph=graph)
    assert from_file.graph.names == ("a", "b", "c")


def test_a_job_survives_json() -> None:
    for job in (QAOA(graph=SQUARE), QAOA(qubo={("x", "y"): 1, ("y",): -2, "x": 3}), QAOA(random_regular={"degree": 3, "nodes": 8})):
        assert QAOA.model_validate_json(job.model_dump_json()) == job


def test_a_random_regular_graph_is_the_same_for_the_same_seed_and_connected() -> None:
    one, same, other = (problem_of(QAOA(random_regular={"degree": 3, "nodes": 10, "seed": seed})) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.pairs, same.pairs)
    assert one.pairs.tolist() != other.pairs.tolist()
    assert nx.is_connected(nx.Graph(one.pairs.tolist()))
    assert np.bincount(one.pairs.ravel()).tolist() == [3] * 10


def test_what_is_to_be_made_large_keeps_its_sign() -> None:
    job = QAOA(qubo={"names": ["a", "b"], "terms": [[0, 1, 2.0], [0, 0, 1.0]], "minimise": False})
    np.testing.assert_allclose(problem_of(job).diagonal(), [0, 0, 1, 3])


def test_terms_that_are_lost_beside_their_constant_are_refused() -> None:
    with pytest.raises(InvalidProblem, match="lost to rounding"):
        problem_of(QAOA(qubo={"names": ["a", "b"], "terms": [[0, 1, 1.0]], "constant": 1e20}))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"graph": []}, "0 nodes"),
        ({"graph": nx.Graph()}, "0 nodes"),
        ({"graph": nx.path_graph(1)}, "1 nodes"),
        ({"graph": nx.empty_graph(3)}, "nothing to cut"),
        ({"graph": [(0, 1, 0.0)]}, "nothing to cut"),
        ({"graph": [(0, 1), (2, 3)]}, "disconnected, in 2 parts"),
        ({"graph": [(0, 1), (1, 2, 0.0)]}, "disconnected, in 2 parts"),
        ({"graph": [(0, 1), (1, 1)]}, "'1' has an edge to itself"),
        ({"graph": [(0, 1), (1, 0)]}, "given twice"),
        ({"graph": [(0, 1, math.nan)]}, "is nan"),
        ({"graph": [(0, 1, -math.inf)]}, "is -inf"),
        ({"graph": [(0, 1, "heavy")]}, "'heavy'"),
        ({"graph": [(0, 1, 10**400)]}, "1e.100 in size"),
        ({"graph": {"names": ["a", "b"], "edges": [[0, 1, math.nan]]}}, "is nan"),
        ({"qubo": np.full((2, 2), 1e200)}, "1e.100 in size"),
        ({"graph": [(0, 1, True)]}, "True"),
        ({"graph": [(0, 1, 1, 1)]}, "no edge"),
        ({"graph": [([0], 1)]}, "names no node"),
        ({"graph": ["ab"]}, "no edge"),
        ({"graph": 7}, "int is no graph"),
        ({"graph": nx.path_graph(3, nx.DiGraph)}, "directed"),
        ({"graph": nx.path_graph(3, nx.MultiGraph)}, "multigraph"),
        ({"graph": {"names": ["a", "b"], "edges": [[0, 2, 1.0]]}}, "not among the 2"),
        ({"qubo": np.ones((2, 3))}, "not square"),
        ({"qubo": np.ones(3)}, "not square"),
        ({"qubo": [[1, 2], [3]]}, "different lengths"),
        ({"qubo": [["a", "b"], ["c", "d"]]}, "no QUBO"),
        ({"qubo": np.array([[1j, 0], [0, 1]])}, "no QUBO"),
        ({"qubo": [[1, math.nan], [0, 1]]}, r"nan at \(0, 1\)"),
        ({"qubo": {(0, 1): math.nan}}, "is nan"),
        ({"qubo": {(0, 1, 2): 1.0}}, "3 variables"),
        ({"qubo": {}}, "0 nodes or variables"),
        ({"qubo": np.zeros((0, 0))}, "0 nodes or variables"),
        ({"qubo": np.zeros((2, 2))}, "nothing depends on '0', '1'"),
        ({"qubo": np.diag([1.0, 0, 2])}, "nothing depends on '1'"),
        ({"qubo": {(0, 1): 1.0, (1, 0): -1.0}}, "nothing depends on"),
        ({"random_regular": {"degree": 3, "nodes": 7}}, "no connected graph"),
        ({"random_regular": {"degree": 8, "nodes": 8}}, "no connected graph"),
        ({"random_regular": {"degree": 1, "nodes": 4}}, "no connected graph"),
    ],
)
def test_an_unsound_problem_is_refused_with_its_reason(given: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidProblem, match=reason):
        QAOA(**given)


def test_a_problem_of_more_variables_than_any_machine_has_qubits_is_refused() -> None:
    for large in ({"graph": nx.cycle_graph(1001)}, {"random_regular": {"degree": 2, "nodes": 10**9}}, {"qubo": np.eye(1001)}):
        with pytest.raises(TooManyQubits, match="at most 1000") as refused:
            QAOA(**large)
        assert refused.value.facts["accepted"] == 1000


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="no problem can be read"):
        QAOA(graph=tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidProblem, match="not JSON"):
        QAOA(qubo=str(tmp_path / "bad.json"))


def test_a_job_takes_exactly_one_problem() -> None:
    with pytest.raises(InvalidJob, match="given: none"):
        QAOA()
    with pytest.raises(InvalidJob, match="graph, qubo"):
        QAOA(graph=SQUARE, qubo=np.eye(2))


def test_a_job_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'pennylane', 'networkx', 'scipy', 'sklearn'} & set(sys.modules)"
    code = f"import sys\nfrom qedge.quantum.qaoa.job import QAOA\nQAOA(graph=[(0, 1)])\nassert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)
