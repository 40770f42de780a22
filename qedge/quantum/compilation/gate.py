"""A gate as the passes see it: what they need of PennyLane's operation, which takes some hundred times as long to make and to ask.

Only between `lower` and `raise_again`: circuits go in and out as PennyLane's.
"""

from __future__ import annotations

from typing import NamedTuple

import pennylane as qml
from pennylane.operation import Operator


class Gate(NamedTuple):
    """A one-qubit gate or CNOT. name: PennyLane's; wires: numbers, of a CNOT the control first; parameters: none, or an angle."""

    name: str
    wires: tuple[int, ...]
    parameters: tuple[float, ...] = ()

    def operation(self) -> Operator:
        """As PennyLane's."""
        kind: type[Operator] = getattr(qml, self.name)
        return kind(*self.parameters, wires=self.wires)


def rx(angle: float, wire: int) -> Gate:
    """A turn about X."""
    return Gate("RX", (wire,), (angle,))


def ry(angle: float, wire: int) -> Gate:
    """A turn about Y."""
    return Gate("RY", (wire,), (angle,))


def rz(angle: float, wire: int) -> Gate:
    """A turn about Z."""
    return Gate("RZ", (wire,), (angle,))


def hadamard(wire: int) -> Gate:
    """A Hadamard gate."""
    return Gate("Hadamard", (wire,))


def cnot(control: int, target: int) -> Gate:
    """A CNOT."""
    return Gate("CNOT", (control, target))


AXES = {"X": rx, "Y": ry, "Z": rz}
