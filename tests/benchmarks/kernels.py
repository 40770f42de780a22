"""The kernel that `auto` chooses against the sequential kernel, the reference, on the same clients: never slower, whatever the model.

Chosen as a run chooses it, anew in every repetition, by timing made-up rows; then both train the same chunk, whose clients hold other rows
and other numbers of them, in turns, by the thread's own clock. A ratio is the sequential kernel's median over the chosen kernel's.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter

import numpy as np
from torch import nn

from qedge.algorithms import fedavg
from qedge.job import Algorithm, Model
from qedge.kernels.batches import ClientBatches, plan, single_thread
from qedge.kernels.choice import build_kernel, choose_kernel
from qedge.kernels.weighted_total import AnyKernel, weighted_total
from qedge.models import build, parameters_vector
from tests.benchmarks.figures import Figure, at_least

REPEAT = 5
TURNS = 5
CLIENTS, CLASSES = 16, 10
NOT_SLOWER = 0.95
OWN = "tests.benchmarks.kernels:own"
# (what, model, features, what the local training changes, under privacy)
CASES: tuple[tuple[str, dict[str, object], int, dict[str, object], bool], ...] = (
    ("linear 64-10", {"kind": "linear"}, 64, {}, False),
    ("linear 64-10, private", {"kind": "linear"}, 64, {}, True),
    ("linear 13-10, whole clients a step", {"kind": "linear"}, 13, {"batch_size": None}, False),
    ("MLP 64-32-10", {"kind": "mlp", "hidden": [32]}, 64, {}, False),
    ("MLP 64-32-10, private", {"kind": "mlp", "hidden": [32]}, 64, {}, True),
    ("MLP 64-32-10, momentum, weight decay", {"kind": "mlp", "hidden": [32]}, 64, {"momentum": 0.9, "weight_decay": 0.01}, False),
    ("MLP 784-128-10", {"kind": "mlp", "hidden": [128]}, 784, {}, False),
    ("MLP 784-128-10, private", {"kind": "mlp", "hidden": [128]}, 784, {}, True),
    ("MLP 64-64-64-10", {"kind": "mlp", "hidden": [64, 64]}, 64, {}, False),
    ("CNN 8-16 on 28 x 28", {"kind": "cnn", "channels": [8, 16]}, 784, {}, False),
    ("CNN 8-16 on 28 x 28, private", {"kind": "cnn", "channels": [8, 16]}, 784, {}, True),
    ("CNN 4 on 8 x 8", {"kind": "cnn", "channels": [4]}, 64, {}, False),
    ("a model of the user's own", {"kind": OWN}, 64, {}, False),
    ("a model of the user's own, private", {"kind": OWN}, 64, {}, True),
)


def measure(repeat: int) -> list[Figure]:
    """`repeat` choices for each model."""
    figures = []
    for what, model, features, training, private in CASES:
        algorithm = Algorithm.model_validate({"local_epochs": 2, "batch_size": 16, "learning_rate": 0.05, **training})
        found = [_ratio(Model.model_validate(model), features, algorithm, private=private, seed=seed) for seed in range(repeat)]
        chosen = ", ".join(name for name, _ in Counter(name for name, _ in found).most_common())
        figures.append(at_least(f"{what} ({chosen})", NOT_SLOWER, [ratio for _, ratio in found], "times"))
    return figures


def own(features: int, classes: int) -> nn.Module:
    """A small model that none of the kernels knows."""
    return nn.Sequential(nn.Linear(features, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, classes))


def _ratio(model: Model, features: int, algorithm: Algorithm, *, private: bool, seed: int) -> tuple[str, float]:
    """The kernel that is chosen, and how many times as long the sequential kernel takes."""
    module, sgd = build(model, features, CLASSES, seed), fedavg.client_update(algorithm)
    name = choose_kernel(module, algorithm, sgd, features, CLASSES, CLIENTS, private=private)
    kernels = [build_kernel(one, module, algorithm, sgd, features, CLASSES, private=private) for one in ("sequential", name)]
    generator = np.random.default_rng(seed)
    clients = [_client(generator, features, algorithm) for _ in range(CLIENTS)]
    weights, counts = parameters_vector(module), np.array([len(client.labels) for client in clients])
    seconds: list[list[float]] = [[], []]
    with single_thread():
        for _ in range(TURNS):
            for kernel, taken in zip(kernels, seconds, strict=True):
                taken.append(_seconds(kernel, weights, clients, counts))
    return name, statistics.median(seconds[0]) / statistics.median(seconds[1])


def _client(generator: np.random.Generator, features: int, algorithm: Algorithm) -> ClientBatches:
    rows = max(1, min(int(generator.lognormal(3, 0.7)), algorithm.max_rows))
    inputs = generator.standard_normal((rows, features), dtype=np.float32)
    return plan(inputs, generator.integers(0, CLASSES, rows), algorithm, lambda: generator)


def _seconds(kernel: AnyKernel, weights: np.ndarray, clients: list[ClientBatches], counts: np.ndarray) -> float:
    begun = time.thread_time()
    weighted_total(kernel, weights, kernel.prepare(clients), counts)
    return time.thread_time() - begun
