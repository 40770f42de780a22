"""Folding: the same circuit, longer, so that its noise is a known number of times as strong.

Global folding runs the circuit forth and back, U (U^dagger U)^n, and for what is left over its last gates only. Local folding does it gate
by gate, G (G^dagger G)^n; for what is left over, with gates spread evenly over the circuit, those on one wire and on two apart, so that
both kinds of noise grow alike.

Source: T. Giurgica-Tiron et al., "Digital zero noise extrapolation for quantum error mitigation", IEEE QCE (2020), section II.A,
algorithms 1 and 2. There gates are drawn at random; here they are spread evenly, which is the same circuit every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import pennylane as qml
from pennylane.operation import Operator

from qedge.errors import InvalidCircuit, InvalidValue

Folding = Literal["local", "global"]

_OWN_INVERSE = frozenset({"Hadamard", "PauliX", "PauliY", "PauliZ", "CNOT", "CZ"})
_ROTATIONS = frozenset({"RX", "RY", "RZ", "PhaseShift"})
_FIXED: Mapping[str, Callable[[object], Operator]] = MappingProxyType(
    {
        "S": lambda wires: qml.PhaseShift(-np.pi / 2, wires),
        "T": lambda wires: qml.PhaseShift(-np.pi / 4, wires),
        "SX": lambda wires: qml.RX(-np.pi / 2, wires),
    }
)


def fold(gates: Sequence[Operator], scale: float, how: Folding = "local") -> tuple[list[Operator], float]:
    """Gates that do the same with about `scale` (at least 1) times as many, and how many times as many they are.

    gates: one-qubit gates, CNOT and CZ. A barrier stands between each piece and its inverse, lest a compiler takes both away.

    Raises:
        InvalidValue: a scale below 1.
        InvalidCircuit: a gate of another kind.
    """
    if not math.isfinite(scale) or scale < 1:
        raise InvalidValue(f"noise is scaled by factors of at least 1; given {scale}", given=scale, accepted=">= 1")
    if not gates:
        return [], scale
    if how == "global":
        return _globally(gates, scale)
    return _locally(gates, scale)


def inverse(gate: Operator) -> Operator:
    """What undoes a gate, up to a global phase, with one gate.

    Raises:
        InvalidCircuit: a gate that is neither on one qubit nor CNOT or CZ.
    """
    if gate.name in _OWN_INVERSE:
        return gate
    if gate.name in _ROTATIONS:
        return type(gate)(-gate.data[0], wires=gate.wires)
    if gate.name in _FIXED:
        return _FIXED[gate.name](gate.wires)
    raise InvalidCircuit(f"'{gate.name}' cannot be folded; accepted: one-qubit gates, CNOT and CZ", given=gate.name)


def _globally(gates: Sequence[Operator], scale: float) -> tuple[list[Operator], float]:
    whole, last = divmod(round((scale - 1) * len(gates) / 2), len(gates))
    folded = list(gates)
    for piece in [list(gates)] * whole + ([list(gates)[-last:]] if last else []):
        folded += [_barrier(piece), *(inverse(gate) for gate in reversed(piece)), _barrier(piece), *piece]
    return folded, 1 + 2 * (whole + last / len(gates))


def _locally(gates: Sequence[Operator], scale: float) -> tuple[list[Operator], float]:
    folds = (scale - 1) / 2
    seen = {1: 0, 2: 0}
    total = 0
    folded: list[Operator] = []
    for gate in gates:
        size = min(2, len(gate.wires))
        times = math.floor((seen[size] + 1) * folds + 0.5) - math.floor(seen[size] * folds + 0.5)
        seen[size] += 1
        total += times
        folded.append(gate)
        for _ in range(times):
            folded += [_barrier([gate]), inverse(gate), _barrier([gate]), gate]
    return folded, 1 + 2 * total / len(gates)


def _barrier(gates: Sequence[Operator]) -> Operator:
    return qml.Barrier(wires=qml.wires.Wires.all_wires([gate.wires for gate in gates]))
