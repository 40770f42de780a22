"""The ledger against a tiny model, at once from many processes, killed anywhere, and altered byte by byte."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from qedge.audit.log import AuditLog
from qedge.audit.witness import Head, Witness
from qedge.errors import (
    BudgetExceeded,
    Fenced,
    HomeUnusable,
    InvalidPrivacy,
    LedgerTampered,
    PrivacyError,
    QEdgeError,
    RolledBack,
    ScopeConflict,
    StorageFull,
    Tampered,
    UnknownRun,
    UnknownScope,
)
from qedge.privacy.accounting import ORDERS, RenyiCost, allowance, epsilon_of, sampled_gaussian
from qedge.privacy.filter import most_epsilon
from qedge.privacy.ledger import Ledger, Opening, Plan
from qedge.records import Records
from qedge.security.keys import Keys

FORK = multiprocessing.get_context("fork")
ORDER, DELTA = 8, 1e-5
ROUND = sampled_gaussian(1, 4, 0.25)
OPENING = Opening(8.0, DELTA, ORDER)


def prints(*names: object) -> frozenset[str]:
    return frozenset(hashlib.sha256(str(name).encode()).hexdigest() for name in names)


def flat(nanos: int) -> RenyiCost:
    return RenyiCost((nanos,) * len(ORDERS))


def plan(
    run: str,
    rounds: int = 4,
    *,
    scope: str = "digits",
    per_round: RenyiCost = ROUND,
    final: RenyiCost | None = None,
    first: RenyiCost | None = None,
) -> Plan:
    return Plan(run, scope, rounds, per_round, final, "poisson q=0.25", first)


def open_ledger(home: Path) -> Ledger:
    keys = Keys.open(home)
    return Ledger.open(home, keys, AuditLog(home, keys, actor="tester"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path) as opened:
        yield opened


# ---- the rules


def test_a_plan_is_held_committed_release_by_release_and_the_rest_given_back(ledger: Ledger) -> None:
    held = ledger.hold(plan("r", 4, final=flat(7)), prints("a"), opening=OPENING)
    assert (held.spent, held.held) == (0.0, ROUND * 4 + flat(7))
    epoch = ledger.take_over("r")
    for number in (1, 2, 5):
        ledger.commit("r", number, f"digest {number}", epoch)
    scope = ledger.scope("digits")
    assert (scope.committed, scope.held) == (ROUND * 2 + flat(7), ROUND * 2)
    assert scope.spent == epsilon_of((ROUND * 2 + flat(7)).at(ORDER), ORDER, DELTA)
    assert 0 < most_epsilon(scope) < scope.epsilon
    ledger.close("r", epoch, give_back=True)
    assert ledger.scope("digits").held == RenyiCost.zero()
    assert ledger.releases("r") == {1: "digest 1", 2: "digest 2", 5: "digest 5"}


def test_what_is_not_given_back_stays_held_for_good(ledger: Ledger) -> None:
    ledger.hold(plan("r", 4), prints("a"), opening=OPENING)
    ledger.close("r", 0, give_back=False)
    ledger.close("r", 0, give_back=False)
    assert ledger.scope("digits").held == ROUND * 4
    with pytest.raises(PrivacyError, match="closed already"):
        ledger.close("r", 0, give_back=True)
    with pytest.raises(PrivacyError, match="closed"):
        ledger.commit("r", 1, "digest", 0)


def test_a_plan_that_does_not_fit_is_refused_whole_and_told_how_many_rounds_would(ledger: Ledger) -> None:
    ledger.set_budget("digits", epsilon=8, delta=DELTA, order=ORDER, actor="ann")
    room = allowance(8, DELTA, ORDER)
    before = ledger.head()
    with pytest.raises(BudgetExceeded, match="of its rounds would fit") as caught:
        ledger.hold(plan("r", 10**6, final=flat(room // 2)), prints("a"), opening=None)
    fit = caught.value.facts["rounds_that_fit"]
    assert caught.value.facts | {"asked": 0} == {
        "scope": "digits",
        "epsilon": 8.0,
        "new_job_epsilon": 8.0,
        "asked": 0,
        "rounds_that_fit": fit,
    }
    assert ledger.head() == before
    assert ledger.find(prints("a"), None) is None  # nothing was bound
    assert isinstance(fit, int)
    with pytest.raises(BudgetExceeded):
        ledger.hold(plan("r", fit + 1, final=flat(room // 2)), prints("a"), opening=None)
    assert ledger.hold(plan("r", fit, final=flat(room // 2)), prints("a"), opening=None).reserved <= 8


def test_a_first_plan_that_does_not_fit_opens_no_scope(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded):
        ledger.hold(plan("r", 10**6), prints("a"), opening=OPENING)
    assert ledger.scopes() == []


def test_the_budget_is_used_to_the_last_nano_and_not_one_more(ledger: Ledger) -> None:
    room = allowance(8, DELTA, ORDER)
    ledger.hold(plan("r", 1, per_round=flat(room)), prints("a"), opening=OPENING)
    with pytest.raises(BudgetExceeded) as caught:
        ledger.hold(plan("s", 1, per_round=flat(1)), prints("a"), opening=None)
    assert caught.value.facts["rounds_that_fit"] == 0


def test_only_the_frozen_order_counts_whatever_another_would_allow(ledger: Ledger) -> None:
    """Deciding by the order that suits best afterwards is no filter (Feldman & Zrnic 2021, Section 4)."""
    room = allowance(8, DELTA, ORDER)
    cheap_elsewhere = RenyiCost(tuple(room + 1 if order == ORDER else 0 for order in ORDERS))
    with pytest.raises(BudgetExceeded):
        ledger.hold(plan("r", 1, per_round=cheap_elsewhere), prints("a"), opening=OPENING)
    dear_elsewhere = RenyiCost(tuple(room if order == ORDER else 100 * room for order in ORDERS))
    ledger.hold(plan("r", 1, per_round=dear_elsewhere), prints("a"), opening=OPENING)


def test_plans_chosen_after_seeing_the_state_never_pass_the_cap(ledger: Ledger) -> None:
    """An adversary who always asks for the most that the ledger says is left, and a little more."""
    ledger.set_budget("digits", epsilon=8, delta=DELTA, order=ORDER, actor="ann")
    room, source = allowance(8, DELTA, ORDER), random.Random(0)
    for turn in range(40):
        scope = ledger.scope("digits")
        left = room - (scope.held + scope.committed).at(ORDER)
        asked = max(1, source.choice([left // 2, left, left + 1, 2 * left]))
        run = f"r{turn}"
        if asked > left:
            with pytest.raises(BudgetExceeded):
                ledger.hold(plan(run, 1, per_round=flat(asked)), prints("a"), opening=None)
            continue
        ledger.hold(plan(run, 1, per_round=flat(asked)), prints("a"), opening=None)
        if source.random() < 0.5:
            ledger.commit(run, 1, "digest", 0)
        ledger.close(run, 0, give_back=True)
    assert ledger.scope("digits").spent <= 8


def test_a_release_is_committed_once_whoever_tries(ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    ledger.commit("r", 1, "first", 0)
    head = ledger.head()
    ledger.commit("r", 1, "first", 0)
    assert ledger.head() == head
    with pytest.raises(Fenced, match="another digest"):
        ledger.commit("r", 1, "second", 0)


def test_an_older_epoch_commits_and_closes_nothing(ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    assert [ledger.take_over("r"), ledger.take_over("r")] == [1, 2]
    for epoch in (0, 1, 3):
        with pytest.raises(Fenced, match="taken over"):
            ledger.commit("r", 1, "digest", epoch)
        with pytest.raises(Fenced):
            ledger.close("r", epoch, give_back=True)
    ledger.commit("r", 1, "digest", 2)


@pytest.mark.parametrize("number", [-1, 0, 5, 6])
def test_a_round_outside_the_plan_is_refused(ledger: Ledger, number: int) -> None:
    ledger.hold(plan("r", 4), prints("a"), opening=OPENING)
    with pytest.raises(PrivacyError, match="holds releases 1 to 4"):
        ledger.commit("r", number, "digest", 0)


def test_a_closed_run_can_be_taken_up_but_releases_nothing_more(ledger: Ledger) -> None:
    ledger.hold(plan("r", 2), prints("a"), opening=OPENING)
    ledger.commit("r", 1, "digest", 0)
    ledger.close("r", 0, give_back=True)
    epoch = ledger.take_over("r")
    ledger.commit("r", 1, "digest", epoch)
    with pytest.raises(PrivacyError, match="closed"):
        ledger.commit("r", 2, "digest", epoch)


def test_a_run_that_nobody_knows_is_unknown(ledger: Ledger) -> None:
    for act in (lambda: ledger.take_over("r"), lambda: ledger.commit("r", 1, "d", 0), lambda: ledger.close("r", 0, give_back=True)):
        with pytest.raises(UnknownRun):
            act()
    assert (ledger.plan("r"), ledger.releases("r")) == (None, {})


def test_a_run_holds_one_plan(ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    with pytest.raises(PrivacyError, match="already; resume it"):
        ledger.hold(plan("r"), prints("a"), opening=OPENING)
    assert ledger.plan("r") == plan("r")
    with pytest.raises(InvalidPrivacy, match="at least one round"):
        ledger.hold(plan("s", 0), prints("a"), opening=OPENING)


# ---- scopes and the data that belong to them


def test_data_belong_to_the_scope_that_first_charged_them(ledger: Ledger) -> None:
    ledger.hold(plan("r", scope="one"), prints("a", "b"), opening=OPENING)
    ledger.hold(plan("s", scope="two"), prints("c"), opening=OPENING)
    for overlap in (prints("a"), prints("b", "new"), prints("a", "b", *range(1500))):
        found = ledger.find(overlap, None)
        assert found is not None
        assert found.name == "one"
        with pytest.raises(ScopeConflict, match="belong to scope 'one', not to 'two'"):
            ledger.find(overlap, "two")
        with pytest.raises(ScopeConflict):
            ledger.hold(plan("t", scope="fresh"), overlap, opening=OPENING)
        with pytest.raises(ScopeConflict, match="privacy budget"):
            ledger.refuse_without_privacy(overlap)
    with pytest.raises(ScopeConflict, match="several scopes"):
        ledger.find(prints("a", "c"), None)
    assert ledger.find(prints("d"), None) is None
    assert ledger.find(prints("d"), "three") is None
    ledger.refuse_without_privacy(prints("d"))
    assert [scope.name for scope in ledger.scopes()] == ["one", "two"]


def test_data_that_join_a_scope_belong_to_it_from_then_on(ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    ledger.hold(plan("s"), prints("a", "late"), opening=None)
    with pytest.raises(ScopeConflict):
        ledger.hold(plan("t", scope="other"), prints("late"), opening=OPENING)


def test_data_without_a_fingerprint_are_a_mistake(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        ledger.hold(plan("r"), frozenset(), opening=OPENING)


def test_a_scope_that_no_job_may_open_is_unknown(ledger: Ledger) -> None:
    with pytest.raises(UnknownScope, match="none yet"):
        ledger.hold(plan("r"), prints("a"), opening=None)
    ledger.set_budget("digits", epsilon=1, delta=DELTA, actor="ann")
    with pytest.raises(UnknownScope, match="did you mean 'digits'"):
        ledger.scope("digit")
    with pytest.raises(UnknownScope):
        ledger.history("digit")


def test_another_unit_than_the_scopes_is_refused(ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    with pytest.raises(ScopeConflict, match="not a example"):
        ledger.hold(plan("s"), prints("a"), opening=Opening(8.0, DELTA, ORDER, unit="example"))


def test_runs_without_privacy_are_on_record_for_the_data_they_used(ledger: Ledger) -> None:
    ledger.record_without_privacy("open-1", prints("a", "b"))
    ledger.record_without_privacy("open-2", prints("b"))
    assert ledger.runs_without_privacy(prints("b", "z")) == ("open-1", "open-2")
    ledger.hold(plan("r"), prints("b"), opening=OPENING)  # what was released before is not undone, but known
    assert ledger.runs_without_privacy(prints("b")) == ("open-1", "open-2")
    with pytest.raises(ScopeConflict):
        ledger.record_without_privacy("open-3", prints("b"))
    ledger.verify()


# ---- budgets


def test_delta_order_and_unit_are_frozen_and_epsilon_is_not(ledger: Ledger) -> None:
    ledger.set_budget("digits", epsilon=8, delta=DELTA, order=ORDER, actor="ann")
    for change in ({"delta": 1e-6}, {"delta": DELTA, "order": 9}, {"delta": DELTA, "unit": "example"}):
        with pytest.raises(InvalidPrivacy, match="frozen"):
            ledger.set_budget("digits", epsilon=8, actor="bob", **change)  # type: ignore[arg-type]
    assert ledger.set_budget("digits", epsilon=9, actor="bob").epsilon == 9
    assert [(event.kind, event.actor, event.facts["by"]) for event in ledger.history("digits")] == [
        ("open", "ann", "tester"),
        ("budget", "bob", "tester"),
    ]


def test_an_epsilon_below_what_is_spent_lets_nothing_more_in(ledger: Ledger) -> None:
    ledger.hold(plan("r", 2), prints("a"), opening=OPENING)
    ledger.commit("r", 1, "digest", 0)
    scope = ledger.set_budget("digits", epsilon=0.5, actor="ann")
    assert scope.spent > scope.epsilon
    assert most_epsilon(scope) == 0
    ledger.commit("r", 2, "digest", 0)  # what is held may still be released
    with pytest.raises(BudgetExceeded) as caught:
        ledger.hold(plan("s", 1, per_round=flat(1)), prints("a"), opening=None)
    assert caught.value.facts["rounds_that_fit"] == 0


@pytest.mark.parametrize(
    ("epsilon", "delta", "order", "clients", "message"),
    [
        (0, DELTA, None, None, "epsilon is 0"),
        (-1, DELTA, None, None, "epsilon is -1"),
        (float("nan"), DELTA, None, None, "epsilon is nan"),
        (float("inf"), DELTA, None, None, "epsilon is inf"),
        (1001, DELTA, None, None, "epsilon <= 1000"),
        (1, 0, None, None, "delta is 0"),
        (1, 1, None, None, "delta is 1"),
        (1, float("nan"), None, None, "delta is nan"),
        (1, None, None, None, "needs a delta"),
        (1, 0.01, None, 100, "below 1/clients = 0.01"),
        (1, DELTA, 65, None, "order is 65"),
        (0.5, DELTA, 2, None, "nothing fits epsilon 0.5 at delta 1e-05 and order 2"),
        (0.001, DELTA, None, None, "epsilon"),
    ],
)
def test_a_budget_out_of_range_is_refused_with_what_would_be_accepted(
    ledger: Ledger, epsilon: float, delta: float | None, order: int | None, clients: int | None, message: str
) -> None:
    with pytest.raises(InvalidPrivacy, match=message):
        ledger.set_budget("digits", epsilon=epsilon, delta=delta, order=order, clients=clients, actor="ann")
    assert ledger.scopes() == []


# ---- against a model


class LedgerMachine(RuleBasedStateMachine):
    """Holds, commits, take-overs, closings, budgets and reopenings in any order, against sums in a dictionary."""

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ledger"))
        self.ledger = open_ledger(self.home)
        self.cap, self.runs = 0, {}
        self.budget(epsilon=4.0)

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.ledger.__exit__(None, None, None)
            shutil.rmtree(self.home)

    @rule(epsilon=st.floats(0.5, 20))
    def budget(self, epsilon: float) -> None:
        self.ledger.set_budget("digits", epsilon=epsilon, delta=DELTA, order=ORDER, actor="ann")
        self.cap = allowance(epsilon, DELTA, ORDER)

    @rule(rounds=st.integers(1, 5), each=st.integers(0, 10**9), others=st.tuples(*[st.none() | st.integers(0, 10**9)] * 2))
    def hold(self, rounds: int, each: int, others: tuple[int | None, int | None]) -> None:
        name, (first, final) = f"r{len(self.runs)}", others
        ends = {end: None if cost is None else flat(cost) for end, cost in (("first", first), ("final", final))}
        asked = plan(name, rounds, per_round=flat(each), **ends)
        if self.held() + self.committed() + rounds * each + (first or 0) + (final or 0) > self.cap:
            with pytest.raises(BudgetExceeded):
                self.ledger.hold(asked, prints("a"), opening=None)
        else:
            self.ledger.hold(asked, prints("a"), opening=None)
            costs = dict.fromkeys(range(1, rounds + 1), each)
            costs |= {number: cost for number, cost in ((0, first), (rounds + 1, final)) if cost is not None}
            self.runs[name] = {"costs": costs, "done": {}, "epoch": 0, "closed": False, "back": False}

    @precondition(lambda self: getattr(self, "runs", None))
    @rule(data=st.data(), number=st.integers(0, 7), digest=st.sampled_from("xy"), stale=st.integers(0, 3).map(lambda n: max(0, n - 2)))
    def commit(self, data: st.DataObject, number: int, digest: str, stale: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.runs)))
        run = self.runs[name]
        expected: type[QEdgeError] | None = None
        if stale or (number in run["done"] and run["done"][number] != digest):
            expected = Fenced
        elif number not in run["done"] and (number not in run["costs"] or run["closed"]):
            expected = PrivacyError
        if expected:
            with pytest.raises(expected):
                self.ledger.commit(name, number, digest, run["epoch"] - stale)
        else:
            self.ledger.commit(name, number, digest, run["epoch"])
            run["done"][number] = digest

    @precondition(lambda self: getattr(self, "runs", None))
    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.runs)))
        self.runs[name]["epoch"] += 1
        assert self.ledger.take_over(name) == self.runs[name]["epoch"]

    @precondition(lambda self: getattr(self, "runs", None))
    @rule(data=st.data(), back=st.booleans())
    def close(self, data: st.DataObject, back: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.runs)))
        run = self.runs[name]
        assume(not run["closed"])
        self.ledger.close(name, run["epoch"], give_back=back)
        run |= {"closed": True, "back": back}

    @rule()
    def reopen(self) -> None:
        self.ledger.__exit__(None, None, None)
        self.ledger = open_ledger(self.home)

    def held(self) -> int:
        open_runs = [run for run in self.runs.values() if not run["back"]]
        return sum(cost for run in open_runs for number, cost in run["costs"].items() if number not in run["done"])

    def committed(self) -> int:
        return sum(run["costs"][number] for run in self.runs.values() for number in run["done"])

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "home"):
            scope = self.ledger.scope("digits")
            assert (scope.held, scope.committed) == (flat(self.held()), flat(self.committed()))
            for name, run in self.runs.items():
                assert self.ledger.releases(name) == run["done"]


@pytest.mark.parametrize("examples", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_the_ledger_agrees_with_sums_in_a_dictionary(examples: int) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(LedgerMachine, settings=chosen)


# ---- several processes


def spawn(count: int, act: Callable[[int], object]) -> None:
    """Run `act(0)` … `act(count - 1)` in processes of their own, at once; all must end well."""
    workers = [FORK.Process(target=act, args=(index,)) for index in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * count


def test_eight_processes_never_pass_the_cap_and_hold_fast_enough(tmp_path: Path) -> None:
    """1,000 tries for 500 places; at least 100 holds a second asked of the ledger, 20 of a machine that does other things too."""
    with open_ledger(tmp_path) as ledger:
        ledger.set_budget("digits", epsilon=8, delta=DELTA, order=ORDER, actor="ann")
        room = allowance(8, DELTA, ORDER)
    each = room // 500
    told, tell = os.pipe()

    def hold_many(index: int) -> None:
        accepted = 0
        with open_ledger(tmp_path) as mine:
            for number in range(125):
                try:
                    mine.hold(plan(f"r{index}-{number}", 1, per_round=flat(each)), prints("a"), opening=None)
                    accepted += 1
                except BudgetExceeded:
                    pass
        os.write(tell, b"%d\n" % accepted)

    begun = time.monotonic()
    spawn(8, hold_many)
    seconds = time.monotonic() - begun
    os.close(tell)
    with os.fdopen(told) as pipe:
        accepted = sum(map(int, pipe))
    with open_ledger(tmp_path) as ledger:
        scope = ledger.scope("digits")
        assert accepted == room // each
        assert scope.held == flat(each) * accepted
        assert scope.reserved <= 8
        assert len(ledger.history("digits")) == 1 + accepted
    assert 1000 / seconds > 20


def test_two_coordinators_of_one_run_release_each_round_once(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.hold(plan("r", 30), prints("a"), opening=Opening(800, DELTA, ORDER))
    told, tell = os.pipe()

    def coordinate(index: int) -> None:
        with open_ledger(tmp_path) as mine:
            epoch = mine.take_over("r")
            for number in range(1, 31):
                try:
                    mine.commit("r", number, f"by {index}", epoch)
                    os.write(tell, b"%d %d\n" % (number, index))
                except Fenced:
                    return

    spawn(4, coordinate)
    os.close(tell)
    with os.fdopen(told) as pipe:
        said = [tuple(map(int, line.split())) for line in pipe]
    with open_ledger(tmp_path) as ledger:
        assert ledger.releases("r") == {number: f"by {index}" for number, index in said}
        assert len(said) == len({number for number, _ in said})
        assert ledger.scope("digits").committed == ROUND * len(said)


def test_a_change_by_another_process_is_seen_at_once(tmp_path: Path, ledger: Ledger) -> None:
    with open_ledger(tmp_path) as other:
        other.hold(plan("r"), prints("a"), opening=OPENING)
        assert ledger.scope("digits").held == ROUND * 4
        ledger.commit("r", 1, "digest", 0)
        assert other.releases("r") == {1: "digest"}


# ---- killed


def work_until_killed(home: Path, tell: int) -> None:
    """Holds and commits for ever, each told once it is acknowledged."""
    with open_ledger(home) as ledger:
        for number in range(10**6):
            ledger.hold(plan(f"{os.getpid()}-{number}", 2, per_round=flat(1)), prints("a"), opening=OPENING)
            os.write(tell, f"{os.getpid()}-{number} 0\n".encode())
            for release in (1, 2):
                ledger.commit(f"{os.getpid()}-{number}", release, "digest", 0)
                os.write(tell, f"{os.getpid()}-{number} {release}\n".encode())


def kill_after(home: Path, lines: int) -> list[tuple[str, int]]:
    """Let a process work until it has told so many lines, kill it in whatever it is doing then; give all that it told."""
    told, tell = os.pipe()
    worker = FORK.Process(target=work_until_killed, args=(home, tell))
    worker.start()
    os.close(tell)
    with os.fdopen(told) as pipe:
        said = [pipe.readline() for _ in range(lines)]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        said += pipe.readlines()
    worker.join()
    return [(run, int(release)) for run, release in (line.split() for line in said)]


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_acknowledged_is_lost_and_nothing_is_charged_twice(tmp_path: Path, times: int) -> None:
    source = random.Random(times)
    said: list[tuple[str, int]] = []
    for time_ in range(1, times + 1):
        said += kill_after(tmp_path, source.randrange(1, 12))
        with open_ledger(tmp_path) as ledger:
            charged = [event for event in ledger.history() if event.kind in ("hold", "commit")]
            found = {(str(event.run), int(str(event.facts.get("round", 0)))) for event in charged}
            assert set(said) <= found
            assert len(found) == len(charged) <= len(said) + time_  # at most the one that was under way, each time
            logged = [entry.facts["ledger"] for entry in AuditLog(tmp_path, Keys.open(tmp_path)).entries() if "ledger" in entry.facts]
            assert [head["seq"] for head in logged] == list(range(1, ledger.head().seq + 1))


def test_a_crash_between_ledger_and_log_is_repaired_by_whoever_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_ledger(tmp_path) as ledger, open_ledger(tmp_path) as other:
        monkeypatch.setattr(ledger, "_write_log", lambda: None)
        ledger.hold(plan("r"), prints("a"), opening=OPENING)
        log = AuditLog(tmp_path, Keys.open(tmp_path))
        assert log.ledger_head().seq == 0
        other.take_over("r")
        assert [entry.event for entry in log.entries()] == ["ledger.open", "ledger.hold", "ledger.take-over"]
        ledger.take_over("r")
    with open_ledger(tmp_path):
        assert log.entries()[-1].facts == {"scope": "digits", "run": "r", "epoch": 2, "ledger": ledger_head(tmp_path)}


def ledger_head(home: Path) -> dict[str, object]:
    with open_ledger(home) as ledger:
        return dict(ledger.head().plain())


# ---- full disks, locked files


def test_a_full_disk_changes_nothing_and_the_ledger_goes_on_afterwards(tmp_path: Path, ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    pages = ledger._store._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._store._db.execute(f"PRAGMA max_page_count={pages}")
    before = ledger.head()
    with pytest.raises(StorageFull, match="full"):
        ledger.hold(plan("s"), prints(*range(2000)), opening=None)
    assert ledger.head() == before
    ledger._store._db.execute("PRAGMA max_page_count=1000000")
    assert ledger.hold(plan("s"), prints("a"), opening=None).held == ROUND * 8
    ledger.verify()


def test_a_disk_that_fills_up_in_the_middle_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writes fail inside SQLite and inside the log as they come."""
    with open_ledger(tmp_path) as ledger:
        ledger.hold(plan("r", 2000, per_round=flat(1)), prints("a"), opening=OPENING)
    for limit in (60_000, 90_000, 150_000):
        told, tell = os.pipe()

        def commit_until_full(limit: int = limit, tell: int = tell) -> None:
            with open_ledger(tmp_path) as ledger:
                epoch = ledger.take_over("r")
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                try:
                    for number in range(len(ledger.releases("r")) + 1, 2000):
                        ledger.commit("r", number, "digest", epoch)
                        os.write(tell, b"%d\n" % number)
                except StorageFull:
                    os.write(tell, b"full\n")

        spawn(1, lambda _, act=commit_until_full: act())
        os.close(tell)
        with os.fdopen(told) as pipe:
            *said, last = pipe.read().split()
        assert last == "full"
        with open_ledger(tmp_path) as ledger:
            released = len(ledger.releases("r"))
            assert released - 1 <= int(said[-1] if said else released) <= released
            ledger.commit("r", released + 1, "digest", ledger.take_over("r"))


