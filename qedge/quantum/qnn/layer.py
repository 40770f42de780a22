"""A layer of circuits as a plain torch module, and the small network around it that a federated job trains.

Plain matters: weights are `nn.Parameter`s that the forward pass reads as torch does, and what is constant is no buffer, so that training
that must tell examples apart (private training) sees all there is. No quantum package is needed, to train or to serve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from qedge.errors import InvalidValue, ModelError
from qedge.quantum.statevector.evolution import Circuit, Embedding
from qedge.quantum.statevector.expectations import expectations, gradients_of_rows
from qedge.quantum.statevector.plan import Plan

LARGEST_ANGLE = math.pi / 2
READOUT = 4.0
_GAIN = 3.0  # found on the digits, private and not: 1 learns slowly, 5 saturates
_SPREAD = 0.3  # radians: wide enough to break symmetry, near enough to no rotation that gradients do not vanish


class QuantumLayer(nn.Module):
    """Angles [batch, qubits], radians, to <Z> of every wire [batch, qubits], in [-1, 1]; exactly, up to 12 qubits.

    The circuit embeds the angles (RY or RX on |0...0>; with `reupload` before every layer) and has `layers` of Rot on every wire and a CNOT
    ring, `qml.AngleEmbedding` and `qml.StronglyEntanglingLayers(ranges=[1, ...])`. Wire 0 comes first. weights: [layers, qubits, 3] of
    (phi, theta, omega).

    Raises:
        InvalidValue: no qubit, no layer, or an embedding of another name.
        TooManyQubits: more than 12.

    >>> layer = QuantumLayer(qubits=2, layers=1)
    >>> layer(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, qubits: int, layers: int, *, embedding: Embedding = "ry", reupload: bool = False) -> None:
        super().__init__()
        if layers < 1:
            raise InvalidValue(f"a quantum layer has at least one layer of rotations; given: {layers}", given=layers)
        if embedding not in ("ry", "rx"):
            raise InvalidValue(f"unknown embedding '{embedding}'; accepted: ry, rx", given=embedding)
        self.circuit = Circuit(Plan(qubits), embedding, reupload)
        self.weights = nn.Parameter(torch.randn(layers, qubits, 3) * _SPREAD)

    @property
    def qubits(self) -> int:
        """Wires, inputs and outputs."""
        return self.circuit.plan.qubits

    @property
    def layers(self) -> int:
        """Of rotations and ring."""
        return len(self.weights)

    def forward(self, angles: torch.Tensor) -> torch.Tensor:
        """<Z> of every wire, [batch, qubits].

        Raises:
            ModelError: the angles are not [batch, qubits].
        """
        if angles.dim() != 2 or angles.shape[1] != self.qubits:
            raise ModelError(f"a quantum layer of {self.qubits} qubits takes [batch, {self.qubits}] angles; given: {list(angles.shape)}")
        return expectations(self.circuit, angles, self.weights)

    def gradients_of_rows(self, angles: torch.Tensor, slope: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
        """The gradient of each row's sum(slope * output), [batch, layers, qubits, 3]: exact, by the adjoint method.

        angles, slope: [batch, qubits].
        """
        with torch.no_grad():
            return {self.weights: gradients_of_rows(self.circuit, angles, self.weights, slope)}

    def extra_repr(self) -> str:
        """As torch prints it."""
        return f"qubits={self.qubits}, layers={self.layers}, embedding={self.circuit.embedding}, reupload={self.circuit.reupload}"


class Angles(nn.Module):
    """Numbers to angles: π/2 · tanh(number · gain). RY then reaches both poles and goes no further, so that no two numbers collide."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """As given, [batch, qubits]."""
        return LARGEST_ANGLE * torch.tanh(self.gain * rows)

    def extra_repr(self) -> str:
        """As torch prints it."""
        return f"gain={self.gain:g}"


class Readout(nn.Module):
    """<Z> times 4: logits of a few numbers within [-1, 1] would otherwise ask for weights that take long to grow."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """As given, [batch, qubits]."""
        return READOUT * rows


def hybrid(features: int, classes: int, layer: QuantumLayer) -> nn.Sequential:
    """Linear down to one number a qubit, angles, the quantum layer, linear to the classes.

    Nothing goes past the quantum layer: a skip connection could do the work alone and hide it. The numbers are divided by a third of the
    root of the features, and the first weights are drawn that much larger: a row's gradient with respect to them is else so many times that
    of the rest, which saturates the angles, and under privacy spends the clipping bound on this one layer.
    """
    down, gain = nn.Linear(features, layer.qubits), _GAIN / math.sqrt(features)
    with torch.no_grad():
        down.weight /= gain
    return nn.Sequential(down, Angles(gain), layer, Readout(), nn.Linear(layer.qubits, classes))


@dataclass(frozen=True)
class HybridParts:
    """What a network that `hybrid` made consists of; gain: that of its angles."""

    down: nn.Linear
    gain: float
    layer: QuantumLayer
    head: nn.Linear


def hybrid_parts(module: nn.Module) -> HybridParts | None:
    """Those of a network that is exactly what `hybrid` makes, else None."""
    if type(module) is not nn.Sequential or [type(part) for part in module] != [nn.Linear, Angles, QuantumLayer, Readout, nn.Linear]:
        return None
    down, angles, layer, _, head = module
    if not (isinstance(down, nn.Linear) and isinstance(angles, Angles) and isinstance(layer, QuantumLayer) and isinstance(head, nn.Linear)):
        return None
    return None if down.bias is None or head.bias is None else HybridParts(down, angles.gain, layer, head)
