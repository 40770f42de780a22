"""The life of an edge search: begun, its trials carried out by whoever has CPUs, the front measured again alone, the best one registered.

searches/<search>/          0700
  edge_search.json          what was asked, and the limits: written once, before anything is computed
  trials/<number>/          a trial's network and rung; trial.json once it has ended, whichever way
  result.json, front.png    what came of it
A trial that had not ended when the search was cut off begins again when it is gone on with; those that had are not trained again.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from qedge import __version__
from qedge.audit import receipt
from qedge.audit.canonical import canonical
from qedge.config import Settings
from qedge.data.labelled import Labelled as Table
from qedge.data.labelled import read
from qedge.edge.building.choice import answers
from qedge.edge.card import wilson
from qedge.edge.search.front import Point, best, front, nearest, picture
from qedge.edge.search.job import EdgeSearch, network, rung_of
from qedge.edge.search.trial import Limits, Outcome, Parts, load_rung, median_ms
from qedge.errors import CheckpointTampered, Failed, InvalidCalibration, NoRungFits, RegistryUnavailable, ScopeConflict, UnknownRun
from qedge.errors import nearest as nearest_name
from qedge.federated.run_folder import Json, RunFolder, data_digest, mapping
from qedge.network import CARD, WEIGHTS, network_card
from qedge.records import Records
from qedge.registry.publisher import publish
from qedge.registry.registry import MODEL_FILE
from qedge.registry.searches import SearchRecord, close_parent
from qedge.runs.plain_receipt import issue_plain
from qedge.search.space import shown
from qedge.storage import locked, sync_folder, write_atomically

ASKED = "edge_search.json"
TRUST_MODEL = "Whoever runs the search sees the rows."
_LEAST_ROWS = 5  # of each label, so that every part of the table has one
_TURNS = 7
_STATUS = {"to its end": "tried", "stopped": "stopped", "over the limits": "stopped", "failed": "failed"}
_FILES = (MODEL_FILE, WEIGHTS, CARD)
_LOCK_TIMEOUT_S = 2.0
Told = Callable[[str], None]


@dataclass(frozen=True)
class EdgeSearchResult:
    """What a search came to. points: trials that went to their end; ended: how many ended in which way.

    version: of the best one's network in the registry, None while it is not published; front: the picture.
    """

    search: str
    model: str
    best: Point
    points: list[Point]
    ended: dict[str, int]
    version: int | None
    published: bool
    front: str

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return asdict(self)


class EdgeSearchUnderWay:
    """A search of a home."""

    def __init__(self, settings: Settings, search: str, record: Json) -> None:
        self.settings, self.id = settings, search
        self.path = settings.home / "searches" / search
        self.asked = EdgeSearch.parse(mapping(record["asked"]))
        self.limits = Limits(**mapping(record["limits"]))  # type: ignore[arg-type]
        self.created_ms = int(str(record["created_ms"]))
        self._data = str(record["data"])

    def table(self) -> Table:
        """The rows, which must be those that the search began with.

        Raises:
            ScopeConflict: they are others. And as `labelled.read`.
        """
        table, records = read(self.asked.source, self.asked.label), Records.open(self.settings.home)
        if _digest(table, records) != self._data:
            raise ScopeConflict(f"{self.asked.source} has other rows now than search {self.id} began with; begin a new one", search=self.id)
        return table

    def folder(self, number: int) -> Path:
        """Of a trial."""
        return self.path / "trials" / f"{number:04}"

    def left(self) -> list[int]:
        """Trials that have not ended."""
        return [number for number in range(1, self.asked.trials + 1) if self.outcome(number) is None]

    def outcome(self, number: int) -> Outcome | None:
        """How a trial ended; None while it has not."""
        return Outcome.read(self.folder(number))

    def finish(self, told: Told = lambda _: None) -> EdgeSearchResult:
        """Measure what went to its end again, alone; keep the front, register the best one's network; can be repeated.

        Raises:
            Failed: no trial went to its end. NoRungFits: none is within the limits; all of it is on record.
        """
        with locked(self.path / "lock", timeout_s=_LOCK_TIMEOUT_S):
            outcomes = [found for number in range(1, self.asked.trials + 1) if (found := self.outcome(number)) is not None]
            ended = {how: sum(one.ended == how for one in outcomes) for how in _STATUS}
            table = self.table()
            points = self._kept() or self._measured(outcomes, table, told)
            chosen = best(points)
            write_atomically(self.path / "front.png", picture(f"{self.asked.name}: {len(points)} trials", points, self.limits.p50_ms))
            told("writing down")
            for one in outcomes:
                self._write_run(one, points, chosen, table)
            write_atomically(self.path / "result.json", json.dumps([asdict(point) for point in points], indent=1).encode())
            version, published = self._publish(outcomes, points, chosen)
        if chosen is None:
            close = nearest(points, self.limits.p50_ms, self.limits.file_bytes)
            raise NoRungFits(
                f"search {self.id}: no trial is within the limits; nearest: {shown(close.values)} with {close.over}",
                search=self.id,
                nearest=close.number,
            )
        return EdgeSearchResult(self.id, self.asked.name, chosen, points, ended, version, published, str(self.path / "front.png"))

    def run(self, number: int) -> str:
        """The run that shows a trial in MLflow."""
        return f"{self.id}-{number:04}"

    def _kept(self) -> list[Point]:
        """What `finish` measured before."""
        path = self.path / "result.json"
        kept = json.loads(path.read_bytes()) if path.exists() else []
        return [Point(**(one | {"interval": tuple(one["interval"])})) for one in kept]

    def _measured(self, outcomes: list[Outcome], table: Table, told: Told) -> list[Point]:
        through = [one for one in outcomes if one.ended == "to its end"]
        over = [one for one in outcomes if one.ended == "over the limits"]
        if not through and over:
            least = min(over, key=lambda one: one.p50_ms or 0.0)
            raise NoRungFits(
                f"search {self.id}: no trial is within the limits; the fastest: {shown(least.values)} with {least.reason}",
                search=self.id,
                nearest=least.number,
            )
        if not through:
            raise Failed(f"search {self.id}: no trial went to its end; give looser limits, or another space", search=self.id)
        told(f"measuring {len(through)} trials in turns")
        held = Parts.of(table, self.asked.seed).held
        runners = {one.number: load_rung(self.folder(one.number), rung_of(one.values)) for one in through}
        taken = dict.fromkeys(runners, math.inf)
        for _ in range(_TURNS):
            for number, runner in runners.items():
                taken[number] = min(taken[number], median_ms(runner, held.rows[:1]))
        points = []
        for one in through:
            right = int((answers(runners[one.number], held.rows).argmax(axis=1) == held.labels).sum())
            runners[one.number].close()
            assert one.accuracy is not None
            assert one.file_bytes is not None
            said = self.limits.against(taken[one.number], one.file_bytes)
            interval = wilson(right, len(held))
            points.append(Point(one.number, one.values, one.accuracy, right / len(held), interval, taken[one.number], one.file_bytes, said))
        unbeaten = front(points)
        return [replace(point, on_front=point.number in unbeaten) for point in points]

    def _write_run(self, one: Outcome, points: list[Point], chosen: Point | None, table: Table) -> None:
        """A trial's run folder for the registry, unless it is there; the best one's has the model."""
        folder = RunFolder(self.settings.home, self.run(one.number))
        if folder.path.exists():
            return
        shutil.rmtree(folder.path.with_name(f".{folder.run}"), ignore_errors=True)  # of a process that was killed
        hidden = folder.concealed()
        is_best = chosen is not None and chosen.number == one.number
        point = next((point for point in points if point.number == one.number), None)
        params: Json = {f"trial.{name}": str(value) for name, value in one.values.items()}
        tags: Json = {"qedge.kind": "edge trial", "qedge.search": self.id, "qedge.code_version": __version__}
        hidden.write("edge_trial.json", {"search": self.id, **asdict(one)})
        hidden.write(
            "run.json", {"run_id": folder.run, "name": self.asked.name, "created_ms": self.created_ms, "params": params, "tags": tags}
        )
        said = asdict(point) if point else asdict(one)
        metrics: Json = {name: value for name, value in said.items() if isinstance(value, int | float) and name != "number"}
        ended: Json = {"qedge.ended": one.ended, "qedge.reason": one.reason or (point.over if point else "")}
        if is_best:
            ended["qedge.receipt_id"] = self._write_model(one, hidden, table).id
        status = "finished" if is_best else _STATUS[one.ended]
        hidden.write("result.json", {"status": status, "metrics": metrics, "tags": ended})
        hidden.settle()

    def _write_model(self, one: Outcome, folder: RunFolder, table: Table) -> receipt.Receipt:
        place, records = folder.model, Records.open(self.settings.home)
        place.mkdir(mode=0o700)
        for name in (MODEL_FILE, WEIGHTS):
            shutil.copy(self.folder(one.number) / name, place)
        said: dict[str, JsonValue] = {
            "model": self.asked.name,
            "run": folder.run,
            "input": "send features as they are in the table; the graph scales them by the ranges of the rows that it was trained by",
        }
        schema = Parts.of(table, self.asked.seed).schema
        write_atomically(place / CARD, canonical(said | network_card(network(one.values), schema)))
        covered: receipt.Covered = "public by declaration" if self.asked.public else "NOT COVERED"
        uses = [
            receipt.Use(what="training and scaling", covered=covered, note="three fifths of the rows"),
            receipt.Use(what="choosing among trials", covered=covered, note=f"{self.asked.trials} trials, by a fifth of the rows"),
        ]
        artifacts = receipt.artifact_digests(place, _FILES)
        asked = self.asked.plain()
        issued = issue_plain(self.asked.name, folder.run, asked, self.asked.source, table, uses, TRUST_MODEL, artifacts, records)
        issued.write(place / receipt.FILE)
        return issued

    def _publish(self, outcomes: list[Outcome], points: list[Point], chosen: Point | None) -> tuple[int | None, bool]:
        asked = self.asked.plain()
        space = {f"space.{name}": json.dumps(values) for name, values in mapping(asked.pop("space")).items()}
        params = space | {name: str(value) for name, value in {**asked, **asdict(self.limits)}.items()}
        metrics = {"trials_on_the_front": float(sum(point.on_front for point in points))}
        tags = {"qedge.search_of": "edge"}
        if chosen is not None:
            metrics |= {"best_accuracy": chosen.accuracy, "best_p50_ms": chosen.p50_ms, "best_file_bytes": float(chosen.file_bytes)}
            tags |= {"qedge.best_run": self.run(chosen.number), "qedge.best_values": json.dumps(chosen.values)}
        record, files = SearchRecord(self.id, self.created_ms, params), [self.path / "front.png", self.path / "result.json"]
        try:
            version = None if chosen is None else publish(self.settings, self.run(chosen.number)).version
            runs = [self.run(one.number) for one in outcomes]
            close_parent(self.settings, record, runs, metrics=metrics, tags=tags, files=files)
        except RegistryUnavailable:
            return None, False
        return version, True


def begin(asked: EdgeSearch, limits: Limits, settings: Settings) -> EdgeSearchUnderWay:
    """A new search, on record, and with it that its rows are used without privacy.

    Raises:
        ScopeConflict: the rows have a privacy budget, which a search would void. InvalidCalibration: too few rows of a label.
        DataNotFound, InvalidValue, DataError, LabelMismatch: as `labelled.read`.
    """
    table = read(asked.source, asked.label)
    _refuse_few(table)
    records = Records.open(settings.home)
    prints = frozenset(records.keys.mac("fingerprint", message).hex() for message in table.identity)
    records.ledger.refuse_without_privacy(prints)
    search = f"{asked.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    path = settings.home / "searches" / search
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700)
    sync_folder(path.parent)
    record: Json = {"asked": asked.plain(), "limits": {**asdict(limits)}, "created_ms": time.time_ns() // 1_000_000}
    record["data"] = _digest(table, records)
    records.ledger.record_without_privacy(search, prints)
    write_atomically(path / ASKED, json.dumps(record, indent=1).encode())
    records.log.append("search.began", search=search, trials=asked.trials, epsilon_at_most="without privacy")
    return EdgeSearchUnderWay(settings, search, record)


def resume(search: str, settings: Settings) -> EdgeSearchUnderWay:
    """A search that was cut off.

    Raises:
        UnknownRun: no such search; the nearest is offered. CheckpointTampered: its record is not what was written.
    """
    known = [path.parent.name for path in (settings.home / "searches").glob(f"*/{ASKED}")]
    if search not in known:
        raise UnknownRun(f"no edge search '{search}'; {nearest_name(search, known) if known else 'there are none'}", search=search)
    path = settings.home / "searches" / search / ASKED
    try:
        return EdgeSearchUnderWay(settings, search, mapping(json.loads(path.read_bytes())))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointTampered(f"{path} is not what was written: {error}", path=str(path)) from None


def _digest(table: Table, records: Records) -> str:
    return data_digest(frozenset(records.keys.mac("fingerprint", message).hex() for message in table.identity), records.keys)


def _refuse_few(table: Table) -> None:
    for place, label in enumerate(table.vocabulary):
        rows = int((table.labels == place).sum())
        if rows < _LEAST_ROWS:
            raise InvalidCalibration(f"label {label!r} has {rows} rows; accepted: {_LEAST_ROWS} or more of each", given=rows)
