"""What a circuit, or a whole job, takes: qubits, gates, CX, depth, shots, seconds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pennylane as qml
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit

CX_BASIS = frozenset({"RX", "RY", "RZ", "PhaseShift", "Hadamard", "PauliX", "PauliY", "PauliZ", "S", "T", "SX", "CNOT"})
_FREE = frozenset({"GlobalPhase", "Identity", "Barrier"})


@dataclass(frozen=True)
class Resources:
    """What was taken.

    qubits, gates, cx, depth: of the largest circuit, in one-qubit gates and CNOT; shots: over all circuits, 0 where it was analytic;
    circuits: executions; seconds: wall time.
    """

    qubits: int
    gates: int
    cx: int
    depth: int
    shots: int = 0
    circuits: int = 0
    seconds: float = 0.0

    def spent(self, *, shots: int = 0, circuits: int = 0, seconds: float = 0.0) -> Resources:
        """These, and so much more of what adds up."""
        return replace(self, shots=self.shots + shots, circuits=self.circuits + circuits, seconds=self.seconds + seconds)

    def plain(self) -> dict[str, float]:
        """As in a result's JSON."""
        return dict(vars(self))


def in_cx_basis(circuit: QuantumScript) -> QuantumScript:
    """The circuit in one-qubit gates and CNOT, as PennyLane decomposes it; nothing is optimised.

    Raises:
        InvalidCircuit: an operation that has no decomposition into these.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not define a decomposition", category=UserWarning)
        try:
            (decomposed,), _ = qml.transforms.decompose(circuit, gate_set={*CX_BASIS, *_FREE})
        except qml.exceptions.DecompositionUndefinedError as error:
            raise InvalidCircuit(f"an operation cannot be written in one-qubit gates and CNOT: {error}") from error
    if left := sorted({gate.name for gate in decomposed.operations} - CX_BASIS - _FREE):
        raise InvalidCircuit(f"cannot be written in one-qubit gates and CNOT: {', '.join(left)}", operations=left)
    return decomposed


def count(circuit: QuantumScript) -> Resources:
    """What one execution takes, counted in one-qubit gates and CNOT; a global phase is no gate.

    Raises:
        InvalidCircuit: an operation that has no decomposition into these.
    """
    gates = [one for one in in_cx_basis(circuit).operations if one.name not in _FREE]
    ends: dict[object, int] = {}
    for gate in gates:
        at = 1 + max((ends.get(wire, 0) for wire in gate.wires), default=0)
        ends.update(dict.fromkeys(gate.wires, at))
    shots = circuit.shots.total_shots or 0
    return Resources(len(circuit.wires), len(gates), sum(gate.name == "CNOT" for gate in gates), max(ends.values(), default=0), shots, 1)


def largest(resources: Iterable[Resources]) -> Resources:
    """The largest of each kind of size, the sum of what adds up; of nothing, nothing."""
    total = Resources(0, 0, 0, 0)
    for one in resources:
        total = Resources(
            max(total.qubits, one.qubits),
            max(total.gates, one.gates),
            max(total.cx, one.cx),
            max(total.depth, one.depth),
            total.shots + one.shots,
            total.circuits + one.circuits,
            total.seconds + one.seconds,
        )
    return total
