"""Local training of several clients: the same mathematics two ways.

`SequentialKernel` trains one client after another with autograd: it takes any model and is the oracle. `StackedKernel` trains
a whole chunk of clients at once for linear models and MLPs, every client's weights one slice of a batched matrix product, the
gradient of softmax cross-entropy written out (Goodfellow, Bengio, Courville 2016, section 6.5). Both do plain SGD from the global weights.

A chunk's result depends only on the chunk: the same clients in the same order give the same bits wherever they run,
as long as one thread computes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from qedge.errors import ModelError
from qedge.job import Algorithm
from qedge.models import affine_layers, parameters_vector, set_parameters


@dataclass(frozen=True)
class ClientBatches:
    """One client's rows and the order of its steps.

    features: [rows, features] float32; labels: [rows] int64; steps: one array of row numbers a step.
    """

    features: np.ndarray
    labels: np.ndarray
    steps: Sequence[np.ndarray]


class Kernel(Protocol):
    """Trains a chunk of clients from the same global weights."""

    def updates(self, weights: np.ndarray, chunk: Sequence[ClientBatches]) -> np.ndarray:
        """Local minus global weights of each client, [clients, params] float32; `weights` is [params] float32."""


def plan_steps(rows: int, algorithm: Algorithm, make_generator: Callable[[], np.random.Generator]) -> list[np.ndarray]:
    """The row numbers of each local step: epochs of shuffled mini-batches under the public caps on rows and steps.

    A client whose rows fit into one batch keeps their order, as the order inside a batch means nothing.
    """
    if not rows:
        return []
    used = min(rows, algorithm.max_rows)
    size = algorithm.batch_size or used
    if used == rows and (not algorithm.shuffle or rows <= size):  # every epoch is the same list of the same arrays
        return (_split(np.arange(rows), size) * algorithm.local_epochs)[: algorithm.max_steps]
    generator = make_generator()
    chosen = np.sort(generator.permutation(rows)[:used])
    if not algorithm.shuffle:
        return (_split(chosen, size) * algorithm.local_epochs)[: algorithm.max_steps]
    epochs = (_split(generator.permutation(chosen), size) for _ in range(algorithm.local_epochs))
    return [step for epoch in epochs for step in epoch][: algorithm.max_steps]


def _split(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


class SequentialKernel:
    """One client after another, by autograd, for any model."""

    def __init__(self, module: torch.nn.Module, learning_rate: float) -> None:
        self.module = module
        self.learning_rate = learning_rate

    def updates(self, weights: np.ndarray, chunk: Sequence[ClientBatches]) -> np.ndarray:
        """See `Kernel.updates`."""
        out = np.zeros((len(chunk), len(weights)), dtype=np.float32)
        parameters = list(self.module.parameters())
        for row, client in enumerate(chunk):
            set_parameters(self.module, weights)
            self.module.train()
            for step in client.steps:
                features, labels = torch.from_numpy(client.features[step]), torch.from_numpy(client.labels[step])
                loss = functional.cross_entropy(self.module(features), labels)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            parameter.sub_(gradient, alpha=self.learning_rate)
            out[row] = parameters_vector(self.module) - weights
        return out


class StackedKernel:
    """A whole chunk at once by batched matrix products, for a linear model or an MLP with ReLU.

    apart: a client's bits must not depend on its neighbours' rows. Its batches are then padded to a size that follows from its own
    rows alone, and clients of one size are stacked together: with the same shapes a batched product gives each client the same bits
    whoever shares it. Otherwise all are padded to the longest, and emptying one client would move the last bits of others'
    updates, which no sensitivity accounts for.
    """

    def __init__(self, layers: Sequence[tuple[int, int]], learning_rate: float, *, apart: bool = False) -> None:
        self.layers = list(layers)
        self.learning_rate = learning_rate
        self.apart = apart

    @torch.no_grad()
    def updates(self, weights: np.ndarray, chunk: Sequence[ClientBatches]) -> np.ndarray:
        """See `Kernel.updates`."""
        longest = [max((len(step) for step in client.steps), default=0) for client in chunk]
        padded = [_padded(rows) if self.apart else max(longest) for rows in longest]
        out = np.zeros((len(chunk), len(weights)), dtype=np.float32)
        start = torch.tensor(weights)
        for rows in sorted({rows for rows, own in zip(padded, longest, strict=True) if own}):
            # Clients with more steps first: those still training at step s are then a prefix, and nobody is computed in vain.
            members = sorted((k for k in range(len(chunk)) if padded[k] == rows and longest[k]), key=lambda k: -len(chunk[k].steps))
            out[members] = self._train(start, [chunk[k] for k in members], rows)
        return out

    def _train(self, start: torch.Tensor, clients: Sequence[ClientBatches], rows: int) -> np.ndarray:
        """Updates of clients that are stacked together, those with more steps first."""
        stacked = start.repeat(len(clients), 1)
        views = self._views(stacked)
        classes = self.layers[-1][1]
        seen: dict[tuple[int, ...], _Batch] = {}
        for step in range(len(clients[0].steps)):
            active = sum(len(client.steps) > step for client in clients)
            # Where an epoch repeats the very same index arrays, their rows are gathered once.
            key = tuple(id(client.steps[step]) for client in clients[:active])
            batch = seen.get(key) or _gather(clients[:active], step, classes, rows)
            if any(clients[0].steps[step] is later for later in clients[0].steps[step + 1 :]):
                seen[key] = batch
            self._step([(w[:active], b[:active]) for w, b in views], batch)
        return (stacked - start).numpy()

    def _views(self, stacked: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(weight [clients, out, in], bias [clients, out]) of each layer, as views into the stacked flat weights."""
        views, at = [], 0
        for wide, out in self.layers:
            weight = stacked[:, at : at + wide * out].view(-1, out, wide)
            at += wide * out
            views.append((weight, stacked[:, at : at + out]))
            at += out
        return views

    def _step(self, layers: list[tuple[torch.Tensor, torch.Tensor]], batch: _Batch) -> None:
        """One SGD step of every client, in place."""
        inputs = [batch.features]
        for depth, (weight, bias) in enumerate(layers):
            out = torch.baddbmm(bias.unsqueeze(1), inputs[-1], weight.transpose(1, 2))
            inputs.append(out.relu_() if depth < len(layers) - 1 else out)
        gradient = (functional.softmax(inputs.pop(), dim=2) - batch.targets).mul_(batch.share)
        for depth in range(len(layers) - 1, -1, -1):
            weight, bias = layers[depth]
            below = torch.bmm(gradient, weight).mul_(inputs[depth] > 0) if depth else None
            weight.baddbmm_(gradient.transpose(1, 2), inputs[depth], alpha=-self.learning_rate)
            bias.sub_(gradient.sum(1), alpha=self.learning_rate)
            if below is not None:
                gradient = below


