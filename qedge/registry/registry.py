"""Models, versions, aliases and runs as MLflow keeps them.

Only this module, `tracking` (the connection), `publisher` (a run's folder goes into MLflow) and `registration` (a model
folder becomes a version) know MLflow.
Source: https://mlflow.org/docs/latest/ml/model-registry/.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from qedge.config import Settings
from qedge.errors import ArtifactTampered, InvalidRequest, UnknownModel, nearest
from qedge.registry.tracking import EXPERIMENT, connection

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.entities.model_registry import RegisteredModel
    from mlflow.store.entities import PagedList

MODEL_FILE = "model.onnx"
RECEIPT_FILE = "receipt.json"
RUN_TAG = "qedge.run_id"
RECEIPT_TAG = "qedge.receipt_id"
LADDER_TAG = "qedge.ladder_id"
_Found = TypeVar("_Found")
_REFERENCE = re.compile(r"(?P<name>[^/:@'\"\\]+)(?:@(?P<alias>[A-Za-z0-9_.-]+)|/(?P<version>[0-9]{1,9}))?")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model. `run_id` is ours, not MLflow's; epsilon and delta are decimal strings, None without privacy.

    ladder_id: the receipt of its ladder for edge nodes, None where none was built.
    """

    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    receipt_id: str
    epsilon: str | None
    delta: str | None
    created_ms: int
    source: str
    ladder_id: str | None = None


@dataclass(frozen=True)
class RunRow:
    """One run as MLflow shows it; `metrics` are the latest of each name, `ended_ms` is None while it goes on."""

    run_id: str
    mlflow_run_id: str
    name: str
    status: str
    created_ms: int
    ended_ms: int | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


class Registry:
    """What MLflow knows of our models and runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `NAME` (the highest), `NAME@alias` or `NAME/3` names.

        Raises:
            UnknownModel: no such model, alias or version; the nearest known name is offered.
            RegistryUnavailable: MLflow does not answer.
        """
        name, alias, version = split_reference(reference)
        if self._nothing_yet():
            raise UnknownModel(f"no model '{name}'; none has been registered yet", given=reference)
        with connection(self._settings) as client:
            aliases = aliases_of(client, name)
            if alias is not None and alias not in aliases:
                raise UnknownModel(f"model '{name}' has no alias '{alias}'; {nearest(alias, aliases)}", given=reference)
            number = aliases[alias] if alias is not None else version
            where = f"name='{name}'" + (f" and version_number={number}" if number is not None else "")
            found = client.search_model_versions(where, max_results=1, order_by=["version_number DESC"])
            if not found:
                known = [str(version.version) for version in client.search_model_versions(f"name='{name}'")]
                raise UnknownModel(f"model '{name}' has no version {number}; known: {', '.join(known) or 'none'}", given=reference)
            return _row(found[0], aliases)

    def models(self) -> list[ModelVersion]:
        """Every version that a run of ours registered, by name and then newest first."""
        if self._nothing_yet():
            return []
        with connection(self._settings) as client:
            aliases = {model.name: _numbers(model.aliases) for model in _registered(client)}
            rows = [_row(version, aliases.get(version.name, {})) for version in _versions(client) if RUN_TAG in version.tags]
        return sorted(rows, key=lambda row: (row.name, -row.version))

    def runs(self, limit: int = 100) -> list[RunRow]:
        """The newest `limit` runs, newest first."""
        if self._nothing_yet():
            return []
        with connection(self._settings) as client:
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                return []
            found = client.search_runs([experiment.experiment_id], max_results=max(1, limit), order_by=["attributes.start_time DESC"])
            return [_run(run) for run in found]

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Let `NAME@alias` mean this version from now on.

        Raises:
            UnknownModel: no such model or version.
            InvalidRequest: a word that cannot be an alias.
            RegistryUnavailable: MLflow does not answer.
        """
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", alias) or alias.lower() == "latest" or re.fullmatch(r"[vV][0-9]+", alias):
            raise InvalidRequest(
                f"'{alias}' cannot be an alias; accepted: letters, digits, - and _, but not latest or v1, v2 …", given=alias
            )
        self.resolve(f"{name}/{version}")
        with connection(self._settings) as client:
            client.set_registered_model_alias(name, alias, str(version))

    def fetch(self, version: ModelVersion, into: Path) -> Path:
        """The folder with the version's files; where artifacts are local files it is theirs, else a copy under `into`.

        Raises:
            ArtifactTampered: the model or its receipt is missing there, or it is another version's receipt.
            RegistryUnavailable: MLflow or its artifact store does not answer.
        """
        parts = urlsplit(version.source)
        if parts.scheme in ("", "file"):
            folder = Path(url2pathname(parts.path)) if parts.scheme else Path(version.source)
        else:
            # Named by a digest: what a registry says of itself must not lead out of `into`, nor to another version's copy.
            folder = into / hashlib.sha256(f"{version.receipt_id}\n{version.source}".encode()).hexdigest()[:32]
            if not folder.exists():
                self._download(version, folder)
        try:
            receipt = json.loads((folder / RECEIPT_FILE).read_bytes())
            found = receipt["id"] if (folder / MODEL_FILE).is_file() else None
        except (OSError, ValueError, TypeError, LookupError):
            found = None
        if found is None or found != version.receipt_id:
            what = "its files are gone" if found is None else f"the receipt there is {found}, not {version.receipt_id}"
            raise ArtifactTampered(f"{version.name}/{version.version}: {what}; looked in {folder}", path=str(folder))
        return folder

    def attach_ladder(self, version: ModelVersion, folder: Path, ladder_id: str) -> None:
        """Keep a ladder with the version; it takes the place of an older one when all of its files are there.

        Raises:
            UnknownModel: the version was not registered by qedge. RegistryUnavailable: MLflow or its artifact store does not answer.
        """
        with connection(self._settings) as client, tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(folder, Path(scratch) / _ladder_folder(ladder_id))
            run = client.get_run(client.get_model_version(version.name, str(version.version)).run_id)
            model = logged_model(client, run, version.receipt_id)
            if model is None:
                raise UnknownModel(f"{version.name}/{version.version} is no model that qedge registered", model=version.name)
            client.log_model_artifacts(model.model_id, scratch)
            client.set_model_version_tag(version.name, str(version.version), LADDER_TAG, ladder_id)

    def fetch_ladder(self, version: ModelVersion, into: Path) -> Path:
        """The folder of the version's ladder; where artifacts are local files it is theirs, else a copy under `into`.

        Raises:
            UnknownModel: none was built. RegistryUnavailable: MLflow or its artifact store does not answer.
        """
        if version.ladder_id is None or not re.fullmatch("[0-9a-f]{64}", version.ladder_id):
            where = f"{version.name}/{version.version}"
            raise UnknownModel(f"{where} has no ladder; `qedge edge build {where}` makes one", model=version.name)
        parts, name = urlsplit(version.source), _ladder_folder(version.ladder_id)
        if parts.scheme in ("", "file"):
            return Path(url2pathname(parts.path) if parts.scheme else version.source) / name
        if not (into / name).exists():
            self._download(replace(version, source=f"{version.source}/{name}"), into / name)
        return into / name

    def _download(self, version: ModelVersion, folder: Path) -> None:
        """Copy the artifacts beside `folder` and rename them into place, so that a folder that exists is whole."""
        with connection(self._settings):
            from mlflow.artifacts import download_artifacts

            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                try:
                    got = download_artifacts(artifact_uri=version.source, dst_path=scratch, tracking_uri=self._settings.mlflow_uri)
                except ValueError:  # what MLflow's stores raise for an address they cannot take apart
                    raise ArtifactTampered(f"{version.name}/{version.version}: '{version.source}' is no place for files") from None
                with contextlib.suppress(FileExistsError):
                    Path(got).rename(folder)

    def _nothing_yet(self) -> bool:
        """Whether the local store was never written: then there is nothing to ask, and no need to create it."""
        uri = self._settings.mlflow_uri
        return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def logged_model(client: MlflowClient, run: Run, receipt_id: str) -> LoggedModel | None:
    """MLflow's logged model of a run that holds the files of this receipt."""
    found = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'")
    return next((model for model in found if model.tags.get(RECEIPT_TAG) == receipt_id), None)


