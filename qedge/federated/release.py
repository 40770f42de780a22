"""What leaves a private round: the exact integer sum with noise, and what that says of the mean update.

Five ways, the first four on the grid that clients rounded to:

- one clipping bound for the whole run;
- a bound that follows a quantile of the clients' norms (Andrew, Thakkar, McMahan, Ramaswamy, "Differentially private learning with
  adaptive clipping", NeurIPS 2021, algorithm 1): each client adds one coordinate, +w when its norm is within the bound and −w when it is
  not, the noisy sum of which moves the bound by C ← C exp(−η(b̃ − γ)). Departure: the coordinate is part of the very vector that is
  noised, so one sensitivity B² + w² accounts for both, instead of two Gaussians that are combined;
- noise that is correlated over rounds, for clients that turn up in a fixed order (`qedge.privacy.banded`);
- a share of the noise from each client, in secure sums;
- none, after DP-SGD at the clients: what they gave was released as it left them (`qedge.federated.example_training`).

A mechanism is told of each round once, in order, by `mean`; `arrays` is what it must be given to go on from there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

import numpy as np

from qedge.federated.guarantee import Guarantee
from qedge.job import Clipping
from qedge.privacy.banded import BandedStrategy, mix, unmix
from qedge.privacy.clipping import FIXED_STEP, Grid, from_grid
from qedge.privacy.mechanisms import DiscreteGaussian, NoiseSource

_BOUNDS = (1e-30, 1e30)  # of the clipping bound: a normal float whatever the noise says


class Mechanism(Protocol):
    """bound: what the coming round's updates are clipped to; None: clients clip nothing whole."""

    @property
    def bound(self) -> float | None:
        """See above."""

    def noised(self, exact: np.ndarray, source: NoiseSource) -> np.ndarray:
        """What is released of a round's exact sum, both [dimensions] int64."""

    def kept(self, exact: np.ndarray) -> np.ndarray | None:
        """What has to be on disk with the release for the run to go on after it: as secret as the clients' rows; None: nothing."""

    def mean(self, released: np.ndarray, kept: np.ndarray | None, expected: float) -> np.ndarray:
        """The mean update, [params] float64, over a public expected number of clients; the mechanism is then in the next round."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""


def build_mechanism(guarantee: Guarantee, clipping: Clipping, kept: Mapping[str, np.ndarray]) -> Mechanism:
    """The mechanism of a run, as it stood when `arrays` gave `kept`; as before the first round where that is empty."""
    if guarantee.share is not None:
        return NoiseOfClients(guarantee, clipping, kept)
    if guarantee.noisy_steps is not None:
        return NoisyClients()
    if guarantee.strategy:
        return CorrelatedNoise(guarantee, kept)
    if clipping.quantile is not None:
        return AdaptiveClipping(guarantee, clipping.quantile, clipping.learning_rate, kept)
    return FixedClipping(guarantee)


class NoisyClients:
    """Clients' updates came with their noise in them, in fixed point: their mean over the expected cohort is all that is left to do."""

    bound = None

    def noised(self, exact: np.ndarray, source: NoiseSource) -> np.ndarray:
        """See `Mechanism.noised`."""
        return exact

    def kept(self, exact: np.ndarray) -> None:
        """See `Mechanism.kept`."""

    def mean(self, released: np.ndarray, kept: np.ndarray | None, expected: float) -> np.ndarray:
        """See `Mechanism.mean`. All clients count the same: how many rows each has is private."""
        return from_grid(released, FIXED_STEP, expected)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Mechanism.arrays`."""
        return {}


class FixedClipping:
    """Independent noise of one size on every round."""

    def __init__(self, guarantee: Guarantee) -> None:
        self.bound, self.step, self.variance = guarantee.grid.bound, guarantee.grid.step, guarantee.variance

    @cached_property
    def noise(self) -> DiscreteGaussian:
        """Made when it is first drawn from: of the noise of all clients together nobody draws, and its table may be too large to make."""
        return DiscreteGaussian(self.variance)

    def noised(self, exact: np.ndarray, source: NoiseSource) -> np.ndarray:
        """See `Mechanism.noised`."""
        return exact + self.noise.sample(len(exact), source)

    def kept(self, exact: np.ndarray) -> None:
        """See `Mechanism.kept`."""

    def mean(self, released: np.ndarray, kept: np.ndarray | None, expected: float) -> np.ndarray:
        """See `Mechanism.mean`. The denominator is public: what was realised is not."""
        return from_grid(released, self.step, expected)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Mechanism.arrays`."""
        return {}


class AdaptiveClipping:
    """The last coordinate counts clients within the bound; in grid units the sensitivity is the same for any bound."""

    def __init__(self, guarantee: Guarantee, quantile: float, learning_rate: float, kept: Mapping[str, np.ndarray]) -> None:
        self.bound = float(kept["bound"][0]) if "bound" in kept else guarantee.grid.bound
        self.params, self.weight = guarantee.grid.params, guarantee.count_weight
        self.quantile, self.learning_rate, self.variance = quantile, learning_rate, guarantee.variance

    @cached_property
    def noise(self) -> DiscreteGaussian:
        """See `FixedClipping.noise`."""
        return DiscreteGaussian(self.variance)

    def noised(self, exact: np.ndarray, source: NoiseSource) -> np.ndarray:
        """See `Mechanism.noised`."""
        return exact + self.noise.sample(len(exact), source)

    def kept(self, exact: np.ndarray) -> None:
        """See `Mechanism.kept`: the bound follows from what was released."""

    def mean(self, released: np.ndarray, kept: np.ndarray | None, expected: float) -> np.ndarray:
        """See `Mechanism.mean`: Δ = Σ/m, b̃ = 1/2 + S/(2wm), C ← C exp(−η(b̃ − γ))."""
        mean = from_grid(released[:-1], Grid(self.bound, self.params).step, expected)
        within = 0.5 + float(released[-1]) / (2 * self.weight * expected)
        moved = self.bound * math.exp(min(50.0, max(-50.0, -self.learning_rate * (within - self.quantile))))
        self.bound = min(_BOUNDS[1], max(_BOUNDS[0], moved))
        return mean

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Mechanism.arrays`."""
        return {"bound": np.array([self.bound])}