@dataclass(frozen=True)
class _Batch:
    features: torch.Tensor  # [clients, rows, features]; rows past a client's batch are zero
    targets: torch.Tensor  # [clients, rows, classes], one-hot
    share: torch.Tensor  # [clients, rows, 1]: 1/batch for a real row, 0 for padding


def _padded(rows: int) -> int:
    """The least power of four that is at least `rows`, and at least 4."""
    size = 4
    while size < rows:
        size *= 4
    return size


def _gather(clients: Sequence[ClientBatches], step: int, classes: int, rows: int) -> _Batch:
    features = np.zeros((len(clients), rows, clients[0].features.shape[1]), dtype=np.float32)
    targets = np.zeros((len(clients), rows, classes), dtype=np.float32)
    share = np.zeros((len(clients), rows, 1), dtype=np.float32)
    for row, client in enumerate(clients):
        chosen = client.steps[step]
        features[row, : len(chosen)] = client.features[chosen]
        targets[row, np.arange(len(chosen)), client.labels[chosen]] = 1
        share[row, : len(chosen)] = 1 / len(chosen)
    return _Batch(torch.from_numpy(features), torch.from_numpy(targets), torch.from_numpy(share))


def build_kernel(name: str, module: torch.nn.Module, algorithm: Algorithm, *, private: bool) -> Kernel:
    """The kernel of that name ("sequential" | "stacked") for a module; private: no client's bits depend on another's rows."""
    if name == "sequential":
        return SequentialKernel(module, algorithm.learning_rate)
    layers = affine_layers(module)
    if layers is None:
        raise ModelError("kernel 'stacked' is for linear and mlp models; accepted here: sequential, auto")
    return StackedKernel(layers, algorithm.learning_rate, apart=private)


def choose_kernel(module: torch.nn.Module, algorithm: Algorithm, features: int, classes: int, chunk: int, *, private: bool) -> str:
    """The name of the faster kernel, timed on made-up rows of the public shape, so that the choice tells nothing of the data."""
    if algorithm.kernel != "auto":
        build_kernel(algorithm.kernel, module, algorithm, private=private)
        return algorithm.kernel
    if affine_layers(module) is None:
        return "sequential"
    generator = np.random.default_rng(0)
    rows = min(algorithm.batch_size or 32, algorithm.max_rows)
    made_up = [
        ClientBatches(
            generator.standard_normal((rows, features), dtype=np.float32), generator.integers(0, classes, rows), [np.arange(rows)] * 2
        )
        for _ in range(chunk)
    ]
    weights = parameters_vector(module)
    kernels = {name: build_kernel(name, module, algorithm, private=private) for name in ("stacked", "sequential")}
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    with single_thread():
        for _ in range(5):  # in turn, and by the thread's own clock, so that other work on the machine does not decide
            for name, kernel in kernels.items():
                begun = time.thread_time()
                kernel.updates(weights, made_up)
                seconds[name].append(time.thread_time() - begun)
    return min(seconds, key=lambda name: min(seconds[name]))


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread: how many threads share a product changes its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
