"""What a query may ask of clients' rows. Everything named here is public: columns, ranges, bins, categories, lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from qedge.errors import InvalidJob, UnknownKey, nearest
from qedge.job.explanation import explain
from qedge.job.part import Part

Column = Annotated[str, Field(min_length=1)]
Range = tuple[float, float]


class Count(Part):
    """How many rows there are."""

    kind: Literal["count"] = "count"


class _Ranged(Part):
    """Something about a numeric column, the values of which are clipped to a public range."""

    column: Column
    range: Range = Field(description="[low, high], public: values beyond it count as its ends")

    @model_validator(mode="after")
    def _is_a_range(self) -> _Ranged:
        check_range(self.column, self.range)
        return self


class Sum(_Ranged):
    """The sum of a column."""

    kind: Literal["sum"] = "sum"


class Mean(_Ranged):
    """The mean of a column."""

    kind: Literal["mean"] = "mean"


class Variance(_Ranged):
    """The variance of a column, over all rows that count (the divisor is their number)."""

    kind: Literal["variance"] = "variance"


class Quantile(_Ranged):
    """Quantiles of a column, read off a binary tree of counts over the range."""

    kind: Literal["quantile"] = "quantile"
    quantiles: tuple[float, ...] = Field(default=(0.5,), min_length=1, max_length=100, description="each between 0 and 1")
    depth: int = Field(default=8, ge=1, le=14, description="levels of the tree: the range is told apart in 2^depth steps")

    @field_validator("quantiles")
    @classmethod
    def _between(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [one for one in value if not 0 < one < 1]:
            raise InvalidJob(f"quantile: {wrong[0]} is no quantile; accepted: above 0 and below 1, 0.5 being the median", given=wrong[0])
        return value


class Histogram(Part):
    """Rows by where a numeric column lies in a range, or by which of some categories a column holds."""

    kind: Literal["histogram"] = "histogram"
    column: Column
    range: Range | None = Field(default=None, description="[low, high], with 'bins': values beyond it count in the outermost bins")
    bins: int | None = Field(default=None, ge=1, le=100_000, description="so many, equally wide")
    categories: tuple[str | int, ...] | None = Field(default=None, description="instead of a range; what is none of them is counted apart")

    @model_validator(mode="after")
    def _fits(self) -> Histogram:
        if (self.range is None) == (self.categories is None) or (self.range is None) != (self.bins is None):
            raise InvalidJob(f"histogram of '{self.column}': accepted: 'range' and 'bins', or 'categories'", column=self.column)
        if self.range is not None:
            check_range(self.column, self.range)
        if self.categories is not None:
            _check_categories(self.column, self.categories)
        return self


class HeavyHitters(Part):
    """The frequent values of a column of text or whole numbers, found byte by byte, each byte a round of its own."""

    kind: Literal["heavy-hitters"] = "heavy-hitters"
    column: Column
    length: int = Field(default=12, ge=1, le=64, description="bytes (UTF-8) of a value that are looked at; longer ones are known by these")
    most: int = Field(default=32, ge=1, le=256, description="beginnings of values that are followed up at once, the most frequent")
    false_positive: float = Field(default=0.01, gt=0, lt=1, description="chance that anything is found which nobody has")


Statistic = Count | Sum | Mean | Variance | Quantile | Histogram | HeavyHitters
_KINDS: dict[str, type[Statistic]] = {
    "count": Count,
    "sum": Sum,
    "mean": Mean,
    "variance": Variance,
    "quantile": Quantile,
    "histogram": Histogram,
    "heavy-hitters": HeavyHitters,
}
KINDS = tuple(_KINDS)
_QUANTILES = {"median": "quantiles: [0.5]", "min": "a low quantile", "max": "a high quantile"}


def read_statistic(given: object) -> Statistic:
    """One statistic from plain values.

    Raises:
        UnknownKey: a kind or key that there is not. InvalidJob: a value that is missing, of the wrong type or out of range.
    """
    if isinstance(given, Statistic):
        return given
    if not isinstance(given, Mapping) or "kind" not in given:
        raise InvalidJob(f"statistics: each is a mapping with a 'kind' ({', '.join(KINDS)}); given: {given!r}")
    kind = given["kind"]
    if kind not in KINDS:
        hint = f"ask for 'kind: quantile', {_QUANTILES[kind]}" if kind in tuple(_QUANTILES) else nearest(str(kind), KINDS)
        raise UnknownKey(f"statistics: unknown kind '{kind}'; {hint}", given=kind)
    try:
        return _KINDS[kind](**{str(key): value for key, value in given.items()})
    except ValidationError as error:
        where = f" of '{given['column']}'" if "column" in given else ""
        wrong = explain(error, _KINDS[kind], str(kind), ())
        raise type(wrong)(f"statistics, {kind}{where}: {wrong.message}", **wrong.facts) from None


def check_range(column: str, given: Range) -> None:
    """Refuse a range that is empty, reversed, or wider than a number can say.

    Raises:
        InvalidJob: one of these.
    """
    low, high = given
    if not (low < high and math.isfinite(high - low) and (high - low) / 2 > 0):
        raise InvalidJob(f"the range of '{column}' is [{low:g}, {high:g}]; accepted: [low, high], finite, with low < high", column=column)


def _check_categories(column: str, categories: tuple[str | int, ...]) -> None:
    if not categories or len(set(categories)) < len(categories) or len({type(one) for one in categories}) > 1:
        raise InvalidJob(
            f"histogram of '{column}': 'categories' are at least one, each once, all text or all whole numbers; given: {list(categories)}",
            column=column,
        )
    if "" in categories or any("\0" in one for one in categories if isinstance(one, str)):
        raise InvalidJob(f"histogram of '{column}': a category is neither empty nor has it a NUL in it", column=column)
