"""A version made smaller, as a run: parts of its network taken out, or a small network that it taught, registered as a challenger.

A run's folder holds `compression.json`, what was asked; `attached/table.json`, what each step came to; `model/`, and what the registry
mirrors. The new version's receipt names its parent and what was done with whose rows; it is never made champion here.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import JsonValue, ValidationError
from torch import nn

from qedge import __version__
from qedge.audit import receipt
from qedge.audit.canonical import canonical
from qedge.config import Settings
from qedge.edge.calibration import Calibration
from qedge.edge.compression import pruning, table
from qedge.edge.compression.training import Course, train
from qedge.edge.ladder import COMPRESSING
from qedge.errors import EdgeError, InvalidJob
from qedge.export import save_weights, to_onnx
from qedge.federated.run_folder import Json, RunFolder
from qedge.job import Model
from qedge.job.explanation import explain
from qedge.models import build, parameters_vector
from qedge.network import CARD, WEIGHTS, Network, network_card, rebuilt
from qedge.records import Records, derive
from qedge.registry.outbox import read_published
from qedge.registry.publisher import Publisher
from qedge.registry.registry import MODEL_FILE, ModelVersion
from qedge.storage import write_atomically
from qedge.yaml_mapping import read_mapping

PUBLISH_TIMEOUT_S = 120.0
TABLE = "attached/table.json"
_FILES = (MODEL_FILE, WEIGHTS, CARD)
Told = Callable[[str], None]


@dataclass(frozen=True)
class Pruning:
    """share: of weights, or with `structured` of each hidden layer's units or channels. importance: of units; weights have their size."""

    share: float
    structured: bool = False
    importance: Literal["norm", "taylor"] = "taylor"

    def __str__(self) -> str:
        what = f"units by {self.importance}" if self.structured else "weights by magnitude"
        return f"{self.share:.0%} of the {what}"


@dataclass(frozen=True)
class Asked:
    """how: parts to take out, or the small network to teach; rows: to train by, and others to compare by; public: those are declared so.

    source: the folder of the version that it begins with; taught: by its answers too, not by labels alone.
    """

    version: ModelVersion
    source: Path
    how: Pruning | Model
    rows: Calibration
    public: bool
    course: Course = field(default_factory=Course)
    taught: bool = True
    seed: int = 0

    @property
    def word(self) -> str:
        """For names of runs."""
        return "distilled" if isinstance(self.how, Model) else "pruned"


@dataclass(frozen=True)
class Compressed:
    """What came of it. version: its number, None while the registry has not got it; rows: of the table, the first the parent's."""

    run_id: str
    model: str
    version: int | None
    receipt: str
    rows: list[table.Row]


def read_student(path: Path) -> Model:
    """The network that a YAML file describes, as a job's `model` does.

    Raises:
        InvalidJob: and its kinds, when it cannot be read, or a value is missing, unknown or out of range.
    """
    values = read_mapping(path, "student", list(Model.model_fields), InvalidJob)
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        raise explain(error, Model, f"student {path}", ()) from None


def compress(asked: Asked, settings: Settings, told: Told = lambda _: None) -> Compressed:
    """Make the smaller version, and have it registered. told: what begins.

    Raises:
        ScopeConflict: rows that have a budget in the ledger, which training by them here would void.
        EdgeError: a share or a course that is none. ModelError: a network that cannot be rebuilt, or nothing to take out of it.
        Tampered: the version's files do not hold. StorageFull, HomeUnusable: it cannot be written.
    """
    records = Records.open(settings.home)
    parent = rebuilt(asked.source, asked.version.name, records.keys.public)
    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in asked.rows.identity)
    if prints:
        records.ledger.refuse_without_privacy(prints)
    name = asked.version.name
    folder = RunFolder(settings.home, f"{name}-{asked.word}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}")
    created_ms = time.time_ns() // 1_000_000
    steps = _steps(asked, parent, told)
    if prints:
        records.ledger.record_without_privacy(folder.run, prints)
    hidden = folder.concealed()
    try:
        told("comparing")
        compared = table.compare(_candidates(steps, parent, hidden.path), asked.rows.held)
        issued = _write_model(asked, parent, *next(reversed(steps.values())), hidden, records)
        _write_run(asked, hidden, created_ms, compared, issued)
    except BaseException:
        shutil.rmtree(hidden.path, ignore_errors=True)
        raise
    records.log.append("edge.compressed", model=name, run=folder.run, receipt=issued.id, how=str(asked.word))
    Publisher(settings, folder.run).finish(PUBLISH_TIMEOUT_S)
    return Compressed(folder.run, name, read_published(folder.path).version, issued.id, compared)


