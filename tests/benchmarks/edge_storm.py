"""Twenty models over a budget that holds five: 200 inferences of models drawn at random, nearly each with a load, from four threads.

Models have 256 features and 4096 to 5312 hidden units, 4.2 to 5.5 MB of weights; one was measured, and the others' cards are its figures
with their own bytes. Every answer (1 to 32 rows) is compared with NumPy's. A storm has a process of its own, or an actor on Ray; memory is
the PSS of that process over what it was with the engine up and no model loaded, looked at after every call and every 2 ms beside. The
budget covers what the engine charges: models and what one row takes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qedge.edge.card import Card
from qedge.edge.engine import EdgeEngine
from qedge.edge.ladder import Ladder
from qedge.edge.measurement import measure as measure_ladder
from qedge.edge.pss import pss_bytes
from qedge.edge.session import warm_up
from qedge.errors import QEdgeError
from qedge.security.keys import Keys
from tests.benchmarks.figures import Figure, at_most, beside, never_more
from tests.edge_ladders import Told, answer, graph, ladder

REPEAT = 5
MODELS, HELD, CALLS, THREADS, FEATURES = 20, 5, 200, 4, 256
_ROUND = np.float32(2e-4)


def measure(repeat: int) -> list[Figure]:
    """`repeat` storms in a process, and as many in an actor."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        _prepare(place)
        alone = [_in_process(place, seed) for seed in range(repeat)]
        actors = _in_actors(place, repeat)
    return [*_figures("in a process", alone, repeat), *_figures("in an actor", actors, repeat)]


def storm(place: Path, seed: int) -> dict[str, float]:
    """One storm in this process; what it came to."""
    models = [_opened(place, number) for number in range(MODELS)]
    generator = np.random.default_rng(seed)
    calls = [
        (int(number), int(rows))
        for number, rows in zip(generator.integers(0, MODELS, CALLS), generator.integers(1, 33, CALLS), strict=True)
    ]
    given = {call: generator.standard_normal((call[1], FEATURES), dtype=np.float32) for call in set(calls)}
    right = {call: answer(rows, call[0], _hidden(call[0])) for call, rows in given.items()}
    budget = HELD * max(card["fp32"].cost.pss_bytes for _, card in models if card["fp32"].cost is not None)
    warm_up()
    evicted = [0.0]

    def record(name: str, value: float, **_: str) -> None:
        evicted[0] += value if name == "qedge_edge_evictions_total" else 0

    with EdgeEngine(budget, record=record) as engine:
        for number, (opened, card) in enumerate(models):
            engine.add(str(number), opened, card=card)
        watch = _Watch(budget)
        wrong, refused, taken = [], [], []

        def work(part: list[tuple[int, int]]) -> None:
            for call in part:
                began = time.perf_counter()
                try:
                    found = engine.infer(str(call[0]), given[call]).probabilities
                except QEdgeError as error:
                    refused.append(error.code)
                    continue
                taken.append(time.perf_counter() - began)
                if np.abs(found - right[call]).max() > _ROUND:
                    wrong.append(call)
                watch.look()

        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(work, calls[at::THREADS]) for at in range(THREADS)]:
                done.result()
        seconds = time.perf_counter() - began
        watch.end()
    return {
        "wrong": len(wrong),
        "refused": len(refused),
        "most": watch.most / budget,
        "seconds": seconds,
        "loads": evicted[0],
        "median_ms": 1e3 * statistics.median(taken),
        "budget": budget,
    }


class _Watch:
    """The most that the process grew, over a budget."""

    def __init__(self, budget: int) -> None:
        self.base, self.most, self._over = pss_bytes(), 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def look(self) -> None:
        self.most = max(self.most, pss_bytes() - self.base)

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.002):
            self.look()


def _hidden(number: int) -> int:
    return 4096 + 64 * number


def _prepare(place: Path) -> None:
    """Ladders of one rung; the first is measured, and the others cost as much and their own bytes."""
    keys = Keys.open(place / "keys")
    cost = None
    for number in range(MODELS):
        model = graph(number, FEATURES, _hidden(number))
        opened, told = ladder(place / str(number), {"fp32": (model, Told())}, keys, name=str(number), features=FEATURES)
        if cost is None:
            rows = np.random.default_rng(0).random((32, FEATURES), np.float32)
            cost = measure_ladder(opened, rows)["fp32"].cost
            assert cost is not None
            spare = max(0, cost.pss_bytes - told["fp32"].file_bytes)
        size = sum((opened.folder / name).stat().st_size for name in told["fp32"].files)
        own = cost.model_copy(update={"pss_bytes": size + spare})
        card = told.model_copy(update={"rungs": (told.rungs[0].model_copy(update={"cost": own, "file_bytes": size}),)})
        (place / f"{number}.json").write_bytes(card.content())


def _opened(place: Path, number: int) -> tuple[Ladder, Card]:
    return Ladder.open(place / str(number)), Card.parse((place / f"{number}.json").read_bytes(), "")


def _in_process(place: Path, seed: int) -> dict[str, float]:
    """A storm in a process of its own; one that was killed has no figures but that."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.edge_storm", str(place), str(seed)], capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        return {"killed": 1}
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _in_actors(place: Path, repeat: int) -> list[dict[str, float]]:
    import ray

    root = str(Path(__file__).resolve().parents[2])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )

    class Storm:
        """Has one."""

        def run(self, place: Path, seed: int) -> dict[str, float]:
            return storm(place, seed)

    found = []
    try:
        for seed in range(repeat):
            actor: Any = ray.remote(Storm).options(num_cpus=1).remote()
            try:
                found.append(ray.get(actor.run.remote(place, seed), timeout=300))
            except ray.exceptions.RayActorError:
                found.append({"killed": 1})
            ray.kill(actor)
    finally:
        ray.shutdown()
    return found


def _figures(where: str, storms: list[dict[str, float]], repeat: int) -> list[Figure]:
    lived = [one for one in storms if not one.get("killed")]
    assert lived, "every storm was killed"
    return [
        never_more(f"{where}: processes killed, of {repeat}", 0, [len(storms) - len(lived)]),
        never_more(f"{where}: wrong answers, of {CALLS} a storm", 0, [one["wrong"] for one in lived]),
        never_more(f"{where}: calls refused", 0, [one["refused"] for one in lived]),
        never_more(f"{where}: most PSS over the budget's bytes", 1.1, [one["most"] for one in lived]),
        beside(f"{where}: rungs put out", [one["loads"] for one in lived], ""),
        beside(f"{where}: time of a call with its load, median", [one["median_ms"] for one in lived], "ms"),
        at_most(f"{where}: time of a storm", 60, [one["seconds"] for one in lived], "s"),
    ]


if __name__ == "__main__":
    print(json.dumps(storm(Path(sys.argv[1]), int(sys.argv[2]))))
