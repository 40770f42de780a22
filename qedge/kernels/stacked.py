"""A whole chunk of clients at once by batched matrix products, for a linear model or an MLP with ReLU.

Every client's weights are one slice of a batched product; the gradient of softmax cross-entropy is written out (Goodfellow, Bengio,
Courville 2016, section 6.5). Plain SGD from the global weights, as `SequentialKernel` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from qedge.kernels.batches import ClientBatches

_LEAST_PADDED = 16


@dataclass(frozen=True)
class _Batch:
    """One step's rows of every client that takes it."""

    rows: torch.Tensor  # [clients, rows, features]; rows past a client's batch are zero
    columns: torch.Tensor  # [clients, features, rows]: the same, laid out for the forward product
    targets: torch.Tensor  # [clients, classes, rows]: 1/batch at a row's label
    share: torch.Tensor  # [clients, 1, rows]: 1/batch for a real row, 0 for padding


class _Group:
    """Clients of one padded size, those with more steps first: those still training at a step are then a prefix.

    members: their places in the chunk.
    """

    def __init__(self, chunk: Sequence[ClientBatches], members: Sequence[int], rows: int, classes: int) -> None:
        self.members = sorted(members, key=lambda k: -len(chunk[k].steps))
        clients = [chunk[k] for k in self.members]
        lengths = np.array([len(client.steps) for client in clients])
        self.active = [int((lengths > step).sum()) for step in range(int(lengths[0]))]
        # Rows of all clients below one another, and a row of zeros that stands for padding.
        none = sum(len(client.labels) for client in clients)
        self.features = torch.from_numpy(np.concatenate([*(client.features for client in clients), np.zeros_like(clients[0].features[:1])]))
        labels = torch.from_numpy(np.concatenate([client.labels for client in clients]))
        self.labels = torch.cat([functional.one_hot(labels, classes), torch.zeros(1, classes, dtype=torch.int64)]).to(torch.float32)
        order = np.full((len(self.active), len(clients), rows), -1, dtype=np.int64)
        for place, client in enumerate(clients):
            steps, size = client.steps.shape
            order[:steps, place, :size] = client.steps
        firsts = np.cumsum([0, *(len(client.labels) for client in clients[:-1])])
        order = np.where(order < 0, none, order + firsts[:, None])
        self.order = torch.from_numpy(order)
        # A step that takes the very rows of an earlier one, as every epoch without shuffling does, is gathered once.
        known: dict[bytes, int] = {}
        self.same_as = [known.setdefault(order[step].tobytes(), step) for step in range(len(order))]
        self.gathered = {step: self._gather(step) for step in known.values()} if len(known) < len(order) else {}

    def batches(self) -> Iterator[tuple[int, _Batch]]:
        """For each step, how many clients take it and what they see."""
        for step, active in enumerate(self.active):
            yield active, self.gathered.get(self.same_as[step]) or self._gather(step)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that it holds."""
        yield from (self.features, self.labels, self.order)
        for batch in self.gathered.values():
            yield from (batch.rows, batch.columns, batch.targets, batch.share)

    def _gather(self, step: int) -> _Batch:
        order = self.order[step, : self.active[step]]
        rows = self.features[order]
        real = order < len(self.features) - 1
        share = (real / real.sum(1, keepdim=True)).unsqueeze(1)
        targets = self.labels[order].transpose(1, 2) * share
        return _Batch(rows, rows.transpose(1, 2).contiguous(), targets, share)


@dataclass(frozen=True)
class StackedChunk:
    """A chunk, gathered and padded."""

    clients: int
    groups: list[_Group] = field(default_factory=list)


class StackedKernel:
    """layers: (in, out) of each affine layer, ReLU between them.

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
    def prepare(self, chunk: Sequence[ClientBatches]) -> StackedChunk:
        """See `Kernel.prepare`."""
        sizes = {k: client.steps.shape[1] for k, client in enumerate(chunk) if client.steps.size}
        padded = {k: _padded(size) if self.apart else max(sizes.values()) for k, size in sizes.items()}
        classes = self.layers[-1][1]
        groups = [_Group(chunk, [k for k, size in padded.items() if size == rows], rows, classes) for rows in sorted(set(padded.values()))]
        return StackedChunk(len(chunk), groups)

    def bytes_of(self, prepared: StackedChunk) -> int:
        """See `Kernel.bytes_of`."""
        return sum(tensor.nbytes for group in prepared.groups for tensor in group.tensors())

    @torch.no_grad()
    def updates(self, weights: np.ndarray, prepared: StackedChunk) -> np.ndarray:
        """See `Kernel.updates`."""
        out = np.zeros((prepared.clients, len(weights)), dtype=np.float32)
        start = torch.tensor(weights)
        for group in prepared.groups:
            layers = self._repeated(start, len(group.members))
            for active, batch in group.batches():
                self._step([(weight[:active], bias[:active]) for weight, bias in layers], batch)
            after = torch.cat([part.flatten(1) for layer in layers for part in layer], dim=1)
            out[group.members] = after.sub_(start).numpy()
        return out

    def _repeated(self, start: torch.Tensor, clients: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(weight [clients, out, in], bias [clients, out, 1]) of each layer: a block each; a product copies strided views first."""
        layers, at = [], 0
        for wide, out in self.layers:
            weight, bias = start[at : at + wide * out], start[at + wide * out : at + wide * out + out]
            layers.append((weight.view(1, out, wide).repeat(clients, 1, 1), bias.view(1, out, 1).repeat(clients, 1, 1)))
            at += wide * out + out
        return layers

    def _step(self, layers: list[tuple[torch.Tensor, torch.Tensor]], batch: _Batch) -> None:
        """One SGD step of every client, in place. Activations are [clients, units, rows]: elementwise work then runs along the rows."""
        inputs = [batch.columns]
        for depth, (weight, bias) in enumerate(layers):
            out = torch.baddbmm(bias, weight, inputs[-1])
            inputs.append(out.relu_() if depth < len(layers) - 1 else out)
        gradient = functional.softmax(inputs.pop(), dim=1).mul_(batch.share).sub_(batch.targets)
        for depth in range(len(layers) - 1, -1, -1):
            weight, bias = layers[depth]
            below = torch.bmm(weight.transpose(1, 2), gradient).mul_(inputs[depth] > 0) if depth else None
            weight.baddbmm_(gradient, inputs[depth].transpose(1, 2) if depth else batch.rows, alpha=-self.learning_rate)
            bias.sub_(gradient.sum(2, keepdim=True), alpha=self.learning_rate)
            if below is not None:
                gradient = below


def _padded(rows: int) -> int:
    """The least of 16, 64, 256, … that is at least `rows`: with fewer rows a batched product takes no less time."""
    size = _LEAST_PADDED
    while size < rows:
        size *= 4
    return size