def _ladder_folder(ladder_id: str) -> str:
    return f"ladder-{ladder_id[:32]}"


def split_reference(reference: str) -> tuple[str, str | None, int | None]:
    """Name, alias and version of `NAME`, `NAME@alias` or `NAME/3`.

    Raises:
        UnknownModel: it is none of them.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise UnknownModel(f"'{reference}' names no model; accepted: NAME, NAME@alias or NAME/version", given=reference)
    return parts["name"], parts["alias"], int(parts["version"]) if parts["version"] else None


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    """alias → version of a registered model; UnknownModel, with the nearest name, when there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return _numbers(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # a blank is no name to MLflow
            raise
    known = [model.name for model in _registered(client)]
    raise UnknownModel(f"no model '{name}'; {nearest(name, known) if known else 'none has been registered yet'}", given=name)


def _registered(client: MlflowClient) -> Iterator[RegisteredModel]:
    return _pages(client.search_registered_models)


def _versions(client: MlflowClient, where: str | None = None) -> Iterator[MlflowVersion]:
    return _pages(functools.partial(client.search_model_versions, where))


def _pages(search: Callable[..., PagedList[_Found]]) -> Iterator[_Found]:
    """Everything a search finds, page after page."""
    token: str | None = ""
    while token is not None:
        page = search(page_token=token or None)
        yield from page
        token = page.token or None


def _numbers(aliases: Mapping[str, str]) -> dict[str, int]:
    return {alias: int(version) for alias, version in aliases.items()}


def _row(version: MlflowVersion, aliases: Mapping[str, int]) -> ModelVersion:
    tags, number = version.tags, int(version.version)
    return ModelVersion(
        name=version.name,
        version=number,
        run_id=tags.get(RUN_TAG) or version.run_id or "",
        aliases=tuple(sorted(alias for alias, pointed in aliases.items() if pointed == number)),
        receipt_id=tags.get(RECEIPT_TAG, ""),
        epsilon=tags.get("qedge.epsilon"),
        delta=tags.get("qedge.delta"),
        created_ms=int(version.creation_timestamp),
        source=version.source,
        ladder_id=tags.get(LADDER_TAG),
    )


def _run(run: Run) -> RunRow:
    return RunRow(
        run_id=run.data.tags.get(RUN_TAG, run.info.run_id),
        mlflow_run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        created_ms=int(run.info.start_time),
        ended_ms=None if run.info.end_time is None else int(run.info.end_time),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags={key: value for key, value in run.data.tags.items() if key.startswith("qedge.")},
    )
