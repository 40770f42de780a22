"""One trial: a network of its own, measured before it is trained, trained a piece at a time, and turned into its rung."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from qedge.data.federation import Schema
from qedge.data.labelled import Labelled as Table
from qedge.edge.binary.encoding import fit_encoding
from qedge.edge.binary.module import BinaryModule, pack
from qedge.edge.binary.network import BinaryNetwork
from qedge.edge.binary.reading import architecture_of
from qedge.edge.building.build import MODEL, cleaned_graph, make_rung
from qedge.edge.building.choice import answers
from qedge.edge.building.graph import read, total_bytes, write
from qedge.edge.calibration import Labelled
from qedge.edge.compression.training import Course, Training
from qedge.edge.rung import Rows, RungName, Runner
from qedge.edge.search.job import EdgeSearch, network, rate_of, rung_of
from qedge.edge.session import OnnxRunner
from qedge.errors import EdgeError
from qedge.export import save_weights, to_onnx
from qedge.models import build, parameters_vector
from qedge.network import WEIGHTS
from qedge.search.space import Values
from qedge.storage import write_atomically

FILE = "trial.json"
Ended = Literal["to its end", "stopped", "over the limits", "failed"]
_CALLS = 200


@dataclass(frozen=True)
class Limits:
    """Most that a rung may take: milliseconds of one row, bytes of its file; None: any."""

    p50_ms: float | None = None
    file_bytes: int | None = None

    @classmethod
    def asked(cls, latency_ms: float | None, size_kb: float | None) -> Limits:
        """From milliseconds and kilobytes (1000 bytes).

        Raises:
            EdgeError: a limit that is not over 0.
        """
        for name, given in (("latency-ms", latency_ms), ("size-kb", size_kb)):
            if given is not None and not given > 0:
                raise EdgeError(f"--{name} is {given}; accepted: a number over 0", given=given)
        return cls(latency_ms, None if size_kb is None else int(1000 * size_kb))

    def against(self, p50_ms: float, file_bytes: int) -> str:
        """What is over, in words; nothing if it fits."""
        over = [f"{p50_ms:.4f} ms a row, over {self.p50_ms:g}"] if self.p50_ms is not None and p50_ms > self.p50_ms else []
        if self.file_bytes is not None and file_bytes > self.file_bytes:
            over.append(f"{file_bytes / 1000:.1f} kB, over {self.file_bytes / 1000:g}")
        return " and ".join(over)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. accuracy: of its rung on the rows that trials are chosen by; p50_ms: as it was measured beside other trials."""

    number: int
    values: Values
    ended: Ended
    steps: int
    accuracy: float | None
    p50_ms: float | None
    file_bytes: int | None
    reason: str = ""

    def write(self, folder: Path) -> None:
        """Put it on record, unless the trial's end is on record already."""
        if not (folder / FILE).exists():
            write_atomically(folder / FILE, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """How the trial of that folder ended; None while it has not."""
        path = folder / FILE
        return cls(**json.loads(path.read_bytes())) if path.exists() else None


@dataclass(frozen=True, eq=False)
class Parts:
    """A table in three parts: to train by, to choose trials by, and rows that nothing is decided by; and how features are scaled."""

    training: Labelled
    choosing: Labelled
    held: Labelled
    schema: Schema

    @classmethod
    def of(cls, table: Table, seed: int) -> Parts:
        """Three, one and one fifths of each label's rows; features scaled by the range of those that train."""
        order = np.random.default_rng(seed).permutation(len(table.labels))
        by_label = order[np.argsort(table.labels[order], kind="stable")]
        every = Labelled(table.features, table.labels)
        fifths = [np.sort(by_label[k::5]) for k in range(5)]
        training = every.part(np.sort(np.concatenate(fifths[:3])))
        low, high = training.rows.min(axis=0), training.rows.max(axis=0)
        spread = np.where(high > low, high - low, 1).astype(np.float32)
        schema = Schema(table.names, table.vocabulary, "given", low, spread, labels_declared=False)
        return cls(training, every.part(fifths[3]), every.part(fifths[4]), schema)

    def scaled(self, rows: Rows) -> torch.Tensor:
        """As a network takes them."""
        return torch.from_numpy((rows - self.schema.center) / self.schema.spread)


class Trial:
    """A trial that goes on. Its files lie in `folder`: the graph, its weights, and in `rung/` the rung's."""

    def __init__(self, asked: EdgeSearch, number: int, rows: Parts, folder: Path) -> None:
        self.number, self.values = number, asked.points()[number - 1]
        self.rung: RungName = rung_of(self.values)
        self.steps = 0
        self._asked, self._rows, self._folder = asked, rows, folder
        module = build(network(self.values), len(rows.schema.features), len(rows.schema.labels), asked.seed + number)
        course = Course(steps=asked.steps, learning_rate=rate_of(self.values), batch=asked.batch)
        labels = torch.from_numpy(rows.training.labels)
        self._training = Training(module, rows.scaled(rows.training.rows), labels, course, asked.seed + number)

    @property
    def over(self) -> bool:
        """Whether it has been trained to its end."""
        return self.steps >= self._asked.steps

    def cost(self) -> tuple[float, int]:
        """p50 of a row in milliseconds and bytes on disk of the rung, with weights as they are drawn: they do not tell."""
        runner, size = self._made(trained=False)
        try:
            return median_ms(runner, self._rows.choosing.rows[:1]), size
        finally:
            runner.close()

    def advance(self) -> float:
        """Train on to the next comparison; the accuracy there, of FP32 on the way and of the rung at the end."""
        piece = -(-self._asked.steps // self._asked.checks)
        self._training.advance(piece)
        self.steps = min(self.steps + piece, self._asked.steps)
        if not self.over:
            with torch.no_grad():
                found = self._training.module(self._rows.scaled(self._rows.choosing.rows)).argmax(1).numpy()
            return float((found == self._rows.choosing.labels).mean())
        runner, _ = self._made(trained=True)
        try:
            return float((answers(runner, self._rows.choosing.rows).argmax(axis=1) == self._rows.choosing.labels).mean())
        finally:
            runner.close()

    def outcome(self, ended: Ended, accuracy: float | None, cost: tuple[float, int] | None, reason: str = "") -> Outcome:
        """How it ended."""
        p50_ms, file_bytes = cost or (None, None)
        return Outcome(self.number, self.values, ended, self.steps, accuracy, p50_ms, file_bytes, reason)

    def _made(self, *, trained: bool) -> tuple[Runner, int]:
        """The rung of the network as it is now, loaded, and its bytes on disk."""
        module, rows = self._training.module, self._rows
        place = self._folder / "rung"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        to_onnx(module, rows.schema, self._folder / MODEL)
        save_weights(parameters_vector(module), module, self._folder / WEIGHTS)
        clean = cleaned_graph(read(self._folder / MODEL))
        if self.rung == "binary" and not trained:
            return self._unlearnt(clean, place)
        reference = write(clean, place, "fp32")
        runner = OnnxRunner.load(place / "fp32.onnx", prepacked=True)
        if self.rung == "fp32":
            return runner, total_bytes(place, reference)
        made = make_rung(self.rung, clean, rows.training, runner, place, training=trained)
        runner.close()
        for name in reference:
            (place / name).unlink()
        return made.runner, total_bytes(place, made.files)

    def _unlearnt(self, clean: onnx.ModelProto, place: Path) -> tuple[Runner, int]:
        rows, classes = self._rows.training.rows, len(self._rows.schema.labels)
        evenly = np.full((len(rows), classes), 1 / classes, dtype=np.float32)
        encoding = fit_encoding(lambda some: evenly[: len(some)], rows)
        pack(BinaryModule(architecture_of(clean), encoding, self._asked.seed).eval()).save(place / "binary.npz")
        return BinaryNetwork.load(place / "binary.npz"), total_bytes(place, ("binary.npz",))


def load_rung(folder: Path, rung: RungName) -> Runner:
    """The rung of a trial that went to its end."""
    if rung == "binary":
        return BinaryNetwork.load(folder / "rung" / "binary.npz")
    return OnnxRunner.load(folder / "rung" / f"{rung}.onnx", prepacked=True)


def median_ms(runner: Runner, row: Rows, calls: int = _CALLS) -> float:
    """Milliseconds that a call with one row takes, the median."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        runner.run(row)
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))
