"""From the last round to a model somebody may use: evaluate, close the plan, export, sign the receipt, write the result.

Everything can be repeated: a run that was cut off here goes on with whatever is not there yet, and issues its receipt once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from pydantic import JsonValue

from qedge.algorithms.state import ServerState
from qedge.audit import receipt
from qedge.audit.canonical import canonical, decimal
from qedge.errors import QEdgeError
from qedge.export import save_weights, to_onnx
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import Event, Phase
from qedge.federated.run_folder import Json, RunFolder
from qedge.models import set_parameters
from qedge.network import network_card
from qedge.records import Records
from qedge.runs.run_receipt import body_of
from qedge.storage import write_atomically
from qedge.uncertainty import plus_minus, rounded


def complete(coordinator: Coordinator, state: ServerState, tell: Callable[[Event], None]) -> Json:
    """The run's result, as in its `result.json`.

    Raises:
        ModelError: the model cannot be exported; StorageFull: the disk is full. The run can be resumed.
    """
    folder, records, guarantee = coordinator.folder, coordinator.records, coordinator.guarantee
    tell(Phase(folder.run, "evaluating"))
    accuracy, loss = coordinator.evaluate_public(state)
    deviation, of_clients = None, coordinator.evaluate_clients(state)
    if guarantee is not None:
        if accuracy is None:
            accuracy, deviation = coordinator.evaluate_charged(state)
        records.ledger.close(folder.run, coordinator.epoch, give_back=not guarantee.strategy)
    issued = None
    if coordinator.noise.for_tests:
        records.log.append("run.finished", run=folder.run, receipt="none: the noise was for tests")
    else:
        tell(Phase(folder.run, "exporting"))
        issued = _issue(coordinator, state)
        records.log.append("run.finished", run=folder.run, receipt=issued.id)
    result = _result(coordinator, accuracy, deviation, loss, issued, of_clients)
    folder.write("result.json", result)
    return result


def record_failure(folder: RunFolder, records: Records, error: QEdgeError) -> None:
    """Put on record that a run cannot go on as it is; what it holds stays held."""
    folder.write("result.json", {"status": "failed", "metrics": {}, "tags": {"qedge.error": error.code}})
    records.log.append("run.failed", run=folder.run, code=error.code)


def _result(
    coordinator: Coordinator,
    accuracy: float | None,
    deviation: float | None,
    loss: float | None,
    issued: receipt.Receipt | None,
    of_clients: dict[str, float],
) -> Json:
    job, guarantee = coordinator.job, coordinator.guarantee
    epsilon = guarantee.epsilon(job.rounds, evaluated=True) if guarantee else None
    shown = None if accuracy is None else rounded(accuracy, deviation)
    measured: dict[str, float | None] = {f"final_{name}": value for name, value in of_clients.items()}
    measured |= {"final_accuracy": shown, "final_accuracy_std": deviation, "final_loss": loss, "final_epsilon": epsilon}
    tags: dict[str, JsonValue] = {"qedge.receipt_id": issued.id if issued else "none"}
    if accuracy is not None and deviation is not None:
        tags["qedge.accuracy"] = plus_minus(accuracy, deviation)
    if guarantee is not None and epsilon is not None:
        tags |= {"qedge.epsilon": decimal(epsilon), "qedge.delta": decimal(guarantee.delta), "qedge.scope": coordinator.scope or ""}
        roster = guarantee.roster_epsilon()
        tags["qedge.roster_epsilon"] = "not proved" if roster is None else decimal(roster)
    if issued is not None:
        tags |= {"qedge.ledger_head": f"{issued.ledger.seq}:{issued.ledger.hash}", "qedge.log_head": f"{issued.log.seq}:{issued.log.hash}"}
    return {
        "status": "finished" if coordinator.folder.trial() is None else "tried",  # which trial becomes a model, its search says
        "metrics": {name: value for name, value in measured.items() if value is not None},
        "tags": tags,
        "summary": {
            "model": job.name,
            "accuracy": accuracy,
            "accuracy_std": deviation,
            "loss": loss,
            "epsilon": epsilon,
            "delta": guarantee.delta if guarantee else None,
            "rounds": job.rounds,
            "clients": len(coordinator.federation.clients),
            "seconds_per_round": coordinator.seconds_per_round,
            "of_clients": dict(of_clients),
            "profile": dict(coordinator.profile.means()),
            "receipt": issued.id if issued else None,
        },
    }


def _issue(coordinator: Coordinator, state: ServerState) -> receipt.Receipt:
    """Write the model's folder with its receipt, whole or not at all; the receipt that is there when it is there already."""
    folder = coordinator.folder
    if folder.model.exists():
        return receipt.Receipt.read(folder.model / receipt.FILE)
    making = folder.path / ".model"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    set_parameters(coordinator.module, state.model)
    schema = coordinator.federation.schema
    to_onnx(coordinator.module, schema, making / "model.onnx")
    save_weights(state.model, coordinator.module, making / "weights.safetensors")
    write_atomically(making / "card.json", _card(coordinator))
    issued = receipt.issue(body_of(coordinator, making), coordinator.records.keys)
    issued.write(making / receipt.FILE)
    making.rename(folder.model)
    return issued


def _card(coordinator: Coordinator) -> bytes:
    schema, job = coordinator.federation.schema, coordinator.job
    told = {
        "none": "send features as they are in the table",
        "given": "send features as they are in the table; the graph scales them by the declared ranges",
        "private": "send features as they are in the table; the graph scales them by means and deviations that were asked for privately",
        "local": "standardise each feature by your own rows' mean and standard deviation before you send it",
    }
    card: Json = {
        "model": job.name,
        "run": coordinator.folder.run,
        "input": told[job.data.scale if job.data.scale == "private" else schema.scale],
    }
    return canonical(card | network_card(job.model, schema))
