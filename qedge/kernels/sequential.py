"""One client after another, by autograd: takes any model, and is the oracle of every other kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from qedge.kernels.batches import ClientBatches
from qedge.models import parameters_vector, set_parameters


class SequentialKernel:
    """Plain SGD on softmax cross-entropy, a client at a time."""

    def __init__(self, module: torch.nn.Module, learning_rate: float) -> None:
        self.module = module
        self.learning_rate = learning_rate

    def prepare(self, chunk: Sequence[ClientBatches]) -> Sequence[ClientBatches]:
        """See `Kernel.prepare`; nothing can be done ahead."""
        return chunk

    def updates(self, weights: np.ndarray, prepared: Sequence[ClientBatches]) -> np.ndarray:
        """See `Kernel.updates`."""
        out = np.zeros((len(prepared), len(weights)), dtype=np.float32)
        self.module.train()
        parameters = list(self.module.parameters())
        for row, client in enumerate(prepared):
            set_parameters(self.module, weights)
            for step in client.steps:
                chosen = step[step >= 0]
                features, labels = torch.from_numpy(client.features[chosen]), torch.from_numpy(client.labels[chosen])
                loss = functional.cross_entropy(self.module(features), labels)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            parameter.sub_(gradient, alpha=self.learning_rate)
            out[row] = parameters_vector(self.module) - weights
        return out
