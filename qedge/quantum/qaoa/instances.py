"""Problems as plain values: graphs whose largest cut is sought, and quadratic costs of bits (QUBO)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import Field, model_validator

from qedge.errors import InvalidProblem, TooManyQubits
from qedge.job.part import Part

MOST = 1000
LARGEST = 1e100  # weights, whose squares are added up
Term = tuple[int, int, float]


class RandomRegular(Part):
    """A connected random graph, each of whose nodes has the same number of neighbours; weights are 1."""

    degree: int = Field(ge=1, description="neighbours of each node")
    nodes: int = Field(ge=2)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.degree >= self.nodes or self.degree * self.nodes % 2 or (self.degree == 1 and self.nodes > 2):
            raise InvalidProblem(
                f"random_regular: no connected graph of {self.nodes} nodes has {self.degree} neighbours at each; accepted: "
                "a degree from 2 to nodes - 1, and an even product of the two",
                given=[self.degree, self.nodes],
            )
        _refuse_size(self.nodes)
        return self


class Edges(Part):
    """A weighted graph, connected, without loops; the places in `names` are the qubits."""

    names: tuple[str, ...]
    edges: tuple[Term, ...] = Field(description="(node, node, weight); nodes by their place, each pair once")

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, given: object) -> object:
        _refuse_not_finite("graph", given.get("edges") if isinstance(given, dict) else None)
        return given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _refuse_unsound("graph", self.names, self.edges)
        if loops := [self.names[a] for a, b, _ in self.edges if a == b]:
            raise InvalidProblem(f"graph: node '{loops[0]}' has an edge to itself, which no cut can cross", given=loops)
        if not any(weight for _, _, weight in self.edges):
            raise InvalidProblem("graph: no edge with a weight; there is nothing to cut", given=len(self.edges))
        parts = _parts(len(self.names), self.edges)
        if parts > 1:
            raise InvalidProblem(
                f"graph: disconnected, in {parts} parts; accepted: a connected graph (cut each part by itself)", given=parts, accepted=1
            )
        return self


class Terms(Part):
    """A quadratic cost of bits, constant + sum of weight * x_i * x_j; x_i * x_i is x_i."""

    names: tuple[str, ...]
    terms: tuple[Term, ...] = Field(description="(variable, variable, weight); variables by their place, each pair once")
    constant: float = 0.0
    minimise: bool = Field(default=True, description="no: the cost is to be made as large as possible")

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, given: object) -> object:
        _refuse_not_finite("qubo", given.get("terms") if isinstance(given, dict) else None)
        return given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _refuse_unsound("qubo", self.names, self.terms)
        used = {variable for a, b, weight in self.terms if weight for variable in (a, b)}
        if idle := [name for place, name in enumerate(self.names) if place not in used]:
            raise InvalidProblem(f"qubo: nothing depends on {', '.join(map(repr, idle[:5]))}; leave out what is in no term", given=idle)
        return self


def _refuse_size(variables: int) -> None:
    if variables > MOST:
        raise TooManyQubits(f"{variables} nodes or variables, one qubit each; accepted: at most {MOST}", given=variables, accepted=MOST)


def _refuse_not_finite(what: str, terms: object) -> None:
    for term in terms if isinstance(terms, Sequence) else ():
        weight = term[2] if isinstance(term, Sequence) and len(term) == 3 else None
        if isinstance(weight, float | int) and not abs(weight) <= LARGEST:  # NaN is not either
            raise InvalidProblem(
                f"{what}: the weight of ({term[0]}, {term[1]}) is {str(weight)[:25]}; accepted: finite numbers to {LARGEST:g} in size",
                given=str(weight)[:25],
            )


def _refuse_unsound(what: str, names: Sequence[str], terms: Sequence[Term]) -> None:
    if len(names) < 2:
        raise InvalidProblem(f"{what}: {len(names)} nodes or variables; accepted: at least 2", given=len(names), accepted=2)
    _refuse_size(len(names))
    seen: set[tuple[int, int]] = set()
    for a, b, _ in terms:
        if not (0 <= a < len(names) and 0 <= b < len(names)):
            raise InvalidProblem(f"{what}: ({a}, {b}) names a place that is not among the {len(names)} there are", given=[a, b])
        if (pair := (min(a, b), max(a, b))) in seen:
            raise InvalidProblem(f"{what}: '{names[a]}' and '{names[b]}' are given twice; accepted: each pair once", given=[a, b])
        seen.add(pair)


def _parts(nodes: int, edges: Iterable[Term]) -> int:
    """How many parts a graph falls into; an edge of weight 0 holds nothing together."""
    leader = list(range(nodes))

    def lead(node: int) -> int:
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for a, b, weight in edges:
        if weight:
            leader[lead(a)] = lead(b)
    return len({lead(node) for node in range(nodes)})
