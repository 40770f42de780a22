"""A quantum kernel machine that a user keeps: its files and a signed receipt, which says that it contains training rows."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from qedge.audit import receipt
from qedge.data.labelled import Labelled
from qedge.errors import HomeUnusable, InvalidConfig
from qedge.quantum.qsvm.fitted import FILES, fit
from qedge.quantum.qsvm.job import QSVM
from qedge.quantum.result import Result
from qedge.records import Records
from qedge.runs.plain_receipt import issue_plain

TRUST_MODEL = "Whoever has the model's files has the training rows that it contains: keep them where those rows may be kept."


def refuse_place(folder: Path) -> None:
    """Refuse a folder that a machine could not be kept in, before anything is computed.

    Raises:
        InvalidConfig: it is there already, or its own folder is not.
    """
    if folder.exists() or not folder.resolve().parent.is_dir():
        raise InvalidConfig(f"a machine is kept in a new folder of a folder that there is; given: {folder}", given=str(folder))


def keep(job: QSVM, table: Labelled, studied: Result, run: str, records: Records, folder: Path) -> int:
    """Fit a machine with what a study chose, and write it with its receipt, whole or not at all; how many training rows it contains.

    Raises:
        InvalidConfig: as `refuse_place`. HomeUnusable: it cannot be written.
    """
    refuse_place(folder)
    machine = fit(job, table, studied)
    kept = len(machine.machine.support_rows_)
    making = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        making.mkdir(mode=0o700)
        machine.save(making)
        _issue(job, table, run, records, making, kept).write(making / receipt.FILE)
        making.rename(folder)
    except OSError as error:
        raise HomeUnusable(f"{folder} cannot be written: {error.strerror}", path=str(folder)) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    records.log.append("quantum.kept", run=run, folder=folder.name, training_rows=kept)
    return kept


def _issue(job: QSVM, table: Labelled, run: str, records: Records, making: Path, kept: int) -> receipt.Receipt:
    contained = receipt.Use(
        what="contains training rows",
        covered="NOT COVERED",
        note=f"{kept} of {len(table.labels)} rows, as principal components, from which their features follow",
    )
    uses = (receipt.Use(what="training", covered="NOT COVERED"), contained)
    artifacts = receipt.artifact_digests(making, FILES)
    return issue_plain(Path(job.data).stem, run, job.model_dump(mode="json"), job.data, table, uses, TRUST_MODEL, artifacts, records)