def test_a_ledger_that_cannot_be_opened_is_an_unusable_home(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(HomeUnusable):
        open_ledger(tmp_path)


def test_the_database_is_a_private_file_that_refuses_changes(tmp_path: Path, ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    ledger.commit("r", 1, "digest", 0)
    for name in ("ledger.db", "ledger.db-wal", "ledger.lock"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        for statement in ("UPDATE events SET body = ''", "DELETE FROM events", "DELETE FROM bindings", "UPDATE releases SET digest = ''"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                db.execute(statement)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            db.execute("INSERT INTO releases VALUES ('r', 1, 'other')")
    db.close()


# ---- altered


@pytest.fixture
def full_home(tmp_path: Path) -> Path:
    """A home whose ledger has every kind of event, all of it in ledger.db."""
    home = tmp_path / "home"
    with open_ledger(home) as ledger:
        ledger.record_without_privacy("open", prints("z"))
        ledger.set_budget("other", epsilon=3, delta=1e-6, actor="ann")
        ledger.set_budget("other", epsilon=2, actor="bob")
        ledger.hold(plan("r", 3, final=flat(5)), prints(*range(40)), opening=OPENING)
        epoch = ledger.take_over("r")
        for number in (1, 2, 4):
            ledger.commit("r", number, f"digest {number}", epoch)
        ledger.close("r", epoch, give_back=True)
    assert not (home / "ledger.db-wal").exists()
    return home


def told(home: Path) -> object:
    """All that a ledger says."""
    with open_ledger(home) as ledger:
        known = [ledger._store.bringers([bytes.fromhex(name)]) for name in sorted(prints(*range(40), "z"))]
        return ledger.scopes(), ledger.history(), ledger.head(), ledger.releases("r"), known


@pytest.mark.parametrize("count", [300, pytest.param(6000, marks=pytest.mark.slow)])
def test_a_flipped_byte_of_the_database_is_noticed_or_changes_nothing_that_is_said(full_home: Path, count: int) -> None:
    """Bytes in free space of pages and SQLite's own counters hold nothing of the ledger: only those may go unnoticed."""
    path = full_home / "ledger.db"
    content, truth, source = path.read_bytes(), told(full_home), random.Random(count)
    noticed = 0
    for position in (source.randrange(len(content)) for _ in range(count)):
        changed = bytearray(content)
        changed[position] ^= 1 << source.randrange(8)
        path.write_bytes(changed)
        try:
            assert told(full_home) == truth, f"byte {position} changes what the ledger says and is not noticed"
        except Tampered:
            noticed += 1
        for extra in ("ledger.db-wal", "ledger.db-shm"):
            (full_home / extra).unlink(missing_ok=True)
    path.write_bytes(content)
    assert told(full_home) == truth
    assert noticed > count / 10


def test_every_part_of_what_is_stored_is_noticed_when_one_byte_of_it_changes(full_home: Path) -> None:
    path = full_home / "ledger.db"
    content, source = path.read_bytes(), random.Random(0)
    with sqlite3.connect(path) as db:
        stored = [value for row in db.execute("SELECT body, signature FROM events") for value in row]
        stored += [mac for (mac,) in db.execute("SELECT mac FROM bindings")]
        stored += [digest.encode() for (digest,) in db.execute("SELECT digest FROM releases")]
        stored += [sql.encode() for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
    db.close()
    for value in stored:
        position = content.find(value[:900]) + source.randrange(min(len(value), 900))
        changed = bytearray(content)
        changed[position] ^= 1 << source.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(Tampered):
            open_ledger(full_home)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET body = replace(body, '\"rounds\":3', '\"rounds\":2')",
        "DELETE FROM events WHERE seq = 3",
        "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
        "UPDATE events SET seq = seq + 1 WHERE seq = (SELECT max(seq) FROM events)",
        "UPDATE events SET signature = (SELECT signature FROM events WHERE seq = 1) WHERE seq = 2",
        "UPDATE events SET signature = zeroblob(64)",
        "INSERT INTO events SELECT seq + 1, body, signature FROM events ORDER BY seq DESC LIMIT 1",
        "DELETE FROM bindings",
        "DELETE FROM bindings WHERE mac = (SELECT min(mac) FROM bindings)",
        "INSERT INTO bindings VALUES (4, zeroblob(32))",
        "INSERT INTO bindings VALUES (1000, zeroblob(32))",
        "UPDATE bindings SET event = 1 WHERE event != 1",
        "DELETE FROM releases",
        "UPDATE releases SET digest = 'other' WHERE round = 1",
        "INSERT INTO releases VALUES ('r', 3, 'never')",
        "CREATE TABLE more (x)",
        "DROP INDEX bindings_by_mac",
    ],
)
def test_whoever_writes_into_the_database_is_noticed(full_home: Path, statement: str) -> None:
    with sqlite3.connect(full_home / "ledger.db") as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statement)
        for _, sql in triggers:
            db.execute(sql)
    db.close()
    with pytest.raises(Tampered):
        open_ledger(full_home)


def test_a_ledger_without_its_triggers_is_not_the_ledger(full_home: Path) -> None:
    with sqlite3.connect(full_home / "ledger.db") as db:
        db.execute("DROP TRIGGER events_no_delete")
    db.close()
    with pytest.raises(LedgerTampered, match="tables are not"):
        open_ledger(full_home)


@pytest.mark.parametrize("content", [b"not a database at all, nothing like it" * 200, bytes(4096), bytes(100_000)])
def test_a_file_that_is_no_ledger_is_noticed(full_home: Path, content: bytes) -> None:
    (full_home / "ledger.db").write_bytes(content)
    with pytest.raises(Tampered):
        open_ledger(full_home)


def test_a_chain_written_with_another_key_is_noticed(full_home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with open_ledger(other) as ledger:
        ledger.set_budget("digits", epsilon=1000, delta=DELTA, actor="mallory")
    for name in ("ledger.db", "audit.log", "keys/heads.json"):
        shutil.copy(other / name, full_home / name)
    with pytest.raises(Tampered):
        open_ledger(full_home)
    (full_home / "keys" / "heads.json").unlink()
    (full_home / "audit.log").unlink()
    with pytest.raises(LedgerTampered, match="signature does not hold"):
        open_ledger(full_home)


# ---- put back

FILES = ("ledger.db", "audit.log", "keys/heads.json")


@pytest.mark.parametrize("put_back", [FILES[:1], FILES[1:2], FILES[2:], FILES[:2], (FILES[0], FILES[2]), FILES[1:]])
def test_any_of_ledger_log_and_witness_put_back_without_the_others_is_noticed(
    full_home: Path, tmp_path: Path, put_back: tuple[str, ...]
) -> None:
    """Except the witness alone: it is behind then, which a crash leaves too, and what it would have noticed is still there.

    Log and witness together may go back by one change of the ledger, which a crash between the two leaves too.
    """
    for name in put_back:
        shutil.copy(full_home / name, tmp_path / Path(name).name)
    with open_ledger(full_home) as ledger:
        ledger.hold(plan("more"), prints(0), opening=None)
        ledger.take_over("more")
        kept = ledger.head()
    for name in put_back:
        shutil.copy(tmp_path / Path(name).name, full_home / name)
    if put_back == FILES[2:]:
        with open_ledger(full_home) as ledger:
            assert ledger.head() == kept
        return
    with pytest.raises(RolledBack):
        open_ledger(full_home)


def test_all_three_put_back_are_noticed_by_a_head_kept_elsewhere(full_home: Path, tmp_path: Path) -> None:
    shutil.copytree(full_home, tmp_path / "old")
    with open_ledger(full_home) as ledger:
        ledger.hold(plan("more"), prints(0), opening=None)
        kept = ledger.head()
        ledger.refuse_older_than(kept)
    with open_ledger(tmp_path / "old") as ledger:
        with pytest.raises(RolledBack, match="seen elsewhere"):
            ledger.refuse_older_than(kept)
        with pytest.raises(RolledBack):
            ledger.refuse_older_than(Head(1, "0" * 64))


def test_a_ledger_behind_what_only_the_witness_has_seen_is_rolled_back(full_home: Path) -> None:
    keys = Keys.open(full_home)
    Witness(AuditLog(full_home, keys).head(), Head(99, "ab" * 32)).update(full_home, keys)
    with pytest.raises(RolledBack, match="the witness has seen event 99"):
        open_ledger(full_home)


def test_another_silo_key_under_which_all_data_would_look_new_is_noticed(full_home: Path) -> None:
    (full_home / "keys" / "silo.key").write_bytes(bytes(32))
    with pytest.raises(LedgerTampered, match="silo key"):
        open_ledger(full_home)


def test_a_lost_ledger_is_not_a_new_one(full_home: Path) -> None:
    (full_home / "ledger.db").unlink()
    with pytest.raises(RolledBack):
        open_ledger(full_home)


def test_a_ledger_put_back_under_a_living_process_is_noticed_by_it(tmp_path: Path, ledger: Ledger) -> None:
    ledger.hold(plan("r"), prints("a"), opening=OPENING)
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("DROP TRIGGER events_no_delete")
        db.execute("DELETE FROM events WHERE seq = 2")
    db.close()
    with pytest.raises(RolledBack):
        ledger.commit("r", 1, "digest", 0)


def test_a_process_that_closes_the_ledger_takes_nothing_from_one_that_has_it_open_twice(tmp_path: Path) -> None:
    """Closing any file descriptor on the database would drop all of this process's locks on it: the other process would take itself for
    the last one and delete the journal that this one goes on writing."""
    first, second = Records.open(tmp_path), Records.open(tmp_path)
    first.ledger.set_budget("one", epsilon=1, delta=0.001, actor="tester")

    def seen_elsewhere() -> list[str]:
        look = "print(*(scope.name for scope in Records.open(Path(sys.argv[1])).ledger.scopes()))"
        program = f"import sys; from pathlib import Path; from qedge.records import Records; {look}"
        return subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True).stdout.split()

    assert seen_elsewhere() == ["one"]
    first.ledger.set_budget("two", epsilon=1, delta=0.001, actor="tester")
    assert sorted(seen_elsewhere()) == ["one", "two"]
    assert len(second.ledger.scopes()) == 2
