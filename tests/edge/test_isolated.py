"""The engine in a process of its own: the same answers, overruns that are errors, and deaths that a caller does not notice."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from qedge.edge.binary.architecture import Architecture, Layer
from qedge.edge.binary.module import pack
from qedge.edge.card import Card
from qedge.edge.isolated import IsolatedEngine
from qedge.edge.ladder import Ladder
from qedge.edge.selector import Requirement
from qedge.errors import EdgeError, InvalidRequest, NoRungFits, OverBudget, UnknownModel
from qedge.monitoring.metrics import row
from qedge.security.keys import Keys
from tests.edge.binary.binary_networks import random_module
from tests.edge_ladders import LABELS, Told, answer, graph, ladder
from tests.endpoint import eventually

MIB = 2**20
ROWS = np.random.default_rng(0).standard_normal((64, 4), dtype=np.float32)
WIDE = 1 << 20  # hidden units: 4 MiB of activations a row


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.open(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def engine() -> Iterator[IsolatedEngine]:
    with IsolatedEngine(256 * MIB) as started:
        yield started


@pytest.fixture
def made(tmp_path: Path, keys: Keys) -> tuple[Ladder, Card]:
    rungs: dict[Any, Any] = {"fp32": (graph(1), Told(970, 1.0, 8 * MIB)), "int8": (graph(2), Told(950, 0.5, 6 * MIB))}
    return ladder(tmp_path / "ladder", rungs, keys)


def test_it_answers_as_the_engine_does(engine: IsolatedEngine, made: tuple[Ladder, Card]) -> None:
    assert "m/1 is answered by fp32" in engine.add("m", made[0], Requirement(accuracy=0.96), card=made[1])
    for rows in (1, 64):
        found = engine.infer("m", ROWS[:rows])
        assert (found.rung, found.receipt, found.escalated) == ("fp32", made[0].receipts["fp32"].id, 0)
        np.testing.assert_allclose(found.probabilities, answer(ROWS[:rows], 1), rtol=1e-5)
        assert found.label == [LABELS[place] for place in answer(ROWS[:rows], 1).argmax(axis=1)]
    assert engine.loaded["m"]["fp32"] >= 8 * MIB
    assert "not int8: its accuracy is 0.95, under 0.96" in engine.explain("m")
    engine.remove("m")
    assert engine.loaded == {}


def test_the_binary_rung_answers_there_though_its_compiler_takes_more_than_the_headroom(
    tmp_path: Path, keys: Keys, made: tuple[Ladder, Card]
) -> None:
    network = pack(random_module(Architecture((1, 1, 4), (Layer(16),), len(LABELS)), 4, 0))
    rungs: dict[Any, Any] = {"fp32": (graph(1), Told(p95_ms=2.0)), "binary": (network, Told(p95_ms=1.0))}
    opened, card = ladder(tmp_path / "binary", rungs, keys)
    with IsolatedEngine(256 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        engine.add("binary", opened, card=card)
        found = engine.infer("binary", ROWS)
        assert (found.rung, engine.restarts) == ("binary", 0)
        np.testing.assert_array_equal(found.probabilities, network.run(ROWS))
        np.testing.assert_allclose(engine.infer("m", ROWS).probabilities, answer(ROWS, 2), rtol=1e-5)


def test_errors_keep_their_class_and_facts(engine: IsolatedEngine, made: tuple[Ladder, Card]) -> None:
    with pytest.raises(NoRungFits, match="nearest: fp32") as refused:
        engine.add("m", made[0], Requirement(accuracy=0.99), card=made[1])
    assert refused.value.facts["nearest"] == "fp32"
    with pytest.raises(UnknownModel, match="no model 'm' on this node"):
        engine.infer("m", ROWS)
    engine.add("m", made[0], card=made[1])
    with pytest.raises(InvalidRequest, match="rows are float64"):
        engine.infer("m", ROWS.astype(np.float64))
    with pytest.raises(EdgeError, match="accepted: a number of bytes over 0"):
        IsolatedEngine(0)


def test_a_call_that_takes_more_than_there_is_is_an_error_and_the_process_goes_on(tmp_path: Path, keys: Keys) -> None:
    wide = graph(1, hidden=WIDE)
    opened, card = ladder(tmp_path / "wide", {"fp32": (wide, Told(pss_bytes=40 * MIB))}, keys)
    with IsolatedEngine(256 * MIB) as engine:
        engine.add("wide", opened, card=card)
        pid = engine.pid
        one = engine.infer("wide", ROWS[:1])
        for _ in range(3):
            with pytest.raises(OverBudget, match="was stopped") as stopped:
                engine.infer("wide", ROWS[:32])
            assert stopped.value.facts["headroom_bytes"] == 32 * MIB
            np.testing.assert_array_equal(engine.infer("wide", ROWS[:1]).probabilities, one.probabilities)
        assert (engine.pid, engine.restarts) == (pid, 0)


def test_a_load_that_takes_more_than_its_card_says_is_an_error_and_other_models_answer_on(
    tmp_path: Path, keys: Keys, made: tuple[Ladder, Card]
) -> None:
    opened, card = ladder(tmp_path / "wide", {"fp32": (graph(1, hidden=4 * WIDE), Told(pss_bytes=MIB))}, keys)
    lying = card.model_copy(update={"rungs": (card.rungs[0].model_copy(update={"file_bytes": 1}),)})
    with IsolatedEngine(256 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        engine.add("wide", opened, card=lying)
        with pytest.raises(OverBudget, match="was stopped"):
            engine.infer("wide", ROWS[:1])
        np.testing.assert_allclose(engine.infer("m", ROWS).probabilities, answer(ROWS, 2), rtol=1e-5)
        assert engine.restarts == 0


def test_a_process_that_is_killed_is_replaced_and_nobody_notices(made: tuple[Ladder, Card]) -> None:
    with IsolatedEngine(256 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        engine.infer("m", ROWS)
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(engine.infer, "m", ROWS) for _ in range(8)]:
                np.testing.assert_allclose(done.result(timeout=120).probabilities, answer(ROWS, 2), rtol=1e-5)
        assert engine.restarts == 1
        assert engine.pid != first
        assert not psutil.pid_exists(first)


def test_a_process_that_hangs_is_replaced(made: tuple[Ladder, Card]) -> None:
    with IsolatedEngine(256 * MIB, timeout_s=5.0) as engine:
        engine.add("m", made[0], card=made[1])
        os.kill(engine.pid, signal.SIGSTOP)
        np.testing.assert_allclose(engine.infer("m", ROWS).probabilities, answer(ROWS, 2), rtol=1e-5)
        assert engine.restarts == 1


def test_a_model_whose_files_are_gone_when_the_process_is_replaced_is_lost_alone(
    tmp_path: Path, keys: Keys, made: tuple[Ladder, Card]
) -> None:
    other, card = ladder(tmp_path / "other", {"fp32": (graph(5), Told())}, keys)
    with IsolatedEngine(256 * MIB) as engine:
        engine.add("m", made[0], card=made[1])
        engine.add("other", other, card=card)
        shutil.rmtree(other.folder)
        os.kill(engine.pid, signal.SIGKILL)
        np.testing.assert_allclose(engine.infer("m", ROWS).probabilities, answer(ROWS, 2), rtol=1e-5)
        with pytest.raises(UnknownModel, match="holds no ladder"):
            engine.infer("other", ROWS)
        engine.remove("m")


def test_its_metrics_arrive_and_it_ends_with_its_owner(made: tuple[Ladder, Card]) -> None:
    seen: list[str] = []
    engine = IsolatedEngine(256 * MIB, record=lambda name, value, **tags: seen.append(row(name, tags).name))
    engine.add("m", made[0], card=made[1])
    engine.infer("m", ROWS)
    pid = engine.pid
    assert engine.pss_bytes > MIB
    engine.close()
    assert {"qedge_edge_calls_total", "qedge_edge_call_seconds", "qedge_edge_budget_bytes", "qedge_edge_memory_bytes"} <= set(seen)
    assert eventually(lambda: not psutil.pid_exists(pid))
