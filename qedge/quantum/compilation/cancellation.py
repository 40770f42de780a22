"""Gates moved back through those they commute with, to where they cancel or merge.

What is diagonal passes a CNOT's control, what is a turn about X its target; CNOTs pass one another unless one's control is the other's
target.
Source: Y. Nam et al., "Automated optimization of large quantum circuits with continuous parameters", npj Quantum Information 4, 23 (2018),
section "Gate cancellation".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qedge.quantum.compilation.gate import AXES, Gate
from qedge.quantum.compilation.one_qubit import TOLERANCE

_WINDOW = 400
TURNS = {"RX": "X", "SX": "X", "PauliX": "X", "RY": "Y", "PauliY": "Y", "RZ": "Z", "PhaseShift": "Z", "PauliZ": "Z", "S": "Z", "T": "Z"}
_ANGLES = {"SX": math.pi / 2, "PauliX": math.pi, "PauliY": math.pi, "PauliZ": math.pi, "S": math.pi / 2, "T": math.pi / 4}


def cancel(gates: Sequence[Gate]) -> list[Gate]:
    """The gates without pairs of CNOTs that cancel, and with turns about one axis merged."""
    kept: list[Gate | None] = []
    for gate in gates:
        partner = _partner(gate, kept)
        if partner is None:
            kept.append(gate)
        else:
            kept[partner] = _merged(kept[partner], gate)
    return [gate for gate in kept if gate is not None]


def angle(gate: Gate) -> float:
    """What a turn about an axis turns by."""
    return float(gate.parameters[0]) if gate.parameters else _ANGLES[gate.name]


def _partner(gate: Gate, kept: Sequence[Gate | None]) -> int | None:
    axis = TURNS.get(gate.name)
    for place in range(len(kept) - 1, max(-1, len(kept) - _WINDOW), -1):
        other = kept[place]
        if other is None or not set(gate.wires) & set(other.wires):
            continue
        if gate.wires == other.wires and (
            gate.name == other.name == "CNOT" or gate.name == other.name == "Hadamard" or (axis and TURNS.get(other.name) == axis)
        ):
            return place
        if not _commute(gate, other):
            return None
    return None


def _commute(one: Gate, other: Gate) -> bool:
    """Of gates that share a wire and are not of one kind on the same wires."""
    if len(one.wires) == len(other.wires) == 2:
        return bool(one.wires[0] != other.wires[1] and one.wires[1] != other.wires[0])
    if len(one.wires) == 2:
        one, other = other, one
    if len(other.wires) == 1:
        return False
    return TURNS.get(one.name) == ("Z" if one.wires[0] == other.wires[0] else "X")


def _merged(one: Gate | None, other: Gate) -> Gate | None:
    if one is None or other.name in ("CNOT", "Hadamard"):
        return None
    total = math.remainder(angle(one) + angle(other), 2 * math.pi)
    return AXES[TURNS[other.name]](total, other.wires[0]) if abs(total) > TOLERANCE else None
