"""A 3x3 convolution with ReLU and 2x2 max-pooling, and its gradient, as products of two matrices.

For small images a library's convolution costs more in rearranging its operands than in arithmetic. Here images lie
[channels, height, width, rows], rows innermost: gathering the nine neighbours of every pixel is then a copy of long runs, a convolution
is one matrix product (Chellapilla, Puri, Simard 2006), and pooling is the maximum of slices. The gradients are the same operations in
reverse (Goodfellow, Bengio, Courville 2016, section 9.5). A bias is the weight of an input that is always one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

MOST_ROWS = 32  # of a block; with more, the time that a row takes grows again
where_positive = torch.ops.aten.threshold_backward  # (gradient, x, 0): the gradient where x > 0, else 0


@dataclass(frozen=True)
class Shape:
    """A convolution of images [inputs, height, width]; pooled: 2x2 maxima follow, an odd last line or column left out."""

    inputs: int
    outputs: int
    height: int
    width: int
    pooled: bool

    @property
    def used(self) -> tuple[int, int]:
        """Height and width of what is used of the convolution's result."""
        return (self.height // 2 * 2, self.width // 2 * 2) if self.pooled else (self.height, self.width)

    @property
    def after(self) -> tuple[int, int, int]:
        """The image that comes out: channels, height, width."""
        height, width = self.used
        return (self.outputs, height // 2, width // 2) if self.pooled else (self.outputs, height, width)


class Memory:
    """Memory by name. Blocks of different sizes share it, so what lies in it is left from whoever used it last."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._flat: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """[*shape], its last dimension the rows, at most MOST_ROWS."""
        size = math.prod(shape)
        if name not in self._flat:
            self._flat[name] = torch.empty(size // shape[-1] * MOST_ROWS, dtype=self._dtype)
        return self._flat[name][:size].view(shape)


class _Pooling:
    """2x2 maxima of [channels, height, width, rows]: first of columns, then of lines, so that of equal values the one that torch takes."""

    def __init__(self, images: torch.Tensor, gradient: torch.Tensor, name: str, memory: Memory) -> None:
        channels, height, width, rows = images.shape
        self.left, self.right = images[:, :, 0::2], images[:, :, 1::2]
        self.to_left, self.to_right = gradient[:, :, 0::2], gradient[:, :, 1::2]
        self.pairs = memory.take(f"{name} pairs", channels, height, width // 2, rows)
        self.upper, self.lower = self.pairs[:, 0::2], self.pairs[:, 1::2]
        self.to_pairs = memory.take(f"{name} to pairs", channels, height, width // 2, rows)
        self.to_upper, self.to_lower = self.to_pairs[:, 0::2], self.to_pairs[:, 1::2]

    def forward(self, into: torch.Tensor) -> None:
        """Leave the maxima in `into`."""
        torch.maximum(self.left, self.right, out=self.pairs)
        torch.maximum(self.upper, self.lower, out=into)

    def backward(self, gradient: torch.Tensor) -> None:
        """Hand each maximum's gradient to the pixel that it came from."""
        where_positive.grad_input(gradient, self.lower - self.upper, 0, grad_input=self.to_lower)
        torch.sub(gradient, self.to_lower, out=self.to_upper)
        where_positive.grad_input(self.to_pairs, self.right - self.left, 0, grad_input=self.to_right)
        torch.sub(self.to_pairs, self.to_right, out=self.to_left)


class _Below:
    """The gradient of a convolution's input: the convolution of the result's gradient with the kernel turned by half a turn.

    Only the three neighbours in a line are gathered. Those in the lines above and below are the same numbers further on.
    """

    def __init__(self, shape: Shape, rows: int, name: str, memory: Memory) -> None:
        self.shape = shape
        high, wide = shape.used
        self.frame = memory.take(f"{name} gradient's frame", shape.outputs, shape.height + 2, shape.width + 2, rows)
        self.inner = self.frame[:, 1 : high + 1, 1 : wide + 1]
        plane, line, pixel, row = self.frame.stride()
        sizes = (shape.outputs, 3, shape.height + 2, shape.width, rows)
        self.beside = self.frame.as_strided(sizes, (plane, pixel, line, pixel, row))
        self.gathered = memory.take(f"{name} gradient's neighbours", *sizes)
        lines = self.gathered.view(shape.outputs * 3, shape.height + 2, -1)
        self.lines = [lines[:, down : down + shape.height].flatten(1) for down in range(3)]
        self.result = memory.take(f"{name} below", shape.inputs, shape.height, shape.width, rows)
        self.flat = self.result.flatten(1)

    def of(self, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[inputs, height, width, rows], overwritten by the next call."""
        self.inner.copy_(gradient)
        self.gathered.copy_(self.beside)
        turned = weight[:-1].view(self.shape.inputs, 3, 3, self.shape.outputs).flip(1, 2).permute(1, 0, 3, 2).flatten(2)
        torch.mm(turned[0], self.lines[0], out=self.flat)
        self.flat.addmm_(turned[1], self.lines[1]).addmm_(turned[2], self.lines[2])
        return self.result


class Convolution:
    """One such layer for blocks of so many rows.

    weight, of_weight: [inputs * 9 + 1, outputs], the bias last, and the place of their gradient. inner: where the images are put,
    [inputs, height, width, rows]. first: nothing below it wants a gradient.
    """

    def __init__(
        self, shape: Shape, rows: int, name: str, memory: Memory, weight: torch.Tensor, of_weight: torch.Tensor, *, first: bool
    ) -> None:
        self.weight, self.of_weight = weight, of_weight
        high, wide = shape.used
        self.frame = memory.take(f"{name} frame", shape.inputs, shape.height + 2, shape.width + 2, rows)
        self.inner = self.frame[:, 1:-1, 1:-1]
        plane, line, pixel, row = self.frame.stride()
        self.neighbours = self.frame.as_strided((shape.inputs, 3, 3, high, wide, rows), (plane, line, pixel, line, pixel, row))
        self.patches = memory.take(f"{name} patches", shape.inputs * 9 + 1, high, wide, rows).flatten(1)
        self.gathered = self.patches[:-1].view(self.neighbours.shape)
        self.images = memory.take(f"{name} images", shape.outputs, high, wide, rows)
        self.to_images = memory.take(f"{name} to images", shape.outputs, high, wide, rows)
        self.flat, self.to_flat = self.images.flatten(1), self.to_images.flatten(1)
        self.pooling = _Pooling(self.images, self.to_images, name, memory) if shape.pooled else None
        self.below = None if first else _Below(shape, rows, name, memory)

    def clear(self) -> None:
        """Make the memory fit for this many rows: the zeros around the images, and the ones for the biases."""
        self.frame.zero_()
        self.patches[-1].fill_(1)
        if self.below is not None:
            self.below.frame.zero_()

    def forward(self, into: torch.Tensor) -> None:
        """Leave in `into`, [outputs, height, width, rows], what it makes of the images in `inner`."""
        self.gathered.copy_(self.neighbours)
        torch.mm(self.weight.t(), self.patches, out=self.flat)
        if self.pooling is None:
            into.copy_(self.images)
        else:
            self.pooling.forward(into)
        self.into = into.relu_()

    def backward(self, gradient: torch.Tensor, *, more: bool) -> None:
        """Put the gradient of its weights in its place, or add it to what is there; `below` can then tell that of its images."""
        self.open(gradient)
        self.product(more=more)

    def open(self, gradient: torch.Tensor) -> None:
        """Leave in `to_images` the gradient of the product, from that of what came out."""
        opened = where_positive(gradient, self.into, 0)
        if self.pooling is None:
            self.to_images.copy_(opened)
        else:
            self.pooling.backward(opened)

    def product(self, *, more: bool) -> None:
        """Put the gradient of its weights in its place, or add it to what is there, after `open`."""
        torch.addmm(self.of_weight, self.patches, self.to_flat.t(), beta=float(more), out=self.of_weight)
