"""The circuit of a QAOA in gates, for backends and for counting: CNOT, RZ and one-qubit rotations."""

from __future__ import annotations

import pennylane as qml
from pennylane.measurements import MeasurementProcess
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.quantum.qaoa.problems import Problem, Reals


def circuit(
    problem: Problem,
    gammas: Reals,
    betas: Reals,
    measurements: list[MeasurementProcess],
    *,
    thetas: Reals | None = None,
    shots: int | None = None,
) -> QuantumScript:
    """exp(-i beta mixer) exp(-i gamma gain) for each layer, on qubit 0 (the most significant bit) to n - 1, up to a global phase.

    thetas: of a warm start, [n]: its first state is RY(theta_i), and its mixer has that state at its top.
    """
    wires = range(problem.qubits)
    operations: list[Operator] = []
    operations += [qml.Hadamard(wire) for wire in wires] if thetas is None else [qml.RY(float(thetas[wire]), wire) for wire in wires]
    for gamma, beta in zip(gammas.tolist(), betas.tolist(), strict=True):
        for (a, b), coupling in zip(problem.pairs.tolist(), problem.couplings.tolist(), strict=True):
            operations += [qml.CNOT([a, b]), qml.RZ(2 * gamma * coupling, b), qml.CNOT([a, b])]
        operations += [qml.RZ(2 * gamma * field, wire) for wire, field in enumerate(problem.fields.tolist()) if field]
        for wire in wires:
            operations += _mixer(wire, beta, None if thetas is None else float(thetas[wire]))
    return QuantumScript(operations, measurements, shots=shots)


def _mixer(wire: int, beta: float, theta: float | None) -> list[Operator]:
    if theta is None:
        return [qml.RX(2 * beta, wire)]
    return [qml.RY(-theta, wire), qml.RZ(2 * beta, wire), qml.RY(theta, wire)]
