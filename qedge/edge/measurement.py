"""What each rung costs on this machine, measured in processes of their own: what one rung leaves behind, the next does not pay.

First each way to run a rung is tried (the execution providers that the machine has, weights as they lie in the file or prepacked, one
thread, two, four, … or all): prepacking costs a copy of the weights and threads cost cores, so they must be worth it. Then a fresh process
loads the rung that way, and says what that took.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qedge.edge.card import BATCHES, Card, Cost, Latency
from qedge.edge.hardware import providers, this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.pss import pss_bytes
from qedge.edge.rung import Rows, RungName, Runner
from qedge.edge.session import CPU, refuse_provider
from qedge.errors import Failed, InvalidCalibration, ModelError

WORTH_PREPACKING = 0.95  # without it a rung must do at least this share of what it does with it
WORTH_THREADS = 0.8  # of the time that fewer threads take
_MOST_CALLS, _MOST_SECONDS = 1000, 1.5
_TIMEOUT_S = 600.0
_TURNS = 3
Told = Callable[[RungName], None]


def measure(ladder: Ladder, rows: Rows, told: Told = lambda _: None, *, provider: str | None = None) -> Card:
    """The ladder's card with what each rung costs here. rows: [n, F], n >= 1, such as the model will be asked about; told: before each.

    provider: to run all but BINARY; default: each rung's fastest of those that the machine has.

    Raises:
        EdgeError: an execution provider that this machine has not.
        InvalidCalibration: rows of another width, none, or not finite. ArtifactTampered: as `Ladder.load`.
        Failed: a rung could not be run; what its process said.
    """
    refuse_rows(rows, ladder.card.features)
    if provider is not None:
        refuse_provider(provider)
    costs: dict[RungName, Cost] = {}
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "rows.npy"
        np.save(given, np.ascontiguousarray(rows[: max(BATCHES)], dtype=np.float32))
        for one in ladder.card.rungs:
            told(one.rung)
            ladder.check(one)
            way = _in_process("choose", ladder.folder, one.rung, given, *([provider] if provider else []))
            costs[one.rung] = Cost.model_validate(_in_process("cost", ladder.folder, one.rung, given, json.dumps(way)))
    return ladder.card.measured(costs, this_machine())


def refuse_rows(rows: Rows, features: int) -> None:
    """Refuse rows that the model cannot be asked about.

    Raises:
        InvalidCalibration: another width, none, or not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != features or not len(rows):
        raise InvalidCalibration(f"rows have the shape {list(rows.shape)}; accepted: [one or more, {features}]", given=list(rows.shape))
    if not np.isfinite(rows).all():
        place = np.argwhere(~np.isfinite(rows))[0]
        raise InvalidCalibration(f"row {place[0]}, feature {place[1]} is not a finite number", row=int(place[0]), feature=int(place[1]))


def _in_process(what: str, folder: Path, rung: str, rows: Path, *more: str) -> dict[str, object]:
    command = [sys.executable, "-m", "qedge.edge.measurement", what, str(folder), rung, str(rows), *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"measuring {rung} took longer than {_TIMEOUT_S:g} s", rung=rung) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise Failed(f"{rung} could not be measured: {last}", rung=rung)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


class Way(NamedTuple):
    """How a rung may be run."""

    provider: str
    prepacked: bool
    threads: int

    def __str__(self) -> str:
        kind = self.provider.removesuffix("ExecutionProvider")
        return f"{kind}, {'prepacked' if self.prepacked else 'mapped'}, {self.threads} thread{'s' * (self.threads > 1)}"


def choose(ladder: Ladder, rung: str, rows: Rows, provider: str | None = None) -> dict[str, object]:
    """How the rung runs best here, and the p50_ms of one row in each way: by turns at one row and at the largest batch.

    provider: to be used; default: of all that the machine has, each that can run the rung.
    """
    times: dict[tuple[Way, int], float] = {}
    ways = _ways(rung, provider)
    for _ in range(_TURNS):
        for way in tuple(ways):
            try:
                taken = _taken(ladder, rung, way, rows)
            except (ModelError, Failed):
                if way.provider == CPU:
                    raise
                ways.remove(way)
                continue
            for batch, seconds in taken.items():
                times[way, batch] = min(times.get((way, batch), math.inf), seconds)
    if not ways:
        raise Failed(f"{rung}: {provider} cannot run it", rung=rung)
    found = worth({(way, batch): seconds for (way, batch), seconds in times.items() if way in ways})
    return {**found._asdict(), "tried": {str(way): 1e3 * times[way, 1] for way in ways}}


