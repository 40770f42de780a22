"""A client's rows as one vector of integers, and the most that one client can move the sum of them.

Everything that is measured in a round is one vector, noised once. Measurement i has an integer bound a_i, and a client with n of at most K
rows sends its numbers times a_i/K, rounded at random to whole ones. What it sends for i has an L2 norm of at most a_i, so that
the squared norm of all it sends is at most Σ a_i², whatever its rows are: no clipping of the vector, and no drawing again.

Rounding keeps to the bound because it is of sums: the counts c_1, c_2, … become differences of floor((a(c_1 + … + c_j) + u)/K) with one
whole number u, uniform in 0..K-1 (systematic sampling: Madow & Madow, Annals of Mathematical Statistics 15, 1944). These are whole
numbers >= 0 that come to floor((an + u)/K) <= a, and their L2 norm is at most their sum. On average each is a c_j/K exactly. A sum of
numbers in [-1, 1] is rounded as one count is; before that each row's number is rounded to 2^-30.

Without privacy nothing is scaled: counts are sent as they are, sums in units of 2^-30.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

import numpy as np
import numpy.typing as npt

from qedge.analytics.measurements import FIXED_POINT, Measurement, Moment
from qedge.data.client_columns import ClientColumns, ClientRows
from qedge.federated.randomness import RunKey

Integers = npt.NDArray[np.int64]
FINEST = 1 << 20


@dataclass(frozen=True)
class Scale:
    """bound: a, the largest L2 norm of what a client sends, in grid units; None: unscaled, as without privacy."""

    measurement: Measurement
    bound: int | None


@dataclass(frozen=True)
class Encoder:
    """What clients are asked for in one round: the messenger to whichever node they live on.

    max_rows: K; key: the round's, for rounding, from which each client has a stream of its own: what it sends is the same when it is asked
    again.
    """

    scales: tuple[Scale, ...]
    max_rows: int
    key: RunKey

    @property
    def dimensions(self) -> int:
        """Of the vector."""
        return sum(scale.measurement.width for scale in self.scales)

    @property
    def sensitivity_squared(self) -> int:
        """Σ a²: the largest squared L2 norm of what one client sends, 0 where nothing is scaled."""
        return sum((scale.bound or 0) ** 2 for scale in self.scales)

    def encode(self, rows: ClientRows, client: int) -> Integers:
        """What a client sends, [dimensions] int64. Zeros where it has no rows.

        Raises:
            ValueError: more rows than `max_rows`: then the bound would not hold.
        """
        if rows.count > self.max_rows:
            raise ValueError(f"a client counts with at most {self.max_rows} rows")
        generator = self.key.derive("client", client).generator()
        return np.concatenate([self._encoded(scale, rows, generator) for scale in self.scales])

    def total(self, columns: ClientColumns, clients: Iterable[int]) -> Integers:
        """The sum of what some clients send, [dimensions] int64: the same for any grouping of them."""
        total = np.zeros(self.dimensions, np.int64)
        for client in clients:
            total += self.encode(columns.of(client), client)
        return total

    def each(self, columns: ClientColumns, clients: Iterable[int]) -> dict[int, Integers]:
        """What some clients send, by client."""
        return {client: self.encode(columns.of(client), client) for client in clients}

    def split(self, total: npt.NDArray[np.int64]) -> list[tuple[Scale, Integers]]:
        """A sum, measurement by measurement."""
        ends = np.cumsum([scale.measurement.width for scale in self.scales])
        return list(zip(self.scales, np.split(total, ends[:-1]), strict=True))

    def step(self, scale: Scale) -> float:
        """What one grid unit of a measurement is worth, in rows."""
        if scale.bound is None:
            return 2.0**-FIXED_POINT if isinstance(scale.measurement, Moment) else 1.0
        return self.max_rows / scale.bound

    def rounds(self, scale: Scale) -> bool:
        """Whether rounding adds to the noise of a measurement: by at most a quarter of a grid unit squared for each client."""
        return scale.bound is not None and (isinstance(scale.measurement, Moment) or scale.bound % self.max_rows != 0)

    def _encoded(self, scale: Scale, rows: ClientRows, generator: np.random.Generator) -> Integers:
        measurement, bound = scale.measurement, scale.bound
        if isinstance(measurement, Moment):
            whole = measurement.fixed_point_sum(rows)
            if bound is None:
                return np.array([whole], np.int64)
            unit = self.max_rows << FIXED_POINT
            return np.array([(whole * bound + int(generator.integers(unit))) // unit], np.int64)
        counts = measurement.counts(rows)
        if bound is None:
            return counts
        upto = (np.cumsum(counts) * bound + generator.integers(self.max_rows)) // self.max_rows
        return np.diff(upto, prepend=0)


def bounds_of(shares: Sequence[Fraction], noise_multiplier: float, deviation: int) -> tuple[int, ...]:
    """The bound of every measurement: a_i = √(share_i) · A, so that each has its share of the squared norm, within rounding.

    noise_multiplier: standard deviation of the noise over the norm; deviation: what it is to be in grid units, roughly. Many units, so that
    rounding, half a unit a client, is lost in the noise; but no more than a table of its distribution is quickly made for.
    """
    finest = min(FINEST, deviation / (noise_multiplier * sqrt(sum(shares))))
    return tuple(max(1, round(finest * sqrt(share))) for share in shares)
