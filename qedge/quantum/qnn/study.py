"""A quantum neural network on a table beside an MLP with as many parameters: the same splits, optimiser, epochs and choice of rates.

In every split each model tries every learning rate on a fifth of its training rows, takes the best, and is trained anew on all of them;
the rows that the split holds out are asked once. Rows are standardised by the training rows of the split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn

from qedge.data import labelled
from qedge.data.labelled import Labelled
from qedge.errors import InvalidValue, LabelMismatch
from qedge.quantum.execution import Executor
from qedge.quantum.progress import OnStep, Step, untold
from qedge.quantum.qnn.circuits import circuits_of
from qedge.quantum.qnn.job import QNN
from qedge.quantum.qnn.layer import QuantumLayer, hybrid
from qedge.quantum.qnn.on_backend import measure
from qedge.quantum.resources import Resources, count
from qedge.quantum.result import Baseline, Result
from qedge.quantum.state_size import refuse_too_deep
from qedge.quantum.verdict import compare_splits

_INNER = 0.2  # of the training rows, to choose a rate on
_ASKED_AT_ONCE = 256  # rows: the states of all layers are held for each
Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class _Split:
    """train, test: standardised rows and their labels."""

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def run(job: QNN, *, table: Labelled | None = None, executor: Executor | None = None, on_step: OnStep = untold) -> Result:
    """The study: mean accuracy over the splits, its error, and the verdict.

    table: what `read` gave, where it was read before; executor: runs the circuits of `job.backend`.

    Raises:
        DataNotFound, DataError, InvalidValue: the table cannot be read or does not fit. LabelMismatch: one class only, or too few rows.
        UnknownBackend, BackendUnavailable, TooManyQubits: as `device` does.
    """
    begun = time.perf_counter()
    refuse_too_deep(job.qubits, job.layers, max(job.batch_size, _ASKED_AT_ONCE))
    table = table or read(job)
    features, classes = table.features.shape[1], len(table.vocabulary)
    makes = {"quantum": _maker(job, features, classes), "classical": _mlp(job, features, classes)}
    scores: dict[str, list[float]] = {name: [] for name in makes}
    rates: dict[str, list[float]] = {name: [] for name in makes}
    stopped, first = 0, None
    for number in range(job.splits):
        split = _split(table, job, number)
        for name, make in makes.items():
            module, rate, early = _tuned(make, split, job, number)
            scores[name].append(_accuracy(module, *split.test))
            rates[name].append(rate)
            stopped += early
            first = first or (module, split)
        on_step(Step("split", number + 1, job.splits, scores["quantum"][-1]))
    if first is None:
        raise AssertionError("at least two splits")
    module, split = first
    details: dict[str, JsonValue] = {
        "scores": {name: list(values) for name, values in scores.items()},
        "learning_rates": {name: list(values) for name, values in rates.items()},
        "parameters": {name: _size(make()) for name, make in makes.items()},
        "rows": len(table.labels),
        "features": features,
        "classes": classes,
        "warnings": [f"{stopped} of the fits diverged and were stopped at the best weights so far"] if stopped else [],
    }
    used = _resources(job, module)
    if job.backend is not None:
        told, spent = _on_backend(job, module, split, executor)
        details["backend"] = told
        used = used.spent(shots=spent.shots, circuits=spent.circuits)
    fits = len(job.learning_rates) + 1
    how = f"an MLP of {_size(makes['classical']())} parameters; each model {fits} fits a split of {job.epochs} epochs of Adam"
    (value, error), (other, other_error) = (_mean(scores[name], job.test) for name in ("quantum", "classical"))
    return Result(
        kind="qnn",
        title=f"{Path(job.data).name}: {job.qubits} qubits x {job.layers}, {_size(makes['quantum']())} parameters",
        quantity="accuracy on held-out rows",
        value=value,
        error=error,
        baseline=Baseline("MLP", other, other_error, how),
        compared=compare_splits(scores["quantum"], scores["classical"], test_share=job.test, tested=len(split.test[1])),
        resources=used.spent(seconds=time.perf_counter() - begun),
        details=details,
    )


def read(job: QNN) -> Labelled:
    """The table that a job names.

    Raises:
        UnknownKey: neither a built-in table nor a file. Others as `run`.
    """
    table = labelled.read(job.data, job.label, job.drop)
    tested = round(len(table.labels) * job.test)
    if tested < 1 or (len(table.labels) - tested) * _INNER < 1:
        raise InvalidValue(
            f"{len(table.labels)} rows are too few to test on {job.test:g} of them and to choose a rate on a fifth of the rest"
        )
    if (rarest := int(np.bincount(table.labels).min())) < 2:
        raise LabelMismatch(f"a class has {rarest} row; accepted: at least 2 of each")
    return table


def _maker(job: QNN, features: int, classes: int) -> Make:
    return lambda: hybrid(features, classes, QuantumLayer(job.qubits, job.layers, embedding=job.embedding, reupload=job.reupload))


def _mlp(job: QNN, features: int, classes: int) -> Make:
    """One hidden layer of tanh, as wide as comes nearest to the same number of parameters."""
    wanted = _size(_maker(job, features, classes)())
    hidden = max(1, round((wanted - classes) / (features + classes + 1)))
    return lambda: nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _split(table: Labelled, job: QNN, number: int) -> _Split:
    order = np.random.default_rng([job.seed, number]).permutation(len(table.labels))
    tested = round(len(order) * job.test)
    train, test = order[tested:], order[:tested]
    center, spread = table.features[train].mean(axis=0), table.features[train].std(axis=0)
    rows = torch.from_numpy((table.features - center) / np.where(spread > 0, spread, 1).astype(np.float32))
    labels = torch.from_numpy(table.labels)
    return _Split((rows[train], labels[train]), (rows[test], labels[test]))


def _tuned(make: Make, split: _Split, job: QNN, number: int) -> tuple[nn.Module, float, int]:
    """The model at the best of the rates, trained on all training rows; that rate; and how many fits diverged."""
    rows, labels = split.train
    inner = math.ceil(len(labels) * _INNER)
    found, diverged = {}, 0
    for rate in job.learning_rates:
        module, early = _fit(make, rows[inner:], labels[inner:], rate, job, number)
        found[rate] = _accuracy(module, rows[:inner], labels[:inner])
        diverged += early
    best = max(found, key=found.__getitem__)
    module, early = _fit(make, rows, labels, best, job, number)
    return module, best, diverged + early


def _fit(make: Make, rows: torch.Tensor, labels: torch.Tensor, rate: float, job: QNN, number: int) -> tuple[nn.Module, bool]:
    """A model trained from the split's own seed; whether it was stopped, at its best epoch so far, since its loss was no number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([job.seed, number]).generate_state(1)[0]))
        module = make()
        optimiser = torch.optim.Adam(module.parameters(), lr=rate)
        best, kept = math.inf, {name: value.clone() for name, value in module.state_dict().items()}
        for _ in range(job.epochs):
            total = 0.0
            for batch in torch.split(torch.randperm(len(labels)), job.batch_size):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(module(rows[batch]), labels[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += loss.item()
            if not math.isfinite(total):
                module.load_state_dict(kept)
                return module, True
            if total < best:
                best, kept = total, {name: value.clone() for name, value in module.state_dict().items()}
    return module, False


def _accuracy(module: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        found = [module(part).argmax(1) for part in torch.split(rows, _ASKED_AT_ONCE)]
        return float((torch.cat(found) == labels).double().mean())


def _mean(scores: list[float], share: float) -> tuple[float, float]:
    """The mean of overlapping splits and its standard deviation (Nadeau, Bengio 2003, as in `verdict`)."""
    return fmean(scores), float(np.std(scores, ddof=1)) * math.sqrt(1 / len(scores) + share / (1 - share))


def _resources(job: QNN, module: nn.Module) -> Resources:
    """Of one circuit; training simulates them exactly and takes no shots."""
    layer = module[2]  # type: ignore[index]
    one = count(circuits_of(layer, torch.zeros(1, job.qubits))[0])
    return Resources(one.qubits, one.gates, one.cx, one.depth)


def _on_backend(job: QNN, module: nn.Module, split: _Split, executor: Executor | None) -> tuple[dict[str, JsonValue], Resources]:
    """What the backend makes of the first split's held-out rows, beside the exact answers."""
    if job.backend is None:
        raise AssertionError("asked only where there is one")
    rows, labels = (part[: job.most_rows] for part in split.test)
    found = measure(module, rows.numpy(), job.backend, executor)
    right = float((found.probabilities.argmax(1) == labels.numpy()).mean())
    told: dict[str, JsonValue] = {
        "name": found.backend,
        "shots": found.shots,
        "rows": len(labels),
        "accuracy": right,
        "exact": _accuracy(module, rows, labels),
        "mean_error_of_z": float(found.errors.mean()),
    }
    return told, found.resources
