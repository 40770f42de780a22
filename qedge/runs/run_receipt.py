"""What the receipt of a run says: what was trained on, what it cost, against whom, and which uses of private rows nothing covers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from qedge import __version__
from qedge.audit import receipt
from qedge.audit.canonical import decimal, digest
from qedge.data.federation import fingerprints
from qedge.federated.coordinator import Coordinator
from qedge.federated.guarantee import EVALUATION_ROWS, Guarantee, charged_evaluation
from qedge.federated.run_folder import data_digest
from qedge.privacy.accounting import ORDERS

FILES = ("model.onnx", "weights.safetensors", "card.json")
TRUST_MODEL = (
    "The coordinator and the nodes that hold the clients' rows are trusted, and so is whoever owns the Ray cluster: every actor of a "
    "cluster can be read by its owner. The guarantees are against those they name; against others, and against a roster holder where "
    "none is given, nothing is proved."
)
SECURE_TRUST_MODEL = (
    "Of a cohort's updates the coordinator opens the sums of groups alone, by the secure aggregation protocol, as long as no more members "
    "of a group collude with it than the receipt says. In this run the clients were actors of one Ray cluster: whoever owns the cluster "
    "can read every actor, and the protocol keeps nothing from them. The guarantees are against those they name; against others nothing is "
    "proved."
)
SENT_ALONE = (
    " The guarantee against the server is for what clients send it. A coordinator that reads the table and hands out the rows, as it does "
    "within one cluster, is trusted with that."
)
_COMPARED_DELTA = 1e-5
_KINDS = {"discrete-gaussian": "discrete Gaussian", "skellam": "Skellam"}
_ACCOUNTED_AGAINST_THE_SERVER = (
    "without amplification, as the server knows who took part; noise counted of the fewest survivors of a group, less its colluders"
)
_ACCOUNTED = {
    "poisson": "amplified by secret Poisson sampling",
    "uniform": "cohorts of fixed size are accounted without amplification, at twice the bound",
    "cyclic": "clients take turns: the whole run is one release without amplification, its noise correlated over rounds",
}


def body_of(coordinator: Coordinator, making: Path) -> receipt.Body:
    """The receipt of a run whose model lies in `making`, to be signed."""
    folder, records, federation, guarantee = coordinator.folder, coordinator.records, coordinator.federation, coordinator.guarantee
    prints = fingerprints(federation, lambda message: records.keys.mac("fingerprint", message))
    ledger, log = records.ledger.head(), records.log.head()
    body = receipt.Body(
        model=coordinator.job.name,
        run=folder.run,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        code_version=__version__,
        job=digest({"job": repr(folder.read("job.json"))}),
        artifacts=receipt.artifact_digests(making, FILES),
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
        trust_model=_trust_model(coordinator, guarantee),
        ledger=receipt.HeadOf(seq=ledger.seq, hash=ledger.hash),
        log=receipt.HeadOf(seq=log.seq, hash=log.hash),
    )
    return (
        receipt.Body.model_validate(body.model_copy(update=_claims(coordinator, guarantee, body.uses)).model_dump()) if guarantee else body
    )


def _trust_model(coordinator: Coordinator, guarantee: Guarantee | None) -> str:
    if coordinator.job.secure_aggregation is not None:
        return SECURE_TRUST_MODEL
    return TRUST_MODEL + (SENT_ALONE if guarantee is not None and guarantee.steps else "")


def _claims(coordinator: Coordinator, guarantee: Guarantee, uses: tuple[receipt.Use, ...]) -> dict[str, object]:
    """What the receipt of a run under privacy says on top."""
    delta, epsilon = decimal(guarantee.delta), decimal(guarantee.epsilon(guarantee.rounds, evaluated=True))
    how = f"Rényi divergence at order {guarantee.order}, the scope's frozen order; {_accounted(coordinator, guarantee)}"
    against = "whoever sees the released models" if guarantee.share is None else "the server and the colluders it may have"
    return {
        "privacy": receipt.excepting(f"({epsilon}, {delta})-differential privacy for every {guarantee.unit} against {against}", uses),
        "mechanism": receipt.Mechanism(
            name=_named(guarantee),
            clipping_bound=decimal(guarantee.grid.bound),
            grid_step=decimal(guarantee.grid.step),
            sensitivity_squared=guarantee.sensitivity_squared,
            variance=guarantee.variance,
            noise_multiplier=decimal(guarantee.noise_multiplier),
            sampling="poisson" if guarantee.steps else coordinator.job.cohort.sampling,
            rate=decimal(guarantee.rate),
            rounds=guarantee.rounds,
            total_variation=decimal(guarantee.total_variation),
            count_weight=guarantee.count_weight,
            strategy=guarantee.strategy,
            share=_share(coordinator, guarantee),
            steps=guarantee.steps,
            max_rows=guarantee.max_rows,
        ),
        "accountant": receipt.Accountant(name="Rényi, integer orders", orders=ORDERS, order=guarantee.order),
        "guarantees": tuple(_guarantees(coordinator, guarantee, how)),
        "epsilon_at_1e_5": decimal(guarantee.epsilon_at(_COMPARED_DELTA)),
    }


def _accounted(coordinator: Coordinator, guarantee: Guarantee) -> str:
    if guarantee.share is not None:
        return _ACCOUNTED_AGAINST_THE_SERVER
    if not guarantee.steps:
        return _ACCOUNTED[coordinator.job.cohort.sampling]
    of = "one example" if guarantee.unit == "example" else f"the at most {guarantee.max_rows} examples of a client together"
    return f"every local step amplified by secret Poisson sampling of examples, for {of}; every round is counted for every client"


def _named(guarantee: Guarantee) -> str:
    if guarantee.steps:
        return "discrete Gaussian on the sum of clipped gradients of single examples, added by each client at each of its steps (DP-SGD)"
    kind = "discrete Gaussian" if guarantee.share is None else _KINDS[guarantee.share.kind]
    name = f"{kind} on the sum of clipped client updates"
    if guarantee.strategy:
        return name + ", correlated over rounds by a banded matrix"
    name += " and of who is within the bound, which follows it" if guarantee.count_weight else ""
    return name + (", a share of the noise from each client, in secure sums" if guarantee.share is not None else "")


def _guarantees(coordinator: Coordinator, guarantee: Guarantee, how: str) -> Iterator[receipt.Guarantee]:
    """Against each adversary; first the one that is charged."""
    epsilon = guarantee.epsilon(guarantee.rounds, evaluated=True)

    def against(adversary: receipt.Adversary, epsilon: float, how: str) -> receipt.Guarantee:
        return receipt.Guarantee(adversary=adversary, epsilon=decimal(epsilon), delta=decimal(guarantee.delta), how=how)

    if guarantee.share is not None:
        of_all = "without amplification, at its best order: the sum of all groups alone is seen"
        yield against("server", epsilon, how)
        yield against("colluding participants", guarantee.sum_epsilon(colluding=True), f"{of_all}, and their own shares of noise")
        yield against("released model", guarantee.sum_epsilon(colluding=False), of_all)
        return
    yield against("released model", epsilon, how)
    if guarantee.steps:
        # An attempt that ended before its round was charged may have sent updates that another then sent anew.
        seen = guarantee.rounds + coordinator.epoch - 1
        yield against(
            "server",
            guarantee.epsilon(seen),
            "updates leave clients with their noise in them, and what is drawn is drawn there: whoever sees every update and knows who "
            f"took part, in {seen} rounds with those begun anew after a stop. A part of a round that is run again for a lost or late node "
            "counts once more against whoever saw the first",
        )
    elif (roster := guarantee.roster_epsilon()) is not None:
        yield against("roster holder", roster, "the same noise without amplification: whoever knows who took part in each round")


def _share(coordinator: Coordinator, guarantee: Guarantee) -> receipt.Share | None:
    secure = coordinator.job.secure_aggregation
    if guarantee.share is None or secure is None:
        return None
    group = min(secure.groups(coordinator.job.cohort.size or 0), key=lambda group: group.honest)
    return receipt.Share(
        distribution=guarantee.share.kind,
        variance=guarantee.share.variance,
        counted=guarantee.honest,
        group=group.members,
        threshold=group.threshold,
        colluders=group.colluders,
        server=secure.server,
    )


def _uses(coordinator: Coordinator, unprotected: tuple[str, ...]) -> tuple[receipt.Use, ...]:
    """Every use of private rows, and what covers it (design rule: nothing is left unsaid)."""
    job, data = coordinator.job, coordinator.job.data
    guarantee = coordinator.guarantee
    private = guarantee is not None
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
    if guarantee is not None and guarantee.scaling is not None:
        scaling = guarantee.scaling
        note = (
            f"means and standard deviations, once before training: {scaling.dimensions} numbers of squared sensitivity "
            f"{scaling.sensitivity_squared} in all, with noise of variance {scaling.variance}"
        )
        uses.append(receipt.Use(what="standardisation", covered="charged", note=note))
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
