"""A convolutional network, client by client, its gradient written out layer by layer (see `image_layers`) instead of by autograd.

A batch goes through in blocks of rows that stay near a core's cache, in memory that all clients use in turn. What one of them left
there is overwritten before it is read, so no client's bits depend on another's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qedge.kernels.batches import ClientBatches, LocalSGD, Updates
from qedge.kernels.descent import Descent
from qedge.kernels.image_layers import MOST_ROWS, Convolution, Memory, Shape


@dataclass(frozen=True)
class Columns:
    """A client's rows as columns.

    features: [features, rows]; targets: [rows, classes], one-hot; steps: the rows of each step, in blocks.
    """

    features: torch.Tensor
    targets: torch.Tensor
    steps: list[list[torch.Tensor]]


class ConvolutionalKernel:
    """shapes: of the convolutions, each of images as the one before leaves them; then one linear layer to the classes."""

    def __init__(self, shapes: Sequence[Shape], classes: int, sgd: LocalSGD) -> None:
        self.shapes, self.classes = list(shapes), classes
        self.sizes = [(shape.inputs * 9 + 1, shape.outputs) for shape in shapes] + [(math.prod(shapes[-1].after) + 1, classes)]
        self.order = places_of(self.sizes)
        self.descent = Descent(sgd, torch.zeros(len(self.order)))
        self.gradient = torch.zeros(len(self.order))
        self._memory = Memory()
        self._networks: dict[int, _Network] = {}
        self._rows = 0

    @classmethod
    def of(cls, module: nn.Module, sgd: LocalSGD) -> ConvolutionalKernel | None:
        """The kernel of a module that is exactly such layers, else None."""
        found = described(module)
        return None if found is None else cls(*found, sgd)

    def prepare(self, chunk: Sequence[ClientBatches]) -> list[Columns]:
        """See `Kernel.prepare`."""
        return [_columns(client, self.classes) for client in chunk]

    def bytes_of(self, prepared: Sequence[Columns]) -> int:
        """See `Kernel.bytes_of`."""
        return sum(
            client.features.nbytes + client.targets.nbytes + sum(block.nbytes for step in client.steps for block in step)
            for client in prepared
        )

    @torch.no_grad()
    def updates(self, weights: np.ndarray, prepared: Sequence[Columns], corrections: np.ndarray | None = None) -> Updates:
        """See `Kernel.updates`."""
        values = np.zeros((len(prepared), len(weights)), dtype=np.float32)
        start = torch.from_numpy(weights[self.order])
        for place, client in enumerate(prepared):
            self.descent.restart(start, None if corrections is None else torch.from_numpy(corrections[place, self.order]))
            for step in client.steps:
                rows = sum(len(block) for block in step)
                for number, block in enumerate(step):
                    targets = client.targets[block].div_(rows)
                    self._network(len(block)).backward(client.features.index_select(1, block), targets, 1 / rows, more=number > 0)
                self.descent.step(self.gradient)
            values[place, self.order] = (self.descent.weights - start).numpy()
        return Updates(values)

    def _network(self, rows: int) -> _Network:
        if rows not in self._networks:
            weights, gradients = matrices(self.descent.weights, self.sizes), matrices(self.gradient, self.sizes)
            self._networks[rows] = _Network(self.shapes, rows, self._memory, weights, gradients)
        network = self._networks[rows]
        if rows != self._rows:
            network.clear()
            self._rows = rows
        return network


class _Network:
    """All layers for blocks of so many rows; weights, gradients: [inputs + 1, outputs] of each layer, the bias last."""

    def __init__(
        self, shapes: Sequence[Shape], rows: int, memory: Memory, weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> None:
        self.layers = [
            Convolution(shape, rows, f"layer {depth}", memory, weights[depth], gradients[depth], first=depth == 0)
            for depth, shape in enumerate(shapes)
        ]
        self.weight, self.of_weight = weights[-1], gradients[-1]
        self.features = memory.take("features", len(self.weight), rows)
        self.last = self.features[:-1].view(*shapes[-1].after, rows)

    def clear(self) -> None:
        """Make the memory fit for this many rows."""
        for layer in self.layers:
            layer.clear()
        self.features[-1].fill_(1)

    def backward(self, columns: torch.Tensor, targets: torch.Tensor, share: float, *, more: bool) -> None:
        """The gradient of softmax cross-entropy, put in its place or added to what is there.

        columns: [features, rows]; targets: [rows, classes], a row's share of the batch at its label.
        """
        first = self.layers[0].inner
        first.copy_(columns.view(first.shape))
        for layer, above in pairwise(self.layers):
            layer.forward(above.inner)
        self.layers[-1].forward(self.last)
        slope = functional.softmax(self.features.t() @ self.weight, dim=1).mul_(share).sub_(targets)
        torch.addmm(self.of_weight, self.features, slope, beta=float(more), out=self.of_weight)
        gradient = (self.weight[:-1] @ slope.t()).view(self.last.shape)
        for layer in reversed(self.layers):
            layer.backward(gradient, more=more)
            if layer.below is not None:
                gradient = layer.below.of(layer.to_images, layer.weight)


def _columns(client: ClientBatches, classes: int) -> Columns:
    steps = [
        [torch.from_numpy(block) for block in np.array_split(chosen, -(-len(chosen) // MOST_ROWS))]
        for chosen in (step[step >= 0] for step in client.steps)
    ]
    targets = functional.one_hot(torch.tensor(client.labels), classes).to(torch.float32)
    return Columns(torch.from_numpy(client.features.T.copy()), targets, steps)


def matrices(flat: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Views of a flat tensor, one after another."""
    parts = torch.split(flat, [math.prod(size) for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def places_of(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each number of the matrices [inputs + 1, outputs], one after another, its place among a module's parameters."""
    places, at = [], 0
    for inputs, outputs in sizes:
        weight = np.arange(at, at + (inputs - 1) * outputs).reshape(outputs, inputs - 1)
        bias = np.arange(at + weight.size, at + inputs * outputs)
        places.append(np.vstack([weight.T, bias]).ravel())
        at += inputs * outputs
    return np.concatenate(places)


def described(module: nn.Module) -> tuple[list[Shape], int] | None:
    """The convolutions' shapes and the number of classes, when the module is those layers and nothing else."""
    if type(module) is not nn.Sequential or len(module) < 5:
        return None
    first, *middle, flatten, linear = module
    if type(first) is not nn.Unflatten or type(flatten) is not nn.Flatten or type(linear) is not nn.Linear:
        return None
    if first.dim != 1 or len(first.unflattened_size) != 3 or (flatten.start_dim, flatten.end_dim) != (1, -1):
        return None
    channels, height, width = first.unflattened_size
    image = (channels, height, width)
    shapes: list[Shape] = []
    while middle:
        pooled = len(middle) > 2 and _is_pooling(middle[2])
        if len(middle) < 2 or not _is_convolution(middle[0], image[0]) or type(middle[1]) is not nn.ReLU:
            return None
        shapes.append(Shape(image[0], middle[0].out_channels, image[1], image[2], pooled))
        image, middle = shapes[-1].after, middle[3 if pooled else 2 :]
    # Weights that two layers share, or that something else computes, are not there under these names.
    names = [f"{place}.{name}" for place, layer in enumerate(module) if hasattr(layer, "weight") for name in ("weight", "bias")]
    if [name for name, _ in module.named_parameters()] != names or min(image) < 1 or linear.in_features != math.prod(image):
        return None
    return shapes, linear.out_features


def _is_convolution(layer: nn.Module, inputs: int) -> TypeGuard[nn.Conv2d]:
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or (layer.in_channels, layer.groups) != (inputs, 1):
        return False
    return (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))


def _is_pooling(layer: nn.Module) -> bool:
    if type(layer) is not nn.MaxPool2d or layer.ceil_mode or layer.return_indices:
        return False
    return (layer.kernel_size, layer.stride, layer.padding, layer.dilation) in ((2, 2, 0, 1), ((2, 2), (2, 2), 0, 1))
