"""The density matrix that a noisy circuit of small gates prepares, as one operation in place of all of them.

PennyLane's `default.mixed` applies gates and channels one by one with general sums over indices. Here each is a matrix on vectorised
density matrices; whatever stands on one wire between two gates on two is multiplied together first, four by four, and the state is
touched only by gates on two wires. What is measured, with shots and seeds, stays with `default.mixed`.

Source: C. Wood, J. Biamonte, D. Cory, "Tensor networks and graphical calculus for open quantum systems", arXiv:1111.6950 (2015), section
3.1: vec(K rho K^dagger) = (K (x) conj(K)) vec(rho) row by row, summed over the Kraus operators K.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.operation import Channel, Operator
from pennylane.tape import QuantumScript

from qedge.quantum.resources import CX_BASIS

Matrix = NDArray[np.complex128]

_NOTHING = frozenset({"GlobalPhase", "Barrier", "Identity"})
# Name and parameters say all of these; in a noise model the same ones come again and again.
_TOLD_BY_DATA = CX_BASIS | {"DepolarizingChannel", "AmplitudeDamping", "PhaseDamping"}
_ALONE: Matrix = np.eye(4, dtype=np.complex128)


def prepared(circuit: QuantumScript, wires: Sequence[object]) -> QuantumScript:
    """The circuit with its density matrix prepared at once; unchanged where an operation is on more than two wires or has no matrix.

    wires: all there are, the most significant first.
    """
    operations = [one for one in circuit.operations if one.name not in _NOTHING]
    if circuit.batch_size is not None or not operations or not all(map(_is_small, operations)):
        return circuit
    state = qml.QubitDensityMatrix(density_matrix(operations, wires), wires=list(wires))
    return circuit.copy(operations=[state])


def density_matrix(operations: Sequence[Operator], wires: Sequence[object]) -> Matrix:
    """What operations on one or two wires each make of |0...0>, [2^wires, 2^wires]; wires: the most significant first."""
    place = {wire: number for number, wire in enumerate(wires)}
    state = np.zeros((4,) * len(wires), dtype=np.complex128)  # one axis for each wire: of its ket, then its bra
    state[(0,) * len(wires)] = 1
    pending: dict[int, Matrix] = {}
    known: dict[tuple[str | float, ...], Matrix] = {}
    for operation in operations:
        at = [place[wire] for wire in operation.wires]
        if operation.name not in _TOLD_BY_DATA:
            matrix = superoperator(operation)
        else:
            key = (operation.name, *map(float, operation.data))
            if key not in known:
                known[key] = superoperator(operation)
            matrix = known[key]
        if len(at) == 1:
            pending[at[0]] = matrix @ pending.get(at[0], _ALONE)
        else:
            before = np.kron(pending.pop(at[0], _ALONE), pending.pop(at[1], _ALONE))
            state = _applied(matrix @ before, state, at)
    for wire, left in pending.items():
        state = _applied(left, state, [wire])
    kets, bras = range(0, 2 * len(wires), 2), range(1, 2 * len(wires), 2)
    return np.asarray(state.reshape((2,) * (2 * len(wires))).transpose([*kets, *bras]).reshape((2 ** len(wires),) * 2))


def superoperator(operation: Operator) -> Matrix:
    """A gate or channel on vectorised density matrices, wire by wire the ket before the bra: [4, 4] for one wire, [16, 16] for two."""
    kraus = operation.kraus_matrices() if isinstance(operation, Channel) else [operation.matrix()]
    stacked = np.asarray(kraus, dtype=np.complex128)
    if len(operation.wires) == 1:
        return np.asarray(np.einsum("kab,kcd->acbd", stacked, stacked.conj()).reshape(4, 4))
    stacked = stacked.reshape(-1, 2, 2, 2, 2)
    return np.asarray(np.einsum("kabcd,kefgh->aebfcgdh", stacked, stacked.conj()).reshape(16, 16))


def _applied(matrix: Matrix, state: Matrix, at: Sequence[int]) -> Matrix:
    number = len(at)
    moved = np.tensordot(matrix.reshape((4,) * (2 * number)), state, axes=(range(number, 2 * number), at))
    return np.moveaxis(moved, range(number), at)


def _is_small(operation: Operator) -> bool:
    return 1 <= len(operation.wires) <= 2 and (isinstance(operation, Channel) or bool(operation.has_matrix))
