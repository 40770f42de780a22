"""Binary networks for the tests: of any shape, with weights and normalisations of any sign."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

from qedge.edge.binary.architecture import Architecture, Encoding, Layer
from qedge.edge.binary.module import BinaryModule

SIZES = st.integers(1, 4)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Dense, convolutional or both, on images of up to 3 channels; some of no hidden layer."""
    image = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 70)))
    layers: list[Layer] = []
    taken = image
    for _ in range(draw(st.integers(0, 3))):
        layer = draw(_convolution(taken)) if max(taken[1:]) > 1 and draw(st.booleans()) else Layer(draw(st.integers(1, 140)))
        layers.append(layer)
        *_, shape, _last = Architecture(image, tuple(layers), 2).shapes()
        taken = (layer.outputs, *shape.pooled)
    return Architecture(image, tuple(layers), draw(st.integers(2, 12)), draw(st.integers(1, 8)))


@st.composite
def _convolution(draw: st.DrawFn, taken: tuple[int, int, int]) -> Layer:
    _, height, width = taken
    kernel = (draw(st.integers(1, min(4, height))), draw(st.integers(1, min(6, width))))
    pads = tuple(draw(st.integers(0, min(2, kernel[side % 2] - 1))) for side in range(4))
    stride, pool_stride = (draw(SIZES), draw(SIZES)), (draw(SIZES), draw(SIZES))
    whole = [(size + pads[side] + pads[side + 2] - kernel[side]) // stride[side] + 1 for side, size in enumerate((height, width))]
    pool = (draw(st.integers(1, min(3, whole[0]))), draw(st.integers(1, min(3, whole[1]))))
    outputs = draw(st.integers(1, 70))
    return Layer(outputs, kernel, stride, (pads[0], pads[1], pads[2], pads[3]), pool, pool_stride)


def random_module(architecture: Architecture, bits: int, seed: int) -> BinaryModule:
    """In `eval`, its latent weights, statistics and scales at random; a few channels have gamma 0."""
    generator = torch.Generator().manual_seed(seed)
    numbers = np.random.default_rng(seed)
    ranges = np.stack([numbers.normal(0, 1, architecture.features), numbers.uniform(0, 2**bits, architecture.features)])
    module = BinaryModule(architecture, Encoding(ranges.astype(np.float32), bits), seed)

    def around(size: torch.Size) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    with torch.no_grad():
        for shape, norm in zip(module.shapes, module.norms, strict=False):
            size = norm.weight.shape
            norm.weight.copy_(around(size) * (torch.rand(size, generator=generator) > 0.1))
            norm.bias.copy_(around(size))
            norm.running_mean.copy_(around(size) * math.sqrt(shape.inputs) / 2)
            norm.running_var.copy_(around(size).square() * shape.inputs + 0.01)
        module.scale.copy_(around(module.scale.shape) / 3)
        module.bias.copy_(around(module.bias.shape))
    return module.eval()


def random_rows(module: BinaryModule, count: int, seed: int) -> np.ndarray:
    """Within, at and beyond the ranges of the module's encoding."""
    numbers = np.random.default_rng(seed)
    low, unit = module.encoding.ranges
    levels = numbers.uniform(-1, 2**module.encoding.bits, (count, len(low)))
    rows = low + levels / np.maximum(unit, 1e-3)
    rows[numbers.random(rows.shape) < 0.01] = np.inf
    return rows.astype(np.float32)


def reference(module: BinaryModule, rows: np.ndarray) -> np.ndarray:
    """What torch answers."""
    answers: np.ndarray = module(torch.from_numpy(rows)).numpy()
    return answers
