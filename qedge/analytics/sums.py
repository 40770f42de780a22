"""Where clients' vectors are summed, and noised: the one narrow place between those who hold rows and whoever reads answers.

A vector leaves a client's node as part of a sum. What is released is that sum with noise, whoever adds it: here a trusted coordinator
does, once. Sums in which noise comes from the clients themselves have a `variance` of 0 added here.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from qedge.analytics.encoding import Encoder
from qedge.data.client_columns import ClientColumns
from qedge.privacy.mechanisms import DiscreteGaussian, NoiseSource

Integers = npt.NDArray[np.int64]


class VectorSums(Protocol):
    """Stands for all clients, wherever they live."""

    def vector_sum(self, encoder: Encoder, deadline_s: float) -> Integers:
        """The exact sum over all clients of what each sends, [dimensions] int64.

        Raises:
            RoundFailed: it could not be had by the deadline, however often the lost part was run again.
        """


class LocalSums:
    """All clients in this process."""

    def __init__(self, columns: ClientColumns) -> None:
        self.columns = columns

    def vector_sum(self, encoder: Encoder, deadline_s: float) -> Integers:
        """See `VectorSums.vector_sum`; who sums by itself waits for nobody: the deadline does not bind."""
        return encoder.total(self.columns, range(len(self.columns.offsets) - 1))


def noised_sum(sums: VectorSums, encoder: Encoder, variance: int, source: NoiseSource, deadline_s: float) -> Integers:
    """What a round releases, [dimensions] int64: the sum of what clients send, with discrete Gaussian noise on every coordinate.

    Raises:
        RoundFailed: as `VectorSums.vector_sum`.
    """
    return noised(sums.vector_sum(encoder, deadline_s), variance, source)


def noised(exact: Integers, variance: int, source: NoiseSource) -> Integers:
    """A sum with discrete Gaussian noise on every coordinate, [dimensions] int64; with a variance of 0 as it is."""
    return exact + DiscreteGaussian(variance).sample(len(exact), source) if variance else exact
