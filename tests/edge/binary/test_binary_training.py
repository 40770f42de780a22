"""A binary network learns what a teacher answers, by a seed; one that is only cast knows nothing; what cannot be learnt from is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from qedge.edge.binary.architecture import Architecture, Encoding, Layer
from qedge.edge.binary.encoding import fit_encoding
from qedge.edge.binary.module import BinaryModule, pack
from qedge.edge.binary.training import Teacher, train_binary, trained
from qedge.edge.rung import Rows
from qedge.errors import Diverged, InvalidCalibration, ModelError

MLP = Architecture((1, 1, 64), (Layer(128),) * 4, 10)
CNN = Architecture(
    (1, 8, 8),
    (
        Layer(32, (3, 3), pads=(1, 1, 1, 1), pool=(2, 2), pool_stride=(2, 2)),
        Layer(64, (3, 3), pads=(1, 1, 1, 1), pool=(2, 2), pool_stride=(2, 2)),
    ),
    10,
)


@dataclass(frozen=True)
class Digits:
    """Half of the digits to train by, half to test by, and an FP32 model of the first."""

    rows: Rows
    labels: np.ndarray
    tested: Rows
    named: np.ndarray
    network: nn.Sequential

    def teacher(self, rows: Rows) -> Rows:
        with torch.no_grad():
            answers: Rows = torch.softmax(self.network(torch.from_numpy(rows)), 1).numpy()
        return answers

    def accuracy(self, ask: Teacher) -> float:
        return float((ask(self.tested).argmax(1) == self.named).mean())


@pytest.fixture(scope="module")
def digits() -> Digits:
    rows, labels = load_digits(return_X_y=True)
    rows = rows.astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = (64, 128, 128, 128, 128)
        hidden = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
        network = nn.Sequential(*hidden, nn.Linear(128, 10))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(600):
        places = torch.arange(0, 898)[step % 9 :: 9]
        loss = functional.cross_entropy(network(torch.from_numpy(rows[places])), torch.from_numpy(labels[places]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Digits(rows[:898], labels[:898], rows[898:], labels[898:], network)


def test_a_binary_network_answers_nearly_as_its_teacher_and_a_cast_one_errs_many_times_as_often(digits: Digits) -> None:
    assert digits.accuracy(digits.teacher) > 0.9
    network = train_binary(digits.teacher, digits.rows, digits.labels, 10, MLP, seed=0, epochs=40)
    assert digits.accuracy(network.run) > digits.accuracy(digits.teacher) - 0.05
    assert 1 - digits.accuracy(pack(_cast(digits)).run) > 5 * (1 - digits.accuracy(network.run))


def _cast(digits: Digits) -> BinaryModule:
    """The teacher's own weights by sign, with XNOR-Net's scale for each channel and the biases in their place."""
    module = BinaryModule(MLP, fit_encoding(digits.teacher, digits.rows), 0)
    linear = [layer for layer in digits.network if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for weight, norm, layer in zip(module.weights, module.norms, linear, strict=False):
            weight.copy_(layer.weight)
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.copy_(layer.weight.abs().mean(1))
            norm.bias.copy_(layer.bias)
        module.weights[-1].copy_(linear[-1].weight)
    return module.eval()


def test_convolutions_learn_from_a_teacher_without_labels(digits: Digits) -> None:
    network = train_binary(digits.teacher, digits.rows, None, 10, CNN, seed=0, epochs=30)
    assert digits.accuracy(network.run) > 0.8


def test_the_same_seed_gives_the_same_network_and_leaves_torchs_generator_alone(digits: Digits) -> None:
    def made(seed: int) -> bytes:
        network = train_binary(digits.teacher, digits.rows, digits.labels, 10, MLP, seed=seed, epochs=2)
        return network.run(digits.tested).tobytes()

    before = torch.get_rng_state()
    first = made(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert made(3) == first
    assert made(4) != first


def test_progress_is_told_each_epoch_and_the_loss_falls(digits: Digits) -> None:
    told: list[tuple[int, float]] = []
    train_binary(digits.teacher, digits.rows, None, 10, MLP, seed=0, epochs=6, progress=lambda epoch, loss: told.append((epoch, loss)))
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1][1] < told[0][1]


def test_latent_weights_stay_within_one(digits: Digits) -> None:
    module = trained(digits.teacher, digits.rows, digits.labels, 10, MLP, 0, epochs=2, learning_rate=0.03)
    assert all(float(weight.detach().abs().max()) <= 1 for weight in module.weights)


def test_training_that_leaves_the_numbers_is_refused(digits: Digits) -> None:
    with pytest.raises(Diverged, match="of binary training has the loss"):
        train_binary(digits.teacher, digits.rows, None, 10, MLP, seed=0, epochs=3, learning_rate=float("inf"))


def test_training_that_learns_nothing_is_refused(digits: Digits) -> None:
    with pytest.raises(Diverged, match="learnt nothing"):
        train_binary(digits.teacher, digits.rows, None, 10, MLP, seed=0, epochs=1, learning_rate=1e-9)


def _changed(rows: Rows, value: float) -> Rows:
    rows = rows.copy()
    rows[5, 7] = value
    return rows


@pytest.mark.parametrize(
    "change",
    [
        lambda rows, labels: (rows[:, :63], labels),
        lambda rows, labels: (rows[:9], labels[:9]),
        lambda rows, labels: (_changed(rows, np.nan), labels),
        lambda rows, labels: (_changed(rows, np.inf), labels),
        lambda rows, labels: (rows, labels[:-1]),
        lambda rows, labels: (rows, labels + 1),
        lambda rows, labels: (rows, labels - 1),
    ],
    ids=["width", "few", "nan", "inf", "fewer labels", "a label too high", "a label below 0"],
)
def test_rows_that_nothing_can_be_learnt_from_are_refused(
    digits: Digits, change: Callable[[Rows, np.ndarray], tuple[Rows, np.ndarray]]
) -> None:
    rows, labels = change(digits.rows, digits.labels)
    with pytest.raises(InvalidCalibration):
        train_binary(digits.teacher, rows, labels, 10, MLP, seed=0, epochs=1)


def test_no_epochs_are_refused(digits: Digits) -> None:
    with pytest.raises(InvalidCalibration, match="0 epochs"):
        train_binary(digits.teacher, digits.rows, None, 10, MLP, seed=0, epochs=0)


@pytest.mark.parametrize(
    "teacher",
    [
        lambda rows: np.zeros((len(rows), 10), np.float32),
        lambda rows: np.full((len(rows), 10), np.nan, np.float32),
        lambda rows: np.full((len(rows), 9), 1 / 9, np.float32),
        lambda rows: np.full((len(rows) - 1, 10), 0.1, np.float32),
    ],
    ids=["zeros", "nan", "fewer classes", "fewer rows"],
)
def test_a_teacher_that_answers_no_probabilities_is_refused(digits: Digits, teacher: Teacher) -> None:
    with pytest.raises(ModelError, match="the teacher answers"):
        train_binary(teacher, digits.rows, None, 10, MLP, seed=0, epochs=1)


def test_an_architecture_of_other_classes_is_refused(digits: Digits) -> None:
    with pytest.raises(ModelError, match="has 3 classes"):
        train_binary(digits.teacher, digits.rows, None, 10, Architecture((1, 1, 64), (), 3), seed=0, epochs=1)


def test_features_keep_no_more_bits_than_the_teacher_notices() -> None:
    """A teacher that looks at one threshold wants one bit; one that looks at fine differences wants more."""
    rows = np.random.default_rng(0).random((500, 3), np.float32)
    rows[:250] = np.round(rows[:250])
    rows[250:] = rows[:250][::-1]  # so that halves of two rows are whole rows again

    def coarse(asked: Rows) -> Rows:
        return np.eye(2, dtype=np.float32)[(asked[:, 0] > 0.6).astype(int)]

    def fine(asked: Rows) -> Rows:
        return np.eye(2, dtype=np.float32)[(np.floor(asked[:, 0] * 40) % 2).astype(int)]

    assert fit_encoding(coarse, rows).bits == 1
    assert fit_encoding(fine, np.random.default_rng(1).random((500, 3), np.float32)).bits > 4


@pytest.mark.parametrize("scale", [1.0, 1e6], ids=["one range for all", "each its own"])
def test_features_of_other_units_have_ranges_of_their_own(scale: float) -> None:
    rows = np.random.default_rng(0).random((500, 2), np.float32) * np.array([1, scale], np.float32)

    def teacher(asked: Rows) -> Rows:
        return np.stack([asked[:, 0] > 0.5, asked[:, 0] <= 0.5], axis=1).astype(np.float32)

    encoding = fit_encoding(teacher, rows)
    assert np.abs(encoding.decoded(rows)[:, 0] - rows[:, 0]).max() < 0.6
    assert encoding.bits < 4


def test_a_feature_that_never_changes_takes_no_part() -> None:
    rows = np.random.default_rng(0).random((100, 3), np.float32)
    rows[:, 1] = 7

    def teacher(asked: Rows) -> Rows:
        return np.stack([asked[:, 0], 1 - asked[:, 0]], axis=1)

    encoding = fit_encoding(teacher, rows)
    assert np.isfinite(encoding.ranges).all()
    assert isinstance(encoding, Encoding)
    np.testing.assert_array_equal(encoding.decoded(rows)[:, 1], 7)
