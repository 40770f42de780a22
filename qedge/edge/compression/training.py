"""A network trained on: by labels, by what a teacher answers, or by both, what was pruned staying so.

Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", NeurIPS 2014 workshop, section 2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice

import torch
from torch import nn

from qedge.edge.compression.pruning import Masks
from qedge.errors import EdgeError

_AT_LEAST = {"steps": 0, "batch": 1}


@dataclass(frozen=True)
class Course:
    """How it is trained: by so many steps of Adam, its rate falling to zero along a cosine.

    temperature: by which logits of teacher and student are divided; mix: the teacher's part of the loss, the labels have the rest.

    Raises:
        EdgeError: a value out of range.
    """

    steps: int = 2000
    learning_rate: float = 0.002
    batch: int = 64
    temperature: float = 4.0
    mix: float = 0.7

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            fits = value >= _AT_LEAST[one.name] if one.name in _AT_LEAST else 0 <= value <= 1 if one.name == "mix" else value > 0
            if not fits:
                accepted = "a share from 0 to 1" if one.name == "mix" else f"{_AT_LEAST.get(one.name, 'more than 0')}, or more"
                raise EdgeError(f"{one.name} is {value}; accepted: {accepted}", given=value)


class Training:
    """A copy of a network that is trained a piece at a time, `course.steps` steps in all.

    rows: [n, F]; labels: [n] places; masks: entries of parameters that stay zero. Without a teacher labels alone teach.
    """

    def __init__(
        self,
        module: nn.Module,
        rows: torch.Tensor,
        labels: torch.Tensor,
        course: Course,
        seed: int,
        *,
        teacher: nn.Module | None = None,
        masks: Masks | None = None,
    ) -> None:
        self.module = copy.deepcopy(module).eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(True)
        self._rows, self._labels, self._course = rows, labels, course
        self._optimiser = torch.optim.Adam(self.module.parameters(), course.learning_rate)
        self._falling = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, max(1, course.steps))
        self._taught = None if teacher is None else _answers(teacher, rows)
        named = dict(self.module.named_parameters())
        self._kept = [(named[name], mask.to(torch.float32)) for name, mask in (masks or {}).items()]
        self._left = islice(_batches(len(rows), course.batch, torch.Generator().manual_seed(seed)), course.steps)

    def advance(self, steps: int) -> None:
        """So many steps more, or as many as are left."""
        self.module.train()
        for places in islice(self._left, steps):
            self._optimiser.zero_grad()
            guided = None if self._taught is None else self._taught[places]
            torch.autograd.backward(loss(self.module(self._rows[places]), self._labels[places], self._course, guided))
            self._optimiser.step()
            self._falling.step()
            with torch.no_grad():
                for parameter, mask in self._kept:
                    parameter.mul_(mask)
        self.module.eval()


def train(
    module: nn.Module,
    rows: torch.Tensor,
    labels: torch.Tensor,
    course: Course,
    seed: int,
    *,
    teacher: nn.Module | None = None,
    masks: Masks | None = None,
) -> nn.Module:
    """A copy that was trained to the end, as `Training` does; the same seed gives the same weights on one machine."""
    training = Training(module, rows, labels, course, seed, teacher=teacher, masks=masks)
    training.advance(course.steps)
    return training.module


def loss(logits: torch.Tensor, labels: torch.Tensor, course: Course, taught: torch.Tensor | None) -> torch.Tensor:
    """(1 - mix) cross-entropy with the labels + mix T^2 KL(teacher || student) at temperature T; logits, taught: [batch, classes]."""
    by_labels = nn.functional.cross_entropy(logits, labels)
    if taught is None:
        return by_labels
    log_student = torch.log_softmax(logits / course.temperature, 1)
    log_teacher = torch.log_softmax(taught / course.temperature, 1)
    apart = nn.functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return (1 - course.mix) * by_labels + course.mix * course.temperature**2 * apart


def _answers(teacher: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([teacher(some) for some in torch.split(rows, 256)])


def _batches(rows: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Places of rows, all of them in a new order, again and again."""
    while True:
        yield from torch.split(torch.randperm(rows, generator=generator), size)