def _steps(asked: Asked, parent: Network, told: Told) -> dict[str, tuple[nn.Module, Model]]:
    """The networks on the way, the parent first, each with what it is."""
    rows = torch.from_numpy(parent.scaled(asked.rows.fitting.rows))
    labels = torch.from_numpy(asked.rows.fitting.labels)
    teacher = parent.module if asked.taught else None
    found = {"parent": (parent.module, parent.model)}
    if isinstance(asked.how, Model):
        student = build(asked.how, len(parent.schema.features), len(parent.schema.labels), asked.seed)
        told(f"teaching {asked.how.kind}")
        return found | {"student": (train(student, rows, labels, asked.course, asked.seed, teacher=teacher), asked.how)}
    masks: pruning.Masks = {}
    if asked.how.structured:
        scores = pruning.taylor(parent.module, rows, labels) if asked.how.importance == "taylor" else None
        pruned: nn.Module = pruning.structured(parent.module, asked.how.share, scores)
        model = _narrowed(parent.model, pruned)
    else:
        one = pruning.by_magnitude(parent.module, asked.how.share)
        pruned, masks, model = one.module, one.masks, parent.model
    found["pruned"] = (pruned, model)
    if asked.course.steps:
        told("training on what is left")
        found["trained on"] = (train(pruned, rows, labels, asked.course, asked.seed, teacher=teacher, masks=masks), model)
    return found


def _candidates(steps: dict[str, tuple[nn.Module, Model]], parent: Network, scratch: Path) -> dict[str, table.Candidate]:
    """Each network with the file that serves it."""
    found, path = {}, scratch / "candidate.onnx"
    for step, (module, _) in steps.items():
        to_onnx(module, parent.schema, path)
        found[step] = table.Candidate(module, path.read_bytes())
    path.unlink()
    return found


def _narrowed(model: Model, pruned: nn.Module) -> Model:
    """What a network is after units were taken out of it."""
    widths = [layer.weight.shape[0] for layer in pruned.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][:-1]
    if model.kind not in ("mlp", "cnn"):
        raise EdgeError(f"no units can be taken out of a network of kind '{model.kind}'; accepted: mlp, cnn", given=model.kind)
    said = model.model_dump(exclude_defaults=True) | {"hidden" if model.kind == "mlp" else "channels": tuple(widths)}
    return Model.model_validate(said)


def _write_model(asked: Asked, parent: Network, module: nn.Module, model: Model, folder: RunFolder, records: Records) -> receipt.Receipt:
    """The new version's files, with their receipt."""
    place = folder.model
    place.mkdir(mode=0o700)
    to_onnx(module, parent.schema, place / MODEL_FILE)
    save_weights(parameters_vector(module), module, place / WEIGHTS)
    before = json.loads((asked.source / CARD).read_bytes())
    said: dict[str, JsonValue] = {"model": asked.version.name, "run": folder.run, "input": before.get("input", "")}
    write_atomically(place / CARD, canonical(said | network_card(model, parent.schema)))
    covered: receipt.Covered = "public by declaration" if asked.public else "NOT COVERED"
    counts = {"fitting": f"{len(asked.rows.fitting)} rows", "held": f"{len(asked.rows.held)} rows"}
    uses = [receipt.Use(what=f"{COMPRESSING}comparing it with its parent", covered=covered, note=counts["held"])]
    if isinstance(asked.how, Model) or asked.course.steps:
        by = "labels and the parent's answers" if asked.taught else "labels"
        uses.append(receipt.Use(what=f"{COMPRESSING}training the {asked.word} network by {by}", covered=covered, note=counts["fitting"]))
    if isinstance(asked.how, Pruning) and asked.how.structured and asked.how.importance == "taylor":
        uses.append(receipt.Use(what=f"{COMPRESSING}choosing the units to take out", covered=covered, note=counts["fitting"]))
    issued = derive(parent.receipt, uses, receipt.artifact_digests(place, _FILES), records, run=folder.run)
    issued.write(place / receipt.FILE)
    return issued


def _write_run(asked: Asked, folder: RunFolder, created_ms: int, compared: list[table.Row], issued: receipt.Receipt) -> None:
    """All that is asked of a run's folder, and show it."""
    how: Json = {"kind": "student", **asked.how.model_dump(mode="json")} if isinstance(asked.how, Model) else {**asdict(asked.how)}
    said: Json = {"model": asked.version.name, "version": asked.version.version, "how": how, "course": {**asdict(asked.course)}}
    folder.write("compression.json", said | {"seed": asked.seed, "taught": asked.taught, "public": asked.public})
    tags: Json = {"qedge.kind": asked.word, "qedge.code_version": __version__, "qedge.parent_receipt": str(issued.parent)}
    params: Json = {f"compression.{key}": str(value) for key, value in {**how, **asdict(asked.course), "seed": asked.seed}.items()}
    folder.write("run.json", {"run_id": folder.run, "name": asked.version.name, "created_ms": created_ms, "params": params, "tags": tags})
    (folder.path / "attached").mkdir(mode=0o700)
    write_atomically(folder.path / TABLE, json.dumps([asdict(one) for one in compared], indent=1).encode())
    last = asdict(compared[-1])
    metrics: Json = {key: value for key, value in last.items() if isinstance(value, int | float)}
    guarantee = {"qedge.epsilon": asked.version.epsilon, "qedge.delta": asked.version.delta} if asked.public else {}
    ended: Json = {"qedge.receipt_id": issued.id, **{key: value for key, value in guarantee.items() if value is not None}}
    folder.write("result.json", {"status": "finished", "metrics": metrics | {"final_accuracy": last["accuracy"]}, "tags": ended})
    folder.settle()
