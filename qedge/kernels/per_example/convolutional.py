"""Clipped sums for a small convolutional network, in one backward pass.

Book-keeping, as in `qedge.kernels.per_example.affine`, for convolutions (Bu, Mao, Xu, "Scalable and Efficient Training of Large
Convolutional Neural Networks with Differential Privacy", NeurIPS 2022): a row's gradient is AGᵀ, A its patches [inputs, pixels] and G what
came back [outputs, pixels], and its squared norm is <AᵀA, GᵀG>. A layer takes whichever is cheaper: that Gram form, with one more product
for the sum; or the rows' gradients themselves, of which the sum is a mean with weights. The latter is as much arithmetic as the gradient
of the whole batch, and wins on all but the smallest images with many channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from qedge.kernels.convolutional import described, matrices, places_of
from qedge.kernels.image_layers import MOST_ROWS, Convolution, Memory, Shape
from qedge.kernels.per_example.sums import factors, only_finite, squared_norms

_MULTIPLE = 16  # of rows in a block: operations along the rows are several times slower on an odd number of them


class ConvolutionalSums:
    """shapes: of the convolutions, each of images as the one before leaves them; then one linear layer to the classes."""

    def __init__(self, shapes: Sequence[Shape], classes: int) -> None:
        last = shapes[-1].after
        self.shapes = list(shapes)
        self.sizes = [(shape.inputs * 9 + 1, shape.outputs) for shape in shapes] + [(last[0] * last[1] * last[2] + 1, classes)]
        self.places = torch.from_numpy(places_of(self.sizes))
        self.back = torch.argsort(self.places)
        self.weights = self.total = self.result = torch.empty(0)
        self.networks: dict[int, _Network] = {}
        self.rows = 0

    @classmethod
    def of(cls, module: nn.Module) -> ConvolutionalSums | None:
        """Those of a module that is exactly such layers, else None."""
        found = described(module)
        return None if found is None else cls(*found)

    @torch.no_grad()
    def clipped_sum(self, weights: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        """See `ExampleSums.clipped_sum`."""
        if self.total.dtype != weights.dtype or not len(self.total):
            self.weights, self.total, self.result = (torch.zeros_like(weights) for _ in range(3))
            self.memory, self.networks, self.rows = Memory(weights.dtype), {}, 0
        torch.index_select(weights, 0, self.places, out=self.weights)
        self.total.zero_()
        for start in range(0, len(labels), MOST_ROWS):
            self._add(features[start : start + MOST_ROWS], labels[start : start + MOST_ROWS], bound)
        return torch.index_select(self.total, 0, self.back, out=self.result)

    def _add(self, features: torch.Tensor, labels: torch.Tensor, bound: float) -> None:
        """Add the clipped gradients of a block, filled up with rows of zeros that count nothing: Poisson batches are of any size."""
        real = len(labels)
        empty = -real % _MULTIPLE
        network = self._network(real + empty)
        squares = network.backward(functional.pad(features, (0, 0, 0, empty)), functional.pad(labels, (0, empty)))[:real]
        if only_finite(squares, features, labels, lambda rows, theirs: self._again(rows, theirs, bound)) is None:
            network.add(functional.pad(factors(squares, bound), (0, empty)))

    def _again(self, features: torch.Tensor, labels: torch.Tensor, bound: float) -> torch.Tensor:
        if len(labels):
            self._add(features, labels, bound)
        return self.total

    def _network(self, rows: int) -> _Network:
        if rows not in self.networks:
            self.networks[rows] = _Network(
                self.shapes, rows, self.memory, *(matrices(flat, self.sizes) for flat in (self.weights, self.total))
            )
        network = self.networks[rows]
        if rows != self.rows:
            network.clear()
            self.rows = rows
        return network


class _Network:
    """All layers for blocks of so many rows; weights, totals: [inputs + 1, outputs] of each layer, the bias last."""

    def __init__(
        self, shapes: Sequence[Shape], rows: int, memory: Memory, weights: Sequence[torch.Tensor], totals: Sequence[torch.Tensor]
    ) -> None:
        self.layers = [
            _Layer(shape, rows, f"layer {depth}", memory, weights[depth], totals[depth], first=depth == 0)
            for depth, shape in enumerate(shapes)
        ]
        self.weight, self.total = weights[-1], totals[-1]
        self.features = memory.take("features", len(self.weight), rows)
        self.last = self.features[:-1].view(*shapes[-1].after, rows)

    def clear(self) -> None:
        """Make the memory fit for this many rows."""
        for layer in self.layers:
            layer.clear()
        self.features[-1].fill_(1)

    def backward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The squared norm of each row's gradient of softmax cross-entropy, [rows]; `add` can then sum them up."""
        first = self.layers[0].inner
        first.copy_(features.t().view(first.shape))
        for layer, above in pairwise(self.layers):
            layer.forward(above.inner)
        self.layers[-1].forward(self.last)
        self.slope = functional.softmax(self.features.t() @ self.weight, dim=1)
        self.slope[torch.arange(len(labels)), labels] -= 1
        squares = self.features.square().sum(0).mul_(squared_norms(self.slope))
        gradient = (self.weight[:-1] @ self.slope.t()).view(self.last.shape)
        for layer in reversed(self.layers):
            layer.open(gradient)
            squares.add_(layer.squares())
            if layer.below is not None:
                gradient = layer.below.of(layer.to_images, layer.weight)
        return squares

    def add(self, factor: torch.Tensor) -> None:
        """Add the rows' gradients, each times its factor, to the totals."""
        self.total.addmm_(self.features, self.slope.mul_(factor[:, None]))
        for layer in self.layers:
            layer.add(factor)


