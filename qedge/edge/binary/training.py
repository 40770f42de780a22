"""Training a binary network from the FP32 model's answers, and from labels where there are any.

Rows are mixed in pairs, anew in each epoch, and the teacher is asked about the mixtures: few rows then show much of what it does.

Source: Hinton et al., "Distilling the knowledge in a neural network", 2015; Zhang et al., "mixup: beyond empirical risk minimization",
ICLR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from qedge.edge.binary.architecture import Architecture
from qedge.edge.binary.encoding import fit_encoding
from qedge.edge.binary.module import BinaryModule, pack
from qedge.edge.binary.network import BinaryNetwork
from qedge.edge.rung import Rows
from qedge.errors import Diverged, InvalidCalibration, ModelError
from qedge.kernels.batches import single_thread

Teacher = Callable[[Rows], Rows]
Labels = npt.NDArray[np.int64]
Progress = Callable[[int, float], None]
EPOCHS = 60
_BATCH = 100
_LEARNING_RATE = 3e-3
_BY_LABELS = 0.5  # of the loss, where there are labels


def train_binary(
    teacher: Teacher,
    rows: Rows,
    labels: Labels | None,
    classes: int,
    architecture: Architecture,
    *,
    seed: int,
    epochs: int = EPOCHS,
    learning_rate: float = _LEARNING_RATE,
    progress: Progress = lambda epoch, loss: None,
) -> BinaryNetwork:
    """The network of `trained`, packed."""
    return pack(trained(teacher, rows, labels, classes, architecture, seed, epochs, learning_rate, progress))


def trained(
    teacher: Teacher,
    rows: Rows,
    labels: Labels | None,
    classes: int,
    architecture: Architecture,
    seed: int,
    epochs: int = EPOCHS,
    learning_rate: float = _LEARNING_RATE,
    progress: Progress = lambda epoch, loss: None,
) -> BinaryModule:
    """A binary network that answers as `teacher` does, in `eval`; the same seed gives the same one.

    teacher: rows [n, F] to probabilities [n, classes]. rows: [n, F] float32, unscaled; labels: [n] places among the classes, which then
    count half. progress: told each epoch, from 1 on, and its mean loss.

    Raises:
        InvalidCalibration: rows or labels of another shape, not finite or not among the classes. ModelError: what the teacher answers is
            no probabilities, or the architecture is of other classes. Diverged: the loss is not finite, or in the end no better than that
            of one answer to every row.
    """
    _check(rows, labels, classes, architecture, epochs)
    asked = _checked(teacher, classes)
    module = BinaryModule(architecture, fit_encoding(asked, rows), seed)
    constant = _entropy(asked(rows).mean(0, dtype=np.float64))
    loss = math.inf
    with single_thread():
        optimiser = torch.optim.Adam(module.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        generator = np.random.default_rng(seed)
        for epoch in range(1, epochs + 1):
            loss = _epoch(module, optimiser, _mixed(asked, rows, labels, classes, generator))
            schedule.step()
            if not math.isfinite(loss):
                raise Diverged(f"epoch {epoch} of binary training has the loss {loss}; lower the learning rate, {learning_rate:g}")
            progress(epoch, loss)
    if constant > 0.01 and loss >= constant:  # a teacher that always says the same can only be equalled
        raise Diverged(
            f"binary training ended with a loss of {loss:.3f}, and one answer to every row has {constant:.3f}: it learnt nothing; "
            f"give more epochs than {epochs}, more rows than {len(rows)}, or wider layers"
        )
    return module.eval()


def _check(rows: Rows, labels: Labels | None, classes: int, architecture: Architecture, epochs: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != architecture.features or len(rows) < max(2, classes):
        raise InvalidCalibration(
            f"rows to train by have the shape {list(rows.shape)}; accepted: [{classes} or more, {architecture.features}]",
            given=list(rows.shape),
        )
    if not np.isfinite(rows).all():
        raise InvalidCalibration("rows to train by hold NaN or infinity; accepted: finite numbers")
    if labels is not None and (labels.shape != (len(rows),) or labels.min() < 0 or labels.max() >= classes):
        raise InvalidCalibration(f"labels {list(labels.shape)} to {len(rows)} rows; accepted: one for each, from 0 to {classes - 1}")
    if architecture.classes != classes:
        raise ModelError(f"the architecture has {architecture.classes} classes, and the teacher {classes}")
    if epochs < 1:
        raise InvalidCalibration(f"{epochs} epochs; accepted: 1 or more", given=epochs)


def _checked(teacher: Teacher, classes: int) -> Teacher:
    def asked(rows: Rows) -> Rows:
        answers = np.array(teacher(rows), np.float32)
        if answers.shape != (len(rows), classes) or not (answers >= 0).all() or not np.allclose(answers.sum(1), 1, atol=1e-2):
            raise ModelError(f"the teacher answers {list(answers.shape)}, or no probabilities; accepted: [{len(rows)}, {classes}] of them")
        return answers

    return asked


def _entropy(probabilities: npt.NDArray[np.float64]) -> float:
    """In nats."""
    return float(-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum())


def _mixed(
    teacher: Teacher, rows: Rows, labels: Labels | None, classes: int, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixtures of rows in random pairs, each row once in the first place, and what they should be answered."""
    one, other = generator.permutation(len(rows)), generator.permutation(len(rows))
    share = generator.random((len(rows), 1), np.float32)
    mixed = share * rows[one] + (1 - share) * rows[other]
    wanted = teacher(mixed)
    if labels is not None:
        named = np.eye(classes, dtype=np.float32)[labels]
        told = share * named[one] + (1 - share) * named[other]
        wanted = ((1 - _BY_LABELS) * wanted + _BY_LABELS * told).astype(np.float32)
    return torch.from_numpy(mixed), torch.from_numpy(wanted)


def _epoch(module: BinaryModule, optimiser: torch.optim.Optimizer, given: tuple[torch.Tensor, torch.Tensor]) -> float:
    """One step for each batch; the mean loss."""
    module.train()
    rows, wanted = given
    batches = max(1, len(rows) // _BATCH)  # of nearly the same size: batch normalisation wants two rows or more
    total = 0.0
    for some, answers in zip(rows.tensor_split(batches), wanted.tensor_split(batches), strict=True):
        loss = functional.cross_entropy(module(some), answers)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        module.clip()
        total += float(loss.detach()) * len(some)
    return total / len(rows)
