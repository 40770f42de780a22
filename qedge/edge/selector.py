"""Which rung answers: the cheapest that meets what is required, by the card of this machine and by how the node fares now.

Cheapest is the lowest p95 of one row; rungs within `TIE` of it count as equal, and the one that takes least memory is preferred. A rung
slower than FP32 is passed over unless memory, the floor or a limit excludes FP32. While the node is pressed (calls take much longer than
the card says) CPU seconds count in place of latency: a rung that spreads over all cores is then no gain.

The floor of accuracy is held against the card's measured share, `accuracy`, or against the lower end of its 95 % interval,
`accuracy_low`: with few validation rows the lower end lies points below any rung, so which is meant is the caller's to say.

A rung that answers is kept until it no longer fits or another is better by more than `MARGIN`, with as much room to spare: figures that
waver around a limit do not make the choice waver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from qedge.edge.card import Card, Cost, RungCard
from qedge.edge.rung import RungName
from qedge.errors import EdgeError, NoRungFits, OverBudget, nearest

TIE = 1.05
MARGIN = 1.1
PRESSED, RELIEVED = 2.0, 1.3  # times what the card says, when pressure begins and ends
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_LIMITS = ("p50_ms", "p95_ms", "p99_ms")


@dataclass(frozen=True)
class Requirement:
    """What a caller needs. accuracy: of the card's value; accuracy_low: of its interval's lower end; p…_ms: of one row, in milliseconds.

    Raises:
        EdgeError: a share outside [0, 1], a limit that is not a number over 0.
    """

    accuracy: float | None = None
    accuracy_low: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, given in self.given().items():
            share = name.startswith("accuracy")
            if not math.isfinite(given) or given < 0 or (given > 1 if share else given == 0):
                accepted = "a share from 0 to 1" if share else "a number over 0"
                raise EdgeError(f"{name} is {given}; accepted: {accepted}", given=given, expected=accepted)

    @classmethod
    def parse(cls, text: str, memory: str | None = None) -> Requirement:
        """From `accuracy=0.96,p95_ms=5` and `64MiB`.

        Raises:
            EdgeError: a name or a value that it does not have.

        >>> Requirement.parse("accuracy=0.96,p95_ms=5", "64MiB").given()
        {'accuracy': 0.96, 'p95_ms': 5.0, 'memory_bytes': 67108864}
        """
        known = [one.name for one in fields(cls)]
        asked: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise EdgeError(f"unknown requirement '{name}'; {nearest(name, known)}", given=name, expected=known)
            try:
                asked[name] = int(value) if name == "memory_bytes" else float(value)
            except ValueError:
                raise EdgeError(f"{name} is '{value}'; accepted: a number", given=value) from None
        if memory is not None:
            asked["memory_bytes"] = bytes_of(memory)
        return cls(**asked)  # type: ignore[arg-type]

    def given(self) -> dict[str, float]:
        """What was asked, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}

    def __str__(self) -> str:
        signs = ((name, value, "≥" if name.startswith("accuracy") else "≤") for name, value in self.given().items())
        return ", ".join(f"{name} {sign} {_shown(name, value)}" for name, value, sign in signs) or "nothing in particular"


@dataclass(frozen=True)
class Load:
    """How the node fares. free_bytes: what a rung may take now; slowdown: time that calls take over what the card says."""

    free_bytes: int | None = None
    slowdown: float = 1.0


@dataclass(frozen=True)
class Choice:
    """rung: that answers; pressed: whether load had its say; passed: why each other was passed over."""

    rung: RungName
    pressed: bool = False
    passed: dict[RungName, str] = field(default_factory=dict)


def bytes_of(text: str) -> int:
    """A number of bytes, such as `64MiB`.

    Raises:
        EdgeError: it is none.

    >>> bytes_of("64MiB"), bytes_of("1000")
    (67108864, 1000)
    """
    digits = text.strip().rstrip("".join(_UNITS)).strip()
    unit = text.strip()[len(digits) :].strip() or "B"
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise EdgeError(f"'{text}' is no number of bytes; accepted: such as 64MiB, 1GB or 1000000", given=text) from None


