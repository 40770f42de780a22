"""An engine for one node: models by name, each answered by the cheapest of its rungs that will do, under one budget of bytes.

    with EdgeEngine(budget_bytes=64 << 20) as engine:
        engine.add("digits", Path("ladder"), Requirement(accuracy=0.96))
        answer = engine.infer("digits", rows)

Rungs are loaded when they are first asked for. Now and then, beside the calls, the choice is looked at again: by the bytes that are free
and by how long calls take beside what the card says. Rows go through a rung at most 32 at a time, the largest batch that the card was
measured with, so that what a call takes of memory was measured too.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qedge.edge.calls import Call, Calls, Record, slowdown
from qedge.edge.card import BATCHES, Card, Cost, RungCard
from qedge.edge.cascade import Cascade, against
from qedge.edge.ladder import Ladder
from qedge.edge.memory import HOT_S, PATIENCE_S, Key, Memory, Resident
from qedge.edge.node import cascade_here, own_card
from qedge.edge.rung import Rows, RungName, Runner
from qedge.edge.selector import Choice, Load, Requirement, choose
from qedge.errors import InvalidRequest, OverBudget, PrivacyError, QEdgeError, UnknownModel, nearest
from qedge.monitoring.metrics import ignore

REVIEW_S = 1.0
_RUNTIME_BYTES = 1 << 29  # compilers and libraries that a process loads once; what they take is no model's
_STACK_BYTES = 8 << 20  # of each thread beyond the first
_FLOAT32 = np.dtype(np.float32)


class Answer(NamedTuple):
    """probabilities: [rows, classes] float32. rung: that answered; escalated: rows that went on to a dearer one.

    receipt: id of the rung's receipt; of the ladder's, which covers all rungs, where rows went on. labels: of the classes.
    """

    probabilities: Rows
    rung: RungName
    receipt: str
    escalated: int
    labels: tuple[str | int, ...]

    @property
    def label(self) -> list[str | int]:
        """The likeliest label of each row."""
        return [self.labels[place] for place in self.probabilities.argmax(axis=1)]


@dataclass(frozen=True)
class Explanation:
    """Why a model is answered as it is. cascade: the one in use; cascade_off: why one that was given is not."""

    model: str
    version: str
    requirement: Requirement
    choice: Choice
    load: Load
    cascade: Cascade | None
    cascade_off: str

    def __str__(self) -> str:
        lines = [f"{self.model}/{self.version} is answered by {self.choice.rung}; required: {self.requirement}"]
        if self.cascade is not None:
            one = self.cascade
            lines.append(f"  unsure rows, {one.share:.1%} of them, go on to {one.dear}: {one.cost_ms:.3g} ms a row, not {one.dear_ms:.3g}")
        lines += [f"  no cascade: {self.cascade_off}"] * bool(self.cascade_off)
        return "\n".join([*lines, *(f"  not {rung}: {reason}" for rung, reason in self.choice.passed.items())])


@dataclass(eq=False)
class _Model:
    name: str
    ladder: Ladder
    card: Card
    requirement: Requirement
    cascade: Cascade | None
    cascade_off: str
    refused: dict[RungName, str]  # and what by rows that nothing covers
    lock: threading.RLock = field(default_factory=threading.RLock)  # to choose and load
    added: Explanation | None = None
    choice: Choice | None = None
    resident: Resident | None = None
    dear: Resident | None = None
    slowdown: float = 1.0
    gone: bool = False


class EdgeEngine:
    """Models under a budget of bytes. For several threads at once."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        home: Path | None = None,
        record: Record = ignore,
        patience_s: float = PATIENCE_S,
        review_s: float = REVIEW_S,
        growing: Callable[[int], None] | None = None,
        covered_only: bool = False,
    ) -> None:
        """home: where measured cards are kept; record: takes metrics; patience_s: how long a load may wait for calls to end.

        covered_only: never answer by a rung that owes to rows which nothing covers.

        growing: told before a load how many bytes it may map and take, and 0 after it; given one, no thread is started, whose stack counts.

        Raises:
            EdgeError: a budget that is no number of bytes over 0.
        """
        self._memory = Memory(budget_bytes, patience_s=patience_s, evicted=self._evicted)
        self._home, self._record, self._review_s = home, record, review_s
        self._growing, self._behind = growing or (lambda _: None), growing is None
        self._covered_only = covered_only
        self._models: dict[str, _Model] = {}
        self._calls = Calls(record)
        self._due = time.perf_counter() + review_s
        self._naming, self._reviewing = threading.Lock(), threading.Lock()
        record("qedge_edge_budget_bytes", budget_bytes)

    def __enter__(self) -> EdgeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        name: str,
        ladder: Ladder | Path,
        requirement: Requirement | None = None,
        *,
        card: Card | None = None,
        cascade: Cascade | None = None,
    ) -> Explanation:
        """Answer for `name` by this ladder from now on; a call that has begun ends on the ladder that it began with.

        card: of this machine; without it the kept one, or the rungs are measured now, which takes seconds for each. cascade: likewise.

        Raises:
            NoRungFits: no rung meets the requirement. OverBudget: none that does fits in the whole budget.
            PrivacyError: every rung owes to rows that nothing covers, and this engine answers by none such.
            UnknownModel, Tampered: as `Ladder.open`. UnknownRung: the cascade is of rungs that the ladder has not.
        """
        opened = Ladder.open(ladder) if isinstance(ladder, Path) else ladder
        refused = opened.uncovered() if self._covered_only else {}
        filled = _covered(_cautious(own_card(opened, self._home, card)), refused)
        asked = requirement or Requirement()
        choice = choose(filled, asked, Load(self._memory.budget))
        if cascade is None:
            cascade = cascade_here(self._home, opened, filled, covered_only=self._covered_only)
        off = "" if cascade is None else against(cascade, filled, asked, self._memory.budget)
        model = _Model(name, opened, filled, asked, None if off else cascade, off, refused)
        model.added = _explained(model, self._as_used(model, choice), Load(self._memory.budget))
        with self._naming:
            before, self._models[name] = self._models.get(name), model
        self._retire(before)
        return model.added

    def remove(self, name: str, added: Explanation | None = None) -> None:
        """Answer for `name` no more; calls that have begun end. added: only if this is still what `add` put there.

        Raises:
            UnknownModel: there is none of that name.
        """
        with self._naming:
            model = self._models.get(name)
            if model is not None and (added is None or model.added is added):
                del self._models[name]
        if added is not None and (model is None or model.added is not added):
            return
        if model is None:
            raise self._unknown(name)
        self._retire(model)

    def infer(self, name: str, rows: Rows) -> Answer:
        """Probabilities and labels of rows [n, F] float32, n >= 1.

        Raises:
            UnknownModel: no model of that name. InvalidRequest: rows of another type, shape, or not finite.
            OverBudget: no rung that will do fits beside what is in use. Failed: the rung could not be run.
            ArtifactTampered, ModelError: a rung could not be loaded.
        """
        began = time.perf_counter()
        model = self._models.get(name)
        try:
            if model is None:
                raise self._unknown(name)
            refuse_rows(rows, model.card.features)
            answer, running = self._answer(model, rows)
        except QEdgeError as error:
            self._record("qedge_edge_refusals_total", 1, model="" if model is None else name, code=error.code)
            raise
        ended = time.perf_counter()
        self._calls.note(Call(name, answer.rung, len(rows), answer.escalated, ended - began, running))
        if ended > self._due:
            self._due = ended + self._review_s
            if self._behind:
                threading.Thread(target=self.review, name="qedge-edge-review").start()
            else:
                self.review()
        return answer

    def explain(self, name: str) -> Explanation:
        """Which rung answers, and why each other does not.

        Raises:
            UnknownModel: no model of that name. OverBudget: nothing that will do fits.
        """
        model = self._models.get(name)
        if model is None:
            raise self._unknown(name)
        choice, load = self._chosen(model)
        return _explained(model, self._as_used(model, choice), load)

    def takes_ms(self, name: str) -> float:
        """What a row of this model takes now, by the card; infinity where a rung has to be loaded first, or there is no such model."""
        model = self._models.get(name)
        resident = None if model is None else model.resident
        if model is None or resident is None or resident.leaving:
            return math.inf
        cost = model.card[resident.key[1]].cost
        return math.inf if cost is None else cost.latency[1].p50_ms

    @property
    def loaded(self) -> dict[str, dict[RungName, int]]:
        """Bytes charged to each loaded rung, by model and rung; two models of one ladder share its rungs."""
        found = self._memory.loaded
        models = list(self._models.items())
        by_model = {name: {rung: took for (id_, rung), took in found.items() if id_ == one.ladder.id} for name, one in models}
        return {name: rungs for name, rungs in by_model.items() if rungs}

    @property
    def charged_bytes(self) -> int:
        """Of the budget, what is taken."""
        return self._memory.charged

    def review(self) -> None:
        """Record what happened since the last time, and look at each choice again. `infer` has it done every second or so, in a thread
        of its own: while a better rung is loaded, callers are answered by the one that is there."""
        if not self._reviewing.acquire(blocking=False):
            return
        try:
            self._due = time.perf_counter() + self._review_s
            calls = self._calls.tell(self.loaded)
            for model in [self._models[name] for name in {call.model for call in calls} & self._models.keys()]:
                model.slowdown = slowdown(model.card, [call for call in calls if call.model == model.name])
                self._choose_again(model)
        finally:
            self._reviewing.release()

    def close(self) -> None:
        """Let go of every model."""
        with self._reviewing:  # what is being loaded is there, and goes with the rest
            pass
        self.review()
        for name in list(self._models):
            self.remove(name)
        self._memory.close()

    def _answer(self, model: _Model, rows: Rows) -> tuple[Answer, float]:
        """The answer, and the seconds that the rung took for it."""
        resident = model.resident
        if resident is None or not self._memory.hold(resident):
            resident = self._load(model)
        try:
            began = time.perf_counter()
            probabilities = _run(resident.runner, rows)
            running = time.perf_counter() - began
        finally:
            self._memory.release(resident)
            if model.gone:
                self._retire(model)
        rung, escalated = resident.key[1], 0
        if model.cascade is not None and rung == model.cascade.cheap:
            escalated = self._escalate(model, model.cascade, rows, probabilities)
        issued = model.ladder.receipts[rung].id if not escalated else model.ladder.id
        return Answer(probabilities, rung, issued, escalated, model.card.labels), running

    def _escalate(self, model: _Model, cascade: Cascade, rows: Rows, probabilities: Rows) -> int:
        """Have the dear rung answer the rows that the cheap one is unsure of; how many."""
        unsure = np.flatnonzero(cascade.unsure(probabilities))
        if not len(unsure):
            return 0
        resident = model.dear
        if resident is None or not self._memory.hold(resident):
            resident = model.dear = self._held(model, cascade.dear)
        try:
            probabilities[unsure] = _run(resident.runner, rows[unsure])
        finally:
            self._memory.release(resident)
            if model.gone:
                self._retire(model)
        return len(unsure)

    def _load(self, model: _Model) -> Resident:
        """The rung to answer with, loaded and held."""
        with model.lock:
            if model.resident is not None and self._memory.hold(model.resident):
                return model.resident  # another thread has loaded it
            model.resident = None
            choice = self._as_used(model, self._chosen(model)[0])
            resident = self._held(model, choice.rung)
            model.choice, model.resident = choice, resident
            return resident

    def _held(self, model: _Model, rung: RungName, replacing: Resident | None = None) -> Resident:
        self._growing(_RUNTIME_BYTES)
        try:
            model.ladder.load_runtime(rung)
        finally:
            self._growing(0)
        began = time.perf_counter()
        cost = model.card[rung].cost
        assert cost is not None
        features, size = model.card.features, model.card[rung].file_bytes

        def make() -> Runner:
            self._growing(cost.pss_bytes + 2 * size + (cost.threads - 1) * _STACK_BYTES)  # files are mapped twice at times
            try:
                runner = model.ladder.load(rung, prepacked=cost.prepacked, threads=cost.threads, provider=cost.provider)
                runner.run(np.zeros((1, features), np.float32))  # maps its weights, so that they are seen
            finally:
                self._growing(0)
            return runner

        resident = self._memory.load((model.ladder.id, rung), cost.pss_bytes, make, replacing=replacing)
        self._record("qedge_model_load_seconds", time.perf_counter() - began, model=model.name)
        return resident

    def _chosen(self, model: _Model) -> tuple[Choice, Load]:
        """What to answer with now; rungs that others used a moment ago are spared if another rung will do without."""
        resident = model.resident
        if resident is not None and not resident.leaving:
            load = Load(self._memory.free(without=resident), model.slowdown)
            return choose(model.card, model.requirement, load, model.choice), load
        for hot_s in (HOT_S, 0.0):
            load = Load(self._memory.obtainable(hot_s), model.slowdown)
            with contextlib.suppress(OverBudget):
                return choose(model.card, model.requirement, load), load
        load = Load(self._memory.budget, model.slowdown)  # calls that now run will end
        return choose(model.card, model.requirement, load), load

    def _choose_again(self, model: _Model) -> None:
        """Move to the rung that is best now, if that is another."""
        with model.lock:
            old = model.resident
            if model.cascade is not None or model.gone or old is None or old.leaving:
                return
            try:
                choice, _ = self._chosen(model)
                if choice.rung != old.key[1]:
                    model.resident = self._held(model, choice.rung, replacing=old)
                    self._memory.release(model.resident)
                    if model.gone:
                        self._retire(model)
                    elif not self._shared(model):
                        self._memory.let_go(old)
                model.choice = choice
            except QEdgeError as error:  # whoever called has an answer; the next one asks again
                self._record("qedge_edge_refusals_total", 1, model=model.name, code=error.code)

    def _as_used(self, model: _Model, choice: Choice) -> Choice:
        """With a cascade its cheap rung answers, whichever would alone."""
        if model.cascade is None:
            return choice
        dear = f"it answers what {model.cascade.cheap} is unsure of"
        passed = {one.rung: choice.passed.get(one.rung, "a cascade answers") for one in model.card.rungs}
        passed = {rung: reason for rung, reason in (passed | {model.cascade.dear: dear}).items() if rung != model.cascade.cheap}
        return Choice(model.cascade.cheap, choice.pressed, passed)

    def _retire(self, model: _Model | None) -> None:
        if model is not None:
            model.gone = True
            if not self._shared(model):
                self._memory.drop(model.ladder.id)

    def _shared(self, model: _Model) -> bool:
        """Whether another model that is served is of the same ladder."""
        return any(one.ladder.id == model.ladder.id and one is not model for one in list(self._models.values()))

    def _evicted(self, key: Key) -> None:
        for model in [one for one in list(self._models.values()) if one.ladder.id == key[0]]:
            self._calls.evicted(model.name, key[1])

    def _unknown(self, name: str) -> UnknownModel:
        hint = nearest(name, self._models) if self._models else "there is none yet"
        return UnknownModel(f"no model '{name}' on this node; {hint}", model=name)


