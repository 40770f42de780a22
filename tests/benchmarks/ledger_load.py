"""The ledger under eight processes at once: 1,000 tries for fewer places in one budget, and how many holds a second it grants.

Each process opens the ledger of the same home, waits for the others, then asks 125 times. What the events say is summed up one
after another: at no moment may held and committed pass what the budget allows, and every place must have been granted.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from qedge.errors import BudgetExceeded
from qedge.privacy.accounting import ORDERS, RenyiCost, allowance
from qedge.privacy.ledger import Plan
from qedge.records import Records
from tests.benchmarks.figures import Figure, at_least, beside
from tests.benchmarks.surroundings import scratch

REPEAT = 5
PROCESSES, TRIES, PLACES = 8, 1000, 500
SCOPE, EPSILON, DELTA = "digits", 8.0, 1e-5
HOLDS_A_SECOND = 100.0
PATIENCE_S = 600.0
SPAWN = multiprocessing.get_context("spawn")


def measure(repeat: int) -> list[Figure]:
    """`repeat` ledgers too small for all tries, and as many that are large enough."""
    over, unused, contested, granted = 0, 0, [], []
    with scratch() as folder:
        for number in range(repeat):
            tries_a_second, most, left = _ask(folder / f"small-{number}", PLACES)
            over, unused = over + (most > 0), unused + left
            contested.append(tries_a_second)
            tries_a_second, most, left = _ask(folder / f"large-{number}", TRIES)
            over, unused = over + (most > 0), unused + left
            granted.append(tries_a_second)
    tries = f"{2 * repeat} times {TRIES} tries"
    return [
        Figure(f"ledgers that passed their cap at any event, {PROCESSES} processes", "0", f"{over} ({tries})", over == 0),
        Figure("places that were not granted though free", "0", f"{unused}", unused == 0),
        at_least("holds a second, all of them granted", HOLDS_A_SECOND, granted, "a second"),
        beside(f"tries a second, {PLACES} of {TRIES} granted", contested, "a second"),
    ]


def _ask(home: Path, places: int) -> tuple[float, int, int]:
    """Tries a second; how far the fold of the events was over the cap at worst (at most 0); places left though asked for."""
    ledger = Records.open(home).ledger
    scope = ledger.set_budget(SCOPE, epsilon=EPSILON, delta=DELTA, actor="bench")
    room = allowance(EPSILON, DELTA, scope.order)
    each = room // places
    ready, spans = SPAWN.Barrier(PROCESSES), SPAWN.Queue()
    workers = [SPAWN.Process(target=_hold_many, args=(home, index, each, ready, spans)) for index in range(PROCESSES)]
    for worker in workers:
        worker.start()
    answers = [spans.get(timeout=PATIENCE_S) for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(end for _, end, _ in answers) - min(begun for begun, _, _ in answers)
    accepted = sum(count for _, _, count in answers)
    ledger.verify()
    held, most = 0, -room
    for event in ledger.history(SCOPE):
        if event.kind == "hold":
            held += each
            most = max(most, held - room)
    if held != accepted * each or ledger.scope(SCOPE).held.at(scope.order) != held:
        raise RuntimeError(f"{accepted} holds were granted, the events say {held // each}, the books {ledger.scope(SCOPE).held}")
    return TRIES / seconds, most, min(TRIES, room // each) - accepted


def _hold_many(home: Path, index: int, each: int, ready: Barrier, spans: Queue[tuple[float, float, int]]) -> None:
    """One process's share of the tries; when it began and ended, and how many were granted."""
    ledger, granted = Records.open(home).ledger, 0
    cost, data = RenyiCost((each,) * len(ORDERS)), frozenset({"00" * 32})
    ready.wait()
    begun = time.monotonic()
    for number in range(TRIES // PROCESSES):
        try:
            ledger.hold(Plan(f"run-{index}-{number}", SCOPE, 1, cost, None, "bench"), data, opening=None)
            granted += 1
        except BudgetExceeded:
            pass
    spans.put((begun, time.monotonic(), granted))
