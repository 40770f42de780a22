"""A binary network as a torch module: floats and straight-through gradients to learn by, whole numbers to answer by.

The sign's gradient is taken for that of the identity where the argument is within [-1, 1], and nothing beyond (straight-through); latent
weights are kept within [-1, 1]. A layer's scale per channel (XNOR-Net's alpha) is part of its batch normalisation, which in the end is one
whole number for each channel.

Source: Hubara et al., "Binarized neural networks", NeurIPS 2016, algorithm 1; Rastegari et al., "XNOR-Net", ECCV 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from qedge.edge.binary import kernels
from qedge.edge.binary.architecture import Architecture, Encoding, Shape
from qedge.edge.binary.network import BinaryNetwork, packed, planes_of


@dataclass(frozen=True)
class Folded:
    """A hidden layer in whole numbers: an output is +1 iff the product with `signs` [outputs, inputs...] reaches `least` [outputs]."""

    signs: torch.Tensor
    least: torch.Tensor


class BinaryModule(nn.Module):
    """Rows [batch, F] to logits [batch, classes] while training; in `eval` to probabilities, in whole numbers, exactly as deployed.

    The weights of one seed are the same; torch's global generator is left as it was.
    """

    def __init__(self, architecture: Architecture, encoding: Encoding, seed: int) -> None:
        super().__init__()
        self.architecture, self.encoding = architecture, encoding
        self.shapes = tuple(architecture.shapes())
        generator = torch.Generator().manual_seed(seed)
        sizes = [_weight_size(shape) for shape in self.shapes[:-1]]
        *_, last = self.shapes
        sizes.append((architecture.classes, last.inputs))
        self.weights = nn.ParameterList([nn.Parameter((torch.rand(size, generator=generator) * 2 - 1) / 10) for size in sizes])
        self.norms = nn.ModuleList([nn.BatchNorm1d(shape.layer.outputs) for shape in self.shapes[:-1]])
        self.scale = nn.Parameter(torch.full((architecture.classes,), 2 / math.sqrt(last.inputs)))
        self.bias = nn.Parameter(torch.zeros(architecture.classes))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self._logits(rows) if self.training else self._answers(rows)

    def clip(self) -> None:
        """Bring latent weights back to [-1, 1]."""
        with torch.no_grad():
            for weight in self.weights:
                weight.clamp_(-1, 1)

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        values = self._levels(rows).float() / self.most
        for shape, weight, norm in zip(self.shapes, self.weights, self._norms(), strict=False):
            product = _product(shape, values, _sign(weight))
            flat = product.flatten(2)  # one normalisation a channel, whatever the image
            values = _sign(_pooled(shape, norm(flat).reshape(product.shape)))
        weight = self.weights[-1]
        weight = _straight_through((2 * self.last_levels() - self._last_most) / self._last_most, weight)
        logits: torch.Tensor = functional.linear(values.flatten(1), weight) * self.scale + self.bias
        return logits

    def _norms(self) -> list[nn.BatchNorm1d]:
        return [cast(nn.BatchNorm1d, norm) for norm in self.norms]

    @torch.no_grad()
    def _answers(self, rows: torch.Tensor) -> torch.Tensor:
        """In float64, which holds every whole number that occurs."""
        values = self._levels(rows)
        for shape, layer in zip(self.shapes, self.folded(), strict=False):
            fires = _product(shape, values, layer.signs, outside=-self._outside(shape)) >= layer.least[:, None, None]
            values = _pooled(shape, torch.where(fires, 1.0, -1.0).double())
        levels = 2 * self.last_levels() - self._last_most
        scale, bias = (torch.from_numpy(one) for one in self.last())
        logits = functional.linear(values.flatten(1), levels.double()) * scale + bias
        powers = _exponential((logits - logits.amax(1, keepdim=True)).clamp_min(kernels.SMALLEST))
        total = torch.zeros(len(rows), dtype=torch.float64)
        for k in range(self.architecture.classes):  # one after another, as deployed: the order of a sum is part of it
            total = total + powers[:, k]
        answers = (powers / total[:, None]).float()
        return torch.where(rows.isnan().any(1, keepdim=True), torch.nan, answers)

    @property
    def most(self) -> int:
        """The highest level of an input."""
        return int(2**self.encoding.bits - 1)

    @property
    def _last_most(self) -> int:
        return int(2**self.architecture.weight_bits - 1)

    def _outside(self, shape: Shape) -> int:
        """Of what is beyond an image's edge, the magnitude: the lowest level of the input, or a bit that is not set."""
        return self.most if shape is self.shapes[0] else 1

    def _levels(self, rows: torch.Tensor) -> torch.Tensor:
        """Odd numbers [batch, channels, rows, columns] float64 of rows, in float32 as the kernels do it."""
        low, unit = (torch.from_numpy(one) for one in self.encoding.ranges)
        value = (rows - low) * unit
        kept = torch.where(value > 0, value, 0.0).clamp_max(float(self.most))
        return (2 * torch.round(kept).double() - self.most).reshape(-1, *self.architecture.image)

    @torch.no_grad()
    def folded(self) -> list[Folded]:
        """Each hidden layer's batch normalisation and sign as a comparison with a whole number, in float64.

        With gamma (p - mean) / deviation + beta >= 0 for the product p: p >= mean - beta deviation / gamma where gamma > 0; otherwise the
        same of the opposite weights.
        """
        found = []
        for place, (shape, weight, norm) in enumerate(zip(self.shapes, self.weights, self._norms(), strict=False)):
            unit = self.most if place == 0 else 1  # the first layer's inputs are divided by it in training
            gamma, beta = norm.weight.double(), norm.bias.double()
            assert norm.running_mean is not None
            assert norm.running_var is not None
            deviation = (norm.running_var.double() + norm.eps).sqrt()
            edge = (norm.running_mean.double() - beta * deviation / gamma) * unit
            edge = torch.where(gamma == 0, torch.where(beta >= 0, -math.inf, math.inf), edge)
            flipped = gamma < 0
            most = shape.inputs * unit + 1
            least = torch.where(flipped, -edge, edge).clamp(-most, most).ceil()
            signs = torch.where(weight >= 0, 1.0, -1.0).double()
            found.append(Folded(torch.where(flipped.view(-1, *[1] * (signs.ndim - 1)), -signs, signs), least))
        return found

    @torch.no_grad()
    def last_levels(self) -> torch.Tensor:
        """The last layer's weights [classes, inputs] as whole numbers from 0 to 2^bits - 1; inputs in the order channel, row, column."""
        return torch.round((self.weights[-1].clamp(-1, 1) + 1) / 2 * self._last_most).long()

    def last(self) -> npt.NDArray[np.float64]:
        """Scale and bias [2, classes] that make logits of the last layer's products in whole numbers."""
        unit = self._last_most
        if len(self.shapes) == 1:
            unit *= self.most
        return np.stack([one.detach().double().numpy() for one in (self.scale / unit, self.bias)])


