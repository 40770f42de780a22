"""A circuit in fewer CNOTs, then less depth: several ways are tried, and the best that holds is taken.

A way counts only if it takes no more CNOTs and no more gates than what was given and does the same up to global phase.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pennylane.tape import QuantumScript

from qedge.errors import GateBudgetExceeded, InvalidConfig, nearest
from qedge.quantum.compilation.equivalence import EXACT_WIRES, MOST_WIRES, distance
from qedge.quantum.compilation.gate import Gate
from qedge.quantum.compilation.lowering import lower, raise_again, size, without_swaps
from qedge.quantum.compilation.passes import PASSES
from qedge.quantum.resources import Resources, count, in_cx_basis

GATE_BUDGET = 1000
ERROR = 1e-8
Candidate = tuple[tuple[int, int, int], str, list[Gate]]


@dataclass(frozen=True)
class Compiled:
    """What came of it. script: in one-qubit gates and CNOT, or as given where nothing was better; by: the ways that led to it, in their
    order, "as given" if none did; before, after: counted alike; warnings: what a user should know.
    """

    script: QuantumScript
    before: Resources
    after: Resources
    by: str
    warnings: tuple[str, ...] = ()


def compile_circuit(
    script: QuantumScript,
    *,
    gate_budget: int = GATE_BUDGET,
    on_over: Literal["refuse", "warn"] = "refuse",
    passes: Sequence[str] | None = None,
) -> Compiled:
    """The circuit in as few CNOTs, and then as little depth, as any of `passes` (all that are installed) finds, tried until none helps.

    Where something is measured, swaps only rename wires, and it is looked for there: answers are the same, measurements name other wires.

    Equal to what was given up to global phase: to 1e-8 in every entry of the unitary up to 10 wires, on random states to 22, and above
    unchecked, which a warning says.

    Raises:
        GateBudgetExceeded: more gates than `gate_budget` even then, unless `on_over` is "warn".
        InvalidConfig: a pass there is not, a budget below one, or another `on_over`.
        InvalidCircuit: an operation that cannot be written in one-qubit gates and CNOT, or a parameter that is not one finite number.
    """
    chosen = _chosen(passes)
    if gate_budget < 1 or on_over not in ("refuse", "warn"):
        raise InvalidConfig(f"gate_budget must be at least 1 and on_over 'refuse' or 'warn', not {gate_budget} and '{on_over}'")
    started = time.perf_counter()
    before, script = count(script), without_swaps(script)
    given = lower(script)
    chosen = chosen if script.wires else []  # nothing is left of it to make smaller
    starts = [(size(found), name, found) for name in chosen for found in PASSES[name].start(script)]
    best, way = _best(given, len(script.wires), chosen, starts)
    compiled = raise_again(best, script) if way else in_cx_basis(script)
    after = replace(count(compiled), seconds=time.perf_counter() - started)
    warnings = _checked_how(len(script.wires)) if way else []
    if after.gates > gate_budget:
        said = f"{after.gates} gates after compilation ({before.gates} before), more than the budget of {gate_budget}"
        if on_over == "refuse":
            raise GateBudgetExceeded(f"{said}; allow more, or take a smaller circuit", asked=after.gates, budget=gate_budget)
        warnings.append(said)
    return Compiled(compiled, before, after, ", ".join(way) or "as given", tuple(warnings))


def _best(given: list[Gate], wires: int, chosen: Sequence[str], starts: Sequence[Candidate]) -> tuple[list[Gate], list[str]]:
    best, way, (most_cx, _, most_gates) = given, list[str](), size(given)
    while True:
        tried = [(size(found), name, found) for name in chosen for found in PASSES[name].run(best, wires)]
        tried += [] if way else starts
        fitting = [one for one in tried if one[0][0] <= most_cx and one[0][2] <= most_gates and one[0] < size(best)]
        fitting.sort(key=lambda one: one[0])
        taken = next((one for one in fitting if _same(given, one[2], wires)), None)
        if taken is None:
            return (best, way) if not way or _same(given, best, wires, exactly=True) else (given, [])
        best = taken[2]
        way.append(taken[1])


def _same(given: list[Gate], found: list[Gate], wires: int, *, exactly: bool = False) -> bool:
    return wires > MOST_WIRES or distance(given, found, wires, sampled=not exactly) <= ERROR


def _checked_how(wires: int) -> list[str]:
    if wires <= EXACT_WIRES:
        return []
    if wires <= MOST_WIRES:
        return [f"compared with what was given on random states only: {wires} wires are too many for the whole unitary"]
    return [f"not compared with what was given: {wires} wires are too many"]


def _chosen(passes: Sequence[str] | None) -> list[str]:
    if passes is None:
        return [name for name, one in PASSES.items() if one.installed()]
    for name in passes:
        if name not in PASSES:
            raise InvalidConfig(f"no pass is called '{name}'; {nearest(name, PASSES)}")
        if not PASSES[name].installed():
            raise InvalidConfig(f"the pass '{name}' needs a package that is not installed; installed: {', '.join(_chosen(None))}")
    return list(passes)
