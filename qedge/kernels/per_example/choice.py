"""Which way of summing clipped gradients a model gets, and the refusal of models whose examples cannot be told apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from qedge.errors import ModelError
from qedge.job import Algorithm
from qedge.kernels.per_example.affine import AffineSums
from qedge.kernels.per_example.convolutional import ConvolutionalSums
from qedge.kernels.per_example.hooks import HookSums
from qedge.kernels.per_example.hybrid import HybridSums
from qedge.kernels.per_example.sums import ExampleSums, LoopSums, put
from qedge.models import affine_layers, parameters_vector

LOOP, BOOK_KEEPING, HOOKS = "sequential", "book-keeping", "hooks"
_ROWS = 6
_SLACK = 1e-3  # of a gradient's norm; float32 is far better


def build_sums(name: str, module: nn.Module) -> ExampleSums:
    """The way of that name.

    Raises:
        ModelError: it does not take such a module.
    """
    if name == LOOP:
        return LoopSums(module)
    if name == HOOKS:
        return HookSums(module)
    own = _book_keeping(module)
    if name != BOOK_KEEPING or own is None:
        accepted = f"{HOOKS}, {LOOP}" if own is None else f"{BOOK_KEEPING}, {HOOKS}, {LOOP}"
        raise ModelError(f"kernel '{name}' does not sum this model's gradients one by one; accepted here: auto, {accepted}", given=name)
    return own


def choose_sums(module: nn.Module, algorithm: Algorithm, features: int, classes: int) -> str:
    """The name of the way that a job gets: the one it names; else book-keeping where there is one for the model, else hooks.

    Raises:
        ModelError: it does not take such a module, or some layer's gradients of single rows are others than a loop over rows gives.
    """
    name: str = algorithm.kernel
    if name == "auto":
        name = HOOKS if _book_keeping(module) is None else BOOK_KEEPING
    sums = build_sums(name, module)
    if isinstance(sums, HookSums):
        refuse_if_mixed(sums, module, features, classes)
    return name


def sums_difference(sums: ExampleSums, module: nn.Module, features: int, classes: int, agrees_within: float) -> float | None:
    """How far a clipped sum of made-up rows is from the loop's, over the bound, which half of them keep to; None where that is rounding."""
    if isinstance(sums, LoopSums):
        return None
    rows, labels = _made_up(features, classes, 3 * _ROWS)
    loop, weights = LoopSums(module), torch.from_numpy(parameters_vector(module))
    norms = [float(loop.gradient(rows[k : k + 1], labels[k : k + 1]).norm()) for k in range(len(labels))]
    bound = float(np.median(norms)) or 1.0
    expected = loop.clipped_sum(weights, rows, labels, bound)
    difference = float((sums.clipped_sum(weights, rows, labels, bound) - expected).norm()) / bound
    return None if difference <= agrees_within else difference


def refuse_if_mixed(sums: HookSums, module: nn.Module, features: int, classes: int) -> None:
    """Refuse a model with a layer whose gradients of single rows are not what a loop over rows gives, on made-up rows.

    Clipping bounds nothing then, and nobody would notice: a circuit wrapped as a layer, say, may report gradients of zero.

    Raises:
        ModelError: names the layer.
    """
    rows, labels = _made_up(features, classes, _ROWS)
    loop = LoopSums(module)
    put(torch.from_numpy(parameters_vector(module)), sums.parameters)
    each = sums.each(rows, labels)
    expected = torch.stack([loop.gradient(rows[k : k + 1], labels[k : k + 1]) for k in range(_ROWS)])
    largest = float(expected.norm(dim=1).max())
    names = [name for name, _ in module.named_parameters()]
    split = torch.split(expected, [parameter.numel() for parameter in module.parameters()], dim=1)
    for name, mine, theirs in zip(names, each, split, strict=True):
        off = float((mine - theirs).abs().max())
        if not off <= _SLACK * max(float(theirs.abs().max()), 1e-3 * largest):
            layer = name.rpartition(".")[0] or name
            raise ModelError(
                f"layer '{layer}': its gradients of single examples are not those of a loop over examples, so clipping them bounds "
                f"nothing; accepted: another layer in its place, or 'algorithm.kernel: {LOOP}', which is the loop",
                layer=layer,
            )


def _book_keeping(module: nn.Module) -> ExampleSums | None:
    layers = affine_layers(module)
    if layers is not None:
        return AffineSums(layers)
    return HybridSums.of(module) or ConvolutionalSums.of(module)


def _made_up(features: int, classes: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in the public shape that are nobody's."""
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((rows, features), dtype=np.float32)
    return torch.from_numpy(drawn), torch.from_numpy(generator.integers(0, classes, rows))
