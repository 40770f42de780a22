"""The mean gain of a QAOA circuit and its gradient, from the gain of every bitstring computed once: no gates.

Cost and mixer are each diagonal in a basis of their own, and the bases differ by one rotation of each qubit, RY(theta_i): Hadamard-like
for the mixer sum X, of the warm start for others. So a layer is: phases, rotations, phases, rotations back; the rotations, real, are
applied to a few qubits at a time as one matrix. The gradient follows backwards (adjoint differentiation, T. Jones, J. Gacon,
arXiv:2009.02823), and each of its elements is the mean of a diagonal.

Where turning every bit over changes nothing, the first bit is left at 0 and half of the state is enough: X of the first qubit then is X
of all the others.

Sources: E. Farhi, J. Goldstone, S. Gutmann, arXiv:1411.4028; warm starts: D. J. Egger, J. Marecek, S. Woerner, Quantum 5 (2021) 479.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qedge.errors import TooManyQubits
from qedge.quantum.qaoa.problems import Problem, Reals
from qedge.quantum.state_size import limit_bytes

State = NDArray[np.complex128]
TOGETHER = 4  # qubits rotated as one matrix, at most: larger matrices cost more arithmetic, smaller ones more passes
# Products and sums are taken in pieces of so many columns and elements: they stay in the cache, and below what BLAS spreads over threads,
# which wait for each other far longer than the work takes once the cores have other things to do.
COLUMNS, ELEMENTS = 128, 8192
COPIES = 12  # of the state that are held besides two for each layer, tables of phases included
FEW = 1 / 8  # phases are looked up where so few of them differ


def refuse_too_large(problem: Problem, layers: int, *, warm: bool = False, limit: int | None = None) -> None:
    """Check, before anything is allocated, that the states of all layers fit in memory. limit: bytes; default: most of what is free.

    Raises:
        TooManyQubits: they do not.
    """
    allowed = limit_bytes() if limit is None else limit
    half = problem.is_symmetric and not warm
    each = 16 * (2 * layers + COPIES)
    needed, most = each * 2 ** (problem.qubits - half), max(0, (allowed // each).bit_length() - 1 + half)
    if problem.qubits > most:
        raise TooManyQubits(
            f"{problem.qubits} qubits and {layers} layers take an estimated {needed / 2**30:.3g} GiB, the limit is "
            f"{allowed / 2**30:.3g} GiB; accepted: at most {most} qubits, or on a backend with shots as many as it takes, by the optimiser "
            "spsa",
            given=problem.qubits,
            accepted=most,
            needed_bytes=needed,
            limit_bytes=allowed,
        )


class Phases:
    """exp(-i angle values), for a vector of values, [2^n]."""

    def __init__(self, values: Reals) -> None:
        self.values = values
        self._levels, self._places = values, None
        levels, places = np.unique(values, return_inverse=True)
        if len(levels) <= FEW * len(values):
            self._levels, self._places = levels, places.astype(np.intp)
        self._phases = np.empty(len(values), dtype=np.complex128)

    def turn(self, state: State, angle: float, out: State) -> State:
        """The state with its phases turned, written to `out`."""
        turns = angle * self._levels
        if self._places is None:
            np.cos(turns, out=self._phases.real)
            np.sin(np.negative(turns, out=turns), out=self._phases.imag)
        else:
            np.take(np.exp(-1j * turns), self._places, out=self._phases, mode="clip")
        return np.multiply(state, self._phases, out=out)

    def slope(self, bra: State, ket: State, work: State) -> float:
        """Derivative by the angle, 2 Im <bra| values |ket>, where bra is what comes after, pulled back."""
        return 2.0 * _inner(bra, np.multiply(ket, self.values, out=work)).imag


class Rotations:
    """RY(theta_i) on each qubit, applied to a few qubits at a time; into the basis where the mixer is diagonal, and back."""

    def __init__(self, thetas: Reals) -> None:
        parts = np.array_split(thetas, max(1, math.ceil(len(thetas) / TOGETHER)))
        self._back = [_product([_rotation(theta) for theta in part]) for part in parts]
        self._there = [np.ascontiguousarray(block.T) for block in self._back]

    def there(self, state: State, work: tuple[State, State]) -> State:
        """The state in the mixer's basis, in one of the two arrays, of which `state` may be one only if it is not needed after."""
        return _apply(self._there, state, work)

    def back(self, state: State, work: tuple[State, State]) -> State:
        """From the mixer's basis back."""
        return _apply(self._back, state, work)


