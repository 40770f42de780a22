"""Circuits of the user's own as layers: exact for every example on any device; PennyLane's own TorchLayer is refused."""

from __future__ import annotations

import copy

import pennylane as qml
import pytest
import torch
from torch import nn

from qedge.errors import InvalidCircuit, InvalidValue, ModelError
from qedge.job import Algorithm
from qedge.kernels.per_example.choice import HOOKS, choose_sums
from qedge.kernels.per_example.hooks import HookSums
from qedge.kernels.per_example.sums import LoopSums
from qedge.quantum.backend import Backend
from qedge.quantum.qnn.layer import QuantumLayer
from qedge.quantum.qnn.torch_layer import CircuitLayer

FEATURES, CLASSES = 3, 2


def entangler(inputs, weights):
    """Two wires, angles embedded by RY, a layer of rotations."""
    qml.AngleEmbedding(inputs, range(2), rotation="Y")
    qml.StronglyEntanglingLayers(weights, range(2), ranges=[1])
    return [qml.expval(qml.Z(wire)) for wire in range(2)]


def _around(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 2), nn.Tanh(), layer, nn.Linear(2, CLASSES))


def _rows(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, FEATURES, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)


def _seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
def test_gradients_of_single_examples_equal_the_loop_on_any_device(device: str):
    module = _seeded(lambda: _around(CircuitLayer(entangler, 2, {"weights": (1, 2, 3)}, backend=Backend(name=device)))).double()
    features, labels = _rows(4)
    loop = LoopSums(module)
    each = torch.cat(HookSums(module).each(features.double(), labels), dim=1)
    expected = torch.stack([loop.gradient(features[k : k + 1].double(), labels[k : k + 1]) for k in range(4)])
    assert (each - expected).abs().max() <= 1e-10
    assert expected[:, 8:14].norm() > 1e-3  # of the circuit's weights: not zero by mistake


def test_a_circuit_equals_the_layer_of_our_own():
    own = QuantumLayer(2, 1).double()
    wrapped = CircuitLayer(entangler, 2, {"weights": (1, 2, 3)}).double()
    with torch.no_grad():
        wrapped.weights.copy_(own.weights)
    angles = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (own(angles) - wrapped(angles)).abs().max() <= 1e-10


def test_example_privacy_takes_the_wrapped_circuit_and_refuses_pennylanes_torchlayer():
    """TorchLayer's gradients of single examples come out as zeros, without an error: clipping would bound nothing."""
    safe = _seeded(lambda: _around(CircuitLayer(entangler, 2, {"weights": (1, 2, 3)})))
    assert choose_sums(safe, Algorithm(), FEATURES, CLASSES) == HOOKS
    node = qml.QNode(entangler, qml.device("default.qubit", wires=2), interface="torch", diff_method="backprop")
    trap = _seeded(lambda: _around(qml.qnn.TorchLayer(node, {"weights": (1, 2, 3)})))
    with pytest.raises(ModelError, match=r"layer '2': its gradients of single examples are not those of a loop|cannot tell apart"):
        choose_sums(trap, Algorithm(), FEATURES, CLASSES)


def test_a_copy_after_use_makes_a_device_of_its_own():
    layer = CircuitLayer(entangler, 2, {"weights": (1, 2, 3)}, backend=Backend(name="lightning.qubit"))
    angles = torch.zeros(1, 2)
    before = layer(angles)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(angles), before)
    with torch.no_grad():
        twin.weights.add_(0.5)
    assert not torch.allclose(twin(angles), before)


def test_what_is_no_circuit_of_expectation_values_is_refused():
    with pytest.raises(InvalidValue, match="at least one shape"):
        CircuitLayer(entangler, 2, {})
    with pytest.raises(InvalidValue, match="none named 'inputs'"):
        CircuitLayer(entangler, 2, {"inputs": (1,)})

    def probabilities(inputs, weights):
        qml.RY(inputs[0] + weights[0], wires=0)
        return qml.probs(wires=0)

    with pytest.raises(InvalidCircuit, match=r"accepted: qml\.expval"):
        CircuitLayer(probabilities, 1, {"weights": (1,)})(torch.zeros(1, 1))
