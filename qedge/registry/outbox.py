"""What a run's folder holds for the registry, and how much of it has been published.

    run.json        who and with what: written once, at the start
    metrics.jsonl   a line a round; the last one may be torn
    result.json     how it ended; not there while it goes on, or goes on again
    model/          the model to register, complete or absent
    attached/       files that the registry keeps with the run as they are, complete or absent
    published.json  how far the registry has it; without it, publishing again reaches the same state

Runs write the first five and never waits; `publisher` reads them and writes the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from qedge.errors import UnknownRun
from qedge.storage import write_atomically


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RunRecord(_Record):
    """run.json: `created_ms` in milliseconds since the epoch."""

    run_id: str
    name: str
    created_ms: int
    params: dict[str, str] = {}
    tags: dict[str, str] = {}


class RoundRecord(_Record):
    """One line of metrics.jsonl."""

    round: int
    time_ms: int
    metrics: dict[str, float]


class ResultRecord(_Record):
    """result.json: `status` is finished, failed or refused; of a trial of a search also tried (to its end) or stopped."""

    status: str
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}


@dataclass(frozen=True)
class Published:
    """How far the registry has a run; `result` is the digest of the result.json that was published."""

    mlflow_run_id: str | None = None
    rounds: int = 0
    last_round: int = -1
    version: int | None = None
    result: str | None = None
    done: bool = False


_PUBLISHED = TypeAdapter(Published)


@dataclass(frozen=True)
class Outbox:
    """A run's folder as read at one moment; `rounds` in rising order."""

    path: Path
    run: RunRecord
    rounds: list[RoundRecord]
    result: ResultRecord | None
    result_digest: str | None
    result_ms: int

    @classmethod
    def read(cls, path: Path) -> Outbox:
        """The folder as it is now.

        Raises:
            UnknownRun: run.json or result.json cannot be read.
        """
        ended = path / "result.json"
        try:
            run = RunRecord.model_validate_json((path / "run.json").read_bytes())
            content = ended.read_bytes() if ended.exists() else None
            result = ResultRecord.model_validate_json(content) if content is not None else None
            result_ms = ended.stat().st_mtime_ns // 1_000_000 if content is not None else 0
        except (OSError, ValidationError) as error:
            raise UnknownRun(f"run {path.name} cannot be read: {error}", given=path.name) from None
        digest = hashlib.sha256(content).hexdigest() if content is not None else None
        return cls(path, run, _rounds(path / "metrics.jsonl"), result, digest, result_ms)

    @property
    def has_model(self) -> bool:
        """Whether there is a model to register: a run that failed registers none."""
        return self.result is not None and self.result.status == "finished" and (self.path / "model").is_dir()

    @property
    def attached(self) -> list[Path]:
        """Files to be kept with the run, once it has ended."""
        return sorted((self.path / "attached").glob("*"))

    def news(self, published: Published) -> list[RoundRecord]:
        """Rounds that the registry has not got."""
        return [line for line in self.rounds if line.round > published.last_round]

    def is_whole_in(self, published: Published) -> bool:
        """Whether the registry has everything that is here."""
        told = published.mlflow_run_id is not None and published.result == self.result_digest and not self.news(published)
        return told and (published.version is not None or not self.has_model)


def run_path(home: Path, run_id: str) -> Path:
    """The folder of a run that has begun.

    Raises:
        UnknownRun: there is none.
    """
    path = home / "runs" / run_id
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id) or not (path / "run.json").is_file():
        raise UnknownRun(f"no run '{run_id}' under {home / 'runs'}", given=run_id)
    return path


def read_published(path: Path) -> Published:
    """What published.json says; nothing when it is missing or unreadable, for publishing again changes nothing."""
    try:
        return _PUBLISHED.validate_json((path / "published.json").read_bytes())
    except (OSError, ValidationError):
        return Published()


def write_published(path: Path, published: Published) -> Published:
    """Replace published.json; returns what was given.

    Raises:
        StorageFull, HomeUnusable: it cannot be written.
    """
    write_atomically(path / "published.json", _PUBLISHED.dump_json(published))
    return published


def _rounds(path: Path) -> list[RoundRecord]:
    """The whole lines, by round; the first line of a round counts, for it may be published already.

    A line without its newline is still being written. A run that was killed while it wrote leaves a torn line that the
    next one may follow: it is passed over, for its round runs again.
    """
    rounds: dict[int, RoundRecord] = {}
    for line in (path.read_bytes() if path.exists() else b"").split(b"\n")[:-1]:
        with contextlib.suppress(ValidationError):
            record = RoundRecord.model_validate_json(line)
            rounds.setdefault(record.round, record)
    return [rounds[number] for number in sorted(rounds)]
