"""Pauli twirling: random Paulis around each CNOT and CZ that change nothing but the noise, of which Pauli channels stay on average.

Coherent errors then add up like random ones. Each Pauli is a gate with noise of its own.

Source: J. Wallman, J. Emerson, "Noise tailoring for scalable quantum computation via randomized compiling", Phys. Rev. A 94, 052325 (2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pennylane as qml
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.errors import InvalidCircuit
from qedge.quantum.mitigation.mitigated import Estimate
from qedge.quantum.mitigation.settings import Measurement
from qedge.quantum.resources import CX_BASIS

_PAULIS = {(1, 0): qml.PauliX, (0, 1): qml.PauliZ, (1, 1): qml.PauliY}
_NOTHING = frozenset({"GlobalPhase", "Identity", "Barrier"})


def construct(
    circuit: QuantumScript, measurement: Measurement, copies: int, shots: int | None, generator: np.random.Generator
) -> list[list[QuantumScript]]:
    """The circuits of each random copy; shots: of each circuit.

    Raises:
        InvalidCircuit: an operation that has no decomposition into one-qubit gates, CNOT and CZ.
    """
    plain = _with_cz(circuit)
    total = measurement.shots(shots)
    return [measurement.circuits(twirled(plain, generator), total) for _ in range(copies)]


def twirled(gates: Sequence[Operator], generator: np.random.Generator) -> list[Operator]:
    """The same unitary up to its global phase, with a random Pauli on each wire before every CNOT and CZ and what undoes it after."""
    found: list[Operator] = []
    for gate in gates:
        if gate.name not in ("CNOT", "CZ"):
            found.append(gate)
            continue
        first, second = ((int(x), int(z)) for x, z in generator.integers(0, 2, (2, 2)))
        found += [*_paulis(gate, first, second), gate, *_paulis(gate, *_conjugated(gate.name, first, second))]
    return found


def combine(copies: Sequence[Estimate]) -> Estimate:
    """Their mean. Its variance is seen between copies, and never less than that of their shots."""
    values = np.array([one.value for one in copies])
    drawn = sum(one.variance for one in copies) / len(copies) ** 2
    between = float(values.var(ddof=1)) / len(copies) if len(copies) > 1 else 0.0
    return Estimate(float(values.mean()), max(drawn, between), sum(one.shots for one in copies), sum(one.circuits for one in copies))


def _conjugated(name: str, first: tuple[int, int], second: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """What Paulis before the gate are after it, as (x, z) of each wire: CNOT takes X of its control along, and Z of its target back."""
    (x1, z1), (x2, z2) = first, second
    if name == "CNOT":
        return (x1, z1 ^ z2), (x2 ^ x1, z2)
    return (x1, z1 ^ x2), (x2, z2 ^ x1)


def _paulis(gate: Operator, first: tuple[int, int], second: tuple[int, int]) -> list[Operator]:
    return [_PAULIS[bits](wire) for bits, wire in zip((first, second), gate.wires, strict=True) if bits in _PAULIS]


def _with_cz(circuit: QuantumScript) -> list[Operator]:
    try:
        (plain,), _ = qml.transforms.decompose(circuit, gate_set={*CX_BASIS, "CZ", *_NOTHING})
    except qml.exceptions.DecompositionUndefinedError as error:
        raise InvalidCircuit(f"an operation cannot be written in one-qubit gates, CNOT and CZ: {error}") from error
    return [gate for gate in plain.operations if gate.name not in _NOTHING]
