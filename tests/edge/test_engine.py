"""The engine: right answers from the rung that is chosen, typed refusals, a budget that holds, and models that come and go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qedge.config import ensure_home
from qedge.edge.card import Card
from qedge.edge.cascade import Cascade
from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.rung import RungName
from qedge.edge.selector import Requirement
from qedge.edge.session import OnnxRunner
from qedge.errors import ArtifactTampered, EdgeError, InvalidRequest, NoRungFits, OverBudget, PrivacyError, UnknownModel, UnknownRung
from qedge.monitoring.metrics import row
from qedge.security.keys import Keys
from tests.edge_ladders import LABELS, Told, answer, graph, ladder
from tests.endpoint import eventually

MIB = 2**20
ROWS = np.random.default_rng(0).standard_normal((100, 4), dtype=np.float32)


class Recorder:
    """What was recorded, every name and its tags checked against the table."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def __call__(self, name: str, value: float, **tags: str) -> None:
        row(name, tags)
        self.values.append((name, value, tags))

    def total(self, name: str, **tags: str) -> float:
        return sum(value for found, value, told in self.values if found == name and tags.items() <= told.items())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.open(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def made(tmp_path: Path, keys: Keys) -> tuple[Ladder, Card]:
    """FP32 is right more often and slower; each rung has weights of its own, so that an answer tells which one gave it."""
    rungs: dict[Any, Any] = {
        "fp32": (graph(1), Told(970, 1.0, 8 * MIB)),
        "int8": (graph(2), Told(950, 0.5, 6 * MIB)),
        "int4": (graph(3), Told(930, 0.2, 2 * MIB)),
    }
    return ladder(tmp_path / "ladder", rungs, keys)


SEEDS = {"fp32": 1, "int8": 2, "int4": 3}


def test_ten_lines_answer_with_the_cheapest_rung_that_will_do(made: tuple[Ladder, Card]) -> None:
    opened, card = made
    with EdgeEngine(budget_bytes=64 * MIB) as engine:
        engine.add("m", opened, Requirement(accuracy=0.94), card=card)
        found = engine.infer("m", ROWS[:5])
        assert (found.rung, found.receipt, found.escalated) == ("int8", opened.receipts["int8"].id, 0)
        np.testing.assert_allclose(found.probabilities, answer(ROWS[:5], SEEDS["int8"]), rtol=1e-5)
        assert found.label == [LABELS[place] for place in answer(ROWS[:5], SEEDS["int8"]).argmax(axis=1)]
        assert engine.loaded["m"]["int8"] >= 6 * MIB
        said = str(engine.explain("m"))
    assert "m/1 is answered by int8; required: accuracy ≥ 0.94" in said
    assert "not fp32: its p95 is 1 ms; that of int8 is 0.5 ms" in said
    assert "not int4: its accuracy is 0.93, under 0.94" in said


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 100])
def test_any_number_of_rows_is_answered_in_order_and_kept(made: tuple[Ladder, Card], rows: int) -> None:
    with EdgeEngine(64 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        first = engine.infer("m", ROWS[:rows])
        engine.infer("m", ROWS[::-1][:rows])
        np.testing.assert_allclose(first.probabilities, answer(ROWS[:rows], SEEDS[first.rung]), rtol=1e-5)


def _with_nan() -> np.ndarray:
    rows = ROWS[:3].copy()
    rows[1, 2] = np.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.0] * 4], "rows are list; accepted: a numpy array of float32"),
        (ROWS[:2].astype(np.float64), "rows are float64"),
        (ROWS[0], r"shape \[4\]; accepted: \[one or more, 4\]"),
        (ROWS[:2, :3], r"shape \[2, 3\]"),
        (ROWS[:0], r"shape \[0, 4\]"),
        (_with_nan(), "row 1, feature 2 is not a finite number"),
        (np.full((1, 4), np.inf, np.float32), "row 0, feature 0 is not a finite number"),
    ],
)
def test_rows_that_the_model_cannot_be_asked_about_are_refused(made: tuple[Ladder, Card], rows: Any, message: str) -> None:
    record = Recorder()
    with EdgeEngine(64 * MIB, record=record) as engine:
        engine.add("m", made[0], card=made[1])
        with pytest.raises(InvalidRequest, match=message):
            engine.infer("m", rows)
        assert not engine.loaded
    assert record.total("qedge_edge_refusals_total", model="m", code="request.invalid") == 1


def test_a_model_nobody_added_is_unknown(made: tuple[Ladder, Card]) -> None:
    with EdgeEngine(64 * MIB) as engine:
        engine.add("digits", made[0], card=made[1])
        for ask in (lambda: engine.infer("digit", ROWS), lambda: engine.explain("digit"), lambda: engine.remove("digit")):
            with pytest.raises(UnknownModel, match="no model 'digit' on this node; did you mean 'digits'"):
                ask()


