"""From the last round to a model somebody may use: evaluate, close the plan, export, sign the receipt, write the result.

Everything can be repeated: a run that was cut off here goes on with whatever is not there yet, and issues its receipt once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from qedge import __version__
from qedge.algorithms.state import ServerState
from qedge.audit import receipt
from qedge.audit.canonical import canonical, decimal, digest
from qedge.data.federation import fingerprints
from qedge.errors import QEdgeError
from qedge.export import save_weights, to_onnx
from qedge.federated.coordinator import Coordinator
from qedge.federated.events import Event, Phase
from qedge.federated.guarantee import EVALUATION_ROWS, Guarantee, charged_evaluation
from qedge.federated.run_folder import Json, RunFolder, data_digest
from qedge.models import set_parameters
from qedge.privacy.accounting import ORDERS
from qedge.records import Records
from qedge.storage import write_atomically
from qedge.uncertainty import plus_minus, rounded

_FILES = ("model.onnx", "weights.safetensors", "card.json")
TRUST_MODEL = (
    "The coordinator and the nodes that hold the clients' rows are trusted, and so is whoever owns the Ray cluster: every actor of a "
    "cluster can be read by its owner. The guarantees are against those they name; against others, and against a roster holder where "
    "none is given, nothing is proved."
)
SENT_ALONE = (
    " The guarantee against the server is for what clients send it. A coordinator that reads the table and hands out the rows, as it does "
    "within one cluster, is trusted with that."
)
_COMPARED_DELTA = 1e-5
_ACCOUNTED = {
    "poisson": "amplified by secret Poisson sampling",
    "uniform": "cohorts of fixed size are accounted without amplification, at twice the bound",
    "cyclic": "clients take turns: the whole run is one release without amplification, its noise correlated over rounds",
}


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
    issued = receipt.issue(_body(coordinator, making), coordinator.records.keys)
    issued.write(making / receipt.FILE)
    making.rename(folder.model)
    return issued


def _card(coordinator: Coordinator) -> bytes:
    schema, job = coordinator.federation.schema, coordinator.job
    told = {
        "none": "send features as they are in the table",
        "given": "send features as they are in the table; the graph scales them by the declared ranges",
        "local": "standardise each feature by your own rows' mean and standard deviation before you send it",
    }
    return canonical(
        {
            "model": job.name,
            "run": coordinator.folder.run,
            "kind": job.model.kind,
            "features": list(schema.features),
            "labels": list(schema.labels),
            "scale": schema.scale,
            "input": told[schema.scale],
        }
    )


def _body(coordinator: Coordinator, making: Path) -> receipt.Body:
    folder, records, federation, guarantee = coordinator.folder, coordinator.records, coordinator.federation, coordinator.guarantee
    prints = fingerprints(federation, lambda message: records.keys.mac("fingerprint", message))
    ledger, log = records.ledger.head(), records.log.head()
    body = receipt.Body(
        model=coordinator.job.name,
        run=folder.run,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        code_version=__version__,
        job=digest({"job": repr(folder.read("job.json"))}),
        artifacts=receipt.artifact_digests(making, _FILES),
        data=receipt.Data(
            source=Path(federation.source).name,
            scope=coordinator.scope,
            unit=guarantee.unit if guarantee else "client",
            relation="zero-out",
            clients=len(federation.clients),
            fingerprint=data_digest(prints, records.keys),
            labels=_labels(coordinator)[0],
        ),
        privacy=receipt.NO_GUARANTEE,
        epsilon_at_1e_5=None,
        uses=_uses(coordinator, records.ledger.runs_without_privacy(prints)),
        trust_model=TRUST_MODEL + (SENT_ALONE if guarantee is not None and guarantee.steps else ""),
        ledger=receipt.HeadOf(seq=ledger.seq, hash=ledger.hash),
        log=receipt.HeadOf(seq=log.seq, hash=log.hash),
    )
    return (
        receipt.Body.model_validate(body.model_copy(update=_claims(coordinator, guarantee, body.uses)).model_dump()) if guarantee else body
    )


def _claims(coordinator: Coordinator, guarantee: Guarantee, uses: tuple[receipt.Use, ...]) -> dict[str, object]:
    """What the receipt of a run under privacy says on top."""
    delta, epsilon = decimal(guarantee.delta), decimal(guarantee.epsilon(guarantee.rounds, evaluated=True))
    sampling = "poisson" if guarantee.steps else coordinator.job.cohort.sampling
    how = f"Rényi divergence at order {guarantee.order}, the scope's frozen order; {_accounted(coordinator, guarantee)}"
    open_uses = ", ".join(use.what for use in uses if use.covered == "NOT COVERED")
    return {
        "privacy": f"({epsilon}, {delta})-differential privacy for every {guarantee.unit} against whoever sees the released models"
        + (f", except for what is NOT COVERED: {open_uses}" if open_uses else ""),
        "mechanism": receipt.Mechanism(
            name=_named(guarantee),
            clipping_bound=decimal(guarantee.grid.bound),
            grid_step=decimal(guarantee.grid.step),
            sensitivity_squared=guarantee.sensitivity_squared,
            variance=guarantee.variance,
            noise_multiplier=decimal(guarantee.noise_multiplier),
            sampling=sampling,
            rate=decimal(guarantee.rate),
            rounds=guarantee.rounds,
            total_variation=decimal(guarantee.total_variation),
            count_weight=guarantee.count_weight,
            strategy=guarantee.strategy,
            steps=guarantee.steps,
            max_rows=guarantee.max_rows,
        ),
        "accountant": receipt.Accountant(name="Rényi, integer orders", orders=ORDERS, order=guarantee.order),
        "guarantees": (
            receipt.Guarantee(adversary="released model", epsilon=epsilon, delta=delta, how=how),
            *_against_others(coordinator, guarantee, delta),
        ),
        "epsilon_at_1e_5": decimal(guarantee.epsilon_at(_COMPARED_DELTA)),
    }


def _accounted(coordinator: Coordinator, guarantee: Guarantee) -> str:
    if not guarantee.steps:
        return _ACCOUNTED[coordinator.job.cohort.sampling]
    of = "one example" if guarantee.unit == "example" else f"the at most {guarantee.max_rows} examples of a client together"
    return f"every local step amplified by secret Poisson sampling of examples, for {of}; every round is counted for every client"


def _named(guarantee: Guarantee) -> str:
    if guarantee.steps:
        return "discrete Gaussian on the sum of clipped gradients of single examples, added by each client at each of its steps (DP-SGD)"
    name = "discrete Gaussian on the sum of clipped client updates"
    if guarantee.strategy:
        return name + ", correlated over rounds by a banded matrix"
    return name + (" and of who is within the bound, which follows it" if guarantee.count_weight else "")


def _against_others(coordinator: Coordinator, guarantee: Guarantee, delta: str) -> Iterator[receipt.Guarantee]:
    """Against whoever sees more than the released models."""
    if guarantee.steps:
        # An attempt that ended before its round was charged may have sent updates that another then sent anew.
        seen = guarantee.rounds + coordinator.epoch - 1
        how = (
            "updates leave clients with their noise in them, and what is drawn is drawn there: whoever sees every update and knows who "
            f"took part, in {seen} rounds with those begun anew after a stop. A part of a round that is run again for a lost or late node "
            "counts once more against whoever saw the first"
        )
        yield receipt.Guarantee(adversary="server", epsilon=decimal(guarantee.epsilon(seen)), delta=delta, how=how)
    elif (roster := guarantee.roster_epsilon()) is not None:
        how = "the same noise without amplification: whoever knows who took part in each round"
        yield receipt.Guarantee(adversary="roster holder", epsilon=decimal(roster), delta=delta, how=how)


def _uses(coordinator: Coordinator, unprotected: tuple[str, ...]) -> tuple[receipt.Use, ...]:
    """Every use of private rows, and what covers it (design rule: nothing is left unsaid)."""
    job, data = coordinator.job, coordinator.job.data
    private = coordinator.guarantee is not None
    source, covered = _labels(coordinator)
    uses = [
        receipt.Use(what="training", covered="charged" if private else "NOT COVERED", note=_trained_on(coordinator)),
        receipt.Use(what="label set", covered=covered, note=source),
        receipt.Use(what="names of features and of clients, number of clients", covered="public by declaration"),
    ]
    if job.cohort.follows_the_weights or job.cohort.sampling == "oort":
        uses.append(receipt.Use(what="selection", covered="NOT COVERED", note=f"{job.cohort.sampling}: by clients' losses"))
    if job.cohort.facts is not None:
        uses.append(receipt.Use(what="facts about clients", covered="public by declaration", note=Path(job.cohort.facts).name))
    if data.scale == "local":
        uses.append(receipt.Use(what="standardisation", covered="local", note="by each client's own rows"))
    if isinstance(data.test, str):
        uses.append(receipt.Use(what="evaluation", covered="public by declaration", note="a file of public rows"))
    elif data.test is not None and charged_evaluation(job):
        note = f"once, at the end, at most {EVALUATION_ROWS} rows a client, noisy counts"
        uses.append(receipt.Use(what="evaluation", covered="charged", note=note))
    elif data.test is not None:
        declared = data.evaluation == "public"
        note = f"a share of {data.test} of each client's rows, evaluated after every round"
        uses.append(receipt.Use(what="evaluation", covered="public by declaration" if declared else "NOT COVERED", note=note))
    if (trial := coordinator.folder.trial()) is not None:
        uses.append(receipt.Use(what="hyperparameter search", covered="charged" if private else "NOT COVERED", note=str(trial["told"])))
    if unprotected and private:
        uses.append(receipt.Use(what="earlier runs without privacy", covered="NOT COVERED", note=", ".join(unprotected)))
    return tuple(uses)


def _trained_on(coordinator: Coordinator) -> str:
    guarantee = coordinator.guarantee
    return f"of each client at most the first {guarantee.max_rows} rows" if guarantee is not None and guarantee.steps else ""


def _labels(coordinator: Coordinator) -> tuple[str, Literal["public by declaration", "NOT COVERED"]]:
    if coordinator.job.data.built_in:
        return "public by the data set", "public by declaration"
    if coordinator.federation.schema.labels_declared:
        return "declared by the job", "public by declaration"
    return "found in the data: declare data.labels to cover it", "NOT COVERED"
