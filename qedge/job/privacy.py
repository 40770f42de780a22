"""What a job promises to the clients whose rows it trains on."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from qedge.errors import InvalidPrivacy
from qedge.job.part import Part, known


class Clipping(Part):
    """Clip a client's whole update to an L2 norm."""

    bound: float = Field(gt=0, description="L2 norm; with 'quantile' the one to begin with")
    quantile: float | None = Field(default=None, gt=0, lt=1, description="share of clients within the bound, which then follows it")
    learning_rate: float = Field(default=0.2, gt=0, le=10, description="with 'quantile': how fast the bound follows")

    @model_validator(mode="after")
    def _fits(self) -> Clipping:
        if self.quantile is None and self.learning_rate != Clipping.model_fields["learning_rate"].default:
            raise InvalidPrivacy("privacy.clipping: 'learning_rate' moves the bound to a 'quantile', which is not given")
        return self


class Privacy(Part):
    """Client-level central differential privacy: what one client's rows may change."""

    unit: str = "client"
    epsilon: float
    delta: float
    clipping: Clipping
    noise: str | None = Field(
        default=None,
        description="central: added to the sum by the coordinator; discrete-gaussian | skellam: each client adds its share, under "
        "secure aggregation; default: the one that fits",
    )
    budget: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="scope to charge; default: the data's own"
    )

    @field_validator("unit")
    @classmethod
    def _unit(cls, value: str) -> str:
        return known("privacy.unit", value)

    @field_validator("noise")
    @classmethod
    def _noise(cls, value: str | None) -> str | None:
        return None if value is None else known("privacy.noise", value)

    @field_validator("epsilon")
    @classmethod
    def _epsilon(cls, value: float) -> float:
        if not 0 < value <= 1000:
            raise InvalidPrivacy(f"privacy.epsilon is {value}; accepted: 0 < epsilon <= 1000", given=value)
        return value

    @field_validator("delta")
    @classmethod
    def _delta(cls, value: float) -> float:
        if not 0 < value < 1:
            raise InvalidPrivacy(f"privacy.delta is {value}; accepted: 0 < delta < 1/clients", given=value)
        return value
