"""Torch models from a job's `model`: linear, mlp, cnn, hybrid, or a function of the user's own; and their weights as one flat vector.

Weights travel between server and clients as that vector alone. So a model may keep no other state that training changes
(running statistics would stay behind on each client), and all of its parameters are trained.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from qedge.errors import LabelMismatch, ModelError
from qedge.job import Model
from qedge.quantum.qnn.layer import QuantumLayer, hybrid

Vector = npt.NDArray[np.float32]
_INSTEAD = "accepted instead: GroupNorm or LayerNorm"


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """What a user's function or forward pass does, which may raise anything.

    Raises:
        ModelError: it did, `SystemExit` included.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what} raised {error!r}") from error


def build(model: Model, features: int, classes: int, seed: int) -> nn.Module:
    """The float32 module that `model` describes, from [batch, features] to logits [batch, classes].

    The same seed gives the same weights; torch's global generator is left as it was. Constant buffers are allowed.

    Raises:
        ModelError: an image that does not fit the features; a function that cannot be imported, raises or returns no module;
            a module without parameters, with frozen or complex ones, or with state that is not a parameter; a forward pass that fails.
        LabelMismatch: its output is not [batch, classes].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = _own(model, features, classes) if ":" in model.kind else _BUILDERS[model.kind](model, features, classes)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(f"model '{model.kind}' cannot be made: {error}", kind=model.kind) from error
        refuse_if_not_private(module)
        _check_forward(module, features, classes)  # first, since a lazy layer has its parameters only then
        _check_parameters(module)
    return module


def _linear(model: Model, features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, classes))


def _mlp(model: Model, features: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((features, *model.hidden)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((features, *model.hidden)[-1], classes))


def _cnn(model: Model, features: int, classes: int) -> nn.Module:
    """Convolutions, each with ReLU and, while the image has two rows and columns, 2x2 max-pooling; then one linear layer."""
    depth, height, width = _image(model, features)
    layers: list[nn.Module] = [nn.Unflatten(1, (depth, height, width))]
    for channels in model.channels:
        layers += [nn.Conv2d(depth, channels, model.kernel_size, padding=model.kernel_size // 2), nn.ReLU()]
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        depth = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(depth * height * width, classes))


def _hybrid(model: Model, features: int, classes: int) -> nn.Module:
    return hybrid(features, classes, QuantumLayer(model.qubits, model.layers, embedding=model.embedding, reupload=model.reupload))


def _image(model: Model, features: int) -> tuple[int, int, int]:
    side = math.isqrt(features)
    if model.image is None and side * side != features:
        raise ModelError(f"model: 'cnn' takes 'image: [channels, height, width]' when features are no square; there are {features}")
    image = model.image or (1, side, side)
    if min(image) < 1 or math.prod(image) != features:
        raise ModelError(f"model.image {list(image)} does not hold {features} features; accepted: channels * height * width = {features}")
    return image


_BUILDERS: dict[str, Callable[[Model, int, int], nn.Module]] = {"linear": _linear, "mlp": _mlp, "cnn": _cnn, "hybrid": _hybrid}


def users_function(path: str, what: str) -> Callable[..., object]:
    """The function that `path`, "package.module:function", names.

    Raises:
        ModelError: it cannot be imported, or is none.
    """
    place, _, name = path.partition(":")
    try:
        with users_code(f"{what} '{path}': importing it"):
            function = getattr(importlib.import_module(place), name, None)
    except ModelError as error:
        if isinstance(missing := error.__cause__, ModuleNotFoundError):
            raise ModelError(f"{what} '{path}': no module '{missing.name}'; is its folder on PYTHONPATH?", kind=path) from missing
        raise
    if not callable(function):
        raise ModelError(f"{what} '{path}': module '{place}' has no function '{name}'", kind=path)
    users: Callable[..., object] = function
    return users


def _own(model: Model, features: int, classes: int) -> nn.Module:
    """What the user's `package.module:function` returns."""
    function = users_function(model.kind, "model")
    with users_code(f"model '{model.kind}', called as function(features, classes, **options),"):
        module = function(features, classes, **model.options)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model '{model.kind}' returned a {type(module).__name__}; accepted: a torch.nn.Module", kind=model.kind)
    return module


