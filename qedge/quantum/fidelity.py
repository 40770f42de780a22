"""How near a backend comes to the ideal: of its state where there is one to be had, else of what it measures.

Source: M. Nielsen, I. Chuang, Quantum Computation and Quantum Information (2010), section 9.2.2, equation 9.53 squared: the fidelity of a
mixed with a pure state is their overlap <psi|rho|psi>; of two distributions it is the squared Bhattacharyya coefficient (9.46, squared).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pennylane as qml
from numpy.typing import ArrayLike, NDArray
from pennylane.tape import QuantumScript

from qedge.errors import BackendUnavailable, InvalidValue, TooManyQubits
from qedge.quantum.backend import MIXED, STATE_GIVEN, Backend
from qedge.quantum.execution import Executor, LocalExecutor, statevector, wires_of

MOST_QUBITS = 10  # a density matrix of 16 MiB


def state_fidelity(circuit: QuantumScript, backend: Backend) -> float:
    """<psi|rho|psi> of the state rho that a backend's noise makes of a circuit, psi being the ideal one; between 0 and 1.

    Readout errors are none of the state's. What the circuit measures is ignored.

    Raises:
        BackendUnavailable: a backend whose state nobody knows; `measured_fidelity` is for those.
        TooManyQubits: more than `MOST_QUBITS`.
        InvalidCircuit: a circuit that measures on its way, or one that the backend cannot run.
    """
    if backend.name != MIXED and backend.name not in STATE_GIVEN:
        known = ", ".join(sorted({MIXED, *STATE_GIVEN}))
        raise BackendUnavailable(f"the state that '{backend.name}' prepares is not known; accepted: {known}", given=backend.name)
    wires = _few_wires(circuit)
    ideal = statevector(circuit)
    if backend.name != MIXED:
        return min(1.0, float(abs(np.vdot(ideal, statevector(circuit, backend)))) ** 2)
    asked = QuantumScript(circuit.operations, [qml.density_matrix(wires=list(wires))])
    mixed = np.asarray(LocalExecutor().result(asked, backend.model_copy(update={"shots": None}), 0), dtype=np.complex128)
    return float(np.clip(np.vdot(ideal, mixed @ ideal).real, 0.0, 1.0))


def measured_fidelity(circuit: QuantumScript, backend: Backend, executor: Executor, *, stream: int = 0) -> float:
    """Fidelity of the probabilities of all wires, as a backend measures them, with the ideal ones; readout errors are among it.

    With shots it lies below that of the true probabilities, by about (2^wires - 1) / (4 shots) where those are the ideal ones.

    Raises:
        TooManyQubits: more than `MOST_QUBITS`; and what `executor` raises.
    """
    wires = _few_wires(circuit)
    asked = QuantumScript(circuit.operations, [qml.probs(wires=list(wires))], shots=circuit.shots)
    (measured,) = executor.run([asked], backend, stream=stream)
    return distribution_fidelity(np.asarray(measured, dtype=np.float64), np.abs(statevector(circuit)) ** 2)


def distribution_fidelity(one: ArrayLike, other: ArrayLike) -> float:
    """(sum of sqrt(p q))^2 of two distributions over the same outcomes, each [outcomes], scaled to sum to 1.

    Raises:
        InvalidValue: of different lengths, negative, not finite, or nothing but zeros.
    """
    first, second = _distribution(one), _distribution(other)
    if first.shape != second.shape:
        raise InvalidValue(f"distributions over {first.size} and {second.size} outcomes cannot be compared")
    return float(min(1.0, np.sqrt(first * second).sum() ** 2))


def _distribution(values: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise InvalidValue("a distribution is of finite numbers, none negative and not all zero")
    return np.asarray(found / found.sum())


def _few_wires(circuit: QuantumScript) -> Sequence[object]:
    wires = wires_of(circuit)
    if len(wires) > MOST_QUBITS:
        raise TooManyQubits(
            f"a fidelity is computed for at most {MOST_QUBITS} qubits, given {len(wires)}", given=len(wires), accepted=MOST_QUBITS
        )
    return wires