def choose(card: Card, requirement: Requirement, load: Load | None = None, current: Choice | None = None) -> Choice:
    """The rung to answer with. current: what answers now, from which it moves only with reason.

    Raises:
        NoRungFits: the requirement is met by none; the nearest is named with what it comes to.
        OverBudget: one would meet it, but no such one fits in what is free now.
        EdgeError: the card was not filled on this machine.
    """
    load = load or Load()
    costs = _costs(card)
    judged = {one.rung: next(_against(one, costs[one.rung], requirement, load), None) for one in card.rungs}
    fitting = [rung for rung, reason in judged.items() if reason is None]
    late = not fitting  # too slow under load alone: the fastest still answers, for none would do better
    if late:
        unloaded = Load(load.free_bytes)
        fitting = [one.rung for one in card.rungs if not any(_against(one, costs[one.rung], requirement, unloaded))]
    if not fitting:
        raise _refusal(card, costs, requirement, load)
    held = current.rung if current is not None and current.rung in fitting else None
    if held is not None and not late:
        fitting = [rung for rung in fitting if rung == held or not any(_against(card[rung], costs[rung], requirement, load, MARGIN))]
    pressed = late or load.slowdown >= (RELIEVED if current is not None and current.pressed else PRESSED)
    chosen = _cheapest(fitting, costs, pressed and not late, held)
    others = [one.rung for one in card.rungs if one.rung != chosen]
    return Choice(chosen, pressed, {rung: judged[rung] or _beaten(rung, chosen, costs, pressed, "fp32" in fitting) for rung in others})


def _costs(card: Card) -> dict[RungName, Cost]:
    unmeasured = [one.rung for one in card.rungs if one.cost is None]
    if unmeasured:
        listed = ", ".join(unmeasured)
        raise EdgeError(f"{card.model}: {listed} was not measured on this machine; measure the ladder first", rungs=unmeasured)
    return {one.rung: one.cost for one in card.rungs if one.cost is not None}


def _against(one: RungCard, cost: Cost, requirement: Requirement, load: Load, room: float = 1.0) -> Iterator[str]:
    """What speaks against a rung. room: the factor by which limits must be kept."""
    for name, has in (("accuracy", one.accuracy.value), ("accuracy_low", one.accuracy.low)):
        floor = getattr(requirement, name)
        if floor is not None and has < floor:
            yield f"its {name} is {_shown(name, has)}, under {_shown(name, floor)}"
    memory = requirement.memory_bytes
    if memory is not None and cost.pss_bytes > memory:
        yield f"it takes {_shown('memory_bytes', cost.pss_bytes)}, over {_shown('memory_bytes', memory)}"
    for name in _LIMITS:
        limit, takes = getattr(requirement, name), getattr(cost.latency[1], name) * load.slowdown
        if limit is not None and takes * (room if load.slowdown > 1 else 1) > limit:
            under = f" under a load of {load.slowdown:.2g}" if load.slowdown > 1 else ""
            yield f"its {name} is {_shown(name, takes)}{under}, over {_shown(name, limit)}"
    if load.free_bytes is not None and cost.pss_bytes * room > load.free_bytes:
        yield f"it takes {_shown('memory_bytes', cost.pss_bytes)}, and {_shown('memory_bytes', load.free_bytes)} are free"


def _cheapest(fitting: list[RungName], costs: dict[RungName, Cost], by_cpu: bool, held: RungName | None) -> RungName:
    if "fp32" in fitting:
        most = costs["fp32"].latency[1].p95_ms
        fitting = [rung for rung in fitting if costs[rung].latency[1].p95_ms <= most]

    def price(rung: RungName) -> float:
        return costs[rung].cpu_s_per_1000 if by_cpu else costs[rung].latency[1].p95_ms

    least = min(map(price, fitting))
    if held in fitting and price(held) <= MARGIN * least:
        return held
    return min((rung for rung in fitting if price(rung) <= TIE * least), key=lambda rung: (costs[rung].pss_bytes, price(rung)))


