"""Batches of circuits on a backend: here, or wherever an executor puts them; the same answers everywhere.

Every circuit has a seed of its own, from the backend's seed, the stream of the batch and the circuit's place in it, so that what
comes back depends neither on how many workers there are nor on how the batch is cut. A circuit runs on one thread, as it does in a
worker: with more, simulators add up in another order, and the last bit of an answer would tell how many there were.

Wires are in ascending order where all are numbers, else in the order in which the circuit first names them: that is the order of bits in
probabilities, samples and states.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.devices import Device, ExecutionConfig
from pennylane.measurements import ClassicalShadowMP, CountsMP, ShadowExpvalMP, StateMP
from pennylane.ops import MidMeasure
from pennylane.tape import QuantumScript
from threadpoolctl import ThreadpoolController

from qedge.errors import BackendUnavailable, InvalidCircuit
from qedge.quantum.backend import MIXED, STATE_GIVEN, Backend, device, refuse_unknown, seed_argument
from qedge.quantum.density import prepared
from qedge.quantum.noise import noisy
from qedge.quantum.state_size import refuse_too_many

Answer = float | NDArray[np.float64] | tuple["Answer", ...]

_KEPT_READY = 16
_NOT_RUN = (
    qml.exceptions.DeviceError,
    qml.exceptions.DecompositionUndefinedError,
    qml.exceptions.QuantumFunctionError,
    qml.exceptions.AllocationError,
    qml.wires.WireError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_NO_ANSWER = {StateMP: "statevector()", CountsMP: "probs or sample", ClassicalShadowMP: "sample", ShadowExpvalMP: "expval"}


class Executor(Protocol):
    """Runs batches of circuits."""

    def run(self, circuits: Sequence[QuantumScript], backend: Backend, *, stream: int = 0) -> list[Answer]:
        """What each circuit's measurements came to, in their order: one value, or a tuple of as many as it measures.

        stream: of the seeds; batches of one job have different ones. A circuit's own shots go before those of the backend.
        """
        ...


class LocalExecutor:
    """Runs circuits in this process, one after another. What the last few backends and sets of wires need is kept ready."""

    def __init__(self) -> None:
        self.threads = ThreadpoolController()
        self.ready: OrderedDict[tuple[str, tuple[object, ...] | None], _Ready] = OrderedDict()

    def run(self, circuits: Sequence[QuantumScript], backend: Backend, *, stream: int = 0, first: int = 0) -> list[Answer]:
        """As `Executor.run`. first: the place in its batch of the first of these, where they are a piece of one.

        Raises:
            UnknownBackend, BackendUnavailable, TooManyQubits: as `device` does, before any circuit is run.
            InvalidCircuit: one that measures nothing, or that the backend cannot run.
        """
        refuse(circuits, backend)
        return [self._answer(circuit, backend, seed_of(backend, stream, first + place)) for place, circuit in enumerate(circuits)]

    def _answer(self, circuit: QuantumScript, backend: Backend, seed: int) -> Answer:
        return _plain(self.result(with_shots(circuit, backend), backend, seed))

    def result(self, circuit: QuantumScript, backend: Backend, seed: int) -> object:
        """What PennyLane gives for one circuit with the shots it has, states too; nothing is checked before.

        Raises:
            UnknownBackend, BackendUnavailable, TooManyQubits: as `device` does.
            InvalidCircuit: the backend cannot run it.
        """
        wires = None if _measured_on_the_way(circuit) else wires_of(circuit)
        key = (backend.model_dump_json(), wires)
        if key not in self.ready:
            self.ready[key] = _Ready.made(backend, wires, circuit)
            self.threads = ThreadpoolController()  # looks for what is loaded by now, the device's own libraries among it
            while len(self.ready) > _KEPT_READY:
                self.ready.popitem(last=False)
        self.ready.move_to_end(key)
        try:
            with self.threads.limit(limits=1):
                return self.ready[key].result(circuit, seed)
        except _NOT_RUN as error:
            raise InvalidCircuit(f"backend '{backend.name}' cannot run this circuit: {error}", given=backend.name) from error


@dataclass(frozen=True)
class _Ready:
    """A backend for circuits on the same wires: what PennyLane decides anew for each execution is decided once.

    wires: None for circuits that measure on their way, for which devices take wires beyond theirs.
    """

    backend: Backend
    wires: tuple[object, ...] | None
    device: Device
    config: ExecutionConfig
    program: qml.CompilePipeline

    @classmethod
    def made(cls, backend: Backend, wires: tuple[object, ...] | None, circuit: QuantumScript) -> _Ready:
        made = device(backend, _counted(wires), 0)
        config = made.setup_execution_config(ExecutionConfig(), circuit)
        return cls(backend, wires, made, config, made.preprocess_transforms(config))

    def result(self, circuit: QuantumScript, seed: int) -> object:
        """What the circuit came to; one with shots on a device of its own, where that takes the seed."""
        (circuit,), _ = qml.transforms.convert_to_numpy_parameters(circuit)
        noise = self.backend.noise
        circuits, combine = noisy(circuit, noise) if noise else ([circuit], _only)
        if self.backend.name == MIXED and self.wires is not None:
            circuits = [prepared(one, self.wires) for one in circuits]
        runs, finish = self.program(circuits)
        drawn = circuit.shots and seed_argument(self.backend.name)
        used = device(self.backend, _counted(self.wires), seed) if drawn else self.device
        return combine(finish(used.execute(runs, self.config)))


def refuse(circuits: Sequence[QuantumScript], backend: Backend) -> None:
    """Check a batch before anything of it is run.

    Raises:
        UnknownBackend, BackendUnavailable: the backend is not there.
        TooManyQubits: a circuit's state would not fit in memory.
        InvalidCircuit: one that measures nothing, or something that is no real number, or that needs shots and has none.
    """
    refuse_unknown(backend)
    sizes: set[tuple[int, int]] = set()
    for circuit in circuits:
        sizes.add((len(circuit.wires) + _measured_on_the_way(circuit), circuit.batch_size or 1))
        if not circuit.measurements:
            raise InvalidCircuit("a circuit that measures nothing has no answer; give it an expval, var, probs or sample")
        for kind, instead in _NO_ANSWER.items():
            if any(isinstance(one, kind) for one in circuit.measurements):
                raise InvalidCircuit(f"an answer is made of real numbers, not of {kind.__name__}; ask for {instead}")
        if not circuit.shots and backend.shots is None and any(type(one) is qml.measurements.SampleMP for one in circuit.measurements):
            raise InvalidCircuit("samples need shots, of the circuit or of the backend; given none of either")
    for qubits, batch in sizes:
        refuse_too_many(backend.name, qubits, batch=batch)


def seed_of(backend: Backend, stream: int, place: int) -> int:
    """The seed of one circuit of a batch."""
    return int(np.random.SeedSequence(backend.seed, spawn_key=(stream, place)).generate_state(1, np.uint64)[0] >> 1)


def wires_of(circuit: QuantumScript) -> tuple[object, ...]:
    """A circuit's wires in the order of the bits of its answers."""
    labels = tuple(circuit.wires.labels)
    return tuple(sorted(labels)) if all(isinstance(label, int) for label in labels) else labels


