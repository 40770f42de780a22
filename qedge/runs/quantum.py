"""One quantum job as a run: carried out, put on record with what it came to, and shown in MLflow.

A run's folder holds `quantum.json`, what was asked; `attached/answer.json`, the whole result; and what the registry mirrors
(`qedge.registry.outbox`). While the registry is away the folder waits: `qedge runs --publish` brings it there.
"""

from __future__ import annotations

import functools
import importlib.metadata
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from qedge import __version__
from qedge.config import Settings
from qedge.config import load as load_settings
from qedge.errors import InvalidJob, QEdgeError
from qedge.federated.run_folder import Json, RunFolder
from qedge.quantum.asked import QuantumJob
from qedge.quantum.progress import OnStep, Step, untold
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qnn.job import QNN
from qedge.quantum.qsvm.job import QSVM
from qedge.quantum.result import Result
from qedge.quantum.vqe.job import VQE
from qedge.records import Records
from qedge.registry.publisher import Publisher

if TYPE_CHECKING:
    from qedge.data.labelled import Labelled
    from qedge.quantum.execution import Executor

PUBLISH_TIMEOUT_S = 120.0
ANSWER = "attached/answer.json"
Study = Callable[..., Result]


@dataclass(frozen=True)
class QuantumRun:
    """A job that was carried out. published: whether the registry has it."""

    run_id: str
    result: Result
    folder: Path
    published: bool

    def plain(self) -> dict[str, JsonValue]:
        """As `--json` shows it."""
        return {"run": self.run_id, **self.result.plain()}


def solve(
    job: QuantumJob, *, workers: int = 0, settings: Settings | None = None, on_step: OnStep = untold, save: Path | None = None
) -> QuantumRun:
    """Carry out a quantum job and keep what came of it, as a run.

    job: a VQE, QAOA, QSVM or QNN; workers: quantum workers on Ray, 0 for this process; settings: default as the command line has them;
    on_step: told each step; save: of a QSVM, a new folder for a machine that is fitted on all rows, with its receipt.

    Raises:
        ScopeConflict: the rows that it uses have a privacy budget, which these jobs would void.
        Refused: the job cannot be carried out as asked; no run is left.
        QEdgeError: it failed; no run is left.

    Example:
        >>> solve(VQE(problem={"name": "H2"})).result.value
        -1.1372...
    """
    settings = settings or load_settings()
    if save is not None:
        _refuse_save(job, save)
    study, table = _study(job)
    with _executor(settings, workers) as executor:
        done = _carry_out(job, functools.partial(study, executor=executor), table.identity if table else (), settings, on_step)
    if save is not None and isinstance(job, QSVM) and table is not None:
        from qedge.runs.kernel_machine import keep

        keep(job, table, done.result, done.run_id, Records.open(settings.home), save)
    return done


def _refuse_save(job: QuantumJob, folder: Path) -> None:
    from qedge.runs.kernel_machine import refuse_place

    if not isinstance(job, QSVM):
        raise InvalidJob(f"a {type(job).__name__} leaves no model to save; accepted: QSVM", given=type(job).__name__)
    refuse_place(folder)


def _study(job: QuantumJob) -> tuple[Study, Labelled | None]:
    """What carries a job out, and the table whose rows it uses."""
    match job:
        case VQE():
            from qedge.quantum.vqe import study as vqe

            return functools.partial(vqe.run, job), None
        case QAOA():
            from qedge.quantum.qaoa import study as qaoa

            return functools.partial(qaoa.run, job), None
        case QNN():
            from qedge.quantum.qnn import study as qnn

            table = qnn.read(job)
            return functools.partial(qnn.run, job, table=table), table
        case QSVM():
            from qedge.quantum.qsvm import study as qsvm

            table = qsvm.read(job)
            return functools.partial(qsvm.run, job, table=table), table
        case _:
            raise InvalidJob(f"a {type(job).__name__} is no quantum job; accepted: VQE, QAOA, QSVM, QNN", given=type(job).__name__)


@contextmanager
def _executor(settings: Settings, workers: int) -> Iterator[Executor]:
    from qedge.quantum.execution import LocalExecutor

    if not workers:
        yield LocalExecutor()
        return
    (found,) = importlib.metadata.entry_points(group="qedge.executors", name="ray")
    with found.load()(settings, workers=workers) as executor:
        yield executor


def _carry_out(job: QuantumJob, study: Study, rows: Sequence[bytes], settings: Settings, on_step: OnStep) -> QuantumRun:
    """That rows are used without privacy goes on record before anything of the answer is told."""
    kind = type(job).__name__.lower()
    records = Records.open(settings.home)
    folder = RunFolder(settings.home, f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}")
    values: list[float] = []
    created_ms = time.time_ns() // 1_000_000

    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in rows)
    on_record = not prints

    def put_on_record() -> None:
        nonlocal on_record
        if not on_record:
            records.ledger.record_without_privacy(folder.run, prints)
            on_record = True

    def hear(step: Step) -> None:
        put_on_record()
        if step.value is not None:
            values.append(step.value)
        on_step(step)

    try:
        if prints:
            records.ledger.refuse_without_privacy(prints)
        result = study(on_step=hear)
        put_on_record()
    except QEdgeError as error:
        records.log.append("quantum.refused", kind=kind, code=error.code, reason=error.message)
        raise
    _write(folder, kind, job, result, created_ms, values)
    records.log.append("quantum.answered", run=folder.run, kind=kind, verdict=str(result.verdict))
    publisher = Publisher(settings, folder.run)
    return QuantumRun(folder.run, result, folder.path, publisher.finish(PUBLISH_TIMEOUT_S))


def _write(folder: RunFolder, kind: str, job: QuantumJob, result: Result, created_ms: int, values: list[float]) -> None:
    """The whole folder, under a hidden name until it is complete."""
    hidden = folder.concealed()
    place = hidden.path
    asked = job.model_dump(mode="json")
    params: Json = {f"{kind}.{key}": str(value) for key, value in asked.items() if value is not None}
    hidden.write("quantum.json", {"kind": kind, **asked})
    tags: Json = {"qedge.kind": kind, "qedge.code_version": __version__}
    hidden.write("run.json", {"run_id": folder.run, "name": kind, "created_ms": created_ms, "params": params, "tags": tags})
    for number, value in enumerate(values):
        hidden.append_metrics(number, created_ms + number, {"value": value})
    (place / "attached").mkdir(mode=0o700)
    result.save(place / ANSWER)
    taken = {name: float(amount) for name, amount in result.resources.plain().items()}
    metrics = {
        "value": result.value,
        "error": result.error,
        "baseline": result.baseline.value,
        "advantage": result.compared.advantage,
        **taken,
    }
    metrics |= {name: float(one) for name, one in result.details.items() if isinstance(one, int | float) and not isinstance(one, bool)}
    told = {"qedge.verdict": str(result.verdict), "qedge.quantity": result.quantity, "qedge.baseline": result.baseline.name}
    hidden.write("result.json", {"status": "finished", "metrics": dict(metrics), "tags": dict(told)})
    hidden.settle()
