"""Which kernel trains a model: the one the job names, or the fastest by timing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from qedge.errors import ModelError
from qedge.job import Algorithm
from qedge.kernels.batches import ClientBatches, Kernel, plan, single_thread
from qedge.kernels.sequential import SequentialKernel
from qedge.kernels.stacked import StackedKernel
from qedge.models import affine_layers, parameters_vector

AnyKernel = Kernel[Any]  # what a kernel prepares is its own affair


def build_kernel(name: str, module: torch.nn.Module, algorithm: Algorithm, *, private: bool) -> AnyKernel:
    """The kernel of that name ("sequential" | "stacked") for a module; private: no client's bits depend on another's rows."""
    if name == "sequential":
        return SequentialKernel(module, algorithm.learning_rate, tolerant=private)
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
    two_epochs = algorithm.model_copy(update={"local_epochs": 2})

    def made_up_client() -> ClientBatches:
        inputs = generator.standard_normal((rows, features), dtype=np.float32)
        return plan(inputs, generator.integers(0, classes, rows), two_epochs, lambda: generator)

    made_up = [made_up_client() for _ in range(chunk)]
    weights = parameters_vector(module)
    kernels = {name: build_kernel(name, module, algorithm, private=private) for name in ("stacked", "sequential")}
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    with single_thread():
        for _ in range(5):  # in turn, and by the thread's own clock, so that other work on the machine does not decide
            for name, kernel in kernels.items():
                begun = time.thread_time()
                kernel.updates(weights, kernel.prepare(made_up))
                seconds[name].append(time.thread_time() - begun)
    return min(seconds, key=lambda name: min(seconds[name]))
