"""The share of noise that each client of a secure sum adds to its own integers."""

from __future__ import annotations

from dataclasses import dataclass

from numpy import int64
from numpy.typing import NDArray

from qedge.privacy.accounting import RenyiCost
from qedge.privacy.distributed import DistributedNoise, noise_reach
from qedge.privacy.mechanisms import NoiseKind, NoiseSource, noise_of, sample_share


@dataclass(frozen=True)
class NoiseShare:
    """kind: discrete-gaussian or skellam; variance: of one client's share on each entry, in grid units squared; honest: of how many that
    do not collude it is one, at least, in a sum: with fewer it is not what protects."""

    kind: NoiseKind
    variance: int
    honest: int = 1

    @classmethod
    def read(cls, value: object, total: int) -> NoiseShare | None:
        """The share that a record has as kind and variance, or None; total: the variance of all that are counted on."""
        if not isinstance(value, list):
            return None
        variance = int(str(value[1]))
        return cls("skellam" if value[0] == "skellam" else "discrete-gaussian", variance, total // variance)

    @property
    def words(self) -> str:
        """What a server announces, and each client compares with what it adds."""
        return f"{self.kind} variance={self.variance}"

    @property
    def total_variation(self) -> float:
        """How far one draw may be from its distribution."""
        return noise_of(self.kind, self.variance).total_variation

    def sample(self, size: int, source: NoiseSource) -> NDArray[int64]:
        """One client's share, [size] int64."""
        return sample_share(self.kind, self.variance, size, source)

    def cost(self, sensitivity_squared: int, dimensions: int, shares: int) -> RenyiCost:
        """Of one sum with so many shares that the adversary does not know; see `DistributedNoise.cost`."""
        return DistributedNoise(self.kind, self.variance, shares, dimensions, sensitivity_squared).cost()

    def reach(self, shares: int, dimensions: int, chance: float) -> int:
        """A magnitude that no entry of a sum of so many shares passes, but with this chance; see `noise_reach`."""
        return noise_reach(self.kind, self.variance, shares, dimensions, chance)
