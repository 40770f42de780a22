"""A trained hybrid model with its quantum layer on a named backend: rows to circuits, circuits run by an executor, answers to classes.

All of a row's shots measure every wire at once. Their frequencies give <Z> of every wire and how the wires' errors go together; the
classical head carries both on to the classes' probabilities, to first order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch
from torch import nn

from qedge.errors import InvalidValue, ModelError
from qedge.quantum.backend import Backend
from qedge.quantum.execution import Executor, LocalExecutor
from qedge.quantum.qnn.circuits import circuits_of
from qedge.quantum.qnn.layer import READOUT, HybridParts, hybrid_parts
from qedge.quantum.resources import Resources, count

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What a backend answered.

    values, errors: [rows, qubits], <Z> and its standard deviation; probabilities, spread: [rows, classes], of the classes, and one
    standard deviation of each; backend: its name; shots: of each circuit, None where it was analytic; errors are then 0.
    """

    values: Floats
    errors: Floats
    probabilities: Floats
    spread: Floats
    backend: str
    shots: int | None
    resources: Resources


def measure(
    module: nn.Module, rows: npt.NDArray[np.float32], backend: Backend, executor: Executor | None = None, *, stream: int = 0
) -> Measured:
    """The answers of a hybrid model to rows, [rows, features] as the model takes them, with its quantum layer on a backend.

    Raises:
        ModelError: it is not a hybrid model.
        InvalidValue: rows of another width, or numbers that are not finite.
        UnknownBackend, BackendUnavailable, TooManyQubits: as `device` does.
    """
    parts = hybrid_parts(module)
    if parts is None:
        raise ModelError("the model has no quantum layer to run on a backend; accepted: one of 'kind: hybrid'")
    if rows.ndim != 2 or rows.shape[1] != parts.down.in_features or not np.isfinite(rows).all():
        raise InvalidValue(f"rows: finite numbers [rows, {parts.down.in_features}] are accepted; given: an array {list(rows.shape)}")
    begun = time.perf_counter()
    with torch.no_grad():
        angles = module[1](parts.down(torch.from_numpy(rows)))  # type: ignore[index]
    circuits = circuits_of(parts.layer, angles, measured=[qml.probs(wires=range(parts.layer.qubits))], shots=backend.shots)
    answers = (executor or LocalExecutor()).run(circuits, backend, stream=stream)
    frequencies = np.array(answers, dtype=np.float64).reshape(len(rows), 2**parts.layer.qubits)
    values, covariances = _moments(frequencies, parts.layer.qubits, backend.shots)
    probabilities, spread = _through_head(parts, values, covariances)
    errors = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    one = count(circuits[0]) if circuits else Resources(parts.layer.qubits, 0, 0, 0)
    shots, seconds = (backend.shots or 0) * len(rows), time.perf_counter() - begun
    resources = Resources(one.qubits, one.gates, one.cx, one.depth, shots, len(rows), seconds)
    return Measured(values, errors, probabilities, spread, backend.name, backend.shots, resources)


def _moments(frequencies: Floats, qubits: int, shots: int | None) -> tuple[Floats, Floats]:
    """<Z> of each wire, [rows, qubits], and the covariance of these estimates, [rows, qubits, qubits].

    The covariance is of the frequencies with one more shot spread evenly: else a row whose few shots all agreed would claim no error.
    """
    signs = 1.0 - 2.0 * ((np.arange(2**qubits)[:, None] >> np.arange(qubits)[::-1]) & 1)  # [states, wires]
    values = frequencies @ signs
    if shots is None:
        return values, np.zeros((len(values), qubits, qubits))
    smoothed = (frequencies * shots + 1 / 2**qubits) / (shots + 1)
    mean = smoothed @ signs
    second = np.einsum("rs,si,sj->rij", smoothed, signs, signs)
    return values, (second - mean[:, :, None] * mean[:, None, :]) / shots


def _through_head(parts: HybridParts, values: Floats, covariances: Floats) -> tuple[Floats, Floats]:
    """The classes' probabilities and their standard deviations, [rows, classes]."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (parts.head.weight, parts.head.bias))
    logits = READOUT * values @ weight.T + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = powers / powers.sum(axis=1, keepdims=True)
    slopes = READOUT * (found[:, :, None] * weight - found[:, :, None] * (found @ weight)[:, None, :])  # [rows, classes, qubits]
    variances = np.einsum("rci,rij,rcj->rc", slopes, covariances, slopes)
    return found, np.sqrt(np.maximum(variances, 0))
