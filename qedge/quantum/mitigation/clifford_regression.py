"""Clifford data regression: what noise does to circuits like this one, of which the ideal value is known, undone by a line.

Training circuits are the circuit itself with all but a few rotations put to multiples of pi/2, those nearest to their angle being the
likeliest. Here their ideal values are simulated whole, not by stabilisers, so that the circuit must be small enough for that.

Source: P. Czarnik, A. Arrasmith, P. Coles, L. Cincio, "Error mitigation with Clifford quantum-circuit data", Quantum 5, 592 (2021),
sections 2 and 3.2. Departure: training circuits are drawn one by one from the circuit's gates, not by a Markov chain near the target state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pennylane as qml
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.quantum.mitigation.mitigated import Estimate
from qedge.quantum.mitigation.settings import gates

_TURNED = frozenset({"RX", "RY", "RZ", "PhaseShift", "T"})
_SPREAD = 0.5  # of the weights exp(-(distance / spread)^2) of multiples of pi/2, distance as in the paper's equation 10


@dataclass(frozen=True)
class Line:
    """ideal = slope * noisy + offset. spread_too_little: training circuits were too alike; the slope is 1, and only the offset fitted."""

    value: float
    variance: float
    slope: float
    offset: float
    spread_too_little: bool


def training_gates(circuit: QuantumScript, number: int, non_clifford: int, generator: np.random.Generator) -> list[list[Operator]]:
    """The gates of each training circuit.

    Raises:
        InvalidCircuit: an operation that has no decomposition into one-qubit gates and CNOT.
    """
    plain = _with_angles(circuit)
    turned = [place for place, gate in enumerate(plain) if _is_turned(gate)]
    found = []
    for _ in range(number):
        kept = set(generator.permutation(turned)[:non_clifford].tolist())
        found.append([_turned(gate, generator) if place in turned and place not in kept else gate for place, gate in enumerate(plain)])
    return found


def is_clifford(circuit: QuantumScript) -> bool:
    """Whether every rotation of it is by a multiple of pi/2."""
    return not any(map(_is_turned, _with_angles(circuit)))


def combine(raw: Estimate, noisy: Sequence[Estimate], ideal: Sequence[float]) -> Line:
    """The raw value on the line fitted through training circuits, by least squares weighted alike."""
    x, y = np.array([one.value for one in noisy]), np.asarray(ideal, dtype=np.float64)
    centred = x - x.mean()
    drawn = float(np.mean([one.variance for one in noisy]))
    about = float(centred @ centred)
    alike = len(x) < 3 or about / max(1, len(x) - 1) <= max(2 * drawn, 1e-12)
    slope = 1.0 if alike else float(centred @ y) / about
    offset = float(y.mean() - slope * x.mean())
    left = y - slope * x - offset
    scatter = float(left @ left) / max(1, len(x) - (1 if alike else 2))
    value = slope * raw.value + offset
    variance = slope**2 * raw.variance + scatter / len(x) + (0.0 if alike else scatter * (raw.value - x.mean()) ** 2 / about)
    return Line(value, float(variance), slope, offset, alike)


def _with_angles(circuit: QuantumScript) -> list[Operator]:
    return [qml.PhaseShift(np.pi / 4, gate.wires) if gate.name == "T" else gate for gate in gates(circuit)]


def _is_turned(gate: Operator) -> bool:
    if gate.name not in _TURNED:
        return False
    quarters = float(gate.data[0]) / (np.pi / 2)
    return abs(quarters - round(quarters)) > 1e-9


def _turned(gate: Operator, generator: np.random.Generator) -> Operator:
    angles = np.arange(4) * np.pi / 2
    distances = 2 * np.abs(np.sin((float(gate.data[0]) - angles) / 2))
    weights = np.exp(-((distances / _SPREAD) ** 2))
    return type(gate)(float(generator.choice(angles, p=weights / weights.sum())), wires=gate.wires)
