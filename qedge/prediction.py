"""Rows for a served model, a table's or the held-out rows of a job, and its answers as a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qedge import output_file
from qedge.data import tables
from qedge.data.federation import fingerprints, load, standardised
from qedge.errors import DataError, InvalidRequest
from qedge.job import TrainingJob
from qedge.records import Records
from qedge.sdk import ModelMetadata
from qedge.storage import write_atomically

COLUMNS = ("row", "label", "probability")
Answers = Sequence[tuple[int, str | int, float]]


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


def held_out_rows(job_file: Path, home: Path) -> tuple[npt.NDArray[np.float32], list[str] | list[int]]:
    """The rows a job holds out, as a caller sends them, and their labels.

    Raises:
        DataError: the job holds out none, or holds them out as private.
        ScopeConflict: the job is without privacy, and its data have a budget in the ledger of `home`.
    """
    job = TrainingJob.load(job_file)
    if job.privacy is not None and job.data.evaluation != "public" and not isinstance(job.data.test, str):
        raise DataError("the job's held-out rows are private: how many are right is told once, by noisy counts, when training ends")
    federation = load(job.data, job.seed)
    if federation.test is None:
        raise DataError("the job holds out no rows: give data.test, a share of each client's rows or a file")
    if job.privacy is None and (home / "ledger.db").exists():
        records = Records.open(home)
        records.ledger.refuse_without_privacy(fingerprints(federation, lambda message: records.keys.mac("fingerprint", message)))
    labels = [federation.schema.labels[index] for index in federation.test.labels]
    return federation.test_raw, labels


def refuse_output(path: Path) -> None:
    """Refuse a file for answers that could not be written, before anything is asked.

    Raises:
        InvalidRequest: an ending that says no known format, or a place where no file can be made.
    """
    output_file.refuse_output(path, _WRITERS)


def write_answers(path: Path, answers: Answers) -> None:
    """Write (row, label, its probability) as the ending of `path` says: all of them, or nothing.

    Raises:
        InvalidRequest: as `refuse_output`. StorageFull, HomeUnusable: it cannot be written; an older file is as it was.
    """
    refuse_output(path)
    write_atomically(path, _WRITERS[path.suffix.lower()](answers))


def _as_csv(answers: Answers) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *answers])
    return text.getvalue().encode()


def _as_json(answers: Answers) -> bytes:
    return json.dumps([dict(zip(COLUMNS, answer, strict=True)) for answer in answers]).encode() + b"\n"


def _as_parquet(answers: Answers) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    sink = pa.BufferOutputStream()
    columns = ([answer[place] for answer in answers] for place in range(len(COLUMNS)))
    pyarrow.parquet.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True))), sink)
    written: bytes = sink.getvalue().to_pybytes()
    return written


_WRITERS: dict[str, Callable[[Answers], bytes]] = {".csv": _as_csv, ".json": _as_json, ".parquet": _as_parquet}
