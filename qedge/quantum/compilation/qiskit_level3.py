"""Qiskit's own compilation at level 3, where Qiskit is installed (the extra `qedge[qiskit]`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from qedge.quantum.compilation.gate import Gate, cnot, ry, rz


def installed() -> bool:
    """Whether Qiskit is."""
    return importlib.util.find_spec("qiskit") is not None


def transpiled(gates: Sequence[Gate], wires: int) -> list[Gate]:
    """The gates by Qiskit's level 3, any two wires neighbours, its U written as turns about Z, Y and Z.

    Should it have renamed wires at the end, the result differs from what was given and is not taken.
    """
    from qiskit import QuantumCircuit, transpile

    circuit = QuantumCircuit(wires)
    methods = {"PhaseShift": "p", "Hadamard": "h", "CNOT": "cx"}
    for gate in gates:
        method = methods.get(gate.name, gate.name.removeprefix("Pauli").lower())
        getattr(circuit, method)(*gate.parameters, *gate.wires)
    found: list[Gate] = []
    compiled = transpile(circuit, basis_gates=["u", "cx"], optimization_level=3, seed_transpiler=0)
    for one in compiled.data:
        places = [compiled.find_bit(qubit).index for qubit in one.qubits]
        if one.operation.name == "cx":
            found.append(cnot(*places))
        elif one.operation.name == "u":
            middle, last, first = map(float, one.operation.params)
            found += [rz(first, places[0]), ry(middle, places[0]), rz(last, places[0])]
    return found
