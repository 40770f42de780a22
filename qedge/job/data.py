"""Which rows a job trains on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qedge.errors import InvalidJob, LabelMismatch
from qedge.job.part import Part

BUILT_IN = {"digits", "breast-cancer", "wine"}


class Partition(Part):
    """How a built-in data set is dealt to synthetic clients: label skew by a symmetric Dirichlet (Hsu et al. 2019)."""

    dirichlet: float = Field(default=0.5, gt=0, description="concentration; small is skewed")
    clients: int = Field(default=100, ge=1, le=1_000_000)


Share = Annotated[float, Field(gt=0, lt=1)]
FileName = Annotated[str, Field(min_length=1)]


class Data(Part):
    """Which rows, whose they are, and what about them is public."""

    source: FileName = Field(description="parquet, CSV or npz file with a client column, or digits | breast-cancer | wine")
    client: str | None = Field(default=None, description="column that says whose row it is")
    label: str | None = Field(default=None, description="column to predict")
    drop: tuple[str, ...] = Field(default=(), description="columns that are not features")
    test: Share | FileName | None = Field(default=None, description="share of each client's rows, or a file of public rows")
    scale: Literal["none", "local", "given", "private"] = Field(
        default="none",
        description="none | local (each client's own) | given (declared ranges) | private (all clients', asked for under privacy)",
    )
    ranges: dict[str, tuple[float, float]] | None = Field(
        default=None, description="for scale: given or private, the public range of each feature"
    )
    scale_epsilon: float = Field(default=0.1, gt=0, le=0.5, description="for scale: private, its share of the job's privacy budget")
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
        if (self.scale in ("given", "private")) != (self.ranges is not None):
            raise InvalidJob("data: 'scale: given' or 'private' and 'ranges: {feature: [low, high]}' go together")
        if self.scale != "private" and self.scale_epsilon != Data.model_fields["scale_epsilon"].default:
            raise InvalidJob("data: 'scale_epsilon' is what 'scale: private' may spend; leave it out")
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
