"""Double excitations with their wires in another order, so that neighbours' ends cancel.

DoubleExcitation(θ) on wires a, b, c, d is the same on b, a, c, d, on a, b, d, c, and with -θ on c, d, a, b; its decomposition is not, and
begins and ends with CNOTs on the last two and the first. Those of neighbours cancel where these wires are the same.
Source: J. M. Arrazola et al., Quantum 6 (2022) 742 (the gate and its decomposition).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pennylane as qml
from pennylane.operation import Operator
from pennylane.tape import QuantumScript


def rearranged(script: QuantumScript) -> Iterator[QuantumScript]:
    """The script with all of its double excitations in each of the other orders; nothing where it has none."""
    if not any(isinstance(gate, qml.DoubleExcitation) for gate in script.operations):
        return
    for exchanged, first, second in list(itertools.product((False, True), repeat=3))[1:]:
        yield script.copy(operations=[_rearranged(gate, exchanged, first, second) for gate in script.operations])


def _rearranged(gate: Operator, exchanged: bool, first: bool, second: bool) -> Operator:
    if not isinstance(gate, qml.DoubleExcitation):
        return gate
    low, high = list(gate.wires[:2]), list(gate.wires[2:])
    low, high = low[::-1] if first else low, high[::-1] if second else high
    angle = gate.parameters[0]
    return qml.DoubleExcitation(-angle, wires=high + low) if exchanged else qml.DoubleExcitation(angle, wires=low + high)
