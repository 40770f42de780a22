"""What every part of a job shares: unknown keys and truth values refused, and the names that the field knows."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from qedge.errors import InvalidJob, NotInThisVersion, UnknownKey, nearest

LATER = {
    "algorithm.kind": set(),
    "aggregation": {"median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "norm-bound"},
    "cohort.sampling": set(),
    "privacy.unit": set(),
    "model.kind": set(),
}
NOW = {
    "algorithm.kind": {"fedavg", "fedprox", "fedadagrad", "fedadam", "fedyogi", "scaffold", "fedbuff"},
    "aggregation": {"mean"},
    "cohort.sampling": {"cyclic", "oort", "poisson", "power-of-choice", "resource", "stratified", "uniform"},
    "privacy.unit": {"client", "example"},
    "model.kind": {"linear", "mlp", "cnn", "hybrid"},
}


class Part(BaseModel):
    """A part of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads yes, no, on and off as truth values, which would pass as the numbers 1 and 0."""
        field = cls.model_fields[info.field_name or ""]
        items = value if isinstance(value, list | tuple) else [value]
        if field.annotation is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("yes, no, true and false are truth values; write a number, or quote the word")
        return value


def known(place: str, value: str) -> str:
    """`value` when this version carries it out; else the error that says which kind of unknown it is."""
    if value in NOW[place]:
        return value
    if value in LATER[place]:
        raise NotInThisVersion(f"{place}: '{value}' is not in this version; accepted: {', '.join(sorted(NOW[place]))}", given=value)
    raise UnknownKey(f"{place}: unknown '{value}'; {nearest(value, NOW[place] | LATER[place])}", given=value)


def function_path(place: str, value: str) -> str:
    """`value` when it names a function of the user's own.

    Raises:
        InvalidJob: it is not of the form "package.module:function".
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise InvalidJob(f"{place}: '{value}' is not of the form 'package.module:function'", given=value)
    return value
