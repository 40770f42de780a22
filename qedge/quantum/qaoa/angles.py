"""Where a search for angles begins: known good ones for one layer, more layers from fewer, straight lines, warm starts.

Angles are a vector [2p], gammas then betas; gammas are in units of the problem's couplings, so that those of an unweighted cut keep
their usual size.

Sources: Z. Wang, S. Hadfield, Z. Jiang, E. G. Rieffel, Phys. Rev. A 97 (2018) 022304 (one layer, rings and regular graphs); L. Zhou,
S.-T. Wang, S. Choi, H. Pichler, M. D. Lukin, Phys. Rev. X 10 (2020) 021067, appendix B.1 (INTERP); S. H. Sack, M. Serbyn, Quantum 5
(2021) 491 (lines); R. Shaydulin et al., arXiv:2201.11785 (weights); D. J. Egger, J. Marecek, S. Woerner,
Quantum 5 (2021) 479 (warm starts).
"""

from __future__ import annotations

import math

import numpy as np

from qedge.quantum.qaoa.problems import Bits, Problem, Reals

LINE = 0.75  # length of a time step of the straight lines
REGULARISATION = 0.25  # how far from 0 and 1 a warm start leaves each bit, as a probability


def unit(problem: Problem) -> float:
    """What a gamma of 1 is divided by: twice the root mean square of the couplings, 1 for an unweighted cut."""
    strengths = problem.couplings if len(problem.couplings) else problem.fields[problem.fields != 0]
    return 2 * float(np.sqrt(np.mean(strengths**2)))


def split(problem: Problem, angles: Reals) -> tuple[Reals, Reals]:
    """Gammas, as the circuit takes them, and betas."""
    layers = len(angles) // 2
    return angles[:layers] / unit(problem), angles[layers:]


def one_layer(problem: Problem) -> Reals:
    """The best for a regular graph without triangles, taken at the mean degree."""
    degree = max(1.0, 2 * len(problem.couplings) / problem.qubits)
    return np.array([math.atan2(1.0, math.sqrt(degree - 1)), math.pi / 8])


def one_more(angles: Reals) -> Reals:
    """Angles of p + 1 layers, interpolated between those of p: (i - 1)/p of the one before, (p - i + 1)/p of the one there."""
    layers = len(angles) // 2
    share = np.arange(layers + 1) / layers
    return np.concatenate(
        [share * np.append(0.0, half) + (1 - share) * np.append(half, 0.0) for half in (angles[:layers], angles[layers:])]
    )


def straight(layers: int) -> Reals:
    """Gammas that rise and betas that fall along straight lines, as in annealing."""
    rising = LINE * (np.arange(layers) + 0.5) / layers
    return np.concatenate([rising, rising[::-1]])


def at_random(layers: int, draw: np.random.Generator) -> Reals:
    """Uniform over half a turn for gammas, and over a period for betas."""
    return np.concatenate([draw.uniform(-math.pi / 2, math.pi / 2, layers), draw.uniform(-math.pi / 4, math.pi / 4, layers)])


def warm(bits: Bits) -> Reals:
    """theta of each qubit, [n], for RY, so that each bit is read as it was given with probability 3/4.

    A regularised rounded solution takes the place of the paper's relaxed one; the mixer is the paper's for relaxed
    solutions, of which the first state is an eigenstate.
    """
    chance = np.clip(bits.astype(np.float64), REGULARISATION, 1 - REGULARISATION)
    return np.asarray(2 * np.arcsin(np.sqrt(chance)))