def _beaten(rung: RungName, by: RungName, costs: dict[RungName, Cost], pressed: bool, fp32: bool) -> str:
    """Why a rung that meets all yields to the chosen one."""
    mine, other = costs[rung], costs[by]
    if pressed and mine.cpu_s_per_1000 > other.cpu_s_per_1000:
        return f"under load CPU counts: {mine.cpu_s_per_1000:.3g} s per 1000 calls; {by} takes {other.cpu_s_per_1000:.3g}"
    slow, fast = mine.latency[1].p95_ms, other.latency[1].p95_ms
    if slow > TIE * fast:
        return f"its p95 is {_shown('p95_ms', slow)}; that of {by} is {_shown('p95_ms', fast)}"
    if fp32 and slow > costs["fp32"].latency[1].p95_ms:
        return f"its p95 is {_shown('p95_ms', slow)}, slower than fp32"
    if mine.pss_bytes > other.pss_bytes:
        return f"it is hardly faster than {by} and takes more memory, {_shown('memory_bytes', mine.pss_bytes)}"
    return f"{by} answers already, and this is no better by {MARGIN - 1:.0%}"


def _refusal(card: Card, costs: dict[RungName, Cost], requirement: Requirement, load: Load) -> NoRungFits | OverBudget:
    """Why no rung will do: bytes that are free alone, or the requirement."""
    meeting = [rung for rung in costs if not any(_against(card[rung], costs[rung], requirement, Load()))]
    if meeting:
        least = min(meeting, key=lambda rung: costs[rung].pss_bytes)
        estimate, left = costs[least].pss_bytes, load.free_bytes or 0
        takes = f"{least} takes {_shown('memory_bytes', estimate)} by the estimate"
        return OverBudget(
            f"{card.model}: {takes}, and {_shown('memory_bytes', left)} are left; no smaller rung meets {requirement}",
            model=card.model,
            rung=least,
            estimate_bytes=estimate,
            left_bytes=left,
        )
    rung = min(costs, key=lambda name: _distance(card[name], costs[name], requirement))
    one, cost = card[rung], costs[rung]
    has = {"accuracy": one.accuracy.value, "accuracy_low": one.accuracy.low, "memory_bytes": float(cost.pss_bytes)}
    has |= {name: getattr(cost.latency[1], name) for name in _LIMITS}
    comes = {name: has[name] for name in requirement.given()}
    listed = ", ".join(f"{name} {_shown(name, value)}" for name, value in comes.items())
    return NoRungFits(
        f"{card.model}: no rung meets {requirement}; nearest: {rung} with {listed}", model=card.model, nearest=rung, has=dict(comes)
    )


def _distance(one: RungCard, cost: Cost, requirement: Requirement) -> float:
    """How far a rung is from what is required: its errors, times and bytes over those allowed, the logarithms of their ratios added."""
    pairs = [(cost.pss_bytes, requirement.memory_bytes)]
    pairs += [(getattr(cost.latency[1], name), getattr(requirement, name)) for name in _LIMITS]
    over = sum(max(0.0, math.log(max(has, 1e-9) / limit)) for has, limit in pairs if limit is not None)
    floors = ((one.accuracy.value, requirement.accuracy), (one.accuracy.low, requirement.accuracy_low))
    return over + sum(max(0.0, math.log(max(1 - has, 1e-6) / max(1 - floor, 1e-6))) for has, floor in floors if floor is not None)


def _shown(name: str, value: float) -> str:
    if name.endswith("_ms"):
        return f"{value:.3g} ms"
    if name != "memory_bytes":
        return f"{value:.4g}"
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value:.0f} bytes"
