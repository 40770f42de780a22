"""Clipped sums for a hybrid model in one forward and one backward pass.

The linear layers as in `affine`: the gradient of one row is an outer product, its squared norm known without it. The few angles of the
quantum layer get each row's gradient in full, from the same way back through the circuit that a plain step takes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qedge.kernels.per_example.sums import factors, only_finite
from qedge.quantum.qnn.layer import LARGEST_ANGLE, READOUT, HybridParts, hybrid_parts
from qedge.quantum.statevector.evolution import evolve, gradient


class HybridSums:
    """Of a network of these parts; it keeps none of their weights."""

    def __init__(self, parts: HybridParts) -> None:
        self.circuit, self.gain = parts.layer.circuit, parts.gain
        self.shapes = [weights.shape for layer in (parts.down, parts.layer, parts.head) for weights in layer.parameters()]
        self.sizes = [shape.numel() for shape in self.shapes]

    @classmethod
    def of(cls, module: nn.Module) -> HybridSums | None:
        """Those of a module that is exactly such a network, else None."""
        parts = hybrid_parts(module)
        return None if parts is None else cls(parts)

    @torch.no_grad()
    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        """See `ExampleSums.clipped_sum`."""
        if not len(labels):
            return torch.zeros_like(weights)
        pieces = (piece.view(shape) for piece, shape in zip(torch.split(weights, self.sizes), self.shapes, strict=True))
        down, down_bias, rotations, head, head_bias = pieces
        bent = torch.addmm(down_bias[:, None], down, features.t()).mul_(self.gain).tanh_()  # [qubits, rows]
        inputs = (LARGEST_ANGLE * bent).unsqueeze(0), rotations.unsqueeze(0)
        values, evolved = evolve(self.circuit, *inputs)
        hidden = READOUT * values[0].t()  # [rows, qubits]
        slope = functional.softmax(torch.addmm(head_bias, hidden, head.t()), dim=1)
        slope[torch.arange(len(labels)), labels] -= 1
        of_angles, of_rotations = gradient(self.circuit, *inputs, evolved, (READOUT * slope @ head).t().unsqueeze(0), each=True)
        entering = (of_angles[0] * (1 - bent * bent) * (LARGEST_ANGLE * self.gain)).t()  # [rows, qubits]
        turning = of_rotations[0].reshape(-1, len(labels)).t()  # [rows, rotations]
        squares = (_squares(features) + 1) * _squares(entering) + _squares(turning) + (_squares(hidden) + 1) * _squares(slope)
        finite = only_finite(squares, features, labels, lambda rows, theirs: self.clipped_sum(weights, rows, theirs, bound))
        if finite is not None:
            return finite
        factor = factors(squares, bound)[:, None]
        entering, slope = entering * factor, slope * factor
        parts = (entering.t() @ features, entering.sum(0), factor.t() @ turning, slope.t() @ hidden, slope.sum(0))
        return torch.cat([part.flatten() for part in parts])


def _squares(rows: torch.Tensor) -> torch.Tensor:
    squares: torch.Tensor = torch.linalg.vecdot(rows, rows)
    return squares
