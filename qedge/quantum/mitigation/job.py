"""How a quantum job asks for error mitigation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from qedge.errors import InvalidJob
from qedge.quantum.asked import Asked

MOST_CIRCUITS = 10_000


class Mitigation(Asked):
    """What is done about noise.

    Every technique takes the expectation value of a circuit with as many shots as the backend says for each circuit that it runs. Where a
    technique can use some of them better elsewhere, it divides the same sum differently.
    """

    technique: Literal["zne", "readout", "twirling", "clifford-regression"] = Field(
        default="zne", description="zne: extrapolated to zero noise; readout: errors of reading undone; twirling: noise made stochastic"
    )
    readout: bool = Field(default=False, description="errors of reading undone first, whatever the technique")
    constrained: bool = Field(default=True, description="probabilities and values that a state can have, instead of unbiased ones")
    folding: Literal["local", "global"] = Field(default="local", description="zne: how circuits are lengthened")
    scale_factors: tuple[float, ...] = Field(default=(1.0, 2.0, 3.0), max_length=100, description="zne: of the noise, 1 among them")
    extrapolation: Literal["linear", "polynomial", "richardson", "exponential"] = Field(default="exponential", description="zne: the curve")
    shrunk: bool = Field(default=True, description="zne: as much of the correction as has the smallest error, judged by its error bar")
    degree: int = Field(default=2, ge=1, le=20, description="zne: of the polynomial")
    asymptote: float | Literal["trace", "fitted"] = Field(
        default="trace", description="zne, exponential: what noise alone gives; trace: that of a wholly mixed state; fitted: not known"
    )
    copies: int = Field(default=16, ge=1, le=MOST_CIRCUITS, description="twirling: random circuits")
    training: int = Field(default=20, ge=2, le=MOST_CIRCUITS, description="clifford-regression: training circuits")
    non_clifford: int = Field(default=2, ge=0, description="clifford-regression: gates of each that stay as they are")
    seed: int = Field(default=0, ge=0, description="of random circuits")

    @property
    def undoes_readout(self) -> bool:
        """Whether errors of reading are undone."""
        return self.readout or self.technique == "readout"

    @property
    def fewest_scales(self) -> int:
        """How many different ones the curve takes."""
        needed = {"linear": 2, "polynomial": self.degree + 1, "richardson": 2, "exponential": 3 if self.asymptote == "fitted" else 2}
        return needed[self.extrapolation]

    @model_validator(mode="after")
    def _can_be_fitted(self) -> Self:
        if self.technique != "zne":
            return self
        factors = self.scale_factors
        if 1.0 not in factors or not all(1 <= one <= 100 for one in factors) or len(set(factors)) != len(factors):
            raise InvalidJob(
                f"scale_factors: different numbers from 1 to 100, 1 among them; given {list(factors)}",
                given=list(factors),
                accepted="1 to 100",
            )
        if len(factors) < self.fewest_scales:
            raise InvalidJob(
                f"scale_factors: {self.extrapolation} extrapolation takes {self.fewest_scales} or more; given {len(factors)}",
                given=len(factors),
                accepted=self.fewest_scales,
            )
        return self
