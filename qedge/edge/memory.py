"""Loaded rungs under a hard budget of bytes.

A rung is charged before it is loaded, by the card's estimate, so that what does not fit is refused and nothing is killed; afterwards by
what the process really grew by (its PSS, in which a mapped page counts once), where that is more. To make room the rung that was used
longest ago goes first; one that answers a call stays until the call has ended, and a caller may wait for that.

Nothing here knows of models or cards: a rung is a key, an estimate and a function that loads it.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qedge.edge.pss import pss_bytes
from qedge.edge.rung import RungName, Runner
from qedge.errors import EdgeError, OverBudget

Key = tuple[str, RungName]  # a ladder's id, and one of its rungs
PATIENCE_S = 5.0
HOT_S = 1.0
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: hands what was freed back to the system


@dataclass(eq=False)
class Resident:
    """A loaded rung. charged: bytes; users: calls that it is answering; leaving: nobody may begin another."""

    key: Key
    runner: Runner
    charged: int
    used_at: float
    users: int = 0
    leaving: bool = False


class Memory:
    """The rungs that are loaded, and what they are charged. For several threads at once."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        patience_s: float = PATIENCE_S,
        evicted: Callable[[Key], None] = lambda _: None,
        measure: Callable[[], int] = pss_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """patience_s: how long a load waits for calls to end; evicted: told of each rung that was put out for want of room.

        Raises:
            EdgeError: a budget that is no number of bytes over 0.
        """
        self.budget = checked_budget(budget_bytes)
        self._patience_s, self._evicted, self._measure, self._clock = patience_s, evicted, measure, clock
        self._residents: dict[Key, Resident] = {}
        self._going: list[Resident] = []  # no longer to be had, still charged
        self._reserved: dict[Key, int] = {}  # being loaded
        self._changed = threading.Condition()
        self._loading = threading.Lock()  # one at a time, so that growth is of one rung
        self._waiting = 0
        self._over = False  # something took more than its estimate, and nothing could go yet

    @property
    def charged(self) -> int:
        """Bytes of all that is loaded, being loaded or going."""
        with self._changed:
            return self._charged()

    @property
    def loaded(self) -> dict[Key, int]:
        """Bytes charged to each loaded rung."""
        with self._changed:
            return {key: resident.charged for key, resident in self._residents.items()}

    def free(self, *, without: Resident | None = None) -> int:
        """Bytes that nothing is charged for, if `without` were gone."""
        with self._changed:
            return self.budget - self._charged() + (without.charged if without is not None and not without.leaving else 0)

    def obtainable(self, hot_s: float = HOT_S) -> int:
        """Bytes free once every rung is gone that answers no call and was not used within `hot_s` seconds."""
        with self._changed:
            since = self._clock() - hot_s
            idle = sum(one.charged for one in self._residents.values() if not one.users and one.used_at <= since)
            return self.budget - self._charged() + idle

    def hold(self, resident: Resident | None) -> bool:
        """Keep a rung loaded until `release`; whether it still is there to be had."""
        if resident is None:
            return False
        with self._changed:
            if resident.leaving:
                return False
            resident.users += 1
            return True

    def release(self, resident: Resident) -> None:
        """End a call that was answered by this rung."""
        with self._changed:
            resident.users -= 1
            resident.used_at = self._clock()
            if resident.users or not (resident.leaving or self._waiting or self._over):
                return
            self._settle()
            self._changed.notify_all()
        self._close_what_goes()

    def load(self, key: Key, estimate: int, make: Callable[[], Runner], *, replacing: Resident | None = None) -> Resident:
        """The rung, loaded and held. make: loads it and has it answer once; replacing: goes first if there is no room for both.

        Raises:
            OverBudget: there is no room, by the estimate and before anything is loaded; or it took more than there is.
            ModelError, ArtifactTampered, Failed: as `make`.
        """
        found = self._reserve(key, estimate, replacing)
        if found is not None:
            return found
        try:
            runner, took = self._made(make)
        except BaseException:
            with self._changed:
                del self._reserved[key]
                self._changed.notify_all()
            raise
        resident = Resident(key, runner, max(estimate, took), self._clock(), users=1)
        with self._changed:
            del self._reserved[key]
            self._residents[key] = resident
            self._changed.notify_all()
            fits = resident.charged <= self.budget
            if not fits:
                resident.users = 0
                self._put_out(resident)
            self._settle()
        self._close_what_goes()
        if not fits:
            raise self._refusal(key, took, "it took")
        return resident

    def let_go(self, resident: Resident) -> None:
        """Let a rung go when its last call has ended."""
        with self._changed:
            if not resident.leaving:
                self._put_out(resident)
            self._changed.notify_all()
        self._close_what_goes()

    def drop(self, ladder_id: str) -> None:
        """Let the rungs of a ladder go, each when its last call has ended."""
        with self._changed:
            for resident in [one for key, one in self._residents.items() if key[0] == ladder_id]:
                self._put_out(resident)
            self._changed.notify_all()
        self._close_what_goes()

    def close(self) -> None:
        """Let every rung go."""
        for ladder_id, _ in list(self.loaded):
            self.drop(ladder_id)

    def _reserve(self, key: Key, estimate: int, replacing: Resident | None) -> Resident | None:
        """Room for the estimate, charged; or the rung, held, if somebody else has loaded it in the meantime."""
        if estimate > self.budget:
            raise self._refusal(key, estimate, "it takes by the estimate")
        until = self._clock() + self._patience_s
        with self._changed:
            while True:
                found = self._residents.get(key)
                if found is not None:
                    found.users += 1
                    return found
                if key not in self._reserved:
                    if self._charged() + estimate <= self.budget:
                        self._reserved[key] = estimate
                        return None
                    if self._staying() + estimate > self.budget and self._make_room(replacing):
                        with self._unlocked():
                            self._close_what_goes()
                        continue
                    if self._clock() >= until:
                        raise self._refusal(key, estimate, "it takes by the estimate")
                self._waiting += 1
                self._changed.wait(timeout=max(0.05, until - self._clock()))
                self._waiting -= 1

    def _make_room(self, replacing: Resident | None) -> bool:
        """Put one rung out, the one to be replaced first; whether there was one that could go."""
        if replacing is not None and not replacing.leaving:
            self._put_out(replacing)
            return True
        oldest = self._oldest_idle()
        if oldest is not None:
            self._put_out(oldest, told=True)
        return oldest is not None

    def _settle(self) -> None:
        """Put rungs out while more is charged than there is; what answers calls goes later."""
        while self._staying() > self.budget and (oldest := self._oldest_idle()) is not None:
            self._put_out(oldest, told=True)
        self._over = self._staying() > self.budget

    def _made(self, make: Callable[[], Runner]) -> tuple[Runner, int]:
        """What was loaded, and by how many bytes the process grew."""
        with self._loading:
            before = self._measure()
            runner = make()
            return runner, max(0, self._measure() - before)

    def _put_out(self, resident: Resident, *, told: bool = False) -> None:
        del self._residents[resident.key]
        resident.leaving = True
        self._going.append(resident)
        if told:
            self._evicted(resident.key)

    def _close_what_goes(self) -> None:
        """Close what nobody uses any more, outside the lock; its bytes are charged until it is closed."""
        with self._changed:
            idle = [one for one in self._going if not one.users]
            for one in idle:
                one.users = -1  # ours to close
        if not idle:
            return
        for one in idle:
            one.runner.close()
        if _TRIM is not None:
            _TRIM(0)
        with self._changed:
            self._going = [one for one in self._going if one not in idle]
            self._changed.notify_all()

    def _staying(self) -> int:
        return sum(one.charged for one in self._residents.values()) + sum(self._reserved.values())

    def _charged(self) -> int:
        return self._staying() + sum(one.charged for one in self._going)

    def _oldest_idle(self) -> Resident | None:
        idle = (one for one in self._residents.values() if not one.users)
        return min(idle, key=lambda one: one.used_at, default=None)

    def _refusal(self, key: Key, needed: int, how: str) -> OverBudget:
        left = max(0, self.budget - self.charged)
        return OverBudget(
            f"{key[1]}: {how} {needed} bytes; {left} of {self.budget} are left, and what else is loaded answers calls",
            rung=key[1],
            estimate_bytes=needed,
            left_bytes=left,
            budget_bytes=self.budget,
        )

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()


def checked_budget(budget_bytes: int) -> int:
    """The budget, unless it is none.

    Raises:
        EdgeError: it is no number of bytes over 0.
    """
    if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes <= 0:
        raise EdgeError(f"the budget is {budget_bytes}; accepted: a number of bytes over 0", given=str(budget_bytes))
    return budget_bytes
