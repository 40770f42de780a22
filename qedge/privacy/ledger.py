"""The privacy ledger: a filter that refuses a plan before anything is computed, and a record of everything released.

The whole plan of a run is held at the start, if the filter (`qedge.privacy.filter`) lets it through, and committed release by
release: each unique by run and round, in one transaction with the check of the coordinator's epoch. What a crash leaves held
stays held. The state is the fold of signed, chained events (`ledger_events`, `ledger_chain`) in SQLite (`ledger_store`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import cast

from pydantic import JsonValue

from qedge.audit.canonical import decimal
from qedge.audit.log import AuditLog
from qedge.audit.witness import Head
from qedge.errors import Fenced, InvalidPrivacy, PrivacyError, RolledBack, ScopeConflict, UnknownRun, UnknownScope, nearest
from qedge.privacy.accounting import frozen_order
from qedge.privacy.filter import UNIT, Opening, check_range, refuse_over_budget, refuse_thawing
from qedge.privacy.ledger_chain import EventChain
from qedge.privacy.ledger_events import Event, Plan, Run, Scope
from qedge.privacy.ledger_store import EventStore
from qedge.security.keys import Keys
from qedge.storage import locked

__all__ = ["Event", "Ledger", "Opening", "Plan", "Scope"]


class Ledger:
    """The ledger of one home. Several processes and threads may use it at once, each through its own or a shared object."""

    def __init__(self, home: Path, keys: Keys, log: AuditLog) -> None:
        self.path = home / "ledger.db"
        self._lock = home / "ledger.lock"
        self._keys, self._log = keys, log
        self._thread = threading.RLock()
        with locked(self._lock):
            self._store = EventStore(self.path)
        self._chain = EventChain(self._store, keys)

    @classmethod
    def open(cls, home: Path, keys: Keys, log: AuditLog) -> Ledger:
        """The ledger of a home, begun when missing, verified whole.

        Raises:
            LedgerTampered: an event, a fingerprint or a table was altered.
            RolledBack: it ends before what the log or the witness has seen.
            HomeUnusable, StorageFull: it cannot be written.
        """
        ledger = cls(home, keys, log)
        ledger.verify()
        return ledger

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._store.close()

    # ---- what is asked

    def scopes(self) -> list[Scope]:
        """All scopes, by name."""
        with self._reading():
            return sorted(self._chain.books.scopes.values(), key=lambda scope: scope.name)

    def scope(self, name: str) -> Scope:
        """One scope.

        Raises:
            UnknownScope: there is none of that name.
        """
        with self._reading():
            return self._scope(name)

    def find(self, fingerprints: frozenset[str], named: str | None) -> Scope | None:
        """The scope that a job on these data will charge, or None when the job may open one.

        Raises:
            ScopeConflict: they belong to another scope than `named`, or to several.
        """
        with self._reading():
            return self._find(_macs(fingerprints), named)

    def refuse_without_privacy(self, fingerprints: frozenset[str]) -> None:
        """Refuse a run without privacy on data that have a scope.

        Raises:
            ScopeConflict: they have.
        """
        with self._reading():
            self._refuse_without_privacy(_macs(fingerprints))

    def runs_without_privacy(self, fingerprints: frozenset[str]) -> tuple[str, ...]:
        """The recorded runs that used any of these data without privacy: no budget covers what they released."""
        with self._reading():
            runs = {self._chain.books.unprotected.get(event) for _, event in self._store.bringers(_macs(fingerprints))}
            return tuple(sorted(run for run in runs if run))

    def plan(self, run: str) -> Plan | None:
        """What a run holds or held, or None."""
        with self._reading():
            found = self._chain.books.runs.get(run)
            return found.plan if found else None

    def releases(self, run: str) -> dict[int, str]:
        """Digest by round of everything a run has released; empty for a run the ledger does not know."""
        with self._reading():
            found = self._chain.books.runs.get(run)
            return dict(found.releases) if found else {}

    def history(self, name: str | None = None) -> list[Event]:
        """All events, or those of one scope, oldest first.

        Raises:
            UnknownScope: there is none of that name.
        """
        with self._reading():
            if name is not None:
                self._scope(name)
            events = [Event.read(body, signature) for _, body, signature in self._store.events(1)]
            return [event for event in events if name in (None, event.scope)]

    def head(self) -> Head:
        """The end of the chain of events."""
        with self._reading():
            return self._chain.head

    def contains(self, head: Head) -> bool:
        """Whether the ledger went through this head: one kept elsewhere shows whether an old copy was put back."""
        with self._reading():
            return self._chain.contains(head)

    def refuse_older_than(self, head: Head) -> None:
        """Refuse to be older than a head that a receipt or a registry tag carries.

        Raises:
            RolledBack: this head is not in the ledger's past.
        """
        if not self.contains(head):
            raise RolledBack(f"{self.path} does not contain event {head.seq}, which was seen elsewhere", path=str(self.path), seen=head.seq)

    # ---- what changes

    def set_budget(
        self,
        name: str,
        *,
        unit: str | None = None,
        epsilon: float,
        delta: float | None = None,
        actor: str,
        order: int | None = None,
        clients: int | None = None,
    ) -> Scope:
        """Open a scope, or change its epsilon; its delta, order and unit are frozen.

        An epsilon below what is spent is allowed: nothing more fits then. actor: who says that it is to be so; the event keeps
        the user of the process beside. unit: client (the default) or example. order: Rényi order; default: the one at which
        noise without sampling goes farthest. clients: when known, delta must be below 1/clients.

        Raises:
            InvalidPrivacy: epsilon, delta or order out of range, or another delta, order or unit than the frozen.
        """
        with self._changing() as record:
            known = self._chain.books.scopes.get(name)
            if known is None:
                if delta is None:
                    raise InvalidPrivacy(f"scope '{name}' is new: it needs a delta, below 1/clients", scope=name)
                check_range(epsilon, delta, clients)
                opening = Opening(epsilon, delta, order or frozen_order(epsilon, delta), unit or UNIT, clients=clients)
                record("open", _opened(opening.scope(name)) | {"by": self._log.actor}, actor)
            else:
                check_range(epsilon, known.delta, clients)
                refuse_thawing(known, delta=delta, order=order, unit=unit)
                change: dict[str, JsonValue] = {"scope": name, "epsilon": decimal(epsilon), "before": decimal(known.epsilon)}
                record("budget", change | {"by": self._log.actor}, actor)
        return self.scope(name)

    def hold(self, plan: Plan, fingerprints: frozenset[str], *, opening: Opening | None) -> Scope:
        """Hold a whole plan, or nothing; bind the data to the scope; open the scope with `opening` when there is none.

        Raises:
            BudgetExceeded: it does not fit; `rounds_that_fit` says how much would.
            ScopeConflict: the data belong to another scope. UnknownScope: there is none and none may be opened.
            PrivacyError: the run holds a plan already. InvalidPrivacy: an opening or a plan out of range.
        """
        macs = _macs(fingerprints)
        with self._changing() as record:
            if plan.run in self._chain.books.runs:
                raise PrivacyError(f"run '{plan.run}' holds a plan already; resume it", run=plan.run)
            if plan.rounds < 1:
                raise InvalidPrivacy(f"a plan has at least one round; given {plan.rounds}", given=plan.rounds)
            known = self._find(macs, plan.scope)
            if known is None and opening is None:
                raise self._unknown(plan.scope)
            scope = known or cast(Opening, opening).scope(plan.scope)
            if opening and (opening.unit, opening.relation) != (scope.unit, scope.relation):
                raise ScopeConflict(
                    f"scope '{scope.name}' protects a {scope.unit} under {scope.relation}, not a {opening.unit}", scope=scope.name
                )
            refuse_over_budget(scope, plan)
            if known is None:
                record("open", _opened(scope))
            new = sorted(set(macs) - {mac for mac, event in self._store.bringers(macs) if event in self._chain.books.bound})
            event = record("hold", plan.plain() | {"bound": self._chain.bound(new)})
            self._store.bind(event.seq, new)
        return self.scope(plan.scope)

    def record_without_privacy(self, run: str, fingerprints: frozenset[str]) -> None:
        """Put on record that a run uses these data without privacy.

        Raises:
            ScopeConflict: they have a scope.
        """
        macs = sorted(_macs(fingerprints))
        with self._changing() as record:
            self._refuse_without_privacy(macs)
            event = record("without-privacy", {"run": run, "bound": self._chain.bound(macs)})
            self._store.bind(event.seq, macs)

    def take_over(self, run: str) -> int:
        """A new epoch for the coordinator that begins a run or goes on with it; older ones can commit nothing more.

        Raises:
            UnknownRun: the ledger holds no plan for it.
        """
        with self._changing() as record:
            found = self._run(run)
            epoch = found.epoch + 1
            record("take-over", {"scope": found.plan.scope, "run": run, "epoch": epoch})
        return epoch

    def refuse_superseded(self, run: str, epoch: int) -> None:
        """Refuse a coordinator that was taken over.

        Raises:
            Fenced: it was. UnknownRun: the ledger holds no plan for the run.
        """
        with self._reading():
            self._run(run, epoch)

    def commit(self, run: str, round: int, digest: str, epoch: int) -> None:
        """Charge one release, before anything else sees it: rounds are 1 to `rounds`, the plan's `first` is 0, its `final` rounds + 1.

        The same digest again changes nothing. The audit log repeats it with the next change, or when `repeat_in_log` is called:
        what is charged is on disk here, so a round need not wait for a second file.

        Raises:
            Fenced: an older epoch, or another digest for a round that was released.
            UnknownRun: no plan. PrivacyError: not a round of the plan, or the plan is closed.
        """
        with self._changing(logged=False) as record:
            found = self._run(run, epoch)
            if (known := found.releases.get(round)) is not None:
                if known != digest:
                    raise Fenced(f"round {round} of run '{run}' was released with another digest", run=run, round=round)
                return
            held = found.plan.releases
            if round not in held:
                raise PrivacyError(f"run '{run}' holds releases {held[0]} to {held[-1]}; given {round}", run=run, round=round)
            if found.closed:
                raise PrivacyError(f"run '{run}' is closed: it can release nothing more", run=run)
            record("commit", {"scope": found.plan.scope, "run": run, "round": round, "digest": digest, "epoch": epoch})
            self._store.release(run, round, digest)

    def close(self, run: str, epoch: int, *, give_back: bool) -> None:
        """End a plan. give_back: free what is still held, allowed only when stopping depended on nothing but public or
        released values; otherwise it stays held for good.

        Raises:
            Fenced: an older epoch. UnknownRun: no plan. PrivacyError: closed already, the other way.
        """
        with self._changing() as record:
            found = self._run(run, epoch)
            if not found.closed:
                record("close", {"scope": found.plan.scope, "run": run, "epoch": epoch, "give_back": give_back})
            elif found.given_back != give_back:
                raise PrivacyError(
                    f"run '{run}' is closed already, what it held was {'' if found.given_back else 'not '}given back", run=run
                )

    def repeat_in_log(self) -> None:
        """Bring the audit log up to the ledger.

        Raises:
            StorageFull: the log cannot be written; nothing is lost, the next change tries again.
        """
        with self._thread, locked(self._lock):
            self._write_log()

    def verify(self) -> None:
        """Verify all of it: every event from the first, the tables, the log and the witness; repair what a crash left unlogged.

        Raises:
            LedgerTampered, RolledBack, LogTampered: something is not what it was.
        """
        with self._thread, locked(self._lock):
            self._log.verify()
            with self._store.transaction(write=False):
                self._chain.start_over()
                self._chain.follow()
                self._chain.check_tables()
            self._check_seen()
            self._write_log()

    # ---- how

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One state of the ledger, all its events verified."""
        with self._thread, self._store.transaction(write=False):
            self._chain.follow()
            yield

    @contextmanager
    def _changing(self, *, logged: bool = True) -> Iterator[Callable[..., Event]]:
        """One change: events recorded inside become true together or not at all; then the audit log repeats them.

        The file lock in front of SQLite's own makes waiting fair, and keeps the log in the ledger's order.
        """
        with self._thread, locked(self._lock):
            with self._store.transaction(write=True):
                self._chain.follow()
                head = self._chain.head

                def record(kind: str, facts: dict[str, JsonValue], actor: str | None = None) -> Event:
                    nonlocal head
                    happened = Event(head.seq + 1, self._log.now(), actor or self._log.actor, kind, facts, self._log.head(), head.hash)
                    signed = happened.signed(self._keys)
                    self._store.append(signed.seq, signed.body, signed.signature)
                    head = signed.head
                    return signed

                yield record
            if logged and head != self._chain.head:
                self._write_log()

    def _write_log(self) -> None:
        """Repeat in the audit log every event that it lacks: the ones just recorded, and any that a crash left out."""
        logged = self._log.ledger_head().seq
        with self._reading():
            missing = [Event.read(body, signature) for _, body, signature in self._store.events(logged + 1)]
        if missing:
            self._log.repeat([(f"ledger.{event.kind}", event.actor, event.head, event.brief()) for event in missing])

    def _check_seen(self) -> None:
        """The ledger against the log and the witness: whichever is older than the others have seen was put back."""
        for head, where in ((self._log.ledger_head(), "the audit log"), (self._log.witness().ledger, "the witness")):
            if not self._chain.contains(head):
                raise RolledBack(
                    f"{self.path} ends at event {self._chain.head.seq}; {where} has seen event {head.seq}", path=str(self.path)
                )
        if not self._log.contains(self._chain.log):
            raise RolledBack(
                f"{self._log.path} does not contain entry {self._chain.log.seq}, which the ledger has seen", path=str(self._log.path)
            )

    def _scope(self, name: str) -> Scope:
        if name not in self._chain.books.scopes:
            raise self._unknown(name)
        return self._chain.books.scopes[name]

    def _unknown(self, name: str) -> UnknownScope:
        known = self._chain.books.scopes
        return UnknownScope(f"no scope '{name}'; {nearest(name, known) if known else 'there is none yet'}", scope=name)

    def _run(self, run: str, epoch: int | None = None) -> Run:
        found = self._chain.books.runs.get(run)
        if found is None:
            raise UnknownRun(f"the ledger holds no plan for run '{run}'", run=run)
        if epoch is not None and epoch != found.epoch:
            raise Fenced(f"run '{run}' was taken over: epoch {epoch} is not {found.epoch}", run=run, epoch=epoch, current=found.epoch)
        return found

    def _scopes_of(self, macs: list[bytes]) -> list[str]:
        scopes = self._chain.books.bound
        return sorted({scopes[event] for _, event in self._store.bringers(macs) if event in scopes})

    def _find(self, macs: list[bytes], named: str | None) -> Scope | None:
        owners = self._scopes_of(macs)
        if len(owners) > 1:
            raise ScopeConflict(f"these data belong to several scopes ({', '.join(owners)}); a job charges one", scopes=owners)
        if owners and named not in (None, owners[0]):
            raise ScopeConflict(
                f"these data belong to scope '{owners[0]}', not to '{named}': it has seen a column, rows or clients' ids of theirs; "
                f"charge '{owners[0]}', or rename ids that are others' only by chance",
                scope=owners[0],
                given=named,
            )
        name = owners[0] if owners else named
        return self._chain.books.scopes.get(name) if name else None

    def _refuse_without_privacy(self, macs: list[bytes]) -> None:
        if owners := self._scopes_of(macs):
            raise ScopeConflict(
                f"these data have a privacy budget (scope '{owners[0]}'): a run without privacy would void it; give the job a 'privacy'",
                scope=owners[0],
            )


def _macs(fingerprints: frozenset[str]) -> list[bytes]:
    """Fingerprints as sorted bytes; data without any could be charged to nobody."""
    if not fingerprints:
        raise ValueError("data without a fingerprint cannot be told from other data")
    return sorted(bytes.fromhex(text) for text in fingerprints)


def _opened(scope: Scope) -> dict[str, JsonValue]:
    return {
        "scope": scope.name,
        "unit": scope.unit,
        "relation": scope.relation,
        "epsilon": decimal(scope.epsilon),
        "delta": decimal(scope.delta),
        "order": scope.order,
    }
