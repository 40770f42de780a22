"""One client after another, by autograd: takes any model, and is the oracle of every other kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from qedge.errors import ModelError
from qedge.kernels.batches import ClientBatches, LocalSGD, Updates
from qedge.models import head_of, parameters_vector, set_parameters, users_code


class SequentialKernel:
    """`LocalSGD` on softmax cross-entropy, a client at a time. A client on whose rows the model raises has failed."""

    def __init__(self, module: torch.nn.Module, sgd: LocalSGD) -> None:
        self.module = module
        self.sgd = sgd
        self.parameters = trained_by(module, sgd)

    def prepare(self, chunk: Sequence[ClientBatches]) -> Sequence[ClientBatches]:
        """See `Kernel.prepare`; nothing can be done ahead."""
        return chunk

    def bytes_of(self, prepared: Sequence[ClientBatches]) -> int:
        """See `Kernel.bytes_of`."""
        return sum(client.features.nbytes + client.labels.nbytes + client.steps.nbytes for client in prepared)

    def updates(self, weights: np.ndarray, prepared: Sequence[ClientBatches], corrections: np.ndarray | None = None) -> Updates:
        """See `Kernel.updates`."""
        values = np.zeros((len(prepared), len(weights)), dtype=np.float32)
        failed: dict[int, ModelError] = {}
        self.module.train()
        for place, client in enumerate(prepared):
            set_parameters(self.module, weights)
            try:
                with users_code("the model"):
                    self._train(client, None if corrections is None else corrections[place])
            except ModelError as error:
                values[place], failed[place] = np.nan, error
            else:
                values[place] = parameters_vector(self.module) - weights
        return Updates(values, failed)

    def _train(self, client: ClientBatches, correction: np.ndarray | None) -> None:
        sgd, parameters = self.sgd, self.parameters
        start = [parameter.detach().clone() for parameter in parameters] if sgd.proximal else []
        corrections = _parts(correction, parameters) if correction is not None else []
        velocities = [torch.zeros_like(parameter) for parameter in parameters] if sgd.momentum else []
        for step in client.steps:
            chosen = step[step >= 0]
            features, labels = torch.from_numpy(client.features[chosen]), torch.from_numpy(client.labels[chosen])
            loss = functional.cross_entropy(self.module(features), labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                    direction = torch.zeros_like(parameter) if gradient is None else gradient
                    if sgd.weight_decay:
                        direction = direction.add(parameter, alpha=sgd.weight_decay)
                    if sgd.proximal:
                        direction = direction.add(parameter - start[place], alpha=sgd.proximal)
                    if corrections:
                        direction = direction.add(corrections[place])
                    if sgd.momentum:
                        direction = velocities[place].mul_(sgd.momentum).add_(direction)
                    parameter.sub_(direction, alpha=sgd.learning_rate)


def trained_by(module: torch.nn.Module, sgd: LocalSGD) -> list[torch.nn.Parameter]:
    """The parameters that the steps move, in the module's order; a model of one layer has no body."""
    if sgd.layers == "all":
        return list(module.parameters())
    head = head_of(module)
    if sgd.layers == "head":
        return head
    return [parameter for parameter in module.parameters() if not any(parameter is one for one in head)]


def _parts(vector: np.ndarray, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A vector [params] in the shapes of the parameters."""
    pieces = torch.split(torch.tensor(vector), [parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]
