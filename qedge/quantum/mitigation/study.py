"""Mitigated expectation values: circuits constructed, run in one batch by whoever runs them, and combined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pennylane as qml
from pennylane.tape import QuantumScript
from pydantic import JsonValue

from qedge.quantum.backend import Backend
from qedge.quantum.execution import Executor, LocalExecutor, statevector
from qedge.quantum.mitigation import clifford_regression, readout, twirling, zne
from qedge.quantum.mitigation.job import Mitigation
from qedge.quantum.mitigation.mitigated import Estimate, Mitigated
from qedge.quantum.mitigation.readout import Confusion
from qedge.quantum.mitigation.settings import Measurement, gates, measurement

Found = tuple[float, float, dict[str, JsonValue]]


def mitigate(
    circuit: QuantumScript,
    asked: Mitigation,
    backend: Backend,
    *,
    executor: Executor | None = None,
    ideal: float | None = None,
    stream: int = 0,
    confusion: Confusion | None = None,
) -> Mitigated:
    """The expectation value that `circuit` measures, with less noise.

    Shots are those of the circuit, else of the backend, for each circuit of each basis; none: exact. ideal: where it is known, what the
    effect is judged by; confusion: where it was learnt before, and costs nothing again.

    Raises:
        InvalidCircuit: a circuit that measures other than one sum of Pauli words, or has an operation that cannot be written in one-qubit
            gates and CNOT.
        InvalidValue: a circuit too short for the scale factors, or a wire that is read the same whatever it is.
        TooManyQubits: too many for probabilities, or for simulating training circuits.
        UnknownBackend, BackendUnavailable: as the executor does.
    """
    shots = circuit.shots.total_shots or backend.shots
    return _Study(circuit, measurement(circuit), asked, backend, executor or LocalExecutor(), shots, stream).run(ideal, confusion)


class _Study:
    """One expectation value."""

    def __init__(
        self,
        circuit: QuantumScript,
        measured: Measurement,
        asked: Mitigation,
        backend: Backend,
        executor: Executor,
        shots: int | None,
        stream: int,
    ) -> None:
        self.circuit, self.measured, self.asked = circuit, measured, asked
        self.backend, self.executor, self.shots, self.stream = backend, executor, shots, stream
        self.confusion: Confusion | None = None
        self.raw: list[Estimate] = []
        self.taken, self.ran = 0, 0

    def run(self, ideal: float | None, confusion: Confusion | None) -> Mitigated:
        asked = self.asked
        self.confusion = confusion
        calibrating = asked.undoes_readout and confusion is None
        techniques = {"zne": self._zne, "readout": self._plain, "twirling": self._twirling, "clifford-regression": self._regression}
        value, variance, details = techniques[asked.technique](calibrating)
        if asked.undoes_readout and self.confusion is not None:
            rates = self.confusion.matrices
            details["readout"] = {
                "zero_as_one": rates[:, 1, 0].tolist(),
                "one_as_zero": rates[:, 0, 1].tolist(),
                "condition": self.confusion.condition,
                "overhead": self.confusion.overhead,
            }
        value = self._possible(value, details) if asked.constrained else value
        name = asked.technique + (" with readout" if asked.readout and asked.technique != "readout" else "")
        return Mitigated(name, self.raw[0], value, float(np.sqrt(variance)), self.taken, self.ran, ideal, details)

    def _possible(self, value: float, details: dict[str, JsonValue]) -> float:
        """The nearest value that a state can have, which cannot be further from the ideal one."""
        low, high = self.measured.range
        if low - 1e-9 <= value <= high + 1e-9:
            return value
        told = (
            f"mitigated to {value:.4g}, which no state has: the nearest that is possible, between {low:.4g} and {high:.4g}, stands instead"
        )
        details["warnings"] = [*_warnings(details), told]
        return min(max(value, low), high)

    def _estimates(self, groups: Sequence[Sequence[QuantumScript]], calibrating: bool) -> list[Estimate]:
        """Of each group, in one batch; `raw` as they are without readout undone."""
        first = readout.calibration(self.measured.wires, self.shots) if calibrating else []
        circuits = [*first, *(one for group in groups for one in group)]
        answers = self.executor.run(circuits, self.backend, stream=self.stream)
        self.ran += len(circuits)
        self.taken += sum(one.shots.total_shots or 0 for one in circuits)
        if calibrating:
            self.confusion = readout.confusion(answers[:2], self.shots)
        found, at = [], len(first)
        for group in groups:
            these = answers[at : at + len(group)]
            at += len(group)
            raw = self.measured.estimate(these, group)
            self.raw.append(raw)
            if self.asked.undoes_readout and self.confusion is not None:
                raw = self.confusion.estimate(self.measured, these, group, constrained=self.asked.constrained)
            found.append(raw)
        return found

    def _plain(self, calibrating: bool) -> Found:
        circuits = self.measured.circuits(gates(self.circuit), self.measured.shots(self.shots))
        (found,) = self._estimates([circuits], calibrating)
        return found.value, found.variance, {}

    def _zne(self, calibrating: bool) -> Found:
        folded = zne.construct(self.circuit, self.measured, self.asked, self.shots)
        estimates = self._estimates(folded.circuits, calibrating)
        found, taken = zne.combine(folded, estimates, self.measured, self.asked)
        values: list[JsonValue] = [one.value for one in estimates]
        errors: list[JsonValue] = [one.error for one in estimates]
        told: dict[str, JsonValue] = {"scales": list(folded.scales), "values": values, "errors": errors, "rate": found.rate, "taken": taken}
        return found.value, found.variance, told

    def _twirling(self, calibrating: bool) -> Found:
        generator = np.random.default_rng(self.asked.seed)
        plain = self.measured.circuits(gates(self.circuit), self.measured.shots(self.shots))
        copies = twirling.construct(self.circuit, self.measured, self.asked.copies, self.shots, generator)
        found = twirling.combine(self._estimates([plain, *copies], calibrating)[1:])
        return found.value, found.variance, {"copies": len(copies)}

    def _regression(self, calibrating: bool) -> Found:
        asked, generator, total = self.asked, np.random.default_rng(self.asked.seed), self.measured.shots(self.shots)
        training = clifford_regression.training_gates(self.circuit, asked.training, asked.non_clifford, generator)
        ideal = [exact(self.circuit.copy(operations=one)) for one in training]
        groups = [self.measured.circuits(one, total) for one in [gates(self.circuit), *training]]
        raw, *noisy = self._estimates(groups, calibrating)
        line = clifford_regression.combine(raw, noisy, ideal)
        points: list[JsonValue] = [[one.value, value] for one, value in zip(noisy, ideal, strict=True)]
        told: dict[str, JsonValue] = {"slope": line.slope, "offset": line.offset, "training": points}
        if clifford_regression.is_clifford(self.circuit):
            told["warnings"] = ["the circuit is Clifford already: its ideal value was simulated, and nothing is learnt from other circuits"]
        elif line.spread_too_little:
            told["warnings"] = ["training circuits are too much alike for a slope; only an offset was fitted"]
        return line.value, line.variance, told


def _warnings(details: dict[str, JsonValue]) -> list[JsonValue]:
    said = details.get("warnings")
    return said if isinstance(said, list) else []


def exact(circuit: QuantumScript) -> float:
    """The ideal expectation value, by simulation of the whole state.

    Raises:
        InvalidCircuit: as `measurement` does.
        TooManyQubits: the state would not fit in memory.
    """
    measured = measurement(circuit)
    value = measured.constant
    for setting, one in zip(measured.settings, measured.circuits(circuit.operations, None), strict=True):
        registered = [*(qml.Identity(wire) for wire in measured.wires), *one.operations]
        value += float(np.abs(statevector(QuantumScript(registered))) ** 2 @ setting.values)
    return value
