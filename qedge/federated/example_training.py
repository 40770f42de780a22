"""DP-SGD at the clients: local steps on Poisson batches, each released with its noise, so that an update leaves with the noise in it.

Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016), algorithm 1, from the global weights. Every client takes the same
public number of steps whatever its rows are, also on empty batches, and divides by the public expected batch q·K; momentum, weight decay
and a proximal term are post-processing of what a step released. Which rows are drawn, how sums are rounded and the noise come fresh from
the operating system where the rows are. The run's key would not do: the coordinator has it, and this is to hold against it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from qedge.data.federation import Rows
from qedge.federated.randomness import RunKey
from qedge.federated.selection.drawing import threshold
from qedge.kernels.batches import LocalSGD
from qedge.kernels.descent import Descent
from qedge.kernels.per_example.sums import ExampleSums
from qedge.privacy.example_sums import CLIP_WITHIN, NoisySteps
from qedge.privacy.mechanisms import NoiseSource

KEY_BYTES = 32
BLOCK_ROWS = 512  # that are drawn of a block of places on average, at most


class ExampleTraining:
    """Trains clients one after another with `sums`, drawing from `source`."""

    def __init__(self, plan: NoisySteps, sgd: LocalSGD, sums: ExampleSums, source: NoiseSource) -> None:
        self.plan, self.sgd, self.sums, self.source = plan, sgd, sums, source

    def updates(self, weights: np.ndarray, train: Rows, clients: Sequence[int]) -> np.ndarray:
        """What each client's steps come to from `weights`, [params] float32: [clients, params] float32."""
        start = torch.tensor(weights)
        values = np.empty((len(clients), len(weights)), dtype=np.float32)
        for place, client in enumerate(clients):
            values[place] = (self._trained(start, *train.of(client)) - start).numpy()
        return values

    def _trained(self, start: torch.Tensor, features: np.ndarray, labels: np.ndarray) -> torch.Tensor:
        """The weights after all steps of one client. Of its rows the first `max_rows` count."""
        plan, key = self.plan, RunKey(self.source.bytes(KEY_BYTES))
        rounding = key.derive("rounding").generator()
        descent = Descent(self.sgd, start)
        rows, theirs = torch.tensor(features[: plan.max_rows]), torch.tensor(labels[: plan.max_rows])
        for step in range(plan.steps):
            drawn = np.flatnonzero(poisson(key.derive("batch", step), plan)[: len(theirs)])
            total = self.batch_sum(descent.weights, rows, theirs, drawn)
            descent.step(torch.from_numpy(plan.release(total, rounding, self.source)))
        return descent.weights

    def batch_sum(self, weights: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, drawn: np.ndarray) -> np.ndarray:
        """The sum of the clipped gradients of the rows at the places `drawn`, ascending: [params] float64.

        Block by block of places that are the same for everybody, and the blocks in float64: a row that is not there changes the last bits
        of its own block, never of all that are summed before or after it.
        """
        total, places = np.zeros(len(weights)), math.ceil(min(self.plan.max_rows, BLOCK_ROWS / self.plan.rate))
        for start in range(0, self.plan.max_rows, places):
            block = torch.from_numpy(drawn[(drawn >= start) & (drawn < start + places)])
            total += self.sums.clipped_sum(weights, rows[block], labels[block], CLIP_WITHIN * self.plan.grid.bound).numpy()
        return total


def poisson(key: RunKey, plan: NoisySteps) -> np.ndarray:
    """Which places of a client's first `max_rows` rows are drawn, each by itself: [max_rows] bool, for as many rows as it may have."""
    words = key.uniform_words(plan.max_rows)
    drawn: np.ndarray = words < threshold(plan.rate) if plan.rate < 1 else np.ones(plan.max_rows, dtype=bool)
    return drawn
