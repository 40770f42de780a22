"""Vanishing gradients where theory has them, none where it has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qedge.errors import InvalidValue, TooManyQubits
from qedge.quantum.qnn.barren_plateau import Plateau, gradient_variance
from qedge.quantum.qnn.layer import QuantumLayer


def test_deep_random_circuits_lose_a_constant_factor_a_qubit():
    """Of circuits that scramble, the variance falls about as 2^-n (McClean et al. 2018, equation 8 with a local observable)."""
    found = gradient_variance([2, 4, 6], layers=16, samples=300)
    assert found.decays
    assert 0.3 < found.per_qubit < 0.75
    assert found.low < found.slope < found.high < 0
    assert found.variances[0] > found.variances[1] > found.variances[2]


def test_more_circuits_tell_the_slope_more_exactly():
    few, many = (gradient_variance([3, 4, 5], layers=16, samples=samples) for samples in (20, 320))
    assert many.slope_error < few.slope_error


def test_the_variance_is_that_of_autograds_derivatives():
    torch_seeded = torch.Generator().manual_seed(7)
    weights = 2 * torch.pi * torch.rand(50, 3, 2, 3, generator=torch_seeded, dtype=torch.float64)
    layer = QuantumLayer(2, 3).double()
    found = []
    for one in weights:
        with torch.no_grad():
            layer.weights.copy_(one)
        (gradient,) = torch.autograd.grad(layer(torch.zeros(1, 2, dtype=torch.float64))[0, 0], layer.weights)
        found.append(float(gradient[0, 0, 1]))
    told = gradient_variance([2, 3, 4], layers=3, samples=50, seed=7)
    assert told.variances[0] == pytest.approx(np.var(found), rel=1e-9)
    assert isinstance(told, Plateau)
    assert told.plain()["qubits"] == [2, 3, 4]


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(InvalidValue, match="three sizes or more"):
        gradient_variance([2, 2, 4], layers=3)
    with pytest.raises(InvalidValue, match="20 samples or more"):
        gradient_variance([2, 3, 4], layers=3, samples=5)
    with pytest.raises(TooManyQubits):
        gradient_variance([2, 3, 13], layers=3)