def _run(runner: Runner, rows: Rows) -> Rows:
    """The runner's answer, to keep."""
    most = BATCHES[-1]
    if len(rows) <= most:
        return runner.run(rows).copy()
    return np.concatenate([runner.run(rows[at : at + most]).copy() for at in range(0, len(rows), most)])


def refuse_rows(rows: Rows, features: int) -> None:
    """Refuse rows that the model cannot be asked about.

    Raises:
        InvalidRequest: another type, shape, or not finite.
    """
    if type(rows) is not np.ndarray or rows.dtype != _FLOAT32:
        given = f"{rows.dtype}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InvalidRequest(f"rows are {given}; accepted: a numpy array of float32", given=given, expected="float32")
    shape = rows.shape
    if len(shape) != 2 or shape[1] != features or not shape[0]:
        raise InvalidRequest(f"rows have the shape {list(shape)}; accepted: [one or more, {features}]", given=list(shape))
    if not np.isfinite(rows).all():
        row, feature = (int(place) for place in np.argwhere(~np.isfinite(rows))[0])
        raise InvalidRequest(f"row {row}, feature {feature} is not a finite number", row=row, feature=feature)


def _cautious(card: Card) -> Card:
    """The card with no rung said to take less than its files: pages that another process mapped too were only counted in part."""
    rungs = tuple(one if one.cost is None else _not_under(one, one.cost) for one in card.rungs)
    return card.model_copy(update={"rungs": rungs})


def _covered(card: Card, refused: Mapping[RungName, str]) -> Card:
    """The card without the rungs that are refused for what they owe to rows."""
    kept = tuple(one for one in card.rungs if one.rung not in refused)
    if not kept:
        listed = "; ".join(f"{rung}: {what}" for rung, what in refused.items())
        raise PrivacyError(f"{card.model}: every rung owes to rows that nothing covers, which is not accepted here ({listed})")
    return card.model_copy(update={"rungs": kept})


def _not_under(one: RungCard, cost: Cost) -> RungCard:
    return one.model_copy(update={"cost": cost.model_copy(update={"pss_bytes": max(cost.pss_bytes, one.file_bytes)})})


def _explained(model: _Model, choice: Choice, load: Load) -> Explanation:
    refused = {rung: f"it owes to rows that nothing covers: {what}" for rung, what in model.refused.items()}
    choice = replace(choice, passed=choice.passed | refused)
    return Explanation(model.name, model.card.version, model.requirement, choice, load, model.cascade, model.cascade_off)