def _ways(rung: str, provider: str | None) -> list[Way]:
    """Each way to run the rung; accelerators have their own threads and layouts."""
    if rung == "binary":
        return [Way(CPU, False, 1)]
    found = []
    for name in (provider,) if provider else providers():
        counts, layouts = (thread_counts(this_machine().cores), (False, True)) if name == CPU else ((1,), (False,))
        found += [Way(name, prepacked, threads) for prepacked in layouts for threads in counts]
    return found


def _taken(ladder: Ladder, rung: str, way: Way, rows: Rows) -> dict[int, float]:
    """Seconds of a call by batch, the median. One way is loaded at a time, so that a small machine's memory will do."""
    runner = ladder.load(rung, **way._asdict())
    try:
        return {batch: float(np.median(_calls(runner, _batch(rows, batch), 0.15))) for batch in (1, max(BATCHES))}
    finally:
        runner.close()


def thread_counts(cores: int) -> tuple[int, ...]:
    """How many threads are tried: powers of two, and all cores.

    >>> thread_counts(1), thread_counts(6)
    ((1,), (1, 2, 4, 6))
    """
    return (*(1 << power for power in range((cores - 1).bit_length())), cores)


def worth(times: Mapping[tuple[Way, int], float]) -> Way:
    """The fastest provider at one row; there more threads, or prepacking, only where they are worth what they take.

    times: seconds, by way and by batch, of one row and of the largest batch.
    """
    ways = {way for way, _ in times}
    provider = min(ways, key=lambda way: times[way, 1]).provider
    here = {way for way in ways if way.provider == provider}
    packs = any(way.prepacked for way in here)
    threads, *more = sorted({way.threads for way in here})

    def pays(costly: Way, cheap: Way, share: float) -> bool:
        return any(times[costly, batch] < share * times[cheap, batch] for batch in (1, max(BATCHES)))

    for count in more:
        if times[Way(provider, packs, count), 1] < WORTH_THREADS * times[Way(provider, packs, threads), 1]:
            threads = count
    prepacked = packs and pays(Way(provider, True, threads), Way(provider, False, threads), WORTH_PREPACKING)
    return Way(provider, prepacked, threads)


def cost(ladder: Ladder, rung: str, rows: Rows, provider: str, prepacked: bool, threads: int, tried: dict[str, float]) -> Cost:
    """What loading and running the rung takes in this process, which should be fresh: what any rung needs is loaded before."""
    ladder.load_runtime(rung)
    before, began = pss_bytes(), time.perf_counter()
    runner = ladder.load(rung, prepacked=prepacked, threads=threads, provider=provider)
    load_ms = 1e3 * (time.perf_counter() - began)
    for batch in BATCHES:
        runner.run(_batch(rows, batch))
    pss = max(0, pss_bytes() - before)
    latency, cpu_s = {}, 0.0
    for batch in BATCHES:
        used = time.process_time()
        taken = _calls(runner, _batch(rows, batch), _MOST_SECONDS)
        if batch == 1:
            cpu_s = 1000 * (time.process_time() - used) / len(taken)
        p50, p95, p99 = (float(value) for value in 1e3 * np.percentile(taken, (50, 95, 99)))
        latency[batch] = Latency(p50_ms=p50, p95_ms=p95, p99_ms=p99)
    way = Way(provider, prepacked, threads)
    return Cost(latency=latency, pss_bytes=pss, load_ms=load_ms, cpu_s_per_1000=cpu_s, tried=tried, **way._asdict())


def _batch(rows: Rows, batch: int) -> Rows:
    return np.ascontiguousarray(np.resize(rows, (batch, rows.shape[1])))


def _calls(runner: Runner, rows: Rows, most_s: float) -> list[float]:
    """Seconds of each call."""
    for _ in range(3):
        runner.run(rows)
    taken: list[float] = []
    end = time.perf_counter() + most_s
    while len(taken) < _MOST_CALLS and (time.perf_counter() < end or len(taken) < 20):
        began = time.perf_counter()
        runner.run(rows)
        taken.append(time.perf_counter() - began)
    return taken


def main(arguments: Sequence[str]) -> None:
    """One rung in this process, on behalf of `measure`; prints JSON."""
    what, folder, rung, rows, *more = arguments
    ladder, given = Ladder.open(Path(folder)), np.load(rows)
    if what == "choose":
        print(json.dumps(choose(ladder, rung, given, *more)))
    else:
        print(cost(ladder, rung, given, **json.loads(more[0])).model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
