"""One circuit on a backend: the bitstrings that it yields, with error bars, and how near that comes to the ideal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pennylane as qml
from pennylane.tape import QuantumScript
from pydantic import JsonValue

from qedge.errors import InvalidCircuit
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Executor, LocalExecutor, wires_of, with_idle
from qedge.quantum.fidelity import MOST_QUBITS, distribution_fidelity
from qedge.quantum.resources import Resources, count

MOST_BITS = 20  # of which all frequencies are listed
_EXACT = "default.qubit"


@dataclass(frozen=True)
class CircuitRun:
    """probabilities: of each bitstring that was seen, most frequent first, with one standard deviation (0 where exact).

    fidelity: of these probabilities to the ideal ones (readout errors are among it), up to 10 qubits; it lies lower with few shots.
    """

    backend: str
    shots: int | None
    probabilities: dict[str, tuple[float, float]]
    fidelity: float | None
    resources: Resources

    def plain(self) -> dict[str, JsonValue]:
        """As `--json` shows it."""
        return {
            "backend": self.backend,
            "probabilities": {bits: value for bits, (value, _) in self.probabilities.items()},
            "errors": {bits: error for bits, (_, error) in self.probabilities.items()},
            "fidelity": self.fidelity,
            **{name: value for name, value in self.resources.plain().items() if name != "circuits"},
        }


def run_circuit(script: QuantumScript, backend: Backend, executor: Executor | None = None, *, qubits: int = 0) -> CircuitRun:
    """Run it as it measures; all wires where it measures nothing, the first wire being the first bit.

    qubits: wires 0 to qubits - 1 are there though no gate may touch them.

    Raises:
        InvalidCircuit: it measures something else than bits, or too many of them. Others as the executor.
    """
    wires = _measured(script, qubits)
    asked = QuantumScript(script.operations, [qml.probs(wires=wires)])
    (answer,) = (executor or LocalExecutor()).run([asked], backend)
    found = np.asarray(answer, dtype=np.float64)
    fidelity = None
    if len(wires_of(asked)) <= MOST_QUBITS:
        (ideal,) = LocalExecutor().run([asked], Backend(name=_EXACT))
        fidelity = distribution_fidelity(found, np.asarray(ideal, dtype=np.float64))
    order = sorted(np.flatnonzero(found > 1e-12), key=lambda place: -found[place])
    spread = np.zeros_like(found)
    if backend.shots:  # with one more shot spread evenly: shots that all agree are no certainty
        smoothed = (found * backend.shots + 1 / len(found)) / (backend.shots + 1)
        spread = np.sqrt(smoothed * (1 - smoothed) / backend.shots)
    seen = {f"{place:0{len(wires)}b}": (float(found[place]), float(spread[place])) for place in order}
    taken = replace(count(asked), shots=backend.shots or 0)
    return CircuitRun(backend.name, backend.shots, seen, fidelity, taken)


def _measured(script: QuantumScript, qubits: int) -> list[object]:
    if any(not isinstance(one, qml.measurements.ProbabilityMP) for one in script.measurements):
        raise InvalidCircuit("a circuit that measures something else than bits; accepted: probabilities of its wires")
    wires: list[object] = list(qml.wires.Wires.all_wires([one.wires for one in script.measurements])) or with_idle(script, qubits)
    if not wires or len(wires) > MOST_BITS:
        raise InvalidCircuit(f"{len(wires)} bits are measured; accepted: 1 to {MOST_BITS}", given=len(wires), accepted=MOST_BITS)
    return wires
