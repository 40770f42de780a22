"""The statement of a budget: what every event of the ledger cost, and what had been spent and reserved after it.

Costs add as Rényi divergence and are converted to epsilon at the scope's delta and order, so that an event costs what it moves
the total by: the costs of a scope come to its total, though the same release costs less the later it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue

from qedge.privacy.ledger_events import Books, Event


@dataclass(frozen=True)
class Line:
    """An event, said in a few words. cost: epsilon by which it moved `spent`; reserved: what is spent and what is held.

    The three are of the event's scope, after it, and None where it has none.
    """

    event: Event
    what: str
    cost: float | None
    spent: float | None
    reserved: float | None

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values: the event as the ledger shows it, and its line."""
        return self.event.plain() | {"what": self.what, "cost": self.cost, "spent": self.spent, "reserved": self.reserved}


def statement(events: Iterable[Event]) -> list[Line]:
    """The lines of a ledger's events, or of those of some of its scopes, oldest first and none left out."""
    books = Books()
    lines = []
    for event in events:
        before = books.scopes.get(event.scope or "")
        books.apply(event)
        after = books.scopes.get(event.scope or "")
        if after is None:
            lines.append(Line(event, _what(event, books), None, None, None))
        else:
            cost = after.spent - (before.spent if before else 0.0)
            lines.append(Line(event, _what(event, books), cost, after.spent, after.reserved))
    return lines


def _what(event: Event, books: Books) -> str:
    """What happened, without digests and times."""
    facts = event.facts
    if event.kind == "open":
        return f"opened at epsilon {facts['epsilon']}, delta {facts['delta']}, order {facts['order']} by {event.actor}"
    if event.kind == "budget":
        return f"epsilon {facts['before']} changed to {facts['epsilon']} by {event.actor}"
    if event.kind == "without-privacy":
        return "a run without privacy"
    return _step(event, books)


def _step(event: Event, books: Books) -> str:
    """What a run did with its plan."""
    facts, run = event.facts, books.runs[str(event.run)]
    rounds, last = run.plan.rounds, "all other statistics" if run.plan.participation.startswith("query") else "an evaluation"
    if event.kind == "hold":
        parts = [*(["scaling"] if run.plan.first else []), f"{rounds} rounds", *([last] if run.plan.final else [])]
        return f"{' and '.join(parts)} held"
    if event.kind == "take-over":
        return f"coordinator {facts['epoch']} takes over"
    if event.kind == "close":
        return f"closed, the rest {'given back' if run.given_back else 'held for good'}"
    if facts["round"] == 0:
        return "scaling"
    return f"round {facts['round']} of {rounds}" if facts["round"] != rounds + 1 else last.removeprefix("an ")
