"""Which kernel trains a model: the one the job names, or the fastest by timing."""

from __future__ import annotations

import time

import numpy as np
import torch

from qedge.errors import ModelError
from qedge.job import Algorithm
from qedge.kernels.batches import ClientBatches, LocalSGD, plan, single_thread
from qedge.kernels.convolutional import ConvolutionalKernel
from qedge.kernels.gram import GramKernel
from qedge.kernels.hybrid import StackedHybridKernel
from qedge.kernels.own_loop import OwnLoopKernel
from qedge.kernels.sequential import SequentialKernel
from qedge.kernels.stacked import StackedKernel
from qedge.kernels.vmapped import VmappedKernel
from qedge.kernels.weighted_total import AnyKernel, weighted_total
from qedge.models import affine_layers, parameters_vector, users_function

OWN_LOOP = "loop"
_TIMED = 3  # turns
_MADE_UP = 16  # clients that are timed
WORTH_LEAVING_THE_ORACLE = 0.9  # of its time: the clients' real rows are others than the ones it is timed on


def kernels_for(
    module: torch.nn.Module, algorithm: Algorithm, sgd: LocalSGD, features: int, classes: int, *, private: bool
) -> dict[str, AnyKernel]:
    """Every kernel that can train the module, by name; private: no client's bits depend on another's rows.

    Raises:
        ModelError: the loop of the user's own cannot be imported, or nothing of the model would be trained.
    """
    if algorithm.loop is not None:
        return {OWN_LOOP: OwnLoopKernel(module, users_function(algorithm.loop, "algorithm.loop"), algorithm.options)}
    sequential = SequentialKernel(module, sgd)
    if not sequential.parameters:
        raise ModelError("algorithm: 'layers: body' trains all but the last layer, and this model has no other", layers=sgd.layers)
    kernels: dict[str, AnyKernel] = {"sequential": sequential}
    layers = affine_layers(module)
    if layers is not None:
        kernels["stacked"] = StackedKernel(layers, sgd, apart=private)
    if sgd.layers != "all":
        return kernels  # the others train every layer
    if layers is not None:
        if not private and algorithm.kind != "scaffold":
            kernels["gram"] = GramKernel(layers, sgd)
    elif (hybrid := StackedHybridKernel.of(module, sgd, apart=private)) is not None:
        kernels["stacked"] = hybrid
    elif (convolutional := ConvolutionalKernel.of(module, sgd)) is not None:
        kernels["convolutional"] = convolutional
    elif not private and (vmapped := VmappedKernel.of(module, sgd, features, classes)) is not None:
        kernels["vmapped"] = vmapped
    return kernels


def build_kernel(
    name: str, module: torch.nn.Module, algorithm: Algorithm, sgd: LocalSGD, features: int, classes: int, *, private: bool
) -> AnyKernel:
    """The kernel of that name.

    Raises:
        ModelError: it does not train such a module.
    """
    kernels = kernels_for(module, algorithm, sgd, features, classes, private=private)
    if name not in kernels:
        raise ModelError(f"kernel '{name}' does not train this model; accepted here: {', '.join(sorted(kernels))}, auto", given=name)
    return kernels[name]


def choose_kernel(
    module: torch.nn.Module, algorithm: Algorithm, sgd: LocalSGD, features: int, classes: int, chunk: int, *, private: bool
) -> str:
    """The name of the fastest kernel, the sequential one unless another is clearly faster.

    Timed on made-up rows of the public shape, so that the choice tells nothing of the data.
    """
    if algorithm.kernel != "auto":
        build_kernel(algorithm.kernel, module, algorithm, sgd, features, classes, private=private)
        return algorithm.kernel
    kernels = kernels_for(module, algorithm, sgd, features, classes, private=private)
    if len(kernels) == 1:
        return next(iter(kernels))
    clients, weights = made_up_clients(algorithm, features, classes, min(chunk, _MADE_UP)), parameters_vector(module)
    counts = np.array([len(client.labels) for client in clients])
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    with single_thread():
        for _ in range(_TIMED):  # in turn, and by the thread's own clock, so that other work on the machine does not decide
            for name, kernel in kernels.items():
                begun = time.thread_time()
                weighted_total(kernel, weights, kernel.prepare(clients), counts)
                seconds[name].append(time.thread_time() - begun)
    least = {name: min(taken) for name, taken in seconds.items()}
    fastest = min(least, key=least.__getitem__)
    return fastest if least[fastest] < WORTH_LEAVING_THE_ORACLE * least["sequential"] else "sequential"


def made_up_clients(algorithm: Algorithm, features: int, classes: int, clients: int) -> list[ClientBatches]:
    """Clients of drawn rows in the public shape, few and many, a few steps each: nothing in them is anybody's."""
    generator = np.random.default_rng(0)
    most = min(8 * (algorithm.batch_size or 8), algorithm.max_rows)
    few_epochs = algorithm.model_copy(update={"local_epochs": min(algorithm.local_epochs, 3)})

    def client() -> ClientBatches:
        rows = int(generator.integers(1, most + 1))
        inputs = generator.standard_normal((rows, features), dtype=np.float32)
        return plan(inputs, generator.integers(0, classes, rows), few_epochs, lambda: generator)

    return [client() for _ in range(clients)]
