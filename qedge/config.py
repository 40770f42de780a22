"""Every setting, in one place: defaults ← YAML file ← environment ← command line.

Environment: `QEDGE_HOME`, `QEDGE_TRACKING_URI`, `QEDGE_SERVE__PORT` (two underscores step into a group). An unknown
`QEDGE_…` variable or key is refused; an empty one counts as not given. `RAY_ADDRESS` is honoured where `QEDGE_ADDRESS` is not set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qedge.errors import HomeUnusable, InvalidConfig, nearest
from qedge.yaml_mapping import read_mapping


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Serve(_Group):
    """The HTTP endpoint."""

    host: str = Field(default="127.0.0.1", description="address the endpoint listens on")
    port: int = Field(default=8000, ge=1, le=65535, description="port of the endpoint")
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, description="largest request body; more is answered 413")
    max_batch_rows: int = Field(default=4096, ge=1, description="most rows in one request")
    replicas: int = Field(default=1, ge=1, description="replicas of the inference deployment")


class Cluster(_Group):
    """The Ray that qedge starts when none is running."""

    cpus: int | None = Field(default=None, ge=1, description="logical CPUs; default: the machine's")
    object_store_bytes: int = Field(default=256 * 2**20, ge=80 * 2**20, description="Ray object store of a local cluster")
    start_timeout_s: float = Field(default=150.0, gt=0, description="how long Ray may take to start")
    connect_timeout_s: float = Field(default=20.0, gt=0, description="how long a given address may take to answer")


class Ledger(_Group):
    """The privacy ledger."""

    open_by_job: bool = Field(default=True, description="a first private job opens its data's scope; false: `qedge budget set` first")


class Edge(_Group):
    """Ladders for small machines."""

    replica_bytes: int = Field(default=256 * 2**20, ge=1, description="most that rungs may take of the memory of a replica on Serve")
    covered_only: bool = Field(default=False, description="answer by no rung that owes to rows which nothing covers")


class Settings(_Group):
    """All settings of one invocation."""

    home: Path = Field(default=Path(".qedge"), description="where all state lives")
    address: str | None = Field(
        default=None, description="Ray cluster to use; default: the one qedge started, else a local one for the command"
    )
    tracking_uri: str | None = Field(default=None, description="MLflow; default: SQLite under the home")
    serve: Serve = Serve()
    cluster: Cluster = Cluster()
    ledger: Ledger = Ledger()
    edge: Edge = Edge()

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI, or the SQLite database under the home."""
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"


def load(path: str | Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from a YAML file (`path`, or `QEDGE_CONFIG`), the environment and non-None `overrides`, in rising order.

    Raises:
        InvalidConfig: a file that cannot be read, an unknown key or variable, a value out of range.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get("QEDGE_CONFIG")
    values: dict[str, Any] = _from_file(Path(path)) if path else {}
    for name, text in environ.items():
        if name.startswith("QEDGE_") and name != "QEDGE_CONFIG" and text:
            _put(values, name.removeprefix("QEDGE_").lower().split("__"), text)
    if "address" not in values and environ.get("RAY_ADDRESS"):
        values["address"] = environ["RAY_ADDRESS"]
    values.update({key: value for key, value in overrides.items() if value is not None})
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None
    try:
        home = settings.home.expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # no such user, a null character, a loop of links
        raise HomeUnusable(f"QEDGE_HOME {settings.home} is not a folder's path: {error}", home=str(settings.home)) from None
    return settings.model_copy(update={"home": home})


def ensure_home(home: Path) -> Path:
    """The home, made with its folders (0700) when missing.

    Raises:
        HomeUnusable: it cannot be made or written.
    """
    try:
        for folder in (home, home / "runs", home / "keys", home / "artifacts"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise HomeUnusable(f"QEDGE_HOME {home} cannot be written: {error.strerror}; give a folder you own", home=str(home)) from None
    return home


def _from_file(path: Path) -> dict[str, Any]:
    values = read_mapping(path, "configuration", list(Settings.model_fields), InvalidConfig)
    if isinstance(values.get("home"), str):
        values["home"] = path.parent / Path(values["home"]).expanduser()
    return {key: value for key, value in values.items() if value is not None}


def _put(values: dict[str, Any], steps: list[str], text: str) -> None:
    for step in steps[:-1]:
        values = values.setdefault(step, {})
        if not isinstance(values, dict):
            raise InvalidConfig(f"setting '{'.'.join(steps)}' steps into '{step}', which has a value of its own", given=".".join(steps))
    values[steps[-1]] = text


def _explain(error: ValidationError) -> InvalidConfig:
    first = error.errors(include_url=False)[0]
    where = [str(step) for step in first["loc"]]
    if first["type"] == "extra_forbidden":
        group: Any = Settings
        for step in where[:-1]:
            group = group.model_fields[step].annotation
        return InvalidConfig(f"unknown setting '{'.'.join(where)}'; {nearest(where[-1], group.model_fields)}", given=".".join(where))
    if first["type"] == "model_type":
        keys = ", ".join(Settings.model_fields[where[0]].annotation.model_fields)  # type: ignore[union-attr]
        return InvalidConfig(f"setting '{where[0]}' must be a mapping with the keys {keys}; given: {first['input']!r}", given=where[0])
    return InvalidConfig(f"setting '{'.'.join(where)}': {first['msg'].lower()}; given: {first['input']!r}", given=".".join(where))
