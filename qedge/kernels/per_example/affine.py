"""Clipped sums for a linear model or an MLP with ReLU, in one backward pass.

Book-keeping (Bu, Wang, Zha, Karypis, "Differentially Private Optimization on Large Foundation Models at Small Cost", ICML 2023,
arXiv 2210.00038): the gradient of a layer for one row is the outer product of what went into it and what came back, so that its squared
norm is |a|²|g|², and |g|² for the bias (Goodfellow, "Efficient Per-Example Gradient Computations", 2015). Both are kept from the only
backward pass, and one product a layer, its rows weighted by their clipping factors, is the clipped sum. No single gradient is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from qedge.kernels.per_example.sums import factors, only_finite, squared_norms

_where_positive = torch.ops.aten.threshold_backward  # (gradient, x, 0): the gradient where x > 0, else 0


class AffineSums:
    """layers: (in, out) of each affine layer, ReLU between them."""

    def __init__(self, layers: Sequence[tuple[int, int]]) -> None:
        self.layers = list(layers)
        self.sizes = [size for inputs, outputs in layers for size in (outputs * inputs, outputs)]
        self.total = torch.empty(0)

    @torch.no_grad()
    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        """See `ExampleSums.clipped_sum`."""
        parts = torch.split(weights, self.sizes)
        matrices = [parts[2 * depth].view(outputs, inputs) for depth, (inputs, outputs) in enumerate(self.layers)]
        entering = [features]
        for depth, matrix in enumerate(matrices):
            out = torch.addmm(parts[2 * depth + 1], entering[-1], matrix.t())
            entering.append(out.relu_() if depth < len(matrices) - 1 else out)
        slope = functional.softmax(entering.pop(), dim=1)
        slope[torch.arange(len(labels)), labels] -= 1
        slopes = [slope]
        for depth in range(len(matrices) - 1, 0, -1):
            slope = _where_positive(slope @ matrices[depth], entering[depth], 0)
            slopes.insert(0, slope)
        squares = torch.zeros(len(labels), dtype=weights.dtype)
        for inner, slope in zip(entering, slopes, strict=True):
            squares.addcmul_(squared_norms(inner).add_(1), squared_norms(slope))
        finite = only_finite(squares, features, labels, lambda rows, theirs: self.clipped_sum(weights, rows, theirs, bound))
        return self._weighted(weights, entering, slopes, factors(squares, bound)[:, None]) if finite is None else finite

    def _weighted(
        self, weights: torch.Tensor, entering: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor], factor: torch.Tensor
    ) -> torch.Tensor:
        if self.total.shape != weights.shape or self.total.dtype != weights.dtype:
            self.total = torch.empty_like(weights)
        parts = torch.split(self.total, self.sizes)
        for depth, (inputs, outputs) in enumerate(self.layers):
            slope = slopes[depth].mul_(factor)
            torch.mm(slope.t(), entering[depth], out=parts[2 * depth].view(outputs, inputs))
            torch.sum(slope, 0, out=parts[2 * depth + 1])
        return self.total
