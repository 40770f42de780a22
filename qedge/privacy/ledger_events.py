"""What the ledger says happened, and the books that follow from it.

The ledger is its events: each signed, each holding the hash of the one before. Budgets, holds and releases are never stored;
they are the fold of the events (`Books.apply`), so there is no balance in a table that somebody could change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydantic import JsonValue

from qedge.audit.canonical import canonical, parse
from qedge.audit.witness import Head
from qedge.privacy.accounting import RenyiCost, epsilon_of
from qedge.security.keys import Keys

DOMAIN = "ledger"
_FIELDS = {"seq", "time", "actor", "kind", "facts", "log", "previous"}
_LONG = {"per_round", "final", "first"}


@dataclass(frozen=True)
class Event:
    """One change of the ledger. log: the audit log's head when it happened; previous: hash of the event before.

    kind: open | budget | hold | take-over | commit | close | without-privacy.
    """

    seq: int
    time: str
    actor: str
    kind: str
    facts: dict[str, JsonValue]
    log: Head
    previous: str
    signature: bytes = b""

    @property
    def scope(self) -> str | None:
        """The scope it changed, where it changed one."""
        return str(self.facts["scope"]) if "scope" in self.facts else None

    @property
    def run(self) -> str | None:
        """The run that it is about, where there is one."""
        return str(self.facts["run"]) if "run" in self.facts else None

    @cached_property
    def head(self) -> Head:
        """The chain's end with this event. The hash covers the signature, so the last signature vouches for all before it."""
        return Head(self.seq, hash_of(self.body, self.signature))

    @cached_property
    def body(self) -> bytes:
        """The canonical bytes that are signed."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return canonical(values | {"log": self.log.plain()})

    def signed(self, keys: Keys) -> Event:
        """The event with its signature."""
        return replace(self, signature=keys.sign(DOMAIN, self.body))

    def brief(self) -> dict[str, JsonValue]:
        """Its facts without the long vectors, as the audit log repeats them."""
        return {name: value for name, value in self.facts.items() if name not in _LONG}

    def plain(self) -> dict[str, JsonValue]:
        """As JSON values for showing; summary: the facts in one line."""
        summary = ", ".join(f"{name} {value}" for name, value in self.brief().items() if name != "bound")
        values: dict[str, JsonValue] = {"seq": self.seq, "time": self.time, "kind": self.kind, "actor": self.actor}
        return values | {"summary": summary, "facts": self.facts, "hash": self.head.hash, "signature": self.signature.hex()}

    @classmethod
    def read(cls, body: bytes, signature: bytes) -> Event:
        """An event from what is stored.

        Raises:
            ValueError: it is not an event in canonical form.
        """
        value = parse(body)
        if not isinstance(value, dict) or set(value) != _FIELDS:
            raise ValueError("it is not an event")
        seq, facts = value["seq"], value["facts"]
        if not isinstance(seq, int) or not isinstance(facts, dict):
            raise ValueError("it is not an event")
        head, previous = Head.read(value["log"]), str(value["previous"])
        return cls(seq, str(value["time"]), str(value["actor"]), str(value["kind"]), facts, head, previous, signature)


@dataclass(frozen=True)
class Plan:
    """All that a run may release: `rounds` times `per_round`; before them `first` and after them `final`, once each, where there are such.

    participation: e.g. "poisson q=0.25".
    """

    run: str
    scope: str
    rounds: int
    per_round: RenyiCost
    final: RenyiCost | None
    participation: str
    first: RenyiCost | None = None

    @property
    def releases(self) -> range:
        """The numbers of all that it may release: rounds from 1, `first` is 0, `final` is rounds + 1."""
        return range(0 if self.first else 1, self.rounds + 1 + (self.final is not None))

    @property
    def cost(self) -> RenyiCost:
        """Of the whole plan."""
        return self.part(self.releases)

    def part(self, releases: range | set[int]) -> RenyiCost:
        """Of these releases, some of its own."""
        begun, ended = 0 in releases, self.rounds + 1 in releases
        cost = self.per_round * (len(releases) - begun - ended)
        cost = cost + self.first if begun and self.first else cost
        return cost + self.final if ended and self.final else cost

    def plain(self) -> dict[str, JsonValue]:
        """As the facts of an event."""
        final: list[JsonValue] | None = [*self.final.to_list()] if self.final else None
        first: dict[str, JsonValue] = {"first": [*self.first.to_list()]} if self.first else {}
        return first | {
            "run": self.run,
            "scope": self.scope,
            "rounds": self.rounds,
            "per_round": [*self.per_round.to_list()],
            "final": final,
            "participation": self.participation,
        }


@dataclass(frozen=True)
class Scope:
    """A budget: one data set, one privacy unit, one neighbouring relation. delta and order are frozen with it."""

    name: str
    unit: str
    relation: str
    epsilon: float
    delta: float
    order: int
    held: RenyiCost
    committed: RenyiCost

    @property
    def spent(self) -> float:
        """Epsilon of what was released; 0.0 when nothing was."""
        return self.epsilon_of(self.committed)

    @property
    def reserved(self) -> float:
        """Epsilon of what was released and what is held."""
        return self.epsilon_of(self.held + self.committed)

    def epsilon_of(self, cost: RenyiCost) -> float:
        """A cost as epsilon at the scope's order and delta."""
        nanos = cost.at(self.order)
        return epsilon_of(nanos, self.order, self.delta) if nanos else 0.0


