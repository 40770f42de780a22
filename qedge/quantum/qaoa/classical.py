"""What a classical computer finds: brute force, greedy search with restarts, simulated annealing.

Effort is counted in evaluations of the gain of a bitstring. Looking at what one flipped bit would change counts as a whole evaluation,
though it costs less; after a flip only those bits are looked at again that share a coupling with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qedge.quantum.qaoa.problems import Bits, Problem, Reals

BRUTE_FORCE = 24  # qubits, at most
MOST_REPEATS, LEAST_REPEATS = 100, 10  # searches whose mean is a heuristic's answer,
WORK = 50_000  # as many as so many evaluations allow
SEARCHED = 20_000  # evaluations that bounds beyond brute force are searched with
HOT, COLD = 1.0, 0.03  # temperatures of annealing, in the spread of one flip


@dataclass(frozen=True)
class Found:
    """What one search came to, and what it took."""

    gain: float
    bits: Bits
    evaluations: int


@dataclass(frozen=True)
class Bounds:
    """The largest and smallest gain. exact: by brute force; optima: how many bitstrings have the largest, where that is known."""

    best: float
    worst: float
    exact: bool
    optima: int | None = None

    @property
    def range(self) -> float:
        """From the worst to the best."""
        return self.best - self.worst

    def ratio(self, gain: float) -> float:
        """0 for the worst, 1 for the best."""
        return (gain - self.worst) / self.range

    def are_optima(self, gains: Reals) -> np.ndarray:
        """Which gains are the best, up to rounding."""
        return np.asarray(gains >= self.best - 1e-9 * self.range)


Search = Callable[[Problem, np.random.Generator, int], Found]


def bounds(problem: Problem, seed: int, gains: Sequence[float] = ()) -> Bounds:
    """By brute force to 24 qubits; beyond, the best and the worst of searches, which may be off.

    gains: of bitstrings that are known besides.
    """
    if problem.qubits <= BRUTE_FORCE:
        every = problem.diagonal(half=problem.is_symmetric)
        exact = Bounds(float(every.max()), float(every.min()), True)
        return replace(exact, optima=int(exact.are_optima(every).sum()) * (2 if problem.is_symmetric else 1))
    turned = replace(problem, constant=-problem.constant, fields=-problem.fields, couplings=-problem.couplings)
    best, worst = (
        max(search(one, np.random.default_rng([seed, 4]), SEARCHED).gain for search in (greedy, anneal)) for one in (problem, turned)
    )
    return Bounds(max(best, *gains), min(-worst, *gains), False)


def best_of_random(problem: Problem, draws: int) -> float:
    """The mean of the best gain of so many random bitstrings, exactly; to 24 qubits."""
    levels, counts = np.unique(problem.diagonal(half=problem.is_symmetric), return_counts=True)
    below = np.cumsum(counts) / counts.sum()  # chance that one is no better than each level
    return float(levels[-1] - np.diff(levels) @ below[:-1] ** draws)


def greedy(problem: Problem, draw: np.random.Generator, evaluations: int) -> Found:
    """The best of as many steepest ascents, bit by bit, each from a random bitstring, as so many evaluations allow."""
    best: Found | None = None
    spent = 0
    while best is None or spent + 1 + problem.qubits <= evaluations:
        found = ascend(problem, draw, evaluations - spent)
        spent += found.evaluations
        if best is None or found.gain > best.gain:
            best = found
    return Found(best.gain, best.bits, spent)


def ascend(problem: Problem, draw: np.random.Generator, evaluations: int | None = None) -> Found:
    """One steepest ascent from a random bitstring to where no single flip helps, or until so many evaluations are spent."""
    spins = draw.choice(np.array([1.0, -1.0]), problem.qubits)
    pull = problem.fields + problem.matrix @ spins
    neighbours = np.count_nonzero(problem.matrix, axis=1)
    spent, looks = 1, problem.qubits
    while evaluations is None or spent + looks <= evaluations:
        changes = -2 * spins * pull
        spent += looks
        flip = int(changes.argmax())
        if changes[flip] <= 1e-12 * problem.spread:
            break
        looks = int(neighbours[flip])
        spins[flip] *= -1
        pull += 2 * spins[flip] * problem.matrix[flip]
    return _found(problem, spins, spent)


def anneal(problem: Problem, draw: np.random.Generator, evaluations: int) -> Found:
    """Metropolis flips of one bit under a temperature that falls geometrically; the best bitstring on the way.

    Source: S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, Science 220 (1983) 671.
    """
    spins = draw.choice(np.array([1.0, -1.0]), problem.qubits)
    pull = problem.fields + problem.matrix @ spins
    unit = 2 * problem.spread * (2 / problem.qubits) ** 0.5  # of the change by one flip of a random bitstring, roughly
    flips = max(1, evaluations - 1)
    temperatures = unit * HOT * (COLD / HOT) ** (np.arange(flips) / flips)
    places, thresholds = draw.integers(0, problem.qubits, flips), np.log(draw.random(flips)) * temperatures
    gain = best = 0.0
    kept = spins.copy()
    for flip, threshold in zip(places.tolist(), thresholds.tolist(), strict=True):
        change = -2 * spins[flip] * pull[flip]
        if change >= threshold:
            spins[flip] *= -1
            pull += 2 * spins[flip] * problem.matrix[flip]
            gain += change
            if gain > best:
                best, kept = gain, spins.copy()
    return _found(problem, kept, flips + 1)


def repeated(search: Search, problem: Problem, seed: int, evaluations: int) -> list[Found]:
    """Searches with seeds of their own."""
    turns = min(MOST_REPEATS, max(LEAST_REPEATS, WORK // evaluations))
    return [search(problem, np.random.default_rng([seed, 2, turn]), evaluations) for turn in range(turns)]


def _found(problem: Problem, spins: Reals, evaluations: int) -> Found:
    bits = ((1 - spins) / 2).astype(np.int8)
    return Found(float(problem.gains(bits)), bits, evaluations)