class _Layer(Convolution):
    """A convolution that can tell its rows' gradients apart: for that, its images and what comes back are laid out row by row."""

    def __init__(
        self, shape: Shape, rows: int, name: str, memory: Memory, weight: torch.Tensor, total: torch.Tensor, *, first: bool
    ) -> None:
        super().__init__(shape, rows, name, memory, weight, total, first=first)
        (high, wide), (long, line) = shape.used, (shape.height + 2, shape.width + 2)
        inputs, pixels = shape.inputs * 9 + 1, high * wide
        self.by_gram = prefers_gram(inputs, shape.outputs, pixels)
        self.flat_frame = self.frame.view(-1, rows).t()
        self.own_frame = memory.take(f"{name} own frame", shape.inputs * long * line, rows).view(rows, -1)
        strides = (shape.inputs * long * line, long * line, line, 1, line, 1)
        self.own_neighbours = self.own_frame.as_strided((rows, shape.inputs, 3, 3, high, wide), strides)
        self.own_patches = memory.take(f"{name} own patches", inputs * pixels, rows).view(rows, inputs, pixels)
        self.own_gathered = self.own_patches[:, :-1].view(self.own_neighbours.shape)
        self.flat_back = self.to_images.view(-1, rows).t()
        self.own_back = memory.take(f"{name} own back", shape.outputs * pixels, rows).view(rows, shape.outputs, pixels)
        self.gradients = torch.empty(0)

    def clear(self) -> None:
        """See `Convolution.clear`."""
        super().clear()
        self.own_patches[:, -1].fill_(1)

    def squares(self) -> torch.Tensor:
        """The squared norm of each row's gradient, [rows]."""
        self.own_frame.copy_(self.flat_frame)
        self.own_gathered.copy_(self.own_neighbours)
        self.own_back.flatten(1).copy_(self.flat_back)
        patches, back = self.own_patches, self.own_back
        if self.by_gram:
            return squares_by_gram(patches, back)
        self.gradients = torch.bmm(patches, back.transpose(1, 2)).flatten(1)
        return squared_norms(self.gradients)

    def add(self, factor: torch.Tensor) -> None:
        """Add the rows' gradients, each times its factor."""
        if self.by_gram:
            self.to_images.mul_(factor)
            self.product(more=True)
        else:
            self.of_weight.view(-1).addmv_(self.gradients.t(), factor)


def squares_by_gram(patches: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """The squared norm of each row's AGᵀ, [rows], never less; patches A: [rows, inputs, pixels], back G: [rows, outputs, pixels].

    Pixels may cancel each other, and what is left be less than the last bits of the terms, or below zero. An inner product of n numbers is
    off by less than n units in the last place of the product of both norms, and by n of the smallest number: that much is added.
    """
    limits, inputs, outputs = torch.finfo(patches.dtype), patches.shape[1], back.shape[1]
    entering, returning = torch.bmm(patches.transpose(1, 2), patches), torch.bmm(back.transpose(1, 2), back)
    a, g = (gram.diagonal(dim1=1, dim2=2).sqrt() for gram in (entering, returning))
    off = (a * g).sum(1).square_().mul_((inputs + outputs) * limits.eps)
    off += a.sum(1).square_().mul_(outputs * limits.tiny) + g.sum(1).square_().mul_(inputs * limits.tiny)
    return entering.mul_(returning).sum((1, 2)).add_(off)


def prefers_gram(inputs: int, outputs: int, pixels: int) -> bool:
    """Whether two Gram matrices of the pixels are less than the gradient itself is to write."""
    return pixels * pixels * (inputs + outputs) < inputs * outputs
