"""What a step of DP-SGD sums up, and the loop over examples that every faster way is checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from qedge.errors import ModelError
from qedge.models import users_code


class ExampleSums(Protocol):
    """The sum over a batch of gradients that are clipped one by one.

    A row whose gradient is not finite, or on which the model raises, counts as zero and moves no other's.
    """

    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        """Σ_i g_i · min(1, bound/|g_i|), [params] in the order of the module's parameters, g_i the gradient of row i's cross-entropy.

        weights: [params]; features: [rows, features]; labels: [rows] int64. The result lasts until the next call.
        """


def squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """The squared norm of each row, [rows], never less: what squares that are too small for the type may have lost is added.

    Else a gradient with a norm of 1e-23, which is a lot beside a bound of 1e-30 or before a factor of 1e19, would pass as one of zero.
    """
    squares: torch.Tensor = torch.linalg.vecdot(rows, rows).add_(rows.shape[1] * torch.finfo(rows.dtype).tiny)
    return squares


def factors(squares: torch.Tensor, bound: float) -> torch.Tensor:
    """What each gradient is multiplied with, [rows], by the squares of their norms."""
    return (bound / squares.sqrt()).clamp_(max=1.0)


def only_finite(
    squares: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, again: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor | None:
    """`again` on the rows whose gradient has a finite norm; None where all have."""
    finite = torch.isfinite(squares)
    return None if bool(finite.all()) else again(features[finite], labels[finite])


class LoopSums:
    """One row after another, by autograd: takes any model."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = list(module.parameters())

    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        """See `ExampleSums.clipped_sum`."""
        put(weights, self.parameters)
        self.module.train()
        total = torch.zeros_like(weights)
        for row in range(len(labels)):
            try:
                gradient = self.gradient(features[row : row + 1], labels[row : row + 1])
            except ModelError:  # as private as the row
                continue
            square = squared_norms(gradient[None])[0]
            if bool(torch.isfinite(square)):
                total.add_(gradient * factors(square, bound))
        return total

    def gradient(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The gradient of the summed cross-entropy of some rows at the weights that the module has, [params].

        Raises:
            ModelError: the model raises.
        """
        with users_code("the model"):
            loss = functional.cross_entropy(self.module(features), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        pairs = zip(gradients, self.parameters, strict=True)
        return torch.cat([torch.zeros(one.numel(), dtype=one.dtype) if found is None else found.flatten() for found, one in pairs])


def put(weights: torch.Tensor, parameters: list[nn.Parameter]) -> None:
    """Copy a vector [params] into parameters."""
    with torch.no_grad():
        at = 0
        for parameter in parameters:
            parameter.copy_(weights[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
