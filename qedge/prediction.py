"""Rows for a served model: a table's, or the held-out rows of a job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qedge.data import tables
from qedge.data.federation import load
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


def table_rows(path: Path, features: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """The named columns of a table, [rows, features] float32, in the model's order.

    Raises:
        DataNotFound: the file or a column is not there; InvalidValue: a value that is not a finite number.
    """
    return tables.features(tables.read(path), features)


def held_out_rows(job_file: Path) -> tuple[npt.NDArray[np.float32], list[str] | list[int]]:
    """The rows a job holds out, as a caller sends them, and their labels.

    Raises:
        DataError: the job holds out none.
    """
    job = TrainingJob.load(job_file)
    federation = load(job.data, job.seed)
    if federation.test is None:
        raise DataError("the job holds out no rows: give data.test, a share of each client's rows or a file")
    labels = [federation.schema.labels[index] for index in federation.test.labels]
    return federation.test_raw, labels
