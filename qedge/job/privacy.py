"""What a job promises to the clients whose rows it trains on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from qedge.errors import InvalidPrivacy
from qedge.job.part import Part, known

Noise = Literal["central", "discrete-gaussian", "skellam"]


class Clipping(Part):
    """Clip to an L2 norm: a client's whole update, or with `unit: example` the gradient of each row."""

    bound: float = Field(gt=0, description="L2 norm; with 'quantile' the one to begin with")
    quantile: float | None = Field(default=None, gt=0, lt=1, description="share of clients within the bound, which then follows it")
    learning_rate: float = Field(default=0.2, gt=0, le=10, description="with 'quantile': how fast the bound follows")

    @model_validator(mode="after")
    def _fits(self) -> Clipping:
        if self.quantile is None and self.learning_rate != Clipping.model_fields["learning_rate"].default:
            raise InvalidPrivacy("privacy.clipping: 'learning_rate' moves the bound to a 'quantile', which is not given")
        return self


class Privacy(Part):
    """Differential privacy: what one client's rows may change, noise added to the sum of a cohort; or, with `unit: example`, what one
    row may, noise added to each local step by the client itself (DP-SGD)."""

    unit: str = Field(default="client", description="client: all rows of a client; example: one row, by DP-SGD at the clients")
    epsilon: float
    delta: float
    clipping: Clipping
    noise: Noise | None = Field(
        default=None,
        description="central: added to the sum by the coordinator; the others: each client adds its share, under secure aggregation; "
        "default: the one that fits",
    )
    budget: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="scope to charge; default: the data's own"
    )

    rate: float | None = Field(default=None, description="example: probability in (0, 1] of each row to be in a local step's batch")
    steps: int | None = Field(default=None, ge=1, le=100_000, description="example: local steps a round, the same for every client")
    max_rows: int | None = Field(
        default=None, ge=1, le=100_000, description="example: public cap on a client's rows; the first so many in the table's order count"
    )

    @field_validator("unit")
    @classmethod
    def _unit(cls, value: str) -> str:
        return known("privacy.unit", value)

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

    @model_validator(mode="after")
    def _fits(self) -> Privacy:
        keys = ("rate", "steps", "max_rows")
        given = [key for key in keys if getattr(self, key) is not None]
        if self.unit == "client" and given:
            raise InvalidPrivacy(f"privacy: '{given[0]}' goes with 'unit: example'; with 'unit: client' leave it out", given=given[0])
        if self.unit == "example" and len(given) < len(keys):
            missing = next(key for key in keys if key not in given)
            raise InvalidPrivacy(
                f"privacy: 'unit: example' takes '{missing}': {Privacy.model_fields[missing].description}", missing=f"privacy.{missing}"
            )
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InvalidPrivacy(f"privacy.rate is {self.rate}; accepted: a probability in (0, 1]", given=self.rate)
        if self.unit == "example" and self.clipping.quantile is not None:
            raise InvalidPrivacy("privacy.clipping: 'quantile' follows clients' updates; accepted with 'unit: example': a fixed 'bound'")
        return self
