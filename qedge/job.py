"""What a user asks for: one federated training job, checked whole before anything is computed.

A job is YAML or Python with the same names. Unknown keys are refused with the nearest known name; names the field knows
and this version does not carry out are refused as `NotInThisVersion`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator

from qedge.errors import InvalidJob, InvalidPrivacy, LabelMismatch, NotInThisVersion, Refused, UnknownKey, nearest
from qedge.yaml_mapping import read_mapping

LATER = {
    "algorithm.kind": {"fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad", "fedbuff"},
    "aggregation": {"median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "norm-bound"},
    "cohort.sampling": {"stratified", "resource", "power-of-choice", "oort"},
    "privacy.unit": {"example"},
    "model.kind": {"hybrid"},
}
NOW = {
    "algorithm.kind": {"fedavg"},
    "aggregation": {"mean"},
    "cohort.sampling": {"poisson", "uniform"},
    "privacy.unit": {"client"},
    "model.kind": {"linear", "mlp", "cnn"},
}
BUILT_IN = {"digits", "breast-cancer", "wine"}
PRIVACY_PARAMETERS = {"privacy.epsilon", "privacy.delta", "privacy.clipping.bound", "cohort.rate"}


class _Part(BaseModel):
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


def _known(place: str, value: str) -> str:
    """`value` when this version carries it out; else the error that says which kind of unknown it is."""
    if value in NOW[place]:
        return value
    if value in LATER[place]:
        raise NotInThisVersion(f"{place}: '{value}' is not in this version; accepted: {', '.join(sorted(NOW[place]))}", given=value)
    raise UnknownKey(f"{place}: unknown '{value}'; {nearest(value, NOW[place] | LATER[place])}", given=value)


class Partition(_Part):
    """How a built-in data set is dealt to synthetic clients: label skew by a symmetric Dirichlet (Hsu et al. 2019)."""

    dirichlet: float = Field(default=0.5, gt=0, description="concentration; small is skewed")
    clients: int = Field(default=100, ge=1, le=1_000_000)


Share = Annotated[float, Field(gt=0, lt=1)]
FileName = Annotated[str, Field(min_length=1)]


class Data(_Part):
    """Which rows, whose they are, and what about them is public."""

    source: FileName = Field(description="parquet, CSV or npz file with a client column, or digits | breast-cancer | wine")
    client: str | None = Field(default=None, description="column that says whose row it is")
    label: str | None = Field(default=None, description="column to predict")
    drop: tuple[str, ...] = Field(default=(), description="columns that are not features")
    test: Share | FileName | None = Field(default=None, description="share of each client's rows, or a file of public rows")
    scale: Literal["none", "local", "given"] = Field(
        default="none", description="none | local (each client's own) | given (declared ranges)"
    )
    ranges: dict[str, tuple[float, float]] | None = Field(default=None, description="for scale: given, the public range of each feature")
    labels: tuple[str | int, ...] | None = Field(default=None, description="the label set, public by this declaration")
    evaluation: Literal["public", "charged"] | None = Field(default=None, description="default under privacy: charged, once, at the end")
    partition: Partition | None = None

    @property
    def built_in(self) -> bool:
        """Whether `source` names a data set that ships with scikit-learn."""
        return self.source in BUILT_IN

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.built_in:
            wrong = [key for key in ("client", "label", "ranges", "labels") if getattr(self, key) is not None]
            if wrong or self.drop or self.scale != "none":
                raise InvalidJob(f"data: '{self.source}' brings its own columns, ranges and labels; leave out {wrong or 'drop and scale'}")
        else:
            missing = [key for key in ("client", "label") if getattr(self, key) is None]
            if missing:
                raise InvalidJob(f"data: a table needs '{missing[0]}', the column that says {_COLUMN[missing[0]]}")
            if self.client == self.label:
                raise InvalidJob(f"data: 'client' and 'label' both name the column '{self.client}'; they must differ")
            if both := {str(self.client), str(self.label)} & set(self.drop):
                raise InvalidJob(f"data: '{both.pop()}' is needed and cannot be dropped; 'client' and 'label' are never features")
            if self.partition is not None:
                raise InvalidJob("data: 'partition' is for built-in data sets; a table is split by its client column")
        if (self.scale == "given") != (self.ranges is not None):
            raise InvalidJob("data: 'scale: given' and 'ranges: {feature: [low, high]}' go together")
        if self.ranges and (bad := [name for name, (low, high) in self.ranges.items() if not low < high]):
            raise InvalidJob(f"data: the range of '{bad[0]}' must be [low, high] with low < high")
        if self.labels is not None:
            _check_labels(self.labels)
        return self


_COLUMN = {"client": "whose row it is", "label": "what to predict"}


def _check_labels(labels: tuple[str | int, ...]) -> None:
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise LabelMismatch(f"data.labels: at least two labels, each once, are accepted; given: {list(labels)}")
    if len({type(label) for label in labels}) > 1:
        raise LabelMismatch(f"data.labels: all strings or all integers are accepted; given: {list(labels)}")


class Model(_Part):
    """The network: linear | mlp | cnn, or `package.module:function` called as function(features, classes, **options)."""

    kind: str
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), description="mlp: units of each hidden layer")
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(8, 16), description="cnn: channels of each 3x3 convolution")
    image: tuple[int, int, int] | None = Field(default=None, description="cnn: channels, height, width of a row")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="arguments for your own function")

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        if ":" not in value:
            return _known("model.kind", value)
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
            raise InvalidJob(f"model.kind: '{value}' is not of the form 'package.module:function'", given=value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Model:
        takes = _TAKES.get(self.kind, ("options",))
        for key in ("hidden", "channels", "image", "options"):
            if key not in takes and getattr(self, key) != Model.model_fields[key].get_default(call_default_factory=True):
                raise InvalidJob(f"model: '{self.kind}' takes no '{key}'; accepted: {', '.join(takes) or 'kind alone'}")
        if self.kind == "mlp" and not self.hidden:
            raise InvalidJob("model: 'mlp' takes 'hidden', the units of each hidden layer, such as [64]; without any it is 'linear'")
        return self


_TAKES: dict[str, tuple[str, ...]] = {"linear": (), "mlp": ("hidden",), "cnn": ("channels", "image")}


class Algorithm(_Part):
    """Local training and the server's step."""

    kind: str = "fedavg"
    local_epochs: int = Field(default=1, ge=1, le=1000)
    batch_size: int | None = Field(default=32, ge=1, description="rows a step; null: all of a client's rows")
    learning_rate: float = Field(default=0.1, gt=0)
    server_learning_rate: float = Field(default=1.0, gt=0)
    server_momentum: float = Field(default=0.0, ge=0, lt=1)
    server_averaging: float = Field(default=0.0, ge=0, lt=1, description="decay of the moving average that is served; 0: the last weights")
    shuffle: bool = Field(default=True, description="draw mini-batches anew each epoch; false: in the order of the rows")
    kernel: Literal["auto", "sequential", "stacked"] = Field(
        default="auto", description="auto: the faster one, measured once on public shapes"
    )
    max_rows: int = Field(default=4096, ge=1, description="public cap on a client's rows a round")
    max_steps: int = Field(default=1000, ge=1, description="public cap on a client's steps a round")
    max_weight: int = Field(default=1_000_000, ge=1, description="without privacy: cap on a client's weight (its rows)")

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        return _known("algorithm.kind", value)


