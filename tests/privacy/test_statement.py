"""The statement of a budget adds up, and says which event was what."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qedge.privacy.accounting import sampled_gaussian
from qedge.privacy.ledger import Ledger, Opening, Plan
from qedge.privacy.statement import statement
from qedge.records import Records

ROUND, EVALUATION = sampled_gaussian(1, 4, 0.25), sampled_gaussian(1, 9, 1.0)
PRINTS = frozenset({hashlib.sha256(b"rows").hexdigest()})


def ledger_of(home: Path, committed: list[int], rounds: int = 4) -> Ledger:
    """A ledger in which a run with an evaluation made these releases and ended."""
    ledger = Records.open(home).ledger
    ledger.hold(Plan("r", "wine", rounds, ROUND, EVALUATION, "poisson"), PRINTS, opening=Opening(8.0, 1e-3, 8))
    epoch = ledger.take_over("r")
    for number in committed:
        ledger.commit("r", number, f"digest {number}", epoch)
    ledger.close("r", epoch, give_back=True)
    return ledger


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(committed=st.lists(st.integers(1, 5), unique=True))
def test_the_costs_of_a_scope_come_to_what_it_has_spent(tmp_path_factory: pytest.TempPathFactory, committed: list[int]) -> None:
    ledger = ledger_of(tmp_path_factory.mktemp("home"), committed)
    lines = statement(ledger.history("wine"))
    scope = ledger.scope("wine")
    assert sum(line.cost or 0 for line in lines) == pytest.approx(scope.spent)
    assert (lines[-1].spent, lines[-1].reserved) == (scope.spent, scope.reserved)
    spent = [line.spent for line in lines]
    assert spent == sorted(spent)
    assert [line.event.kind for line in lines if line.cost] == ["commit"] * len(committed)


def test_every_event_says_what_it_was_and_the_last_release_that_it_was_the_evaluation(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, [1, 2, 3, 4, 5])
    ledger.set_budget("wine", epsilon=9, actor="ann")
    ledger.record_without_privacy("open", frozenset({hashlib.sha256(b"other rows").hexdigest()}))
    lines = statement(ledger.history())
    assert [line.what.partition(" by ")[0] for line in lines] == [
        "opened at epsilon 8.0, delta 0.001, order 8",
        "4 rounds and an evaluation held",
        "coordinator 1 takes over",
        *(f"round {number} of 4" for number in (1, 2, 3, 4)),
        "evaluation",
        "closed, the rest given back",
        "epsilon 8.0 changed to 9.0",
        "a run without privacy",
    ]
    assert lines[1].reserved == lines[7].spent == pytest.approx(ledger.scope("wine").spent)
    assert (lines[-1].cost, lines[-1].spent) == (None, None)
    assert lines[7].plain()["cost"] == pytest.approx(lines[7].spent - lines[6].spent)
    assert lines[7].plain()["facts"]["digest"] == "digest 5"
