"""A whole chunk of clients at once through a hybrid model: batched products for its linear layers, and one statevector for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qedge.kernels.batches import LocalSGD
from qedge.kernels.stacked import Batch, Parameter, StackedKernel, descend, softmax
from qedge.quantum.qnn.layer import LARGEST_ANGLE, READOUT, HybridParts, hybrid_parts
from qedge.quantum.statevector.evolution import evolve, gradient

_LEAST_PADDED = 4  # a row of a statevector is long: padding costs more than in a product


class StackedHybridKernel(StackedKernel):
    """Of a network of these parts; `apart` as in `StackedKernel`."""

    def __init__(self, parts: HybridParts, sgd: LocalSGD, *, apart: bool = False) -> None:
        super().__init__([(layer.in_features, layer.out_features) for layer in (parts.down, parts.head)], sgd, apart=apart)
        self.circuit, self.gain, self.rotations = parts.layer.circuit, parts.gain, parts.layer.weights.shape

    @classmethod
    def of(cls, module: nn.Module, sgd: LocalSGD, *, apart: bool) -> StackedHybridKernel | None:
        """The kernel of a module that is exactly such a network, else None."""
        parts = hybrid_parts(module)
        return None if parts is None else cls(parts, sgd, apart=apart)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """See `StackedKernel.shapes`: the rotations of all layers and wires lie below one another."""
        (features, qubits), (_, classes) = self.layers
        layers, _, angles = self.rotations
        return [(qubits, features), (qubits, 1), (layers * qubits, angles), (classes, qubits), (classes, 1)]

    def padded(self, rows: int) -> int:
        """The least of 4, 16, 64, … that is at least `rows`."""
        size = _LEAST_PADDED
        while size < rows:
            size *= 4
        return size

    def step(self, parameters: Sequence[Parameter], batch: Batch) -> None:
        """See `StackedKernel.step`."""
        down, down_bias, rotations, head, head_bias = parameters
        bent = torch.baddbmm(down_bias.value, down.value, batch.columns).mul_(self.gain).tanh_()  # [clients, qubits, rows]
        inputs = LARGEST_ANGLE * bent, rotations.value.reshape(-1, *self.rotations)
        values, evolved = evolve(self.circuit, *inputs)
        hidden = READOUT * values
        slope = softmax(torch.baddbmm(head_bias.value, head.value, hidden)).mul_(batch.share).sub_(batch.targets)
        below = torch.bmm(head.value.transpose(1, 2), slope).mul_(READOUT)
        of_angles, of_rotations = gradient(self.circuit, *inputs, evolved, below, each=False)
        entering = of_angles * (1 - bent * bent) * (LARGEST_ANGLE * self.gain)
        directions = (
            torch.bmm(entering, batch.rows),
            entering.sum(2, keepdim=True),
            of_rotations.reshape(rotations.value.shape),
            torch.bmm(slope, hidden.transpose(1, 2)),
            slope.sum(2, keepdim=True),
        )
        for parameter, direction in zip(parameters, directions, strict=True):
            descend(parameter, direction, self.sgd)