def with_idle(circuit: QuantumScript, qubits: int) -> list[object]:
    """A circuit's wires, in that order, and those of 0 to qubits - 1 that no gate touches."""
    there = wires_of(circuit)
    together = [*there, *(wire for wire in range(qubits) if wire not in there)]
    return sorted(together) if all(isinstance(wire, int) for wire in together) else together  # type: ignore[type-var]


def _counted(wires: tuple[object, ...] | None) -> int | tuple[object, ...] | None:
    """Wires 0 to n - 1 by their number: devices that are given labels translate every circuit."""
    return len(wires) if wires is not None and wires == tuple(range(len(wires))) else wires


def with_shots(circuit: QuantumScript, backend: Backend) -> QuantumScript:
    """The circuit with its own shots, else the backend's."""
    return circuit if circuit.shots or backend.shots is None else circuit.copy(shots=backend.shots)


def statevector(circuit: QuantumScript, backend: Backend | None = None) -> NDArray[np.complex128]:
    """The exact state that a circuit's operations prepare from |0...0>, [2^wires], first wire most significant; measurements are ignored.

    Raises:
        BackendUnavailable: a backend that has no pure state to give.
        TooManyQubits: it would not fit in memory.
        InvalidCircuit: an operation that is not unitary, or that the backend cannot apply.
    """
    backend = backend or Backend()
    if backend.name not in STATE_GIVEN:
        known = ", ".join(sorted(STATE_GIVEN))
        raise BackendUnavailable(f"backend '{backend.name}' gives no statevector; accepted: {known}", given=backend.name)
    refuse_unknown(backend)
    asked = QuantumScript(circuit.operations, [qml.state()])
    if _measured_on_the_way(asked):
        raise InvalidCircuit("a circuit that measures on its way has no single state at its end")
    state = LocalExecutor().result(asked, backend.model_copy(update={"shots": None}), 0)
    return np.asarray(state, dtype=np.complex128)


def _measured_on_the_way(circuit: QuantumScript) -> int:
    """How many measurements are followed by more; a simulator may take another qubit for each."""
    return sum(isinstance(one, MidMeasure) for one in circuit.operations)


def _only(answers: Sequence[object]) -> object:
    return answers[0]


def _plain(answer: object) -> Answer:
    if isinstance(answer, tuple | list):
        return tuple(_plain(one) for one in answer)
    values = np.asarray(answer, dtype=np.float64)
    return float(values) if values.ndim == 0 else values
