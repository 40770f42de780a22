"""Every setting, in one place: defaults ← YAML file ← environment ← command line.

Environment: `QEDGE_HOME`, `QEDGE_TRACKING_URI`, `QEDGE_SERVE__PORT` (two underscores step into a group). An unknown
`QEDGE_…` variable or key is refused. `RAY_ADDRESS` is honoured where `QEDGE_ADDRESS` is not set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qedge.errors import HomeUnusable, InvalidConfig, nearest


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Serve(_Group):
    """The HTTP endpoint."""

    host: str = Field("127.0.0.1", description="address the endpoint listens on")
    port: int = Field(8000, ge=1, le=65535, description="port of the endpoint")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="largest request body; more is answered 413")
    max_batch_rows: int = Field(4096, ge=1, description="most rows in one request")
    replicas: int = Field(1, ge=1, description="replicas of the inference deployment")


class Cluster(_Group):
    """The Ray that qedge starts when none is running."""

    cpus: int | None = Field(None, ge=1, description="logical CPUs; default: the machine's")
    object_store_bytes: int = Field(256 * 2**20, ge=80 * 2**20, description="Ray object store of a local cluster")
    start_timeout_s: float = Field(150.0, gt=0, description="how long Ray may take to start")
    connect_timeout_s: float = Field(20.0, gt=0, description="how long a given address may take to answer")


class Ledger(_Group):
    """The privacy ledger."""

    open_by_job: bool = Field(True, description="a first private job opens its data's scope at its own epsilon and delta; false: `qedge budget set` first")


class Settings(_Group):
    """All settings of one invocation."""

    home: Path = Field(Path(".qedge"), description="where all state lives")
    address: str | None = Field(None, description="Ray cluster to use; default: the one qedge started, else a local one for the command")
    tracking_uri: str | None = Field(None, description="MLflow; default: SQLite under the home")
    serve: Serve = Field(default_factory=Serve)
    cluster: Cluster = Field(default_factory=Cluster)
    ledger: Ledger = Field(default_factory=Ledger)

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
        if name.startswith("QEDGE_") and name != "QEDGE_CONFIG":
            _put(values, name.removeprefix("QEDGE_").lower().split("__"), text)
    if "address" not in values and environ.get("RAY_ADDRESS"):
        values["address"] = environ["RAY_ADDRESS"]
    values.update({key: value for key, value in overrides.items() if value is not None})
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from None
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})


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
        probe.unlink()
    except OSError as error:
        raise HomeUnusable(f"QEDGE_HOME {home} cannot be written: {error.strerror}; give a folder you own", home=str(home)) from None
    return home


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"configuration {path} cannot be read: {error}", path=str(path)) from None
    if not isinstance(values, dict):
        raise InvalidConfig(f"configuration {path} must be a mapping with the keys {', '.join(Settings.model_fields)}", path=str(path))
    return values


def _put(values: dict[str, Any], steps: list[str], text: str) -> None:
    for step in steps[:-1]:
        values = values.setdefault(step, {})
    values[steps[-1]] = text


def _explain(error: ValidationError) -> InvalidConfig:
    first = error.errors(include_url=False)[0]
    where = [str(step) for step in first["loc"]]
    if first["type"] == "extra_forbidden":
        group: Any = Settings
        for step in where[:-1]:
            group = group.model_fields[step].annotation
        return InvalidConfig(f"unknown setting '{'.'.join(where)}'; {nearest(where[-1], group.model_fields)}", given=".".join(where))
    return InvalidConfig(f"setting '{'.'.join(where)}': {first['msg'].lower()}; given: {first['input']!r}", given=".".join(where))
