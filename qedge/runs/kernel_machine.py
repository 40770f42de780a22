"""A quantum kernel machine that a user keeps: its files and a signed receipt, which says that it contains training rows."""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from qedge import __version__
from qedge.audit import receipt
from qedge.audit.canonical import digest
from qedge.data.labelled import Labelled
from qedge.errors import HomeUnusable, InvalidConfig
from qedge.federated.run_folder import data_digest
from qedge.quantum.qsvm.fitted import FILES, fit
from qedge.quantum.qsvm.job import QSVM
from qedge.quantum.result import Result
from qedge.records import Records

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
        receipt.issue(_body(job, table, run, records, making, kept), records.keys).write(making / receipt.FILE)
        making.rename(folder)
    except OSError as error:
        raise HomeUnusable(f"{folder} cannot be written: {error.strerror}", path=str(folder)) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    records.log.append("quantum.kept", run=run, folder=folder.name, training_rows=kept)
    return kept


def _body(job: QSVM, table: Labelled, run: str, records: Records, making: Path, kept: int) -> receipt.Body:
    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in table.identity)
    ledger, log = records.ledger.head(), records.log.head()
    contained = receipt.Use(
        what="contains training rows",
        covered="NOT COVERED",
        note=f"{kept} of {len(table.labels)} rows, as principal components, from which their features follow",
    )
    return receipt.Body(
        model=Path(job.data).stem,
        run=run,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        code_version=__version__,
        job=digest({"job": repr(job.model_dump(mode="json"))}),
        artifacts=receipt.artifact_digests(making, FILES),
        data=receipt.Data(
            source=Path(job.data).name,
            unit="example",
            relation="zero-out",
            clients=len(table.labels),
            fingerprint=data_digest(prints, records.keys),
            labels="found in the data",
        ),
        privacy=receipt.NO_GUARANTEE,
        uses=(receipt.Use(what="training", covered="NOT COVERED"), contained),
        trust_model=TRUST_MODEL,
        ledger=receipt.HeadOf(seq=ledger.seq, hash=ledger.hash),
        log=receipt.HeadOf(seq=log.seq, hash=log.hash),
    )
