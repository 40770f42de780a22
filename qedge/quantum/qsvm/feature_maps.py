"""Feature maps: circuits that take a row of numbers to a state, one wire for each feature.

- `zz`: H on every wire, then exp(-i (Σ x_i Z_i + Σ (π - x_i)(π - x_j) Z_i Z_j)), both so often as there are repetitions
  (V. Havlíček et al., Nature 567 (2019) 209, equation 6).
- `iqp`: the same with exp(-i/2 (Σ x_i Z_i + Σ x_i x_j Z_i Z_j)) (D. Shepherd, M. Bremner, Proc. R. Soc. A 465 (2009) 1413).
- `angle`: RY(x_i), a product state, whose kernel Π cos²((x_i - y_i)/2) needs no quantum computer: the null hypothesis among the maps.

Features are multiplied by a bandwidth first: without one, kernels of many wires are near the identity and learn nothing (R. Shaydulin,
S. Wild, Phys. Rev. A 106, 042407 (2022)).

States of a whole table are simulated at once: diagonal phases by one matrix product, H on every wire by a Walsh-Hadamard transform.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.errors import TooManyQubits
from qedge.quantum.qsvm.job import FeatureMap
from qedge.quantum.state_size import limit_bytes

Reals = NDArray[np.float64]
States = NDArray[np.complex128]
Pairs = tuple[tuple[int, int], ...]

MOST_QUBITS = 16
_COPIES = 4  # of all states that are held at once: phases, states, what a transform makes of them, and the other rows'


def pairs_of(map_: FeatureMap, qubits: int) -> Pairs:
    """Which wires act on each other."""
    if map_.kind == "angle":
        return ()
    if map_.entanglement == "linear":
        return tuple((wire, wire + 1) for wire in range(qubits - 1))
    return tuple(combinations(range(qubits), 2))


def circuit(map_: FeatureMap, row: Reals) -> QuantumScript:
    """The circuit of one row, [qubits], without measurements."""
    qubits = len(row)
    if map_.kind == "angle":
        return QuantumScript([qml.RY(float(map_.bandwidth * value), wire) for wire, value in enumerate(row)])
    pairs = pairs_of(map_, qubits)
    phases = _phases(map_, row[np.newaxis], pairs)[0]
    operations: list[Operator] = []
    for _ in range(map_.repetitions):
        operations += [qml.Hadamard(wire) for wire in range(qubits)]
        operations += [qml.RZ(2 * float(phase), wire) for wire, phase in enumerate(phases[:qubits])]
        for pair, phase in zip(pairs, phases[qubits:], strict=True):
            operations += [qml.CNOT(pair), qml.RZ(2 * float(phase), pair[1]), qml.CNOT(pair)]
    return QuantumScript(operations)


def states(map_: FeatureMap, rows: Reals) -> States:
    """The state of every row, [rows, 2^qubits] complex128; rows: [rows, qubits]. Wire 0 is the most significant.

    Raises:
        TooManyQubits: over 16, or more than memory holds.
    """
    number, qubits = rows.shape
    refuse_too_many(number, qubits)
    if map_.kind == "angle":
        half = map_.bandwidth * rows / 2
        product = np.ones((number, 1))
        for wire in range(qubits):
            turn = np.stack([np.cos(half[:, wire]), np.sin(half[:, wire])], axis=1)
            product = (product[:, :, np.newaxis] * turn[:, np.newaxis]).reshape(number, -1)
        return np.asarray(product, dtype=np.complex128)
    pairs = pairs_of(map_, qubits)
    turned: States = np.exp(-1j * (_phases(map_, rows, pairs) @ _signs(qubits, pairs)))
    found: States = turned * 2.0 ** (-qubits / 2)  # H on every wire of |0> is even
    for _ in range(map_.repetitions - 1):
        found = turned * _hadamards(found, qubits)
    return found


def refuse_too_many(rows: int, qubits: int) -> None:
    """Check that the states of so many rows fit.

    Raises:
        TooManyQubits: they do not, or there are over 16 wires.
    """
    needed, limit = _COPIES * 16 * rows * 2**qubits, limit_bytes()
    if qubits > MOST_QUBITS:
        raise TooManyQubits(f"kernels are simulated with at most {MOST_QUBITS} qubits, given {qubits}", given=qubits, accepted=MOST_QUBITS)
    if needed > limit:
        raise TooManyQubits(
            f"{rows} states of {qubits} qubits take an estimated {needed / 2**20:.0f} MiB, the limit is {limit / 2**20:.0f} MiB; "
            "accepted: fewer rows, or fewer qubits",
            given=qubits,
            needed_bytes=needed,
            limit_bytes=limit,
        )


def _phases(map_: FeatureMap, rows: Reals, pairs: Pairs) -> Reals:
    """Of each Z, then of each ZZ: [rows, qubits + pairs]."""
    rows = map_.bandwidth * rows
    first, second = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    if map_.kind == "iqp":
        return np.concatenate([rows, rows[:, first] * rows[:, second]], axis=1) / 2
    return np.concatenate([rows, (np.pi - rows[:, first]) * (np.pi - rows[:, second])], axis=1)


@cache
def _signs(qubits: int, pairs: Pairs) -> Reals:
    """What each Z and ZZ is on each basis state: [qubits + pairs, 2^qubits] of 1 and -1."""
    bits = np.arange(2**qubits) >> np.arange(qubits - 1, -1, -1)[:, np.newaxis] & 1
    signs = 1.0 - 2.0 * bits
    return np.concatenate([signs, *(signs[first : first + 1] * signs[second] for first, second in pairs)])


def _hadamards(found: States, qubits: int) -> States:
    """H on every wire of every state."""
    for wire in range(qubits):
        halves = found.reshape(len(found), 2**wire, 2, -1)
        found = np.stack([halves[:, :, 0] + halves[:, :, 1], halves[:, :, 0] - halves[:, :, 1]], axis=2)
    return np.asarray(found.reshape(len(found), -1) * 2.0 ** (-qubits / 2))
