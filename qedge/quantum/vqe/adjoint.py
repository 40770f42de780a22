"""Energy and its whole gradient at the cost of two passes through an ansatz, on the amplitudes of a sector alone.

The reverse pass of T. Jones, J. Gacon, "Efficient calculation of gradients in classical simulations of variational quantum algorithms"
(arXiv:2009.02823), with the states of the forward pass kept, so that all derivatives are one contraction in the end. LiH's two
electrons in ten spin orbitals have 25 amplitudes where a statevector has 1024; a gate is a gather, two products and a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from qedge.errors import TooManyQubits
from qedge.quantum.vqe.ansatz import AnsatzCircuit, Entangler, Gate, Turn

Amplitudes = NDArray[np.inexact]
DENSE = 128  # dimensions up to which a full matrix is applied faster than a sparse one
LARGEST_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Rotations:
    """An ansatz on the amplitudes [dimension] of some basis states; partners, couplings, moved: [gates, dimension]."""

    start: Amplitudes
    partners: NDArray[np.int64]
    couplings: Amplitudes
    moved: NDArray[np.float64]

    def states(self, keep: NDArray[np.float64], turn: Amplitudes) -> Amplitudes:
        """The amplitudes after each gate [gates, dimension], of what `factors` gave."""
        states = np.empty_like(turn)
        state = self.start
        for gate, partners in enumerate(self.partners):
            states[gate] = keep[gate] * state + turn[gate] * state[partners]
            state = states[gate]
        return states

    def final(self, parameters: NDArray[np.float64]) -> Amplitudes:
        """The amplitudes in the end [dimension]."""
        return self.states(*self.factors(parameters))[-1] if len(self.partners) else self.start

    def factors(self, parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], Amplitudes]:
        """What amplitudes keep of themselves and take of their partners [gates, dimension]."""
        angles = parameters / 2
        return 1 + (np.cos(angles) - 1)[:, None] * self.moved, np.sin(angles)[:, None] * self.couplings


@dataclass(frozen=True)
class Energy:
    """The energy of an ansatz's state, as a function of its parameters [gates], with its gradient."""

    rotations: Rotations
    matrix: csr_array | NDArray[np.inexact]

    def value_and_gradient(self, parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Energy and gradient [gates]."""
        rotations = self.rotations
        if not len(rotations.partners):
            return self.value(parameters), np.zeros(0)
        keep, turn = rotations.factors(parameters)
        states = rotations.states(keep, turn)
        images = np.empty_like(states)
        image = self.matrix @ states[-1]
        value = float(np.vdot(states[-1], image).real)
        for gate in range(len(turn) - 1, 0, -1):
            images[gate] = image
            image = keep[gate] * image - turn[gate] * image[rotations.partners[gate]]
        images[0] = image
        moved = np.take_along_axis(states, rotations.partners, 1) * rotations.couplings
        return value, np.einsum("gd,gd->g", images.conj(), moved).real

    def value(self, parameters: NDArray[np.float64]) -> float:
        """Energy."""
        state = self.rotations.final(parameters)
        return float(np.vdot(state, self.matrix @ state).real)


def check_memory(ansatz: AnsatzCircuit, dimension: int) -> None:
    """Whether both passes over so many amplitudes fit in memory.

    Raises:
        TooManyQubits: they do not.
    """
    gates = len(ansatz.gates)
    needed = dimension * gates * (16 + (16 if _is_complex(ansatz) else 8) * 5)
    if needed > LARGEST_BYTES:
        raise TooManyQubits(
            f"{gates} gates on {dimension} amplitudes would take {needed / 1024**3:.1f} GiB; accepted: {LARGEST_BYTES / 1024**3:.0f} GiB",
            given=ansatz.wires,
            needed_bytes=needed,
            limit_bytes=LARGEST_BYTES,
        )


def rotations_of(ansatz: AnsatzCircuit, basis: NDArray[np.int64]) -> Rotations:
    """The ansatz on the amplitudes over the ascending `basis`, which its gates do not lead out of.

    Entanglers are diagonal and their own inverses, and do nothing but a sign to the basis state that all begins at: pulled through the
    gates before them to that beginning, they only turn couplings over.

    Raises:
        TooManyQubits: the states of one pass would not fit in memory.
    """
    check_memory(ansatz, len(basis))
    dimension, gates = len(basis), len(ansatz.gates)
    kind = np.complex128 if _is_complex(ansatz) else np.float64
    partners, couplings = np.empty((gates, dimension), dtype=np.int64), np.empty((gates, dimension), dtype=kind)
    signs, gate = np.ones(dimension), gates
    for part in reversed(ansatz.parts):
        if isinstance(part, Entangler):
            signs = signs * part.signs(basis)
            continue
        gate -= 1
        partners[gate], coupling = part.coupling(basis, ansatz.wires)
        couplings[gate] = signs * coupling * signs[partners[gate]]
    start = np.zeros(dimension, dtype=kind)
    start[np.searchsorted(basis, ((1 << ansatz.occupied) - 1) << (ansatz.wires - ansatz.occupied))] = 1
    return Rotations(start, partners, couplings, (couplings != 0).astype(np.float64))


def energy_of(ansatz: AnsatzCircuit, matrix: csr_array, basis: NDArray[np.int64]) -> Energy:
    """The energy, under a Hamiltonian's matrix over the ascending `basis`, of an ansatz.

    Raises:
        TooManyQubits: as `rotations_of` does.
    """
    rotations = rotations_of(ansatz, basis)
    if np.isrealobj(rotations.start):
        matrix = matrix.real  # of a Hermitian matrix no more can be seen with real amplitudes
    return Energy(rotations, matrix.toarray() if len(basis) <= DENSE else matrix)


def gradients_at(state: Amplitudes, image: Amplitudes, gates: Sequence[Gate], basis: NDArray[np.int64], wires: int) -> NDArray[np.float64]:
    """The derivative of the energy by each of `gates`, were it to follow at zero; image: the Hamiltonian on the state."""
    slopes = []
    for gate in gates:
        partners, couplings = gate.coupling(basis, wires)
        slopes.append(float(np.vdot(image, couplings * state[partners]).real))
    return np.array(slopes)


def _is_complex(ansatz: AnsatzCircuit) -> bool:
    return any(isinstance(gate, Turn) and gate.axis == "Z" for gate in ansatz.gates)
