"""The share of noise that each client adds to its own integers before they are masked."""

from __future__ import annotations

from dataclasses import dataclass

from numpy import int64
from numpy.typing import NDArray

from qedge.privacy.mechanisms import DiscreteGaussian, NoiseSource


@dataclass(frozen=True)
class NoiseShare:
    """kind: discrete-gaussian or skellam; variance: of one client's share, in grid units squared."""

    kind: str
    variance: int

    @property
    def words(self) -> str:
        """What a server announces, and each client compares with what it adds."""
        return f"{self.kind} variance={self.variance}"

    def sample(self, size: int, source: NoiseSource) -> NDArray[int64]:
        """One client's share, [size] int64."""
        return DiscreteGaussian(self.variance).sample(size, source)
