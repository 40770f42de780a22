"""A circuit in one-qubit gates and CNOT on wires 0, 1, …: what every pass reads and writes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pennylane as qml
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit
from qedge.quantum.compilation.gate import Gate
from qedge.quantum.resources import CX_BASIS, in_cx_basis


def lower(script: QuantumScript, wires: Sequence[object] | None = None) -> list[Gate]:
    """Its operations in one-qubit gates and CNOT, on wires numbered as in `wires`, or its own in order; global phases are left out.

    Raises:
        InvalidCircuit: an operation that has no such decomposition, a measurement midway, or a parameter that is not one finite number.
    """
    numbers = {wire: number for number, wire in enumerate(ordered(script) if wires is None else wires)}
    gates: list[Gate] = []
    for gate in in_cx_basis(script).operations:
        if gate.name not in CX_BASIS:
            continue
        if any(qml.math.ndim(one) or not math.isfinite(float(one)) for one in gate.parameters):
            raise InvalidCircuit(f"{gate.name} has a parameter that is not one finite number", parameters=str(gate.parameters))
        places = tuple(numbers[wire] for wire in gate.wires)
        gates.append(Gate(gate.name, places, tuple(float(one) for one in gate.parameters)))
    return gates


def without_swaps(script: QuantumScript) -> QuantumScript:
    """The circuit with swaps carried out by renaming wires from there on, where it measures: what it measures is then looked for on
    another wire. One that measures nothing is left as it is: where its wires end is all that it says.
    """
    if not script.measurements or all(one.name != "SWAP" for one in script.operations):
        return script
    now = {wire: wire for wire in script.wires}
    operations: list[Operator] = []
    for one in script.operations:
        if one.name == "SWAP":
            first, second = one.wires
            now[first], now[second] = now[second], now[first]
        else:
            operations.append(one.map_wires({wire: now[wire] for wire in one.wires}))
    whole = [one if one.wires else type(one)(wires=list(script.wires)) for one in script.measurements]
    return script.copy(operations=operations, measurements=[one.map_wires(now) for one in whole])


def raise_again(gates: Sequence[Gate], script: QuantumScript) -> QuantumScript:
    """These gates on the script's own wires, with its measurements and shots."""
    labels = dict(enumerate(ordered(script)))
    return script.copy(operations=[gate.operation().map_wires(labels) for gate in gates])


def ordered(script: QuantumScript) -> list[object]:
    """Its wires by label, whichever gate comes first: what is compiled again is numbered as before."""
    return sorted(script.wires, key=lambda wire: (type(wire).__name__, wire if isinstance(wire, int | str) else repr(wire)))


def size(gates: Sequence[Gate]) -> tuple[int, int, int]:
    """CNOTs, depth, gates: what is to be small, in this order."""
    ends: dict[int, int] = {}
    for gate in gates:
        ends.update(dict.fromkeys(gate.wires, 1 + max(ends.get(wire, 0) for wire in gate.wires)))
    return sum(len(gate.wires) == 2 for gate in gates), max(ends.values(), default=0), len(gates)
