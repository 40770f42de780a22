"""Every metric qedge exports, in one table: name, kind, unit, help.

The table knows nothing of what carries it: `actors.metrics` turns rows into Ray's own metrics, which Ray's Prometheus
endpoint exports with the prefix `ray_`. Names follow Prometheus' conventions: base units, the unit last, `_total` on
counters (https://prometheus.io/docs/practices/naming). Nothing here may depend on private data: the clients shown are
those expected, never those drawn, and epsilon is what the ledger has charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

_FASTEST = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SLOW = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0)


@dataclass(frozen=True)
class Metric:
    """One row: `tags` are the label names, `boundaries` the upper edges of a histogram's buckets, in `unit`."""

    name: str
    kind: Kind
    unit: str
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric("qedge_rounds_total", "counter", "rounds", "Federated rounds released", ("model",)),
    Metric("qedge_clients_expected", "gauge", "clients", "Expected cohort of a round (qN); never the realised one", ("model",)),
    Metric("qedge_epsilon_spent", "gauge", "epsilon", "Epsilon that the releases of the run have spent", ("model",)),
    Metric("qedge_accuracy", "gauge", "share", "Accuracy after the last round, on rows declared public", ("model",)),
    Metric("qedge_requests_total", "counter", "requests", "Inference requests answered", ("model", "version")),
    Metric("qedge_request_seconds", "histogram", "seconds", "Time from a whole request body to its answer", ("model", "version"), _FAST),
    Metric("qedge_request_rows_total", "counter", "rows", "Rows predicted", ("model", "version")),
    Metric("qedge_requests_refused_total", "counter", "requests", "Requests answered with an error, by its code", ("code",)),
    Metric("qedge_model_load_seconds", "histogram", "seconds", "Time to verify and load a model", ("model",), _SLOW),
    Metric("qedge_models_refused_total", "counter", "models", "Models that were not loaded: receipt, digest or format", ("model", "code")),
    Metric("qedge_models_served", "gauge", "models", "Models a replica has loaded"),
    Metric("qedge_edge_calls_total", "counter", "calls", "Calls that an edge node answered, by the rung that did", ("model", "rung")),
    Metric("qedge_edge_call_seconds", "histogram", "seconds", "Time of a call on an edge node", ("model", "rung"), _FASTEST),
    Metric("qedge_edge_rows_escalated_total", "counter", "rows", "Rows that a cheap rung was unsure of and passed on", ("model",)),
    Metric("qedge_edge_evictions_total", "counter", "rungs", "Rungs put out of memory for others", ("model", "rung")),
    Metric("qedge_edge_refusals_total", "counter", "calls", "Calls that an edge node refused, by the error's code", ("model", "code")),
    Metric("qedge_edge_memory_bytes", "gauge", "bytes", "What a loaded rung is charged; 0 once it is gone", ("model", "rung")),
    Metric("qedge_edge_budget_bytes", "gauge", "bytes", "What an edge node has for models"),
    Metric("qedge_circuits_total", "counter", "circuits", "Circuits that quantum workers ran", ("backend",)),
    Metric("qedge_circuit_shots_total", "counter", "shots", "Measurements of those circuits", ("backend",)),
    Metric("qedge_circuit_seconds", "histogram", "seconds", "Time of a circuit, the mean of those run together", ("backend",), _FAST),
    Metric("qedge_circuit_qubits", "gauge", "qubits", "Qubits of the longest circuit of a batch, looked at now and then", ("backend",)),
    Metric("qedge_circuit_gates", "gauge", "gates", "Its gates: one-qubit gates and CNOT", ("backend",)),
    Metric("qedge_circuit_cx", "gauge", "gates", "Its CNOT gates", ("backend",)),
    Metric("qedge_circuit_depth", "gauge", "layers", "Its depth", ("backend",)),
    Metric("qedge_state_fidelity", "gauge", "share", "State fidelity of it under the backend's noise against the ideal", ("backend",)),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def ignore(name: str, value: float, **tags: str) -> None:
    """Check that `name` and its tags are in the table, and record nothing: where no cluster carries metrics.

    Raises:
        KeyError: a name or a set of tags the table does not have.
    """
    row(name, tags)


def row(name: str, tags: dict[str, str]) -> Metric:
    """The table's row for `name`, its tags checked.

    Raises:
        KeyError: a name or a set of tags the table does not have.
    """
    metric = BY_NAME[name]
    if set(tags) != set(metric.tags):
        raise KeyError(f"metric {name} has the tags {metric.tags}, not {tuple(tags)}")
    return metric
