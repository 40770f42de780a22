"""A trained hybrid model with its quantum layer elsewhere: the same answers, and error bars that hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qedge.errors import InvalidValue, ModelError
from qedge.job import Model
from qedge.models import build
from qedge.quantum.backend import Backend
from qedge.quantum.qnn.layer import QuantumLayer, hybrid
from qedge.quantum.qnn.on_backend import _moments, measure

FEATURES, CLASSES = 4, 3


def _module(*, reupload: bool = False, embedding: str = "ry") -> torch.nn.Module:
    model = {"kind": "hybrid", "qubits": 3, "layers": 2, "reupload": reupload, "embedding": embedding}
    return build(Model.model_validate(model), FEATURES, CLASSES, 1)


def _rows(rows: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, FEATURES), dtype=np.float32)


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
@pytest.mark.parametrize(("reupload", "embedding"), [(False, "ry"), (True, "rx")])
def test_an_exact_backend_answers_as_the_model_does(device: str, reupload: bool, embedding: str):
    module, rows = _module(reupload=reupload, embedding=embedding), _rows(4)
    found = measure(module, rows, Backend(name=device))
    with torch.no_grad():
        expected = torch.softmax(module(torch.from_numpy(rows)), dim=1).numpy()
    assert np.abs(found.probabilities - expected).max() <= 1e-5
    assert not found.errors.any()
    assert not found.spread.any()
    assert (found.backend, found.shots, found.resources.circuits, found.resources.shots) == (device, None, 4, 0)
    assert found.resources.cx == 6


def test_error_bars_are_the_deviations_that_shots_have():
    """Over 300 repeated rows: the mean square of (value - exact)/error is 1 ± 0.1, four standard deviations being 0.33 (false alarm
    6e-5 without the fixed seed, with it none)."""
    module, rows = _module(), np.repeat(_rows(1), 300, axis=0)
    exact = measure(module, rows[:1], Backend(name="default.qubit"))
    found = measure(module, rows, Backend(name="default.qubit", shots=400, seed=3))
    for value, error, true in (
        (found.values, found.errors, exact.values),
        (found.probabilities, found.spread, exact.probabilities),
    ):
        ratios = (((value - true) / error) ** 2).mean(axis=0)
        assert ratios == pytest.approx(np.ones(len(ratios)), abs=0.33)
    assert found.resources.shots == 300 * 400


def test_a_row_whose_shots_all_agree_still_has_an_error_bar():
    found = measure(_module(), _rows(3), Backend(name="default.qubit", shots=1))
    assert (found.errors > 0).all()


def test_what_cannot_be_asked_is_refused_before_a_circuit_runs():
    with pytest.raises(ModelError, match="no quantum layer"):
        measure(build(Model(kind="linear"), FEATURES, CLASSES, 0), _rows(1), Backend())
    with pytest.raises(InvalidValue, match=r"\[rows, 4\] are accepted; given: an array \[2, 3\]"):
        measure(_module(), np.zeros((2, 3), np.float32), Backend())
    with pytest.raises(InvalidValue, match="finite"):
        measure(_module(), np.full((1, 4), np.nan, np.float32), Backend())


def test_errors_of_wires_that_go_together_are_carried_on_together() -> None:
    """Two wires always read alike, |00> or |11>: the covariance of their means is the variance of each, and the sum's is four times it."""
    frequencies = np.array([[0.6, 0, 0, 0.4]])
    values, covariances = _moments(frequencies, 2, 10_000)
    variance = (1 - 0.2**2) / 10_000
    assert values == pytest.approx(np.array([[0.2, 0.2]]))
    np.testing.assert_allclose(covariances[0], np.full((2, 2), variance), rtol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_class_that_hangs_on_a_sum_of_entangled_wires_has_the_error_bar_of_the_sum(sign: int) -> None:
    """A Bell pair: both wires are read alike, so that the sum of their means varies by twice one, and the difference by nothing.

    By hand: p = 1 / (1 + exp(-4 (z + sign z'))), dp = p (1 - p) 4 d(z + sign z').
    """
    shots = 500
    module = hybrid(1, 2, QuantumLayer(2, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module[2].weights[0, 1, 1] = np.pi / 2  # the second wire in |+>: the ring, 0 to 1 and 1 to 0, then makes |00> + |11>
        module[4].weight[0] = torch.tensor([1.0, sign])
    found = measure(module, np.zeros((1, 1), np.float32), Backend(name="default.qubit", shots=shots, seed=2))
    z, p = found.values[0], found.probabilities[0, 0]
    assert z[0] == z[1]
    assert p == pytest.approx(1 / (1 + np.exp(-4 * (z[0] + sign * z[1]))))
    of_sum = (1 + sign) * np.sqrt((1 - z[0] ** 2) / shots)
    assert found.spread[0] == pytest.approx(np.full(2, p * (1 - p) * 4 * of_sum), rel=0.01, abs=0.003)
