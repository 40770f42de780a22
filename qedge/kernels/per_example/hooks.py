"""Clipped sums for any model, by Opacus' per-sample gradients (Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in
PyTorch", 2021): the one module that imports it.

Only its `GradSampleModule` is used. Its data loader, accountant and noise are not: what is sampled, added and charged is ours.
"""

from __future__ import annotations

import copy
import warnings
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from qedge.errors import ModelError
from qedge.kernels.per_example.sums import LoopSums, factors, only_finite, put, squared_norms
from qedge.models import users_code

BLOCK_BYTES = 16 << 20  # of gradients that are held one by one; more is slower, as it leaves the caches


@runtime_checkable
class TellsRowsApart(Protocol):
    """A layer that tells by itself what each row adds to the gradient of its own parameters."""

    def gradients_of_rows(self, inputs: torch.Tensor, slope: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
        """Of each parameter, [rows, ...]: the gradients of each row's sum(slope * output)."""


def _told(layer: TellsRowsApart, activations: list[torch.Tensor], backprops: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
    return layer.gradients_of_rows(activations[0], backprops)


class HookSums:
    """Forward and backward of a batch with hooks that keep what each row adds to each parameter.

    What went into a layer waits in its hook for what comes back. Where nothing does, as the model raised on the way or left a layer's
    result unused, the next batch's gradients would be told apart by this one's: the hooks are then made anew.

    Raises:
        ModelError: Opacus takes no such module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.loop = LoopSums(module)
        self._hook()
        self.block = max(1, BLOCK_BYTES // (4 * sum(parameter.numel() for parameter in self.parameters)))

    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        """See `ExampleSums.clipped_sum`."""
        total = torch.zeros_like(weights)
        for start in range(0, len(labels), self.block):
            rows = slice(start, start + self.block)
            put(weights, self.parameters)  # each time, as the hooks may have been made anew
            try:
                total += self._block(features[rows], labels[rows], bound)
            except ModelError:  # on some row, which then must not take the others with it
                total += self.loop.clipped_sum(weights, features[rows], labels[rows], bound)
        return total

    def _hook(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.grad_sample import GradSampleModule
            from opacus.grad_sample.utils import register_grad_sampler
        for kind in {type(layer) for layer in self.loop.module.modules() if isinstance(layer, TellsRowsApart)}:
            register_grad_sampler(kind)(_told)
        try:
            self.module = GradSampleModule(copy.deepcopy(self.loop.module), batch_first=True, loss_reduction="sum")
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the model has a layer whose examples Opacus cannot tell apart: {error}") from error
        self.parameters = list(self.module.parameters())

    def _block(self, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        each = self.each(features, labels)
        squares = torch.zeros(len(labels))
        for gradients in each:
            squares += squared_norms(gradients)
        finite = only_finite(squares, features, labels, lambda rows, theirs: self._block(rows, theirs, bound))
        if finite is not None:
            return finite
        factor = factors(squares, bound)
        return torch.cat([factor @ gradients for gradients in each])

    def each(self, features: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Of each parameter the gradient of each row at the weights that the module has, [rows, numbers].

        Raises:
            ModelError: the model raises.
        """
        rows, parameters = len(labels), self.parameters
        for parameter in parameters:
            parameter.grad = parameter.grad_sample = None
        if rows:
            try:
                with users_code("the model"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.autograd.backward(functional.cross_entropy(self.module.train()(features), labels, reduction="sum"))
            finally:
                if any(getattr(parameter, "_forward_counter", 1) for parameter in parameters):  # layers that still wait
                    self._hook()
        found = (getattr(parameter, "grad_sample", None) for parameter in parameters)
        pairs = zip(found, parameters, strict=True)
        return [torch.zeros(rows, one.numel()) if gradients is None else gradients.flatten(1) for gradients, one in pairs]
