"""One client after another, by autograd: takes any model, and is the oracle of every other kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from qedge.errors import ModelError
from qedge.kernels.batches import ClientBatches
from qedge.models import parameters_vector, set_parameters, users_code


class SequentialKernel:
    """Plain SGD on softmax cross-entropy, a client at a time.

    tolerant: a client on whose rows the model raises has an update of NaN, instead of ending the round with a ModelError.
    """

    def __init__(self, module: torch.nn.Module, learning_rate: float, *, tolerant: bool = False) -> None:
        self.module = module
        self.learning_rate = learning_rate
        self.tolerant = tolerant

    def prepare(self, chunk: Sequence[ClientBatches]) -> Sequence[ClientBatches]:
        """See `Kernel.prepare`; nothing can be done ahead."""
        return chunk

    def bytes_of(self, prepared: Sequence[ClientBatches]) -> int:
        """See `Kernel.bytes_of`."""
        return sum(client.features.nbytes + client.labels.nbytes + client.steps.nbytes for client in prepared)

    def updates(self, weights: np.ndarray, prepared: Sequence[ClientBatches]) -> np.ndarray:
        """See `Kernel.updates`."""
        out = np.zeros((len(prepared), len(weights)), dtype=np.float32)
        self.module.train()
        for row, client in enumerate(prepared):
            set_parameters(self.module, weights)
            try:
                with users_code("the model"):
                    self._train(client)
            except ModelError:
                if not self.tolerant:
                    raise
                out[row] = np.nan
            else:
                out[row] = parameters_vector(self.module) - weights
        return out

    def _train(self, client: ClientBatches) -> None:
        parameters = list(self.module.parameters())
        for step in client.steps:
            chosen = step[step >= 0]
            features, labels = torch.from_numpy(client.features[chosen]), torch.from_numpy(client.labels[chosen])
            loss = functional.cross_entropy(self.module(features), labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=self.learning_rate)
