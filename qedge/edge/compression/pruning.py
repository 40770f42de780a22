"""Parts of a network taken out: single weights set to zero, or whole hidden units and channels removed.

Only the latter makes a network faster: a zero is multiplied like any number, and takes its four bytes in a file that is not packed.

Sources: Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015 (magnitude); Li et al., "Pruning
filters for efficient convnets", ICLR 2017 (whole filters by norm); Molchanov et al., "Importance estimation for neural network pruning",
CVPR 2019 (Taylor).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from qedge.errors import EdgeError, ModelError

Masks = dict[str, torch.Tensor]
Scores = dict[int, torch.Tensor]
_PLAIN = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Tanh, nn.GELU, nn.Identity)
_WEIGHTED = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Pruned:
    """module: a copy; masks: by the name of a parameter, which of its entries were kept, to be kept so when it is trained on."""

    module: nn.Module
    masks: Masks


def by_magnitude(module: nn.Module, share: float, *, each_layer: bool = False) -> Pruned:
    """The share of all weights (biases are no part of it) that are nearest to zero, set to zero.

    each_layer: of each layer by itself, not of all together. Ties stay, so that no more than the share goes.

    Raises:
        EdgeError: a share outside [0, 1). ModelError: a module without weights.
    """
    refuse_share(share)
    pruned = copy.deepcopy(module)
    weights = {name: weight for name, weight in pruned.named_parameters() if weight.dim() > 1}
    if not weights:
        raise ModelError("the module has no weights to prune, biases alone")
    every = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    masks = {}
    for name, weight in weights.items():
        size = weight.detach().abs()
        ranked = (size.flatten() if each_layer else every).sort().values
        mask = (size >= ranked[int(share * len(ranked))]) & (size > 0)  # what was taken out before stays out
        with torch.no_grad():
            weight.mul_(mask)
        masks[name] = mask
    return Pruned(pruned, masks)


def structured(module: nn.Module, share: float, scores: Mapping[int, torch.Tensor] | None = None) -> nn.Sequential:
    """A smaller network: of each layer but the last, the share of units or channels that count least is taken out.

    module: layers of `nn.Linear`, `nn.Conv2d` and what has no weights, one after the other; scores: of the units [out] of the layers at
    these places, as `by_norm` or `taylor` gives them; default: by norm. At least one unit of each layer stays.

    Raises:
        EdgeError: a share outside [0, 1). ModelError: another kind of layer, or nothing that could be taken out.
    """
    refuse_share(share)
    layers = _layers(module)
    places = _weighted(layers)
    if len(places) < 2:
        raise ModelError("the module has no hidden layer of which units could be taken out")
    scores = by_norm(module) if scores is None else scores
    kept = {place: _most(scores[place], share) for place in places[:-1]}
    made = [copy.deepcopy(layer) for layer in layers]
    inputs: torch.Tensor | None = None
    for place, following in pairwise([*places, len(layers)]):
        layer = layers[place]
        assert isinstance(layer, _WEIGHTED)
        outputs = kept.get(place)
        made[place] = _cut(layer, inputs, outputs)
        if outputs is not None:
            inputs = _carried(layer, outputs, layers[following])
    return nn.Sequential(*made)


def by_norm(module: nn.Module) -> Scores:
    """Of each hidden layer's units, the length of their incoming weights."""
    layers = _layers(module)
    found = {}
    for place in _weighted(layers)[:-1]:
        weight = layers[place].weight
        assert isinstance(weight, torch.Tensor)
        found[place] = weight.detach().flatten(1).norm(dim=1)
    return found


def taylor(module: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Of each hidden layer's units, how much the loss would change without them: the mean over rows of (activation * gradient)^2.

    rows: [n, F]; labels: [n] places. A channel's activations are summed over its image before they are squared.
    """
    layers = _layers(module)
    outputs: dict[int, torch.Tensor] = {}
    value = rows
    for place, layer in enumerate(layers):
        value = layer(value)
        if place in _weighted(layers)[:-1]:
            outputs[place] = value
    loss = nn.functional.cross_entropy(value, labels, reduction="sum")
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    effects = {place: (outputs[place] * gradient).detach() for place, gradient in zip(outputs, gradients, strict=True)}
    summed = {place: effect.flatten(2).sum(2) if effect.dim() > 2 else effect for place, effect in effects.items()}
    return {place: effect.square().mean(0) for place, effect in summed.items()}


def refuse_share(share: float) -> None:
    """Refuse what is no share to take out.

    Raises:
        EdgeError: it is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise EdgeError(f"a share of {share} cannot be taken out; accepted: from 0 to below 1", given=share)


def _layers(module: nn.Module) -> list[nn.Module]:
    layers = list(module) if isinstance(module, nn.Sequential) else [module]
    for layer in layers:
        grouped = isinstance(layer, nn.Conv2d) and layer.groups != 1
        if not isinstance(layer, (*_WEIGHTED, *_PLAIN)) or grouped:
            raise ModelError(f"units cannot be taken out around a {type(layer).__name__}; accepted: Linear and Conv2d one after the other")
    return layers


def _weighted(layers: list[nn.Module]) -> list[int]:
    return [place for place, layer in enumerate(layers) if isinstance(layer, _WEIGHTED)]


def _most(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The places of those that stay, in their order."""
    count = max(1, len(scores) - int(share * len(scores)))
    return scores.topk(count).indices.sort().values


def _carried(layer: nn.Module, outputs: torch.Tensor, following: nn.Module) -> torch.Tensor:
    """Which inputs of the following layer those outputs are: where an image is flattened between, a block for each channel."""
    if isinstance(layer, nn.Conv2d) and isinstance(following, nn.Linear):
        size = following.in_features // layer.out_channels
        return (outputs[:, None] * size + torch.arange(size)).flatten()
    return outputs


def _cut(layer: nn.Linear | nn.Conv2d, inputs: torch.Tensor | None, outputs: torch.Tensor | None) -> nn.Module:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if inputs is not None:
        weight = weight[:, inputs]
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        form = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        made = nn.Conv2d(weight.shape[1], weight.shape[0], bias=bias is not None, **form)
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made
