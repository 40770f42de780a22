"""A quantum worker on Ray: runs pieces of batches on devices of its own, and tells Prometheus what it ran."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from contextlib import suppress

import ray
from pennylane.tape import QuantumScript

from actors.metrics import record
from actors.reservation import CPUS_OF_AN_ACTOR
from qedge.errors import InvalidCircuit, TooManyQubits
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Answer, LocalExecutor, with_shots
from qedge.quantum.fidelity import state_fidelity
from qedge.quantum.resources import count

_LOOK_AFTER_OBJECTS = 200_000
_MOST_NOISY_QUBITS = 8  # of whose fidelity is computed while others wait for their circuits


@ray.remote(num_cpus=CPUS_OF_AN_ACTOR, max_restarts=0)
class QuantumWorkerActor:
    """A `LocalExecutor` on some node."""

    def __init__(self) -> None:
        self.executor = LocalExecutor()
        # Circuits arrive as tens of thousands of small objects: looking through them, and all that was imported, for circles each time
        # takes longer than reading them does.
        gc.freeze()
        gc.set_threshold(_LOOK_AFTER_OBJECTS)

    def ready(self) -> int:
        """Answers once the actor has started, with its process."""
        return os.getpid()

    def run(self, circuits: Sequence[QuantumScript], backend: Backend, stream: int, first: int) -> tuple[list[Answer], float]:
        """As `LocalExecutor.run`, and the seconds that took."""
        begun = time.monotonic()
        answers = self.executor.run(circuits, backend, stream=stream, first=first)
        seconds = time.monotonic() - begun
        record("qedge_circuits_total", len(circuits), backend=backend.name)
        record("qedge_circuit_seconds", seconds / len(circuits), backend=backend.name)
        if shots := sum(with_shots(circuit, backend).shots.total_shots or 0 for circuit in circuits):
            record("qedge_circuit_shots_total", shots, backend=backend.name)
        return answers, seconds

    def look_at(self, circuit: QuantumScript, backend: Backend) -> None:
        """Record the sizes of a circuit and, under a noise model, its fidelity; nothing of one that has none."""
        with suppress(InvalidCircuit, TooManyQubits):
            sizes = count(circuit)
            for name, value in (("qubits", sizes.qubits), ("gates", sizes.gates), ("cx", sizes.cx), ("depth", sizes.depth)):
                record(f"qedge_circuit_{name}", value, backend=backend.name)
            if backend.noise is not None and sizes.qubits <= _MOST_NOISY_QUBITS:
                record("qedge_state_fidelity", state_fidelity(circuit, backend), backend=backend.name)
