"""A step of DP-SGD against a plain step, on the same rows: clipped sums of per-example gradients, with and without the noise of a step.

One thread, by the thread's own clock, the ways taking turns; a ratio is of medians. A plain step is autograd's gradient of the batch and
the SGD step. Clipped sums end with the same step. The noise is what a whole step releases besides: its sum rounded to the grid, and a
discrete Gaussian from the operating system's generator on every parameter. `hooks` is Opacus 1.6 (`GradSampleModule`). For the CNN the
plain step by this project's own kernel, which autograd does not keep up with, stands beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qedge.job import Model
from qedge.kernels.batches import ClientBatches, LocalSGD, single_thread
from qedge.kernels.convolutional import ConvolutionalKernel
from qedge.kernels.per_example.choice import BOOK_KEEPING, HOOKS, build_sums
from qedge.models import build, parameters_vector
from qedge.privacy.example_sums import LEAST_VARIANCE, NoisySteps, SumGrid
from qedge.privacy.mechanisms import SystemNoise
from tests.benchmarks.figures import Figure, at_least, at_most, beside

REPEAT = 5
TURNS, STEPS = 8, 4  # steps of a way in a row, so that what another left in the caches is not its own
FEATURES, CLASSES = 784, 10
MLP, CNN = Model(kind="mlp", hidden=(512,)), Model(kind="cnn", channels=(8, 16))
Way = Callable[[], object]


def measure(repeat: int) -> list[Figure]:
    """`repeat` measurements of every way."""
    figures = []
    with single_thread():
        for name, model, batch, limit in (("MLP 784-512-10", MLP, 256, 2.1), ("CNN 8-16 on 28 x 28", CNN, 64, 1.6)):
            ways = _ways(model, batch)
            found = [_seconds(ways) for _ in range(repeat)]
            times = {way: [1000 * one[way] for one in found] for way in ways}
            what = f"{name}, batch {batch}"
            figures.append(at_most(f"{what}: a step without its noise over a plain one", limit, _over(found, "clipped", "plain"), "times"))
            if "own plain" in ways:
                figures.append(beside(f"{what}: … over a plain one by our own kernel", _over(found, "clipped", "own plain"), "times"))
            else:
                figures.append(
                    at_least(f"{what}: Opacus' hooks over a step without its noise", 20, _over(found, "hooks", "clipped"), "times")
                )
            figures.append(beside(f"{what}: a whole step, noise included, over a plain one", _over(found, "whole", "plain"), "times"))
            figures += [beside(f"… {way}", taken, "ms a step") for way, taken in times.items()]
    return figures


def _over(found: list[dict[str, float]], above: str, below: str) -> list[float]:
    return [one[above] / one[below] for one in found]


def _ways(model: Model, batch: int) -> dict[str, Way]:
    module = build(model, FEATURES, CLASSES, seed=0)
    generator = np.random.default_rng(0)
    rows = torch.from_numpy(generator.standard_normal((batch, FEATURES), dtype=np.float32))
    labels = torch.from_numpy(generator.integers(0, CLASSES, batch))
    weights = torch.from_numpy(parameters_vector(module))
    own, hooks = build_sums(BOOK_KEEPING, module), build_sums(HOOKS, module)
    coarse = SumGrid(1.0, len(weights))
    grid = coarse.refined_for(coarse.sensitivity_squared, LEAST_VARIANCE)
    plan = NoisySteps(grid, max(grid.sensitivity_squared, LEAST_VARIANCE), rate=0.1, steps=1, max_rows=10 * batch)
    source = SystemNoise()

    def clipped() -> torch.Tensor:
        total = own.clipped_sum(weights, rows, labels, 1.0)
        weights.sub_(total, alpha=1e-9)
        return total

    def whole() -> None:
        total = own.clipped_sum(weights, rows, labels, 1.0).numpy().astype(np.float64)
        weights.sub_(torch.from_numpy(plan.release(total, generator, source)), alpha=1e-9)

    def hooked() -> None:
        weights.sub_(hooks.clipped_sum(weights, rows, labels, 1.0), alpha=1e-9)

    ways: dict[str, Way] = {"plain": lambda: _plain(module, rows, labels), "clipped": clipped, "whole": whole, "hooks": hooked}
    if (kernel := ConvolutionalKernel.of(module, LocalSGD(1e-9))) is not None:
        chunk = kernel.prepare([ClientBatches(rows.numpy(), labels.numpy(), np.arange(batch)[None])])
        vector = parameters_vector(module)
        ways["own plain"] = lambda: kernel.updates(vector, chunk)
    return ways


def _plain(module: nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> None:
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(functional.cross_entropy(module(rows), labels), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=1e-9)


def _seconds(ways: dict[str, Way]) -> dict[str, float]:
    """Median seconds of a step, the ways taking turns; the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            begun = time.thread_time()
            for _ in range(STEPS):
                way()
            if turn:
                taken[name].append((time.thread_time() - begun) / STEPS)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
