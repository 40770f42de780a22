"""A whole chunk of clients at once by batched matrix products, for a linear model or an MLP with ReLU.

Every client's weights are one slice of a batched product; the gradient of softmax cross-entropy is written out (Goodfellow, Bengio,
Courville 2016, section 6.5). `LocalSGD` from the global weights, as `SequentialKernel` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qedge.kernels.batches import ClientBatches, LocalSGD, Updates

GATHERED_BYTES = 16 << 20  # of one group's rows; what is more is gathered again in every epoch
_LEAST_PADDED = 16


@dataclass(frozen=True)
class Batch:
    """One step's rows of every client that takes it."""

    rows: torch.Tensor  # [clients, rows, features]; rows past a client's batch are zero
    columns: torch.Tensor  # [clients, features, rows]: the same, laid out for the forward product
    targets: torch.Tensor  # [clients, classes, rows]: 1/batch at a row's label
    share: torch.Tensor  # [clients, 1, rows]: 1/batch for a real row, 0 for padding

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that it holds."""
        return self.rows, self.columns, self.targets, self.share

    def twice(self) -> Batch:
        """The same rows for two clients."""
        return Batch(*(torch.cat([tensor, tensor]) for tensor in self.tensors()))


class _Group:
    """Clients of one padded size, those with more steps first: those still training at a step are then a prefix.

    members: their places in the chunk.
    """

    def __init__(self, chunk: Sequence[ClientBatches], members: Sequence[int], rows: int, classes: int) -> None:
        self.classes = classes
        self.members = sorted(members, key=lambda k: -len(chunk[k].steps))
        clients = [chunk[k] for k in self.members]
        lengths = np.array([len(client.steps) for client in clients])
        self.active = (lengths > np.arange(lengths[0])[:, None]).sum(axis=1).tolist()
        # Rows of all clients below one another, and a row of zeros that stands for padding.
        self.features = np.concatenate([*(client.features for client in clients), np.zeros_like(clients[0].features[:1])])
        self.labels = np.concatenate([client.labels for client in clients])
        order = np.full((len(self.active), len(clients), rows), len(self.labels), dtype=np.int64)
        first = 0
        for place, client in enumerate(clients):
            steps, size = client.steps.shape
            order[:steps, place, :size] = np.where(client.steps < 0, len(self.labels), client.steps + first)
            first += len(client.labels)
        self.order = order
        # A step that takes the very rows of an earlier one, as every epoch without shuffling does, is gathered once.
        known: dict[bytes, int] = {}
        self.same_as = [known.setdefault(step.tobytes(), number) for number, step in enumerate(order)]
        distinct = list(known.values())
        wanted = sum(self.active[step] for step in distinct) * rows * self.features.shape[1] * 8  # bytes, twice float32
        self.gathered = self._gather(distinct) if wanted <= GATHERED_BYTES else {}

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """For each step, how many clients take it and what they see."""
        for step, active in enumerate(self.active):
            yield active, self.gathered.get(self.same_as[step]) or self._gather([step])[step]

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        held = sum(tensor.nbytes for batch in self.gathered.values() for tensor in batch.tensors())
        return held + self.features.nbytes + self.labels.nbytes + self.order.nbytes

    def _gather(self, steps: Sequence[int]) -> dict[int, Batch]:
        """The batches of several steps, by a few operations over all of them."""
        order = np.concatenate([self.order[step, : self.active[step]] for step in steps])
        blocks, rows = order.shape
        real = order < len(self.labels)
        share = (real / real.sum(axis=1, keepdims=True)).astype(np.float32)
        targets = np.zeros((blocks, self.classes, rows), dtype=np.float32)
        block, row = np.nonzero(real)
        targets[block, self.labels[order[block, row]], row] = share[block, row]
        taken = torch.from_numpy(self.features.take(order, axis=0))
        whole = Batch(taken, taken.transpose(1, 2).contiguous(), torch.from_numpy(targets), torch.from_numpy(share).unsqueeze(1))
        sizes = [self.active[step] for step in steps]
        parts = zip(*(torch.split(tensor, sizes) for tensor in whole.tensors()), strict=True)
        return {step: Batch(*part) for step, part in zip(steps, parts, strict=True)}


@dataclass(frozen=True)
class StackedChunk:
    """A chunk, gathered and padded."""

    clients: int
    groups: list[_Group] = field(default_factory=list)


@dataclass(frozen=True)
class Parameter:
    """One weight or bias of every client of a group, and what its steps need.

    value: [clients, out, in], bias [clients, out, 1]; velocity: the same, where there is momentum; constant: what is added to every
    gradient whatever the weights are: the client's correction less μ times the global weights.
    """

    value: torch.Tensor
    velocity: torch.Tensor | None
    constant: torch.Tensor | None

    def first(self, clients: int) -> Parameter:
        """That of the first clients, views."""
        velocity = None if self.velocity is None else self.velocity[:clients]
        return Parameter(self.value[:clients], velocity, None if self.constant is None else self.constant[:clients])

    def twice(self) -> Parameter:
        """That of one client and of its double, copies."""
        velocity = None if self.velocity is None else torch.cat([self.velocity, self.velocity])
        constant = None if self.constant is None else torch.cat([self.constant, self.constant])
        return Parameter(torch.cat([self.value, self.value]), velocity, constant)


def stacked_parameters(
    start: torch.Tensor, corrections: torch.Tensor | None, shapes: Sequence[tuple[int, int]], clients: int, sgd: LocalSGD
) -> list[Parameter]:
    """Parameters of some shapes, in the order of `start`, [params]; each a block of its own: a product copies strided views first."""
    constant = torch.zeros(1) if corrections is None else corrections
    if sgd.proximal:
        constant = constant - sgd.proximal * start
    fixed = constant.expand(clients, len(start)) if corrections is not None or sgd.proximal else None
    parameters, at = [], 0
    for shape in shapes:
        there = slice(at, at + shape[0] * shape[1])
        value = start[there].view(1, *shape).repeat(clients, 1, 1)
        velocity = torch.zeros_like(value) if sgd.momentum else None
        parameters.append(Parameter(value, velocity, None if fixed is None else fixed[:, there].reshape(clients, *shape)))
        at = there.stop
    return parameters


def descend(parameter: Parameter, direction: torch.Tensor, sgd: LocalSGD) -> None:
    """A step along `direction`, which is overwritten."""
    if sgd.weight_decay or sgd.proximal:
        direction.add_(parameter.value, alpha=sgd.weight_decay + sgd.proximal)
    if parameter.constant is not None:
        direction.add_(parameter.constant)
    if parameter.velocity is not None:
        direction = parameter.velocity.mul_(sgd.momentum).add_(direction)
    parameter.value.sub_(direction, alpha=sgd.learning_rate)


class StackedKernel:
    """layers: (in, out) of each affine layer, ReLU between them.

    apart: a client's bits must not depend on its neighbours' rows. Its batches are then padded to a size that follows from its own
    rows alone, and clients of one size are stacked together: with the same shapes a batched product of two or more gives each client
    the same bits whoever shares it. One alone may be computed another way, so that whoever is left alone is stacked with itself.
    Otherwise all are padded to the longest, and emptying one client would move the last bits of others' updates, which no sensitivity
    accounts for.
    """

    def __init__(self, layers: Sequence[tuple[int, int]], sgd: LocalSGD, *, apart: bool = False) -> None:
        self.layers = list(layers)
        self.sgd = sgd
        self.apart = apart

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of each parameter, in the module's order, as a matrix."""
        return [shape for wide, out in self.layers for shape in ((out, wide), (out, 1))]

    def padded(self, rows: int) -> int:
        """To how many rows a batch of so many is filled up."""
        return padded(rows)

    @torch.no_grad()
    def prepare(self, chunk: Sequence[ClientBatches]) -> StackedChunk:
        """See `Kernel.prepare`."""
        sizes = {k: client.steps.shape[1] for k, client in enumerate(chunk) if client.steps.size}
        wanted = {k: self.padded(size) if self.apart else max(sizes.values()) for k, size in sizes.items()}
        classes = self.layers[-1][1]
        groups = [_Group(chunk, [k for k, size in wanted.items() if size == rows], rows, classes) for rows in sorted(set(wanted.values()))]
        return StackedChunk(len(chunk), groups)

    def bytes_of(self, prepared: StackedChunk) -> int:
        """See `Kernel.bytes_of`."""
        return sum(group.nbytes for group in prepared.groups)

    @torch.no_grad()
    def updates(self, weights: np.ndarray, prepared: StackedChunk, corrections: np.ndarray | None = None) -> Updates:
        """See `Kernel.updates`."""
        values = np.zeros((prepared.clients, len(weights)), dtype=np.float32)
        start = torch.tensor(weights)
        for group in prepared.groups:
            own = None if corrections is None else torch.tensor(corrections[group.members])
            parameters = stacked_parameters(start, own, self.shapes, len(group.members), self.sgd)
            stepping, now = 0, parameters
            for active, batch in group.batches():
                alone = self.apart and active == 1
                if active != stepping:
                    stepping, now = active, [parameter.first(active) for parameter in parameters]
                    now = [parameter.twice() for parameter in now] if alone else now
                self.step(now, batch.twice() if alone else batch)
            if self.apart and stepping == 1:
                for parameter, twins in zip(parameters, now, strict=True):
                    parameter.value[0] = twins.value[0]
            after = torch.cat([parameter.value.flatten(1) for parameter in parameters], dim=1)
            values[group.members] = after.sub_(start).numpy()
        return Updates(values)

    def step(self, parameters: Sequence[Parameter], batch: Batch) -> None:
        """One step of every client, in place. Activations are [clients, units, rows]: elementwise work then runs along the rows."""
        inputs = [batch.columns]
        deepest = len(self.layers) - 1
        for depth in range(deepest + 1):
            weight, bias = parameters[2 * depth], parameters[2 * depth + 1]
            out = torch.baddbmm(bias.value, weight.value, inputs[-1])
            inputs.append(out.relu_() if depth < deepest else out)
        gradient = softmax(inputs.pop()).mul_(batch.share).sub_(batch.targets)
        for depth in range(deepest, -1, -1):
            weight, bias = parameters[2 * depth], parameters[2 * depth + 1]
            below = torch.bmm(weight.value.transpose(1, 2), gradient).mul_(inputs[depth] > 0) if depth else None
            if depth < deepest or self.sgd.layers == "all":
                self._descend_product(weight, gradient, inputs[depth].transpose(1, 2) if depth else batch.rows)
                descend(bias, gradient.sum(2, keepdim=True), self.sgd)
            if below is not None:
                gradient = below

    def _descend_product(self, parameter: Parameter, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """A step along gradient @ inputs, by one product where nothing else is added to it."""
        sgd = self.sgd
        if parameter.velocity is None:
            kept = 1 - sgd.learning_rate * (sgd.weight_decay + sgd.proximal)
            parameter.value.baddbmm_(gradient, inputs, beta=kept, alpha=-sgd.learning_rate)
            if parameter.constant is not None:
                parameter.value.sub_(parameter.constant, alpha=sgd.learning_rate)
        else:
            descend(parameter, torch.bmm(gradient, inputs), sgd)


def softmax(out: torch.Tensor) -> torch.Tensor:
    """The softmax over classes, [clients, classes, rows], in place; torch's own gives a client other last bits among other clients."""
    weights = out.sub_(out.amax(dim=1, keepdim=True)).exp_()
    return weights.div_(torch.bmm(torch.ones(len(out), 1, out.shape[1]), weights))


def padded(rows: int) -> int:
    """The least of 16, 64, 256, … that is at least `rows`: with fewer rows a batched product takes no less time."""
    size = _LEAST_PADDED
    while size < rows:
        size *= 4
    return size