def _check_forward(module: nn.Module, features: int, classes: int) -> None:
    """Two rows give logits of the right shape, each answer its own row's, and a training pass changes no buffer."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    one, other = torch.randn(2, features), torch.randn(2, features)
    other[0] = one[0]
    try:
        with users_code(f"the model, given a batch of two rows with {features} features,"):
            module.train()
            trained, repeated = module(one), module(one)
            with torch.no_grad():
                module.eval()
                output, again = module(one), module(other)
    finally:
        module.train()
    changed = [name for name, buffer in module.named_buffers() if name in before and not torch.equal(before[name], buffer)]
    if changed:
        raise ModelError(f"the model keeps state that is not a parameter, in '{changed[0]}'; {_INSTEAD}", buffer=changed[0])
    shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != [2, classes]:
        raise LabelMismatch(f"the model's output does not fit the labels: [batch, {classes}] is accepted; two rows gave {shape}")
    if not torch.equal(trained, repeated):
        raise ModelError("the model draws at random while it trains (dropout, say): a run could not be repeated or resumed; leave it out")
    if not torch.allclose(output[0], again[0], rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ModelError(f"the model's answer for a row depends on the other rows of the batch, or on chance; {_INSTEAD}")


def _check_parameters(module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ModelError("the model has no parameters, so there is nothing to train")
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            raise ModelError(f"the model's parameter '{name}' is frozen; make what is not trained a buffer", parameter=name)
        if parameter.dtype != torch.float32:
            raise ModelError(f"the model's parameter '{name}' is {parameter.dtype}; accepted: torch.float32", parameter=name)


def refuse_if_not_private(module: nn.Module) -> None:
    """Refuse layers that mix the examples of a batch or keep running statistics of them: no bound holds for either.

    Raises:
        ModelError: BatchNorm of any kind, or InstanceNorm with running statistics.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) or (isinstance(layer, _InstanceNorm) and layer.track_running_stats):
            kind = type(layer).__name__
            raise ModelError(f"layer '{name}' is {kind}: it mixes examples or keeps statistics of them; {_INSTEAD}", layer=kind)


def head_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last layer that has any of its own."""
    return next(own for layer in reversed(list(module.modules())) if (own := list(layer.parameters(recurse=False))))


def parameters_vector(module: nn.Module) -> Vector:
    """All parameters in the module's order as one float32 vector [params], a copy."""
    with torch.no_grad():
        return np.concatenate([parameter.numpy().ravel() for parameter in module.parameters()])


def set_parameters(module: nn.Module, vector: Vector) -> None:
    """Copy a vector [params], which may be read-only, into the module.

    Raises:
        ModelError: the vector is not of the module's length.
    """
    parameters = list(module.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    if vector.shape != (size,):
        raise ModelError(f"the model has {size} parameters; given: an array of shape {list(vector.shape)}", params=size)
    values = torch.tensor(vector, dtype=torch.float32)  # torch warns of views of read-only arrays
    with torch.no_grad():
        start = 0
        for parameter in parameters:
            parameter.copy_(values[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def affine_layers(module: nn.Module) -> list[tuple[int, int]] | None:
    """(inputs, outputs) of each linear layer when the module is exactly those with ReLU between them, else None."""
    if type(module) is not nn.Sequential:
        return None
    layers = list(module)
    affine, between = layers[::2], layers[1::2]
    if len(affine) != len(between) + 1 or any(type(layer) is not nn.ReLU for layer in between):
        return None
    if any(type(layer) is not nn.Linear or layer.bias is None for layer in affine):
        return None
    return [(layer.in_features, layer.out_features) for layer in affine if isinstance(layer, nn.Linear)]
