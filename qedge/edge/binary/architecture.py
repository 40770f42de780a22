"""The shape of a binary network, and how its rows become whole numbers of a few bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qedge.edge.binary import kernels
from qedge.edge.rung import Rows
from qedge.errors import UnfitGraph

Levels = npt.NDArray[np.uint8]
MOST_BITS = 8  # of an input or of a weight of the last layer
_MOST_VALUES = 2**30  # weights of a layer, values that it takes or gives: less than memory would end by
_LANES = 8  # outputs are padded to so many, as the widest vectors hold
_WORD = 64
_ONE = (1, 1)


@dataclass(frozen=True)
class Layer:
    """A hidden layer: outputs, batch normalisation, the largest of each window (`pool`), sign.

    kernel: (rows, columns), or None for a dense layer. pads: top, left, bottom, right, filled with -1. No pooling is a window of (1, 1).
    """

    outputs: int
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = _ONE
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pool: tuple[int, int] = _ONE
    pool_stride: tuple[int, int] = _ONE


@dataclass(frozen=True)
class Shape:
    """A layer as it lies in its network: what it takes, (channels, rows, columns), and what it gives before and after pooling."""

    layer: Layer
    taken: tuple[int, int, int]
    kernel: tuple[int, int]
    whole: tuple[int, int]
    pooled: tuple[int, int]

    @property
    def inputs(self) -> int:
        """Values that each output is of."""
        return self.taken[0] * math.prod(self.kernel)

    @property
    def values(self) -> int:
        """The most that are kept of one row: those that it takes, pads included, or gives before pooling."""
        channels, height, width = self.taken
        top, left, bottom, right = self.layer.pads
        return max(channels * (top + height + bottom) * (left + width + right), self.layer.outputs * math.prod(self.whole))


@dataclass(frozen=True)
class Architecture:
    """Hidden layers, and a dense one to the classes, whose weights have `weight_bits` bits: it is small and decides much.

    image: (channels, rows, columns) of a row of features, which come in this order; (1, 1, features) where it is no image.

    Raises:
        UnfitGraph: a layer that does not fit what it is given.
    """

    image: tuple[int, int, int]
    layers: tuple[Layer, ...]
    classes: int
    weight_bits: int = 4

    def __post_init__(self) -> None:
        if self.classes < 2 or min(self.image) < 1 or not 1 <= self.weight_bits <= MOST_BITS:
            raise UnfitGraph(
                f"{self.classes} classes of rows {list(self.image)} with {self.weight_bits} bits a weight; accepted: 2 classes or more, "
                f"one feature or more, 1 to {MOST_BITS} bits"
            )
        for shape in self.shapes():
            if max(shape.values, shape.inputs * shape.layer.outputs) > _MOST_VALUES:
                raise UnfitGraph(f"a layer has more than {_MOST_VALUES} weights, or values for one row")

    @property
    def features(self) -> int:
        """Of a row."""
        return math.prod(self.image)

    def shapes(self) -> Iterator[Shape]:
        """Each hidden layer and, last, the one to the classes."""
        taken = self.image
        for layer in (*self.layers, Layer(self.classes * self.weight_bits)):
            shape = _placed(layer, taken)
            yield shape
            taken = (layer.outputs, *shape.pooled)

    def plan(self, input_bits: int) -> kernels.Counts:
        """Its stages as the kernels read them, [stages, columns] int64."""
        stages, weights_at, limits_at, planes = [], 0, 0, input_bits
        for shape in self.shapes():
            stage = _row(shape, planes)
            stage[kernels.WEIGHTS_AT], stage[kernels.LIMITS_AT] = weights_at, limits_at
            weights_at += int(stage[kernels.WORDS] * stage[kernels.LANES])
            limits_at, planes = limits_at + shape.layer.outputs, 1
            stages.append(stage)
        return np.array(stages)


@dataclass(frozen=True, eq=False)
class Encoding:
    """How a feature x becomes a level: round((x - low) * levels a unit), kept within 0 and 2^bits - 1.

    ranges: [low and levels a unit, features] float32. A level q stands for the odd number 2q - (2^bits - 1), so that each bit is +1 or -1.
    """

    ranges: npt.NDArray[np.float32]
    bits: int

    def decoded(self, rows: Rows) -> Rows:
        """Rows as the network sees them: each value is that of its level."""
        low, unit = self.ranges
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = np.rint(np.clip((rows - low) * unit, 0, 2**self.bits - 1))
            found: Rows = np.where(unit > 0, low + levels / unit, low).astype(np.float32)
        return found


def _placed(layer: Layer, taken: tuple[int, int, int]) -> Shape:
    _, height, width = taken
    top, left, bottom, right = layer.pads
    size = (top + height + bottom, left + width + right)
    kernel = layer.kernel or (height, width)
    numbers = (layer.outputs, *kernel, *layer.stride, *layer.pool, *layer.pool_stride)
    if min(numbers) < 1 or min(layer.pads) < 0 or top >= kernel[0] or bottom >= kernel[0] or left >= kernel[1] or right >= kernel[1]:
        raise UnfitGraph(f"a layer cannot be {layer}; accepted: sizes and strides of 1 or more, pads less than the kernel")
    if layer.kernel is None and layer != Layer(layer.outputs):
        raise UnfitGraph(f"a dense layer has no strides, pads or pooling; given: {layer}")
    whole = _windows(size, kernel, layer.stride)
    pooled = _windows(whole, layer.pool, layer.pool_stride)
    if min(*whole, *pooled) < 1:
        raise UnfitGraph(f"{layer} does not fit an image of {height} x {width}")
    return Shape(layer, taken, kernel, whole, pooled)


def _windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """How many there are in each direction, 0 or less where none fits."""
    return (size[0] - window[0]) // stride[0] + 1, (size[1] - window[1]) // stride[1] + 1


def _row(shape: Shape, planes: int) -> kernels.Counts:
    layer, (channels, height, width) = shape.layer, shape.taken
    words, lanes = -(-shape.inputs // _WORD), -(-layer.outputs // _LANES) * _LANES
    sizes = (planes, height, width, channels, *shape.kernel, *layer.stride, *layer.pads)
    outputs = (layer.outputs, *shape.whole, *layer.pool, *layer.pool_stride)
    return np.array((*sizes, *outputs, words, lanes, 0, 0), np.int64)
