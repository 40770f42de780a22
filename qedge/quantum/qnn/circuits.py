"""A quantum layer's circuits as PennyLane's, one for each row."""

from __future__ import annotations

from collections.abc import Sequence

import pennylane as qml
import torch
from pennylane.measurements import MeasurementProcess
from pennylane.operation import Operation
from pennylane.tape import QuantumScript

from qedge.quantum.qnn.layer import QuantumLayer


def circuits_of(
    layer: QuantumLayer, angles: torch.Tensor, *, measured: Sequence[MeasurementProcess] = (), shots: int | None = None
) -> list[QuantumScript]:
    """The circuit of each row of angles, [rows, qubits], on wires 0, 1, …; measured: by default <Z> of every wire."""
    weights = layer.weights.detach().double()
    wires = range(layer.qubits)
    embed = qml.RY if layer.circuit.embedding == "ry" else qml.RX
    measurements = list(measured) or [qml.expval(qml.Z(wire)) for wire in wires]
    scripts = []
    for row in angles.detach().double():
        operations: list[Operation] = []
        for number, rotations in enumerate(weights):
            if number == 0 or layer.circuit.reupload:
                operations += [embed(float(row[wire]), wires=wire) for wire in wires]
            operations += [qml.Rot(*rotations[wire].tolist(), wires=wire) for wire in wires]
            if len(wires) > 1:
                operations += [qml.CNOT((wire, (wire + 1) % len(wires))) for wire in wires]
        scripts.append(QuantumScript(operations, measurements, shots=shots))
    return scripts