class Cohort(_Part):
    """Who takes part in a round."""

    sampling: str = "uniform"
    rate: float | None = Field(default=None, description="poisson: each client's probability, in (0, 1]")
    size: int | None = Field(default=None, ge=1, description="uniform: clients a round, without replacement")
    deadline_s: float = Field(default=600.0, gt=0, description="seconds a round may take before its lost part is run again")

    @field_validator("sampling")
    @classmethod
    def _sampling(cls, value: str) -> str:
        return _known("cohort.sampling", value)

    @model_validator(mode="after")
    def _fits(self) -> Cohort:
        if self.sampling == "poisson" and (self.rate is None or self.size is not None):
            raise InvalidJob("cohort: poisson sampling takes 'rate', a probability in (0, 1], and no 'size'")
        if self.sampling == "uniform" and (self.size is None or self.rate is not None):
            raise InvalidJob("cohort: uniform sampling takes 'size', the clients a round, and no 'rate'")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InvalidPrivacy(f"cohort.rate is {self.rate}; accepted: a probability in (0, 1]", given=self.rate)
        return self


class Clipping(_Part):
    """Clip a client's whole update to an L2 norm."""

    bound: float = Field(gt=0)


class Privacy(_Part):
    """Client-level central differential privacy: what one client's rows may change."""

    unit: str = "client"
    epsilon: float
    delta: float
    clipping: Clipping
    budget: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="scope to charge; default: the data's own"
    )

    @field_validator("unit")
    @classmethod
    def _unit(cls, value: str) -> str:
        return _known("privacy.unit", value)

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


