"""A problem as a gain of spins, constant + sum h_i z_i + sum J_ij z_i z_j, to be made as large as possible; z_i = 1 - 2 x_i.

A cut is worth sum w (1 - z_i z_j) / 2; a QUBO that is minimised has its sign turned. Bits of a basis state are read from the first
qubit, the most significant, on, as PennyLane does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from qedge.errors import InvalidProblem
from qedge.quantum.qaoa.instances import Edges, RandomRegular, Terms
from qedge.quantum.qaoa.job import QAOA

Reals = NDArray[np.float64]
Bits = NDArray[np.int8]
ROUNDING = 1e-9  # of the constant: less is no longer told apart well


@dataclass(frozen=True, eq=False)
class Problem:
    """A gain of spins. fields: h, [n]; pairs: [m, 2], first below second; couplings: J, [m], none of them 0.

    sign: the cost as the user counts it is sign times the gain.
    """

    title: str
    names: tuple[str, ...]
    constant: float
    fields: Reals
    pairs: NDArray[np.int64]
    couplings: Reals
    sign: int = 1

    @property
    def qubits(self) -> int:
        """One for each node or variable."""
        return len(self.names)

    @property
    def is_symmetric(self) -> bool:
        """Whether turning every bit over changes nothing, as in any cut."""
        return not self.fields.any()

    @property
    def spread(self) -> float:
        """Standard deviation of the gain of a random bitstring."""
        return float(np.sqrt(np.sum(self.fields**2) + np.sum(self.couplings**2)))

    @cached_property
    def matrix(self) -> Reals:
        """J, symmetric, [n, n]."""
        matrix = np.zeros((self.qubits, self.qubits))
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.couplings
        return matrix + matrix.T

    def gains(self, bits: Bits) -> Reals:
        """The gain of each bitstring; bits: [..., n], 0 or 1."""
        spins = 1.0 - 2.0 * bits
        return np.asarray(self.constant + spins @ self.fields + ((spins @ self.matrix) * spins).sum(-1) / 2)

    def diagonal(self, *, half: bool = False) -> Reals:
        """The gain of every bitstring, [2^n]; half: only of those whose first bit is 0, [2^(n-1)]."""
        diagonal = np.array([self.constant])
        for qubit in reversed(range(self.qubits)):  # bits from `qubit` on: the one in front turns the sign of what it meets
            meets = np.array([self.fields[qubit]])
            for other in reversed(range(qubit + 1, self.qubits)):
                coupling = self.matrix[qubit, other]
                meets = np.concatenate([meets + coupling, meets - coupling])
            diagonal = diagonal + meets if half and qubit == 0 else np.concatenate([diagonal + meets, diagonal - meets])
        return diagonal


def problem_of(job: QAOA) -> Problem:
    """The gain that a job asks for.

    Raises:
        InvalidProblem: every bitstring costs the same.
    """
    if job.graph is not None:
        return max_cut(job.graph)
    if job.qubo is not None:
        return quadratic(job.qubo)
    assert job.random_regular is not None
    return max_cut(random_regular(job.random_regular), f"MaxCut of a random {job.random_regular.degree}-regular graph")


def random_regular(asked: RandomRegular) -> Edges:
    """The first connected one among random regular graphs with the seed, the next seed of its own, and so on."""
    draw = np.random.default_rng(asked.seed)
    while True:
        graph = nx.random_regular_graph(asked.degree, asked.nodes, seed=int(draw.integers(2**32)))
        if nx.is_connected(graph):
            edges = tuple(sorted((min(a, b), max(a, b), 1.0) for a, b in graph.edges))
            return Edges(names=tuple(map(str, range(asked.nodes))), edges=edges)


def max_cut(graph: Edges, title: str = "MaxCut of a graph") -> Problem:
    """The weight of the edges that a bitstring cuts."""
    kept = sorted((min(a, b), max(a, b), weight) for a, b, weight in graph.edges if weight)
    weights = np.array([weight for _, _, weight in kept])
    pairs = np.array([(a, b) for a, b, _ in kept], dtype=np.int64).reshape(-1, 2)
    title = f"{title} with {len(graph.names)} nodes and {len(kept)} edges"
    return Problem(title, graph.names, float(weights.sum() / 2), np.zeros(len(graph.names)), pairs, -weights / 2)


def quadratic(qubo: Terms) -> Problem:
    """The cost of a QUBO, its sign turned where it is to be minimised.

    Raises:
        InvalidProblem: the terms cancel, or are lost beside the constant, and every bitstring costs the same.
    """
    sign = -1 if qubo.minimise else 1
    constant, fields, couplings = qubo.constant, np.zeros(len(qubo.names)), {}
    for a, b, weight in qubo.terms:
        if a == b:  # x = (1 - z) / 2
            constant, fields[a] = constant + weight / 2, fields[a] - weight / 2
            continue
        constant += weight / 4
        fields[[a, b]] -= weight / 4
        if weight:
            couplings[min(a, b), max(a, b)] = weight / 4
    if not couplings and not fields.any():
        raise InvalidProblem("qubo: every bitstring costs the same; there is nothing to optimise", given=qubo.constant)
    ordered = sorted(couplings.items())
    pairs = np.array([pair for pair, _ in ordered], dtype=np.int64).reshape(-1, 2)
    title = f"QUBO with {len(qubo.names)} variables and {len(ordered)} quadratic terms"
    strengths = sign * np.array([strength for _, strength in ordered], dtype=np.float64)
    problem = Problem(title, qubo.names, sign * constant, sign * fields, pairs, strengths, sign)
    if abs(constant) > 1 / ROUNDING * problem.spread:
        raise InvalidProblem(
            f"qubo: beside the constant {qubo.constant:g} the terms are lost to rounding; leave it out", given=qubo.constant
        )
    return problem