def _apply(blocks: list[Reals], state: State, work: tuple[State, State]) -> State:
    left = 1
    for block in blocks:
        out = work[0] if state is not work[0] else work[1]
        size = len(block)
        right = len(state) // (left * size)
        if right == 1:
            shape = (-1, min(left, COLUMNS), size)
            np.matmul(state.reshape(shape), block.T, out=out.reshape(shape))
        else:  # real matrices: real and imaginary parts are columns of their own
            columns = min(2 * right, COLUMNS)
            pieces = (left, size, 2 * right // columns, columns)
            rows, turned = (array.view(np.float64).reshape(pieces).transpose(0, 2, 1, 3) for array in (state, out))
            np.matmul(block, rows, out=turned)
        state, left = out, left * size
    return state


def _inner(bra: State, ket: State) -> complex:
    """<bra|ket>"""
    pieces = (-1, min(len(bra), ELEMENTS))
    return complex(np.vecdot(bra.reshape(pieces), ket.reshape(pieces)).sum())


class Simulation:
    """The circuit of one problem, for any angles. It writes into arrays of its own: one thread at a time.

    thetas: of a warm start, [n]; default: pi / 2 each, the uniform superposition and the mixer sum X.
    """

    def __init__(self, problem: Problem, thetas: Reals | None = None) -> None:
        self.is_half = thetas is None and problem.is_symmetric
        free = problem.qubits - self.is_half
        thetas = np.full(free, math.pi / 2) if thetas is None else thetas
        self._gain = Phases(problem.diagonal(half=self.is_half))
        self._mixer = Phases(_mixer(free, with_all=self.is_half))
        self._rotations = Rotations(thetas)
        self._start = _product([np.array([math.cos(theta / 2), math.sin(theta / 2)]) for theta in thetas]).astype(np.complex128)
        self._arrays: list[State] = []

    def gain(self, gammas: Reals, betas: Reals) -> float:
        """The mean gain."""
        state = self._state(gammas, betas)
        return _inner(state, state * self._gain.values).real

    def gain_and_gradient(self, gammas: Reals, betas: Reals) -> tuple[float, Reals, Reals]:
        """The mean gain and its derivatives by each gamma and beta, [p] each."""
        layers = len(gammas)
        one, two, three, *kept = self._states(3 + 2 * layers)
        before, between = kept[:layers], kept[layers:]  # after the cost's phases, and after the mixer's, each in its basis
        state = self._start
        for layer in range(layers):
            self._gain.turn(state, gammas[layer], before[layer])
            there = self._rotations.there(before[layer], (one, two))
            self._mixer.turn(there, betas[layer], between[layer])
            state = self._rotations.back(between[layer], (one, two))
        bra = np.multiply(state, self._gain.values, out=three)
        mean = _inner(state, bra).real
        by_gamma, by_beta = np.empty(layers), np.empty(layers)
        for layer in reversed(range(layers)):
            there = self._rotations.there(bra, (one, two))
            by_beta[layer] = self._mixer.slope(there, between[layer], three)
            bra = self._rotations.back(self._mixer.turn(there, -betas[layer], three), (one, two))
            by_gamma[layer] = self._gain.slope(bra, before[layer], three)
            if layer:
                bra = self._gain.turn(bra, -gammas[layer], three)
        return mean, by_gamma, by_beta

    def probabilities(self, gammas: Reals, betas: Reals) -> Reals:
        """Of every bitstring, [2^n]."""
        state = self._state(gammas, betas)
        chances = state.real**2 + state.imag**2
        return np.concatenate([chances, chances[::-1]]) / 2 if self.is_half else chances

    def _state(self, gammas: Reals, betas: Reals) -> State:
        one, two, three = self._states(3)
        state = self._start
        for gamma, beta in zip(gammas, betas, strict=True):
            there = self._rotations.there(self._gain.turn(state, gamma, three), (one, two))
            state = self._rotations.back(self._mixer.turn(there, beta, three), (one, two))
        return state

    def _states(self, number: int) -> list[State]:
        """As many arrays, the same ones each time: large ones cost more to get from the system than to fill."""
        while len(self._arrays) < number:
            self._arrays.append(np.empty_like(self._start))
        return self._arrays[:number]


def _product(factors: Sequence[Reals]) -> Reals:
    product: Reals = factors[0]
    for factor in factors[1:]:
        product = np.asarray(np.kron(product, factor), dtype=np.float64)
    return product


def _rotation(theta: float) -> Reals:
    cosine, sine = math.cos(theta / 2), math.sin(theta / 2)
    return np.array([[cosine, -sine], [sine, cosine]])


def _mixer(qubits: int, *, with_all: bool) -> Reals:
    """sum Z_i, and with_all the product of all Z_i besides, [2^qubits]."""
    total, product = np.zeros(1), np.ones(1)
    for _ in range(qubits):
        total, product = np.concatenate([total + 1, total - 1]), np.concatenate([product, -product])
    return total + product if with_all else total