class TrainingJob(_Part):
    """One federated training job. `privacy` has no default: a run without it must say `none`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the run and of the model")
    data: Data
    model: Model
    algorithm: Algorithm = Algorithm()
    aggregation: str = "mean"
    cohort: Cohort
    privacy: Privacy | None
    rounds: int = Field(ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63, description="initial weights and synthetic partition; never cohorts or noise")

    def __init__(self, **given: object) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _explain(error) from None

    @field_validator("aggregation")
    @classmethod
    def _aggregation(cls, value: str) -> str:
        return _known("aggregation", value)

    @field_validator("privacy", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        if value is None:  # an empty `privacy:` in YAML is a slip, never a decision to train without
            raise InvalidJob("'privacy' is empty; write 'privacy: none' for a run without privacy", missing="privacy")
        return None if value == "none" else value

    @model_validator(mode="after")
    def _fits(self) -> TrainingJob:
        if self.data.evaluation is not None and self.data.test is None:
            raise InvalidJob("data: 'evaluation' needs 'test', a share of each client's rows or a file of public rows")
        if self.data.evaluation == "charged" and self.privacy is None:
            raise InvalidJob("data: 'evaluation: charged' spends a privacy budget, and this job has 'privacy: none'; leave it out")
        return self

    @classmethod
    def parse(cls, given: object) -> TrainingJob:
        """A job from plain values.

        Raises:
            InvalidJob: and its kinds, when a value is missing or out of range; InvalidPrivacy for the privacy parameters.
        """
        if not isinstance(given, Mapping):
            raise InvalidJob(f"a job must be a mapping with the keys {', '.join(cls.model_fields)}; given: {given!r}")
        return cls(**{str(key): value for key, value in given.items()})

    @classmethod
    def load(cls, path: str | Path) -> TrainingJob:
        """A job from a YAML file; a relative `source` or `test` is taken from where the file lies.

        Raises:
            InvalidJob: the file is missing, is not YAML, or is not a job.
        """
        path = Path(path)
        given = read_mapping(path, "job file", list(cls.model_fields), InvalidJob)
        data = given.get("data")
        if isinstance(data, dict):
            for key in ("source", "test"):
                value = data.get(key)
                if isinstance(value, str) and value and value not in BUILT_IN:
                    data[key] = str((path.parent / Path(value).expanduser()).resolve())
        return cls.parse(given)

    def plain(self) -> dict[str, JsonValue]:
        """The job as JSON values that `parse` reads back equal."""
        values: dict[str, JsonValue] = self.model_dump(mode="json")
        return values | {"privacy": values["privacy"] or "none"}


_BRANCHES = {"float", "str", "int", "constrained-float", "constrained-str"}  # how pydantic marks the arm of a union in a place


def _explain(error: ValidationError) -> Refused:
    """What is wrong, as our own typed error: an unknown key first, since it is often why another is missing."""
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    where = [str(step) for step in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _fields_at(TrainingJob, where[:-1])
        parent = ".".join(where[:-1]) or "job"
        return UnknownKey(f"{parent}: unknown key '{where[-1]}'; {nearest(where[-1], known)}", given=where[-1])
    place = ".".join(step for step in where if step not in _BRANCHES)
    if first["type"] == "missing":
        hint = "; write 'privacy: none' for a run without privacy" if place == "privacy" else ""
        return InvalidJob(f"'{place}' is missing{hint}", missing=place)
    if first["type"] == "model_type":
        accepted = ", ".join(_fields_at(TrainingJob, where)) + (", or 'none'" if place == "privacy" else "")
        return InvalidJob(f"{place}: must be a mapping with the keys {accepted}; given: {first['input']!r}", place=place)
    message = first["msg"].removeprefix("Value error, ")
    kind = InvalidPrivacy if place in PRIVACY_PARAMETERS else InvalidJob
    return kind(f"{place}: {message[0].lower()}{message[1:]}; given: {first['input']!r}", place=place)


def _fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    for step in steps:
        annotation = model.model_fields[step].annotation
        kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
