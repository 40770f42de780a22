"""Statistics of clients' rows that somebody asks for, checked whole before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from qedge.errors import InvalidJob, InvalidPrivacy
from qedge.job.data import BUILT_IN, FileName, Partition
from qedge.job.explanation import explain
from qedge.job.part import Part
from qedge.job.secure_aggregation import SecureAggregation
from qedge.job.statistics import HeavyHitters, Statistic, read_statistic
from qedge.yaml_mapping import read_mapping

_PRIVACY_PARAMETERS = {"privacy.epsilon", "privacy.delta", "max_rows"}


class QueryData(Part):
    """Whose rows are asked about."""

    source: FileName = Field(description="parquet, CSV or npz file with a client column, an index of one, or digits | breast-cancer | wine")
    client: str | None = Field(default=None, description="column that says whose row it is")
    label: str | None = Field(default=None, description="as a job names it; may be left out, and asked about like any column")
    partition: Partition | None = None

    @property
    def built_in(self) -> bool:
        """Whether `source` names a data set that ships with scikit-learn."""
        return self.source in BUILT_IN

    @model_validator(mode="after")
    def _fits(self) -> QueryData:
        if self.built_in and (self.client is not None or self.label is not None):
            raise InvalidJob(f"data: '{self.source}' brings its own clients and its column 'label'; leave out 'client' and 'label'")
        if not self.built_in and self.partition is not None:
            raise InvalidJob("data: 'partition' is for built-in data sets; a table is split by its client column")
        return self


class QueryPrivacy(Part):
    """What a query promises each client: all of its answers together cost so much."""

    unit: str = "client"
    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(gt=0, lt=1)
    budget: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="scope to charge; default: the data's own"
    )

    @field_validator("unit")
    @classmethod
    def _unit(cls, value: str) -> str:
        if value != "client":
            raise InvalidPrivacy(f"privacy.unit is '{value}': a query protects whole clients; accepted: client", given=value)
        return value


class Query(Part):
    """Statistics over all clients. `privacy` has no default: a query without it must say `none`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the run")
    data: QueryData
    privacy: QueryPrivacy | None
    max_rows: int = Field(ge=1, le=1_000_000, description="public cap on the rows a client counts with: its first, in the table's order")
    statistics: tuple[Statistic, ...]
    secure_aggregation: SecureAggregation | None = None
    deadline_s: float = Field(default=600.0, gt=0, description="seconds a round may take: then its lost part is run again")
    seed: int = Field(default=0, ge=0, lt=2**63, description="synthetic partition; never noise")

    def __init__(self, **given: object) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise explain(error, Query, "query", _PRIVACY_PARAMETERS) from None

    @field_validator("privacy", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        if value is None:  # an empty `privacy:` in YAML is a slip, never a decision to do without
            raise InvalidJob("'privacy' is empty; write 'privacy: none' for a query without privacy", missing="privacy")
        return None if value == "none" else value

    @field_validator("statistics", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or not value:
            raise InvalidJob(f"'statistics' is a list of one at least, as [{{kind: count}}]; given: {value!r}", missing="statistics")
        read = tuple(read_statistic(one) for one in value)
        if twice := [one for place, one in enumerate(read) if one in read[:place]]:
            raise InvalidJob(f"statistics: '{title(twice[0])}' is asked for twice; once is enough, and costs less", given=title(twice[0]))
        return read

    @property
    def hunts(self) -> tuple[HeavyHitters, ...]:
        """The statistics that take a round for every byte."""
        return tuple(one for one in self.statistics if isinstance(one, HeavyHitters))

    @classmethod
    def parse(cls, given: object) -> Query:
        """A query from plain values.

        Raises:
            InvalidJob: and its kinds, when a value is missing or out of range; InvalidPrivacy for epsilon, delta and the cap on rows.
        """
        if not isinstance(given, Mapping):
            raise InvalidJob(f"a query must be a mapping with the keys {', '.join(cls.model_fields)}; given: {given!r}")
        return cls(**{str(key): value for key, value in given.items()})

    @classmethod
    def load(cls, path: str | Path) -> Query:
        """A query from a YAML file; a relative `source` is taken from where the file lies.

        Raises:
            InvalidJob: the file is missing, is not YAML, or is not a query.
        """
        path = Path(path)
        given = read_mapping(path, "query file", list(cls.model_fields), InvalidJob)
        data = given.get("data")
        source = data.get("source") if isinstance(data, dict) else None
        if isinstance(data, dict) and isinstance(source, str) and source and source not in BUILT_IN:
            data["source"] = str((path.parent / Path(source).expanduser()).resolve())
        return cls.parse(given)

    def plain(self) -> dict[str, JsonValue]:
        """The query as JSON values that `parse` reads back equal."""
        values: dict[str, JsonValue] = self.model_dump(mode="json")
        return values | {"privacy": values["privacy"] or "none"}


def title(statistic: Statistic) -> str:
    """A statistic in two words: its kind, and the column that it is about."""
    return statistic.kind if statistic.kind == "count" else f"{statistic.kind} {statistic.column}"