class NoiseOfClients:
    """Each client's own share of noise is in the sum: the same steps, over how many clients are in it, which is its last entry.

    A sum that was charged and could not be had is empty, and moves nothing.
    """

    def __init__(self, guarantee: Guarantee, clipping: Clipping, kept: Mapping[str, np.ndarray]) -> None:
        adaptive = clipping.quantile is not None
        self.params = guarantee.grid.params
        self.sum: FixedClipping | AdaptiveClipping = (
            AdaptiveClipping(guarantee, clipping.quantile or 0.0, clipping.learning_rate, kept) if adaptive else FixedClipping(guarantee)
        )
        self.bound = self.sum.bound

    def noised(self, exact: np.ndarray, source: NoiseSource) -> np.ndarray:
        """See `Mechanism.noised`: it is noised as it is opened."""
        return exact

    def kept(self, exact: np.ndarray) -> None:
        """See `Mechanism.kept`."""

    def mean(self, released: np.ndarray, kept: np.ndarray | None, expected: float) -> np.ndarray:
        """See `Mechanism.mean`; who is in a sum is no secret to whom it is charged against."""
        if len(released) == 0:
            return np.zeros(self.params)
        mean = self.sum.mean(released[:-1], None, float(released[-1]))
        self.bound = self.sum.bound
        return mean

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Mechanism.arrays`."""
        return self.sum.arrays()


class CorrelatedNoise:
    """Releases mixtures of the last rounds' exact sums, which it therefore keeps, and undoes the mixing of what was released."""

    def __init__(self, guarantee: Guarantee, kept: Mapping[str, np.ndarray]) -> None:
        self.bound, self.step = guarantee.grid.bound, guarantee.grid.step
        self.strategy = BandedStrategy(guarantee.strategy)
        self.exact: deque[np.ndarray] = deque(kept.get("exact", ()), maxlen=self.strategy.bands - 1)
        self.decoded: deque[np.ndarray] = deque(kept.get("decoded", ()), maxlen=self.strategy.bands - 1)
        self.noise = DiscreteGaussian(guarantee.variance)

    def noised(self, exact: np.ndarray, source: NoiseSource) -> np.ndarray:
        """See `Mechanism.noised`."""
        return mix(self.strategy, tuple(self.exact), exact) + self.noise.sample(len(exact), source)

    def kept(self, exact: np.ndarray) -> np.ndarray:
        """See `Mechanism.kept`: later rounds mix it in."""
        return exact

    def mean(self, released: np.ndarray, kept: np.ndarray | None, expected: float) -> np.ndarray:
        """See `Mechanism.mean`."""
        if kept is None:
            raise TypeError("a round of correlated noise cannot be gone on from without its exact sum")
        decoded = unmix(self.strategy, tuple(self.decoded), released)
        self.exact.append(kept)
        self.decoded.append(decoded)
        mean: np.ndarray = decoded * self.step / expected
        return mean

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Mechanism.arrays`."""
        return {"exact": np.stack(self.exact), "decoded": np.stack(self.decoded)} if self.exact else {}
