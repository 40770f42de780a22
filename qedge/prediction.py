"""Rows for a served model: a table's, or the held-out rows of a job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qedge.data import tables
from qedge.data.federation import load, standardised
from qedge.errors import DataError, InvalidRequest
from qedge.job import TrainingJob
from qedge.sdk import ModelMetadata


def feature_names(model: ModelMetadata) -> tuple[str, ...]:
    """The columns a served model takes, in its order.

    Raises:
        InvalidRequest: the model does not say; it was not exported by qedge.
    """
    properties = model.parameters.get("properties")
    if not isinstance(properties, dict) or "features" not in properties:
        raise InvalidRequest(f"model '{model.name}' does not name its features; send arrays with qedge.sdk.Client instead")
    return tuple(json.loads(str(properties["features"])))


def takes_standardised(model: ModelMetadata) -> bool:
    """Whether a served model expects its callers to standardise their rows (`scale: local`)."""
    properties = model.parameters.get("properties")
    return isinstance(properties, dict) and properties.get("scale") == "local"


def table_rows(path: Path, model: ModelMetadata, client: str | None = None) -> npt.NDArray[np.float32]:
    """The rows of a table as a served model takes them, [rows, features] float32, in the table's order.

    Where callers standardise, by the table's own mean and standard deviation, or those of each client in the column `client`;
    features that do not vary become 0.

    Raises:
        DataNotFound: the file or a column is not there; InvalidValue: a value that is not a finite number, or no client.
        InvalidRequest: the model does not name its features, or `client` is given and it takes rows as they are.
    """
    names, standardise = feature_names(model), takes_standardised(model)
    if client is not None and not standardise:
        raise InvalidRequest(f"model '{model.name}' takes rows as they are in the table; leave out --client", given=client)
    table = tables.read(path, () if client is None else (client,))
    rows = tables.features(table, names)
    if not standardise:
        return rows
    owner = np.zeros(len(rows), np.int64) if client is None else tables.client_ids(table, client)[0]
    return standardised(rows, owner)


def held_out_rows(job_file: Path) -> tuple[npt.NDArray[np.float32], list[str] | list[int]]:
    """The rows a job holds out, as a caller sends them, and their labels.

    Raises:
        DataError: the job holds out none, or holds them out as private.
    """
    job = TrainingJob.load(job_file)
    if job.privacy is not None and job.data.evaluation != "public" and not isinstance(job.data.test, str):
        raise DataError("the job's held-out rows are private: how many are right is told once, by noisy counts, when training ends")
    federation = load(job.data, job.seed)
    if federation.test is None:
        raise DataError("the job holds out no rows: give data.test, a share of each client's rows or a file")
    labels = [federation.schema.labels[index] for index in federation.test.labels]
    return federation.test_raw, labels
