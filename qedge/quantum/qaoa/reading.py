"""What a user has, as a graph or QUBO: networkx graphs, dicts, matrices, lists of edges, JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from qedge.errors import DataNotFound, InvalidProblem
from qedge.quantum.qaoa.instances import LARGEST, Edges, Term, Terms

if TYPE_CHECKING:
    from networkx import Graph

_A_GRAPH = "a networkx graph, a list of edges (node, node[, weight]), or a JSON file of either (node-link or list)"
_A_QUBO = "a square matrix, a dict {(variable, variable): weight}, a networkx graph, or a JSON file with a matrix or node-link graph"


def as_edges(given: object) -> Edges:
    """A graph to be cut: from a networkx graph, edges, node-link data, or the path of a JSON file with one of these.

    Raises:
        DataNotFound: no such file.
        InvalidProblem: no graph, directed, empty, disconnected, with a loop, an edge twice or a weight that is not a finite number.
    """
    given = _opened(given)
    if isinstance(given, Edges):
        return given
    if isinstance(given, Mapping) and set(given) == {"names", "edges"}:
        return Edges.model_validate(dict(given))
    nodes, edges = _nodes_and_edges("graph", given, _A_GRAPH)
    names, places = _places(nodes)
    return Edges(names=names, edges=tuple(_placed("graph", edge, places) for edge in edges))


def as_terms(given: object) -> Terms:
    """A QUBO to be minimised: from a matrix, a dict, a networkx graph (loops and nodes' `weight` are linear terms), or a JSON file.

    In a matrix, Q[i][j] and Q[j][i] add up, as in x^T Q x; so do the keys (i, j) and (j, i) of a dict.

    Raises:
        DataNotFound: no such file.
        InvalidProblem: none of these, empty, not square, not finite, or with a variable that is in no term.
    """
    given = _opened(given)
    if isinstance(given, Terms):
        return given
    if isinstance(given, Mapping) and "terms" in given:
        return Terms.model_validate(dict(given))
    if _is_graph(given) or _is_node_link(given):
        nodes, edges = _nodes_and_edges("qubo", given, _A_QUBO)
        linear = [(node, node, weight) for node, weight in nodes.items() if weight is not None]
        names, places = _places(nodes)
        return Terms(names=names, terms=_added(_placed("qubo", term, places) for term in [*linear, *edges]))
    if isinstance(given, Mapping):
        return _from_dict(given)
    return _from_matrix(given)


def _opened(given: object) -> object:
    if not isinstance(given, str | Path):
        return given
    try:
        return json.loads(Path(given).read_bytes())
    except OSError as error:
        raise DataNotFound(f"no problem can be read at {given}: {error.strerror}", given=str(given)) from error
    except ValueError as error:
        raise InvalidProblem(f"{given} is not JSON: {error}", given=str(given)) from error


def _is_graph(given: object) -> TypeGuard[Graph]:
    return hasattr(given, "is_directed") and hasattr(given, "nodes") and hasattr(given, "edges")


def _is_node_link(given: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(given, Mapping) and ("links" in given or "edges" in given)


def _nodes_and_edges(what: str, given: object, accepted: str) -> tuple[dict[Hashable, object], list[Sequence[object]]]:
    """Nodes, each with its `weight` if it has one, and edges with theirs."""
    if _is_graph(given):
        _refuse_kind(what, given.is_directed(), given.is_multigraph())
        return dict(given.nodes(data="weight")), [list(edge) for edge in given.edges(data="weight", default=1.0)]
    if _is_node_link(given):
        _refuse_kind(what, bool(given.get("directed")), bool(given.get("multigraph")))
        listed, nodes = given.get("links", given.get("edges")), given.get("nodes", ())
    else:
        listed, nodes = given, ()
    if isinstance(listed, str) or not isinstance(listed, Iterable) or not isinstance(nodes, Iterable):
        raise InvalidProblem(f"{what}: {type(given).__name__} is no graph; accepted: {accepted}", accepted=accepted)
    known: dict[Hashable, object] = {}
    for node in nodes:
        known[_named(what, node.get("id") if isinstance(node, Mapping) else node)] = (
            node.get("weight") if isinstance(node, Mapping) else None
        )
    edges: list[Sequence[object]] = []
    for edge in listed:
        if isinstance(edge, Mapping) and "source" in edge and "target" in edge:
            edge = [edge["source"], edge["target"], edge.get("weight", 1.0)]
        if isinstance(edge, str) or not isinstance(edge, Sequence) or len(edge) not in (2, 3):
            raise InvalidProblem(f"{what}: {edge!r} is no edge; accepted: (node, node) or (node, node, weight)", given=repr(edge))
        for end in edge[:2]:
            known.setdefault(_named(what, end), None)
        edges.append([*edge, 1.0][:3])
    return known, edges


def _refuse_kind(what: str, directed: bool, multigraph: bool) -> None:
    if directed or multigraph:
        kind = "directed" if directed else "a multigraph"
        raise InvalidProblem(f"{what}: the graph is {kind}; accepted: undirected, at most one edge between two nodes", given=kind)


def _named(what: str, node: object) -> Hashable:
    if node is None or not isinstance(node, Hashable):
        raise InvalidProblem(f"{what}: {node!r} names no node; accepted: a word or a number", given=repr(node))
    return node


def _places(nodes: Iterable[Hashable]) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    places = {node: place for place, node in enumerate(nodes)}
    return tuple(str(node) for node in places), places


def _placed(what: str, term: Sequence[object], places: Mapping[Hashable, int]) -> Term:
    a, b, weight = term
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.number) or isinstance(weight, np.complexfloating):
        raise InvalidProblem(f"{what}: the weight of ({a}, {b}) is {weight!r}; accepted: finite numbers", given=repr(weight))
    try:
        value = float(weight)
    except OverflowError:  # a whole number of hundreds of digits
        value = math.inf
    if not abs(value) <= LARGEST:  # NaN is not either
        raise InvalidProblem(
            f"{what}: the weight of ({a}, {b}) is {value}; accepted: finite numbers to {LARGEST:g} in size", given=str(value)
        )
    return places[_named(what, a)], places[_named(what, b)], value


def _added(terms: Iterable[Term]) -> tuple[Term, ...]:
    total: dict[tuple[int, int], float] = {}
    for a, b, weight in terms:
        pair = (min(a, b), max(a, b))
        total[pair] = total.get(pair, 0.0) + weight
    return tuple((a, b, weight) for (a, b), weight in total.items())


def _from_dict(given: Mapping[object, object]) -> Terms:
    terms: list[Sequence[object]] = []
    for key, weight in given.items():
        ends = key if isinstance(key, tuple) else (key, key)
        if len(ends) not in (1, 2):
            raise InvalidProblem(f"qubo: the key {key!r} has {len(ends)} variables; accepted: one or two", given=repr(key))
        terms.append([ends[0], ends[-1], weight])
    names, places = _places(dict.fromkeys(_named("qubo", end) for a, b, _ in terms for end in (a, b)))
    return Terms(names=names, terms=_added(_placed("qubo", term, places) for term in terms))


def _from_matrix(given: object) -> Terms:
    try:
        matrix = np.asarray(given)
    except ValueError as error:
        raise InvalidProblem(f"qubo: rows of different lengths; accepted: {_A_QUBO}", accepted=_A_QUBO) from error
    if matrix.dtype.kind not in "iuf":
        raise InvalidProblem(f"qubo: {type(given).__name__} of {matrix.dtype} is no QUBO; accepted: {_A_QUBO}", accepted=_A_QUBO)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidProblem(f"qubo: a matrix of shape {matrix.shape} is not square", given=list(matrix.shape))
    if (unfit := ~(np.abs(matrix) <= LARGEST)).any():  # NaN too
        where = tuple(int(at) for at in np.argwhere(unfit)[0])
        accepted = f"finite numbers to {LARGEST:g} in size"
        raise InvalidProblem(f"qubo: the matrix holds {matrix[where]} at {where}; accepted: {accepted}", given=str(matrix[where]))
    both = np.triu(matrix) + np.tril(matrix, -1).T
    terms = tuple((int(i), int(j), float(both[i, j])) for i, j in np.argwhere(both))
    return Terms(names=tuple(map(str, range(len(matrix)))), terms=terms)
