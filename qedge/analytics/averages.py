"""Means and standard deviations of all features over all clients, from one vector of integers a client: what `scale: private` asks for.

A client sends, of each feature x clipped to its public range, the mean over its rows of y = (x - middle)/half and of 2y² - 1, both in
[-1, 1], times a whole number a and rounded at random to whole ones. So it moves each of the 2F coordinates by a at most, and the sum by
√(2F)·a in L2 norm, whatever its rows are and however many it has: no cap on rows is needed, and every client weighs the same, as it does
in training under privacy. A client without rows sends zeros; the number of clients, by which sums are divided, is public.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qedge.data.rows import Affine, Rows
from qedge.federated.randomness import RunKey

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_NARROWEST = 1e-4  # of a squared half range: the least variance that is believed


@dataclass(frozen=True, eq=False)
class AveragesEncoder:
    """What every client is asked.

    low, high: [F] float64, the public ranges; bound: a; key: for rounding, of which each client has a stream of its own.
    """

    low: Floats
    high: Floats
    bound: int
    key: RunKey

    @property
    def dimensions(self) -> int:
        """Two for each feature."""
        return 2 * len(self.low)

    @property
    def sensitivity_squared(self) -> int:
        """The largest squared L2 norm of what one client sends."""
        return self.dimensions * self.bound**2

    def encode(self, features: npt.NDArray[np.float32], client: int) -> Integers:
        """What a client with the rows `features`, [n, F] unscaled, sends: [2F] int64."""
        if not len(features):
            return np.zeros(self.dimensions, np.int64)
        middle, half = self._affine()
        y = np.clip((np.clip(features.astype(np.float64), self.low, self.high) - middle) / half, -1, 1)
        means = np.concatenate([y.mean(axis=0), (2 * y * y - 1).mean(axis=0)])
        up = self.key.derive("client", client).generator().random(self.dimensions)
        return np.clip(np.floor(means * self.bound + up), -self.bound, self.bound).astype(np.int64)

    def total(self, rows: Rows, clients: Iterable[int]) -> Integers:
        """The sum of what some clients send, [2F] int64: the same for any grouping of them."""
        total = np.zeros(self.dimensions, np.int64)
        for client in clients:
            total += self.encode(rows.of(client)[0], client)
        return total

    def read_off(self, total: Integers, variance: int, clients: int) -> Affine:
        """Center and spread of every feature, float32 [F] each, from a released sum with noise of `variance`.

        The center is in the range. The spread is the standard deviation, but no less than what the noise leaves to be known: a feature that
        hardly varies is not blown up by it.
        """
        middle, half = self._affine()
        first, second = np.split(total / (self.bound * clients), 2)
        mean = np.clip(first, -1, 1)
        unknown = math.sqrt(variance + clients / 4) / (self.bound * clients)
        squared = np.clip((second + 1) / 2 - mean**2, min(1.0, max(_NARROWEST, 2 * unknown)), 1)
        return (middle + half * mean).astype(np.float32), (half * np.sqrt(squared)).astype(np.float32)

    def _affine(self) -> tuple[Floats, Floats]:
        """Middle and half width of every range."""
        return self.low / 2 + self.high / 2, self.high / 2 - self.low / 2
