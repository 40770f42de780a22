"""The folder of one run: where each of its files lies, and how its plain ones are written and read.

runs/<run>/                 0700
  job.json                  the job as it was asked for; query.json, quantum.json or compression.json of what is no training job
  record.json               what was decided once: kernel, chunk size, versions, plan of the privacy cost
  secret.key                the run's key, 0600 (cohorts, batches, rounding)
  releases.wal              noised sums not yet covered by the checkpoint
  checkpoint                the state after the last round it covers
  metrics.jsonl             one line a round; run.json and result.json: what the registry mirrors
  starts.json               while it trains on Ray: how often its coordinator has started since a round was last done
  model/                    model.onnx, weights.safetensors, receipt.json, card.json: complete or absent
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from pathlib import Path

from pydantic import JsonValue

from qedge.audit.canonical import digest
from qedge.errors import CheckpointTampered, UnknownRun, nearest
from qedge.federated.guarantee import Guarantee, read_guarantee
from qedge.federated.randomness import RunKey
from qedge.job import Query, TrainingJob
from qedge.security.keys import Keys
from qedge.storage import storage_errors, sync_folder, write_atomically

Json = dict[str, JsonValue]
KEY_BYTES = 32
JOB, QUERY = "job.json", "query.json"
AT_ONCE = {
    "quantum.json": "a quantum job",
    "compression.json": "a compression",
    "edge_trial.json": "a trial of an edge search",
}  # what is carried out at once, without rounds


class RunFolder:
    """One run's folder."""

    def __init__(self, home: Path, run: str) -> None:
        self.run = run
        self.path = home / "runs" / run
        self.checkpoint = self.path / "checkpoint"
        self.releases = self.path / "releases.wal"
        self.metrics = self.path / "metrics.jsonl"
        self.model = self.path / "model"

    @classmethod
    def create(cls, home: Path, job: TrainingJob | Query) -> RunFolder:
        """A new folder with what is asked and the key in it: `<name>-<time>-<random>`; hidden until `settle`, as it is not whole yet."""
        run = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        folder = cls(home, run)
        folder.path = home / "runs" / f".{run}"
        folder.path.mkdir(mode=0o700)
        key = RunKey.from_seed(job.seed) if job.privacy is None else RunKey(secrets.token_bytes(KEY_BYTES))
        write_atomically(folder.path / "secret.key", key.secret)
        folder.write(JOB if isinstance(job, TrainingJob) else QUERY, job.plain())
        return folder

    @classmethod
    def open(cls, home: Path, run: str) -> RunFolder:
        """The folder of a run that exists.

        Raises:
            UnknownRun: there is none; the message offers the nearest.
        """
        folder = cls(home, run)
        if not any((folder.path / name).exists() for name in (JOB, QUERY, *AT_ONCE)):
            raise UnknownRun(f"no run '{run}' under {home / 'runs'}; {nearest(run, run_ids(home)) or 'there are none'}", run=run)
        return folder

    def concealed(self) -> RunFolder:
        """The folder under a hidden name, new, for what is written whole before it is seen: `settle` shows it."""
        hidden = RunFolder(self.path.parent.parent, self.run)
        hidden.path = self.path.with_name(f".{self.run}")
        hidden.metrics, hidden.model = hidden.path / "metrics.jsonl", hidden.path / "model"
        hidden.path.mkdir(mode=0o700, parents=True)
        return hidden

    def settle(self) -> RunFolder:
        """Put a folder that is whole now in its place."""
        place = self.path.with_name(self.run)
        with storage_errors(place):
            self.path.rename(place)
            sync_folder(place.parent)
        return RunFolder(place.parent.parent, self.run)

    def remove(self) -> None:
        """Delete the folder of a run that was refused before it began."""
        shutil.rmtree(self.path)

    @property
    def is_query(self) -> bool:
        """Whether it asks for statistics, and trains nothing."""
        return (self.path / QUERY).exists()

    @property
    def at_once(self) -> str | None:
        """What it is, if it was carried out at once and has no rounds, such as a quantum job."""
        return next((what for name, what in AT_ONCE.items() if (self.path / name).exists()), None)

    def job(self) -> TrainingJob:
        """The job that was asked for.

        Raises:
            UnknownRun: it is a query, or has no rounds.
        """
        self._refuse_at_once()
        if self.is_query:
            raise UnknownRun(f"run '{self.run}' is a query and trains nothing; go on with it by `qedge query --resume`", run=self.run)
        return TrainingJob.parse(self.read(JOB))

    def query(self) -> Query:
        """The query that was asked.

        Raises:
            UnknownRun: it is a training job.
        """
        self._refuse_at_once()
        if not self.is_query:
            raise UnknownRun(f"run '{self.run}' trains a model; go on with it by `qedge train --resume`", run=self.run)
        return Query.parse(self.read(QUERY))

    def _refuse_at_once(self) -> None:
        if self.at_once is not None:
            raise UnknownRun(f"run '{self.run}' is {self.at_once}; it has no rounds to go on with", run=self.run)

    def asked(self) -> Json | None:
        """The job or the query, as it was put on record."""
        return self.read(QUERY if self.is_query else JOB)

    def key(self) -> RunKey:
        """The run's key.

        Raises:
            CheckpointTampered: it is gone, not whole, or others may read it.
        """
        path = self.path / "secret.key"
        if not path.is_file() or path.stat().st_mode & 0o077 or len(secret := path.read_bytes()) != KEY_BYTES:
            raise CheckpointTampered(f"{path} is not a run's key that only its owner may read (0600, {KEY_BYTES} bytes)", path=str(path))
        return RunKey(secret)

    def read(self, name: str) -> Json | None:
        """A JSON file of the folder, or None when it is not there.

        Raises:
            CheckpointTampered: it is not what was written.
        """
        try:
            return mapping(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CheckpointTampered(f"{self.path / name} is not what was written: {error}", path=str(self.path / name)) from None

    def write(self, name: str, values: Json) -> None:
        """Replace a JSON file of the folder."""
        write_atomically(self.path / name, json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")

    def finished(self) -> Json | None:
        """The result of a run that ended well, else None."""
        result = self.read("result.json")
        return result if result is not None and result["status"] == "finished" else None

    def trial(self) -> Json | None:
        """Of a trial of a search: `search`, its id; `trial`, the number in it; `told`, what the receipt says of it. None for other runs."""
        record = self.read("record.json") or {}
        return mapping(record["search"]) if "search" in record else None

    def forget_failure(self) -> None:
        """Drop the result of an attempt that failed: another begins."""
        result = self.read("result.json")
        if result is not None and result["status"] == "failed":
            (self.path / "result.json").unlink()

    def append_metrics(self, round_number: int, time_ms: int, metrics: dict[str, float]) -> None:
        """One more round for the registry to mirror."""
        line = json.dumps({"round": round_number, "time_ms": time_ms, "metrics": metrics}).encode() + b"\n"
        with storage_errors(self.metrics), open(self.metrics, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(line)

    def metrics_by_round(self, *, cut: bool = False) -> dict[int, dict[str, float]]:
        """What was measured after each round so far, without a torn last line; cut: take that off the file; for the one who writes it.

        Raises:
            CheckpointTampered: a line is not what was written.
        """
        if not self.metrics.exists():
            return {}
        content = self.metrics.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if cut and len(whole) < len(content):
            os.truncate(self.metrics, len(whole))
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            return {row["round"]: row["metrics"] for row in rows}
        except (ValueError, TypeError, KeyError):
            raise CheckpointTampered(f"{self.metrics} is not what was written", path=str(self.metrics)) from None


def terms_digest(folder: RunFolder) -> str:
    """Digest of the job, of what was decided with it and of the run's key (through a child that tells nothing of it).

    The ledger's plan names it, so none of the three can be changed afterwards.
    """
    key = folder.key().derive("terms").secret.hex()
    return digest({"job": repr(folder.asked()), "record": repr(folder.read("record.json")), "key": key})


def data_digest(prints: frozenset[str], keys: Keys) -> str:
    """Keyed digest of the very data of a run, by their fingerprints, hex: the record names it, and so does the receipt."""
    return keys.mac("data", "".join(sorted(prints)).encode()).hex()


def recorded_guarantee(folder: RunFolder) -> Guarantee | None:
    """The guarantee on record, or None for a run without privacy."""
    record = folder.read("record.json")
    return read_guarantee(mapping(record["guarantee"])) if record and record["guarantee"] else None


def mapping(value: JsonValue) -> Json:
    """A JSON value that must be a mapping, as one."""
    if not isinstance(value, dict):
        raise TypeError(f"expected a mapping on record, found {type(value).__name__}")
    return value


def run_ids(home: Path) -> list[str]:
    """All runs of a home, oldest first."""
    asked = [path for name in (JOB, QUERY, *AT_ONCE) for path in (home / "runs").glob(f"[!.]*/{name}")]
    return [path.parent.name for path in sorted(asked, key=lambda path: path.stat().st_mtime_ns)]
