"""How a round's sum is kept from the server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from qedge.errors import InvalidJob
from qedge.job.part import Part
from qedge.secure_aggregation.groups import Group, groups_of


class SecureAggregation(Part):
    """Clients' vectors are masked: whoever coordinates learns the sums of groups alone. Shares are of a group's members."""

    threshold: float = Field(default=0.67, gt=0, le=1, description="share of a group that must come through for its sum to be opened")
    colluders: float = Field(default=0.2, ge=0, lt=1, description="share of a group that may collude with the server")
    server: Literal["malicious", "honest-but-curious"] = Field(default="malicious", description="what it protects against")
    group_size: int = Field(default=100, ge=3, le=100, description="most clients that mask their vectors for each other")
    survivors: float | None = Field(
        default=None, gt=0, le=1, description="fewest that a sum is opened of, and that noise is sized for; default: the threshold"
    )
    signatures: Literal["ed25519", "ml-dsa-65"] = Field(default="ed25519", description="of the clients' identities")

    @model_validator(mode="after")
    def _fits(self) -> SecureAggregation:
        if self.survivors is not None and self.survivors < self.threshold:
            raise InvalidJob(
                f"secure_aggregation.survivors is {self.survivors}; accepted: at least 'threshold', {self.threshold}", given=self.survivors
            )
        return self

    def groups(self, members: int) -> list[Group]:
        """The groups of a cohort of so many.

        Raises:
            InvalidPrivacy: a group in which nobody is hidden, with the threshold that would do.
        """
        return groups_of(members, self.group_size, self.threshold, self.colluders, self.survivors or self.threshold, self.server)
