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
    """A copy that was trained on rows [n, F] and labels [n] (places); the same seed gives the same weights on one machine.

    masks: entries of parameters that stay zero. Without a teacher labels alone teach.
    """
    student = copy.deepcopy(module).train()
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(student.parameters(), course.learning_rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, course.steps))
    taught = None if teacher is None else _answers(teacher, rows)
    kept = {name: mask.to(torch.float32) for name, mask in (masks or {}).items()}
    named = dict(student.named_parameters())
    for places in islice(_batches(len(rows), course.batch, generator), course.steps):
        optimiser.zero_grad()
        guided = None if taught is None else taught[places]
        torch.autograd.backward(loss(student(rows[places]), labels[places], course, guided))
        optimiser.step()
        falling.step()
        with torch.no_grad():
            for name, mask in kept.items():
                named[name].mul_(mask)
    return student.eval()


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