def test_what_no_rung_meets_or_no_budget_holds_is_refused_when_it_is_added_and_the_old_one_answers_on(made: tuple[Ladder, Card]) -> None:
    with EdgeEngine(3 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        with pytest.raises(NoRungFits, match=r"nearest: fp32 with accuracy 0\.97"):
            engine.add("m", made[0], Requirement(accuracy=0.99), card=made[1])
        with pytest.raises(OverBudget, match=r"int8 takes 6\.0 MiB by the estimate, and 3\.0 MiB are left"):
            engine.add("m", made[0], Requirement(accuracy=0.95), card=made[1])
        assert engine.explain("m").choice.rung == "int4"


def test_a_card_of_other_files_is_refused_and_one_of_another_machine_is_measured_anew(
    made: tuple[Ladder, Card], tmp_path: Path, keys: Keys
) -> None:
    other, _ = ladder(tmp_path / "other", {"fp32": (graph(9), Told())}, keys)
    assert made[1].machine is not None
    elsewhere = made[1].model_copy(update={"machine": made[1].machine.model_copy(update={"processor": "another"})})
    with EdgeEngine(64 * MIB, home=tmp_path) as engine:
        with pytest.raises(EdgeError, match="is not of this ladder's files"):
            engine.add("m", other, card=made[1])
        engine.add("m", made[0], card=elsewhere)
        measured = engine._models["m"].card
    assert measured.is_of(made[1].machine)
    assert measured["fp32"].cost != made[1]["fp32"].cost
    with EdgeEngine(64 * MIB, home=tmp_path) as engine:
        engine.add("m", made[0])
        assert engine._models["m"].card == measured


def test_a_new_version_under_a_name_answers_what_begins_after_it_and_the_old_one_goes(
    made: tuple[Ladder, Card], tmp_path: Path, keys: Keys
) -> None:
    newer, card = ladder(tmp_path / "newer", {"fp32": (graph(7), Told())}, keys)
    with EdgeEngine(64 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        stop, wrong, seen = threading.Event(), [], Counter[str]()

        def ask() -> None:
            while not stop.is_set():
                found = engine.infer("m", ROWS[:3])
                seed = 7 if found.receipt == newer.receipts["fp32"].id else SEEDS[found.rung]
                seen[found.receipt] += 1
                if not np.allclose(found.probabilities, answer(ROWS[:3], seed), rtol=1e-4):
                    wrong.append(found)

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            for _ in range(20):
                engine.add("m", newer, card=card)
                engine.infer("m", ROWS[:1])
                engine.add("m", made[0], card=made[1])
                engine.infer("m", ROWS[:1])
            engine.add("m", newer, card=card)
            stop.set()
            for one in asking:
                one.result(timeout=60)
        assert not wrong
        assert set(seen) <= {newer.receipts["fp32"].id, made[0].receipts["int4"].id}
        engine.infer("m", ROWS[:1])
        assert set(engine._memory.loaded) == {(newer.id, "fp32")}


def test_a_model_removed_while_it_answers_is_unknown_to_the_next_call_and_leaves_no_bytes(made: tuple[Ladder, Card]) -> None:
    with EdgeEngine(64 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        began, unknown = threading.Barrier(5), []

        def ask() -> None:
            began.wait()
            while True:
                try:
                    engine.infer("m", ROWS[:3])
                except UnknownModel as error:
                    unknown.append(error)
                    return

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            began.wait()
            engine.infer("m", ROWS)
            engine.remove("m")
            for one in asking:
                one.result(timeout=60)
        assert len(unknown) == 4
        assert engine.charged_bytes == 0


def test_files_deleted_while_loaded_answer_until_the_rung_is_put_out_and_altered_ones_are_never_loaded(made: tuple[Ladder, Card]) -> None:
    with EdgeEngine(64 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        engine.infer("m", ROWS)
        shutil.rmtree(made[0].folder)
        assert engine.infer("m", ROWS).rung == "int4"
        engine._memory.drop(made[0].id)
        with pytest.raises(ArtifactTampered, match=r"int4\.onnx cannot be read"):
            engine.infer("m", ROWS)
        assert engine.charged_bytes == 0


def test_a_rung_cut_short_is_refused_and_mended_files_answer(made: tuple[Ladder, Card]) -> None:
    path = made[0].folder / "int4.onnx"
    whole = path.read_bytes()
    with EdgeEngine(64 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        path.write_bytes(whole[:-10])
        with pytest.raises(ArtifactTampered, match="does not match its digest"):
            engine.infer("m", ROWS)
        path.write_bytes(whole)
        assert engine.infer("m", ROWS).rung == "int4"


def test_a_file_altered_between_two_loads_is_refused_though_its_size_and_time_are_the_same(made: tuple[Ladder, Card]) -> None:
    path = made[0].folder / "int4.onnx"
    assert eventually(lambda: time.time_ns() - path.stat().st_ctime_ns > 1.1e9)
    with EdgeEngine(64 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        engine.infer("m", ROWS)
        assert path.name in made[0]._seen
        engine._memory.drop(made[0].id)
        engine.infer("m", ROWS)
        before, content = path.stat(), bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        engine._memory.drop(made[0].id)
        with pytest.raises(ArtifactTampered, match="does not match its digest"):
            engine.infer("m", ROWS)


def test_under_pressure_of_memory_a_lower_rung_answers_and_the_better_one_again_when_there_is_room(tmp_path: Path, keys: Keys) -> None:
    rungs: dict[Any, Any] = {"fp32": (graph(1), Told(970, 0.5, 40 * MIB)), "int8": (graph(2), Told(960, 0.6, 20 * MIB))}
    models = {name: ladder(tmp_path / name, rungs, keys, name=name) for name in ("a", "b")}
    with EdgeEngine(70 * MIB, review_s=0.0) as engine:
        for name, (opened, card) in models.items():
            engine.add(name, opened, Requirement(accuracy=0.95), card=card)
        assert engine.infer("a", ROWS[:1]).rung == "fp32"
        assert engine.infer("b", ROWS[:1]).rung == "int8"
        assert engine.infer("a", ROWS[:1]).rung == "fp32"
        assert engine.loaded == {"a": {"fp32": 40 * MIB}, "b": {"int8": 20 * MIB}}
        engine.remove("a")
        assert eventually(lambda: engine.infer("b", ROWS[:1]).rung == "fp32")
        assert eventually(lambda: engine.loaded == {"b": {"fp32": 40 * MIB}})


class Upgrade:
    """An engine whose model b is about to move from INT8 to FP32, since a has gone; the load waits until it is told to go on."""

    def __init__(self, folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        rungs: dict[Any, Any] = {"fp32": (graph(1), Told(970, 0.5, 40 * MIB)), "int8": (graph(2), Told(960, 0.6, 20 * MIB))}
        self.engine = EdgeEngine(70 * MIB, review_s=0.0)
        for name in ("a", "b"):
            opened, card = ladder(folder / name, rungs, keys, name=name)
            self.engine.add(name, opened, Requirement(accuracy=0.95), card=card)
            self.engine.infer(name, ROWS[:1])
        self.go_on, begun, load = threading.Event(), threading.Event(), OnnxRunner.load

        def slowly(*given: Any, **more: Any) -> OnnxRunner:
            begun.set()
            assert self.go_on.wait(60)
            return load(*given, **more)

        monkeypatch.setattr(OnnxRunner, "load", slowly)
        self.engine.remove("a")
        assert self.engine.infer("b", ROWS[:1]).rung == "int8"
        assert begun.wait(60)


def test_while_a_better_rung_is_loaded_callers_are_answered_by_the_one_that_is_there(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Upgrade(tmp_path, keys, monkeypatch)
    with moving.engine as engine:
        np.testing.assert_allclose(engine.infer("b", ROWS).probabilities, answer(ROWS, 2), rtol=1e-5)
        moving.go_on.set()
        assert eventually(lambda: engine.infer("b", ROWS[:1]).rung == "fp32")
    assert engine.charged_bytes == 0


def test_a_model_that_is_removed_while_its_better_rung_is_loaded_leaves_nothing_behind(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = Upgrade(tmp_path, keys, monkeypatch)
    with moving.engine as engine:
        engine.remove("b")
        moving.go_on.set()
        assert eventually(lambda: engine.charged_bytes == 0)


def test_models_that_do_not_fit_together_take_turns_and_the_metrics_say_so(tmp_path: Path, keys: Keys) -> None:
    record = Recorder()
    with EdgeEngine(50 * MIB, record=record) as engine:
        for seed in range(6):
            opened, card = ladder(tmp_path / str(seed), {"fp32": (graph(seed), Told(pss_bytes=20 * MIB))}, keys, name=f"m{seed}")
            engine.add(f"m{seed}", opened, card=card)
        for seed in (0, 1, 0, 2, 0, 3, 4, 5, 0):
            found = engine.infer(f"m{seed}", ROWS[:2])
            np.testing.assert_allclose(found.probabilities, answer(ROWS[:2], seed), rtol=1e-5)
            assert engine.charged_bytes <= 50 * MIB
        engine.review()
        assert set(engine.loaded) == {"m5", "m0"}
    assert record.total("qedge_edge_calls_total") == 9
    assert record.total("qedge_edge_calls_total", model="m0", rung="fp32") == 4
    assert record.total("qedge_edge_evictions_total") == 5
    assert record.total("qedge_edge_budget_bytes") == 50 * MIB
    assert sum(name == "qedge_edge_call_seconds" for name, *_ in record.values) == 9
    assert ("qedge_edge_memory_bytes", 20 * MIB, {"model": "m5", "rung": "fp32"}) in record.values


def cascade(**more: Any) -> Cascade:
    given: dict[str, Any] = {
        "cheap": "int4",
        "dear": "fp32",
        "threshold": 0.3,
        "share": 0.2,
        "lost": 0.0,
        "lost_interval": (0.0, 0.0),
        "accuracy": 0.97,
        "rows": 100,
        "cost_ms": 0.4,
        "dear_ms": 1.0,
    }
    return Cascade(**given | more)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.1])
def test_with_a_cascade_only_unsure_rows_go_on_whichever_batch_they_come_in(made: tuple[Ladder, Card], threshold: float) -> None:
    cheap, dear = answer(ROWS, SEEDS["int4"]), answer(ROWS, SEEDS["fp32"])
    two = np.sort(cheap, axis=1)[:, -2:]
    unsure = two[:, 1] - two[:, 0] < threshold
    record = Recorder()
    with EdgeEngine(64 * MIB, record=record) as engine:
        engine.add("m", made[0], Requirement(accuracy=0.96), card=made[1], cascade=cascade(threshold=threshold))
        found = engine.infer("m", ROWS)
        assert (found.rung, found.escalated) == ("int4", int(unsure.sum()))
        assert found.receipt == (made[0].id if unsure.any() else made[0].receipts["int4"].id)
        np.testing.assert_allclose(found.probabilities, np.where(unsure[:, None], dear, cheap), rtol=1e-4)
        assert "not fp32: it answers what int4 is unsure of" in str(engine.explain("m"))
    assert record.total("qedge_edge_rows_escalated_total", model="m") == unsure.sum()


@pytest.mark.parametrize(
    ("told", "requirement", "why"),
    [
        ({"cost_ms": 0.9}, Requirement(), "it would take 0.9 ms a row, and fp32 alone takes 1"),
        ({"accuracy": 0.93}, Requirement(accuracy=0.95), "its accuracy is 0.93"),
        ({}, Requirement(p95_ms=1.1), "a row that goes on has a p95_ms of 1.2 ms"),
        ({}, Requirement(memory_bytes=9 * MIB), "int4 and fp32 together take 10485760 bytes"),
    ],
)
def test_a_cascade_that_gains_nothing_or_misses_what_is_required_stays_off(
    made: tuple[Ladder, Card], told: dict[str, Any], requirement: Requirement, why: str
) -> None:
    with EdgeEngine(64 * MIB) as engine:
        said = engine.add("m", made[0], requirement, card=made[1], cascade=cascade(**told))
        assert why in said.cascade_off
        assert why in str(said)
        assert engine.infer("m", ROWS).escalated == 0


def test_a_cascade_of_a_rung_that_is_not_there_is_refused(made: tuple[Ladder, Card]) -> None:
    with EdgeEngine(64 * MIB) as engine, pytest.raises(UnknownRung, match="has no rung 'int2'"):
        engine.add("m", made[0], card=made[1], cascade=cascade(cheap="int2"))


def test_a_process_that_serves_imports_no_torch_mlflow_pennylane_or_ray() -> None:
    script = (
        "import qedge.edge.engine, qedge.edge.session, sys; print([m for m in ('torch', 'mlflow', 'pennylane', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rungs_that_owe_to_rows_which_nothing_covers_are_refused_where_that_is_asked(tmp_path: Path) -> None:
    keys = Keys.open(ensure_home(tmp_path / "home"))
    rungs: dict[RungName, tuple[onnx.ModelProto, Told]] = {"fp32": (graph(1), Told()), "int8": (graph(2), Told(p95_ms=0.2))}
    mixed, filled = ladder(tmp_path / "mixed", rungs, keys, uncovered=("int8",))
    rows = np.ones((2, 4), np.float32)
    with EdgeEngine(1 << 30) as free, EdgeEngine(1 << 30, covered_only=True) as strict:
        assert free.add("m", mixed, card=filled).choice.rung == "int8"
        why = strict.add("m", mixed, card=filled)
        assert why.choice.rung == "fp32"
        assert "nothing covers: choosing" in why.choice.passed["int8"]
        assert "nothing covers" in str(strict.explain("m"))
        assert strict.infer("m", rows).rung == "fp32"
        none, card = ladder(tmp_path / "none", rungs, keys, uncovered=("int8", "fp32"))
        with pytest.raises(PrivacyError, match="every rung"):
            strict.add("n", none, card=card)
        with pytest.raises(NoRungFits):
            strict.add("m", mixed, Requirement(p95_ms=0.5), card=filled)
        assert strict.infer("m", rows).rung == "fp32"  # what was served still is
