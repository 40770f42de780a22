"""What a kernel is given: each client's rows and the plan of its local steps.

A plan is drawn before anything is computed and does not depend on the weights, so it can be made ready while another round is
still being charged, and every kernel takes the very same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch

from qedge.errors import ModelError
from qedge.job import Algorithm

MakeGenerator = Callable[[], np.random.Generator]
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class LocalSGD:
    """The steps that clients take from the global weights x, as `torch.optim.SGD` does them (Sutskever et al. 2013, without dampening).

    With g the gradient of a batch's mean loss: g ← g + λw + μ(w − x) + c;  v ← βv + g;  w ← w − ηv. η: learning_rate; β: momentum;
    λ: weight_decay; μ: proximal (Li et al. 2020); c: a client's own correction, where there is one. layers: which are trained; the head is
    the last that has parameters, the body what is before it.
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal: float = 0.0
    layers: Literal["all", "body", "head"] = "all"


@dataclass(frozen=True)
class ClientBatches:
    """One client's rows and the order of its steps.

    features: [rows, features] float32; labels: [rows] int64; steps: [steps, batch] int64, row numbers, -1 past the end of a batch;
    seed: for a loop of the user's own.
    """

    features: np.ndarray
    labels: np.ndarray
    steps: np.ndarray
    seed: int = 0


@dataclass(frozen=True)
class Updates:
    """What a chunk of clients comes to.

    values: local minus global weights, [clients, params] float32; failed: what the user's code raised, by place in the chunk: such a
    client's row is NaN.
    """

    values: np.ndarray
    failed: Mapping[int, ModelError] = field(default_factory=dict)


class Kernel(Protocol[Prepared]):
    """Trains a chunk of clients from the same global weights.

    A chunk's result depends only on the chunk: the same clients in the same order give the same bits wherever they run, as long as one
    thread computes them (`single_thread`).
    """

    def prepare(self, chunk: Sequence[ClientBatches]) -> Prepared:
        """What can be done before the weights are known."""

    def bytes_of(self, prepared: Prepared) -> int:
        """Memory that it takes, bytes."""

    def updates(self, weights: np.ndarray, prepared: Prepared, corrections: np.ndarray | None = None) -> Updates:
        """Train each client of the chunk from `weights`, [params] float32.

        corrections: [clients, params] float32, added to every gradient of a client.
        """


def plan(features: np.ndarray, labels: np.ndarray, algorithm: Algorithm, make_generator: MakeGenerator) -> ClientBatches:
    """Epochs of mini-batches of a client's rows, shuffled where the algorithm says so, under the public caps on rows and steps.

    A client whose rows fit into one batch keeps their order, as the order inside a batch means nothing. features: [rows, features]
    float32; labels: [rows] int64; make_generator is called only where something is drawn.
    """
    rows = len(labels)
    used = min(rows, algorithm.max_rows)
    if not used:
        return ClientBatches(features, labels, np.empty((0, 0), dtype=np.int64))
    size = min(algorithm.batch_size or used, used)
    shuffled = algorithm.shuffle and used > size
    if used < rows or shuffled or algorithm.loop:
        generator = make_generator()
        chosen = np.sort(generator.permutation(rows)[:used])
        if used < rows:
            features, labels = features[chosen], labels[chosen]
        if algorithm.loop:
            return ClientBatches(features, labels, _in_order(used, used, 1), int(generator.integers(2**63)))
    epochs = min(algorithm.local_epochs, -(-algorithm.max_steps * size // used))
    if shuffled:
        steps = np.concatenate([_batched(generator.permutation(used), size) for _ in range(epochs)])
    else:
        steps = _in_order(used, size, epochs)
    return ClientBatches(features, labels, steps[: algorithm.max_steps])


def steps_of(rows: int, algorithm: Algorithm) -> int:
    """How many steps `plan` makes for a client of so many rows."""
    used = min(rows, algorithm.max_rows)
    return min(algorithm.local_epochs * -(-used // min(algorithm.batch_size or used, used)), algorithm.max_steps) if used else 0


@lru_cache(maxsize=256)
def _in_order(rows: int, size: int, epochs: int) -> np.ndarray:
    """The same for every client with as many rows."""
    steps = np.tile(_batched(np.arange(rows), size), (epochs, 1))
    steps.flags.writeable = False
    return steps


def _batched(order: np.ndarray, size: int) -> np.ndarray:
    """`order` in rows of `size`, the last filled up with -1."""
    batches = np.full((-(-len(order) // size), size), -1, dtype=np.int64)
    batches.flat[: len(order)] = order
    return batches


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread: how many threads share a product changes its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
