"""What an edge search is asked: rows, which networks and rungs to try, and how trials that lag are ended early.

    name: digits
    source: digits.csv
    label: digit
    public: true
    space: {kind: {choice: [mlp, cnn]}, width: {integers: [8, 128]}, depth: {choice: [1, 2]}, rung: {choice: [fp32, int8]}}
    trials: 40

Sources: Bergstra and Bengio, JMLR 2012 (values drawn at random); Li et al., MLSys 2020, Algorithm 2 (ASHA).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError, field_validator

from qedge.edge.rung import RungName, in_order
from qedge.errors import InvalidJob, UnknownKey, nearest
from qedge.job import Model
from qedge.job.data import BUILT_IN
from qedge.job.explanation import explain
from qedge.job.part import Part
from qedge.job.search_space import MOST_TRIALS, Dimension
from qedge.search.space import Values, draw, shown
from qedge.yaml_mapping import read_mapping

DEFAULTS: Values = {"kind": "mlp", "width": 64, "depth": 1, "kernel": 3, "learning_rate": 0.002, "rung": "fp32"}
_NEEDED: Values = {name: value for name, value in DEFAULTS.items() if name not in ("kernel", "learning_rate")}
_KINDS = ("mlp", "cnn")


class EdgeSearch(Part):
    """One search. Of a network, `width` is units or channels of each of `depth` hidden layers, `kernel` the side of a convolution."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the model")
    source: str = Field(description="a built-in data set, or a table")
    label: str = Field(default="label", description="the table's column of labels")
    public: bool = Field(default=False, description="the rows are declared public; else the receipt says that nothing covers their use")
    space: dict[str, Dimension] = Field(min_length=1, description="kind, width, depth, kernel, learning_rate, rung: what is tried of each")
    trials: int = Field(default=40, ge=1, le=MOST_TRIALS)
    steps: int = Field(default=1500, ge=1, le=10**6, description="batches that a trial which goes to its end trains by")
    checks: int = Field(default=4, ge=1, le=100, description="how often trials are compared on the way, evenly spaced")
    reduction: float = Field(default=3.0, gt=1, description="one in so many goes on")
    concurrent: int = Field(default=2, ge=1, le=64, description="trials that train at once, a CPU each")
    batch: int = Field(default=64, ge=1, description="rows of a batch")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the draw, of weights and of the order of rows")

    @field_validator("space")
    @classmethod
    def _known(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        for name in space:
            if name not in DEFAULTS:
                raise UnknownKey(f"space: '{name}' cannot be searched; {nearest(name, DEFAULTS)}", given=name, expected=list(DEFAULTS))
        return space

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> EdgeSearch:
        """A search from plain values, every trial of which can be built.

        Raises:
            InvalidJob: and its kinds, when a value is missing, unknown or out of range, or the space has fewer points than trials.
            UnknownRung: a rung that there is not.
        """
        try:
            asked = cls.model_validate(dict(given))
        except ValidationError as error:
            raise explain(error, EdgeSearch, "search", ()) from None
        for number, values in enumerate(asked.points(), 1):
            try:
                network(values), rate_of(values), rung_of(values)
            except InvalidJob as error:
                raise type(error)(f"trial {number} ({shown(values)}): {error.message}", **error.facts) from None
        return asked

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, object] | None = None) -> EdgeSearch:
        """A search from a YAML file; a relative `source` is taken from where the file lies. changes: in place of what the file says.

        Raises:
            InvalidJob: as `parse`, or the file cannot be read or is not YAML.
        """
        given = read_mapping(path, "search", list(cls.model_fields), InvalidJob)
        source = given.get("source")
        if isinstance(source, str) and source and source not in BUILT_IN:
            given["source"] = str((path.parent / Path(source).expanduser()).resolve())
        return cls.parse(given | dict(changes or {}))

    def points(self) -> list[Values]:
        """The values of each trial, with the defaults of what a network needs; a kernel is a CNN's alone."""
        drawn = [_NEEDED | values for values in draw(self.space, self.trials, self.seed)]
        return [{name: value for name, value in values.items() if name != "kernel" or values["kind"] != "mlp"} for values in drawn]

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values that `parse` reads back equal."""
        values: dict[str, JsonValue] = self.model_dump(mode="json")
        return values


def network(values: Values) -> Model:
    """The network of a trial.

    Raises:
        InvalidJob: a value that no network has.
    """
    kind, width, depth, kernel = ((DEFAULTS | values)[name] for name in ("kind", "width", "depth", "kernel"))
    if kind not in _KINDS:
        raise InvalidJob(f"space.kind has {kind!r}; accepted: {', '.join(_KINDS)}", given=str(kind))
    for name, value in (("width", width), ("depth", depth)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidJob(f"space.{name} has {value!r}; accepted: whole numbers from 1", given=str(value))
    layers = [width] * int(str(depth))
    said = {"kind": kind, "hidden": layers} if kind == "mlp" else {"kind": kind, "channels": layers, "kernel_size": kernel}
    try:
        return Model.model_validate(said)
    except ValidationError:
        raise InvalidJob(f"space.kernel has {kernel!r}; accepted: 1, 3, 5, 7", given=str(kernel)) from None


def rate_of(values: Values) -> float:
    """The learning rate of a trial.

    Raises:
        InvalidJob: it is none.
    """
    rate = (DEFAULTS | values)["learning_rate"]
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < 10:
        raise InvalidJob(f"space.learning_rate has {rate!r}; accepted: numbers over 0, below 10", given=str(rate))
    return float(rate)


def rung_of(values: Values) -> RungName:
    """The rung of a trial.

    Raises:
        UnknownRung: there is no such rung.
    """
    (rung,) = in_order([str(values["rung"])])
    return rung
