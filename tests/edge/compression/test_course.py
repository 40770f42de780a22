"""Training on what is left: the loss of the paper, the teacher that is followed, zeros that stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from qedge.edge.compression.pruning import by_magnitude
from qedge.edge.compression.training import Course, loss, train
from qedge.errors import EdgeError

ROWS = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32))
LABELS = torch.from_numpy(np.random.default_rng(1).integers(0, 3, 200))


def network(seed: int, width: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def test_the_loss_is_the_papers() -> None:
    rng = np.random.default_rng(2)
    student, teacher, labels = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    course = Course(temperature=3.0, mix=0.4)
    hard = -log_softmax(student, axis=1)[np.arange(6), labels].mean()
    soft = softmax(teacher / 3, axis=1)
    apart = (soft * (log_softmax(teacher / 3, axis=1) - log_softmax(student / 3, axis=1))).sum(axis=1).mean()
    got = loss(torch.from_numpy(student), torch.from_numpy(labels), course, torch.from_numpy(teacher))
    assert float(got) == pytest.approx(0.6 * hard + 0.4 * 9 * apart)
    assert float(loss(torch.from_numpy(student), torch.from_numpy(labels), course, None)) == pytest.approx(hard)


def test_a_student_follows_its_teacher_where_labels_say_nothing() -> None:
    teacher, student = network(3), network(4, width=32)
    taught = train(student, ROWS, LABELS, Course(steps=600, mix=1.0), 0, teacher=teacher)
    alone = train(student, ROWS, LABELS, Course(steps=600), 0)
    with torch.no_grad():
        expected = teacher(ROWS).argmax(1)
        agrees, by_labels = ((one(ROWS).argmax(1) == expected).float().mean() for one in (taught, alone))
    assert agrees > 0.95 > by_labels + 0.2


def test_what_was_pruned_stays_zero_and_what_was_given_is_not_touched() -> None:
    pruned = by_magnitude(network(5), 0.6)
    before = {name: value.clone() for name, value in pruned.module.state_dict().items()}
    trained = train(pruned.module, ROWS, LABELS, Course(steps=50), 0, masks=pruned.masks)
    for name, value in trained.named_parameters():
        if name in pruned.masks:
            assert not value[~pruned.masks[name]].any()
            assert not torch.equal(value, before[name])
    for name, value in pruned.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first, again, other = (train(network(6), ROWS, LABELS, Course(steps=30), seed) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch": 0}, {"learning_rate": 0.0}, {"temperature": -1.0}, {"mix": 1.1}])
def test_what_is_no_course_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EdgeError, match=next(iter(wrong))):
        Course(**wrong)  # type: ignore[arg-type]