@dataclass
class Run:
    """Where a plan stands. releases: digest by round; epoch: of the coordinator that may commit."""

    plan: Plan
    epoch: int = 0
    releases: dict[int, str] = field(default_factory=dict)
    closed: bool = False
    given_back: bool = False

    def left(self) -> RenyiCost:
        """What the plan has not released."""
        return self.plan.part(set(self.plan.releases) - self.releases.keys())


@dataclass
class Books:
    """The fold of the events. bound: scope by the event that bound data to it; unprotected: run by its event."""

    scopes: dict[str, Scope] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    bound: dict[int, str] = field(default_factory=dict)
    unprotected: dict[int, str] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Take the next event.

        Raises:
            ValueError, KeyError, InvalidPrivacy: it does not follow from the ones before; nothing honest wrote it.
        """
        facts = event.facts
        if event.kind == "open":
            self._open(facts)
        elif event.kind == "budget":
            scope = self.scopes[str(facts["scope"])]
            self.scopes[scope.name] = replace(scope, epsilon=float(str(facts["epsilon"])))
        elif event.kind == "hold":
            self._hold(facts)
            self.bound[event.seq] = str(facts["scope"])
        elif event.kind == "take-over":
            self.runs[str(facts["run"])].epoch = _whole(facts["epoch"])
        elif event.kind == "commit":
            self._commit(facts)
        elif event.kind == "close":
            self._close(facts)
        elif event.kind == "without-privacy":
            self.unprotected[event.seq] = str(facts["run"])
        else:
            raise ValueError(f"no event is called '{event.kind}'")

    def _open(self, facts: dict[str, JsonValue]) -> None:
        name, nothing = str(facts["scope"]), RenyiCost.zero()
        epsilon, delta, order = float(str(facts["epsilon"])), float(str(facts["delta"])), _whole(facts["order"])
        self.scopes[name] = Scope(name, str(facts["unit"]), str(facts["relation"]), epsilon, delta, order, nothing, nothing)

    def _hold(self, facts: dict[str, JsonValue]) -> None:
        plan = Plan(
            run=str(facts["run"]),
            scope=str(facts["scope"]),
            rounds=_whole(facts["rounds"]),
            per_round=_cost(facts["per_round"]),
            final=_cost(facts["final"]) if facts["final"] is not None else None,
            participation=str(facts["participation"]),
            first=_cost(facts["first"]) if "first" in facts else None,
        )
        if plan.run in self.runs:
            raise ValueError(f"run '{plan.run}' holds a plan already")
        self.runs[plan.run] = Run(plan)
        scope = self.scopes[plan.scope]
        self.scopes[scope.name] = replace(scope, held=scope.held + plan.cost)

    def _commit(self, facts: dict[str, JsonValue]) -> None:
        run, number = self.runs[str(facts["run"])], _whole(facts["round"])
        if run.closed or number in run.releases:
            raise ValueError(f"run '{run.plan.run}' cannot release round {number}")
        run.releases[number] = str(facts["digest"])
        scope, cost = self.scopes[run.plan.scope], run.plan.part({number})
        self.scopes[scope.name] = replace(scope, held=scope.held - cost, committed=scope.committed + cost)

    def _close(self, facts: dict[str, JsonValue]) -> None:
        run = self.runs[str(facts["run"])]
        run.closed, run.given_back = True, facts["give_back"] is True
        if run.given_back:
            scope = self.scopes[run.plan.scope]
            self.scopes[scope.name] = replace(scope, held=scope.held - run.left())


def hash_of(body: bytes, signature: bytes) -> str:
    """What the next event names as the one before."""
    return hashlib.sha256(body + signature).hexdigest()


def _whole(value: JsonValue) -> int:
    if not isinstance(value, int):
        raise ValueError(f"expected a whole number, found {value!r}")
    return value


def _cost(value: JsonValue) -> RenyiCost:
    if not isinstance(value, list):
        raise ValueError("expected a list of whole numbers")
    return RenyiCost(tuple(_whole(nano) for nano in value))