def pack(module: BinaryModule) -> BinaryNetwork:
    """The module as words of bits, for the kernels; it answers as `module.eval()` does, bit for bit."""
    words, limits = [], []
    for place, (shape, layer) in enumerate(zip(module.shapes, module.folded(), strict=False)):
        outputs = shape.layer.outputs
        by_place = layer.signs.reshape(outputs, *_patch(shape)).permute(0, 2, 3, 1).reshape(outputs, -1)  # channels last, as the kernels
        words.append(packed(by_place.numpy() > 0))
        pairs = shape.inputs * (module.most if place == 0 else 1)
        limits.append(((pairs - layer.least) / 2).floor().clamp_min(-1).numpy().astype(np.int32))
    shape, classes = module.shapes[-1], module.architecture.classes
    levels = module.last_levels().reshape(classes, *_patch(shape)).permute(0, 2, 3, 1).reshape(classes, -1)
    words.append(packed(planes_of(levels.numpy(), module.architecture.weight_bits)))
    joined = np.concatenate(limits) if limits else np.zeros(0, np.int32)
    return BinaryNetwork(module.architecture, module.encoding, np.concatenate(words), joined, module.last())


def _straight_through(answer: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`answer`, with the gradient of `values`."""
    return values + (answer - values).detach()


def _sign(values: torch.Tensor) -> torch.Tensor:
    """+1 or -1; backwards the identity within [-1, 1]."""
    return _straight_through(torch.where(values >= 0, 1.0, -1.0), values.clamp(-1, 1))


def _patch(shape: Shape) -> tuple[int, int, int]:
    return shape.taken[0], *shape.kernel


def _weight_size(shape: Shape) -> tuple[int, ...]:
    return (shape.layer.outputs, shape.inputs) if shape.layer.kernel is None else (shape.layer.outputs, *_patch(shape))


def _product(shape: Shape, values: torch.Tensor, weight: torch.Tensor, outside: float = -1.0) -> torch.Tensor:
    """[batch, outputs, rows, columns] of values [batch, channels, rows, columns]."""
    if shape.layer.kernel is None:
        return functional.linear(values.flatten(1), weight)[:, :, None, None]
    top, left, bottom, right = shape.layer.pads
    if max(shape.layer.pads):
        values = functional.pad(values, (left, right, top, bottom), value=outside)
    return functional.conv2d(values, weight, stride=shape.layer.stride)


def _pooled(shape: Shape, values: torch.Tensor) -> torch.Tensor:
    layer = shape.layer
    return values if layer.pool == layer.pool_stride == (1, 1) else functional.max_pool2d(values, layer.pool, layer.pool_stride)


def _exponential(exponent: torch.Tensor) -> torch.Tensor:
    """As the kernels', by the same steps."""
    halvings = torch.round(-exponent * kernels.LOG2_E)
    rest = (exponent + halvings * kernels.LN2_HIGH) + halvings * kernels.LN2_LOW
    sum_ = torch.zeros_like(rest)
    for coefficient in kernels.EXPONENTIAL:
        sum_ = sum_ * rest + coefficient
    return sum_ * torch.from_numpy(kernels.HALVINGS)[halvings.long()]
