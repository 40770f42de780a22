"""The ways to make a circuit smaller, by name: each takes gates on wires 0, 1, … in one-qubit gates and CNOT, and gives such gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pennylane as qml
from pennylane.tape import QuantumScript

from qedge.quantum.compilation.blocks import resynthesise_blocks
from qedge.quantum.compilation.cancellation import cancel
from qedge.quantum.compilation.excitations import rearranged
from qedge.quantum.compilation.gate import Gate
from qedge.quantum.compilation.lowering import lower, size
from qedge.quantum.compilation.one_qubit import merge_runs
from qedge.quantum.compilation.pauli_form import merge_rotations, pauli_form
from qedge.quantum.compilation.pauli_network import Weighing, rewrite
from qedge.quantum.compilation.qiskit_level3 import installed, transpiled
from qedge.quantum.compilation.sliding import slide

WEIGHINGS = tuple(
    Weighing(wait, clifford, logarithmic) for wait in (0.3, 0.6, 0.8) for clifford in (0.3, 0.1, 0.02) for logarithmic in (True, False)
)
_REFINED = 4
_WORK = 2e7  # turns squared times wires squared, over all weighings: some seconds


@dataclass(frozen=True)
class Pass:
    """One way. run: gates, and how many wires, to candidates; start: candidates from the circuit itself; installed: whether what it needs
    is here.
    """

    run: Callable[[Sequence[Gate], int], list[list[Gate]]] = lambda gates, wires: []
    start: Callable[[QuantumScript], list[list[Gate]]] = lambda script: []
    installed: Callable[[], bool] = lambda: True


def local(gates: Sequence[Gate]) -> list[Gate]:
    """Cancellation, merged turns, blocks and sliding in turn until none helps."""
    best = list(gates)
    while True:
        smaller = slide(resynthesise_blocks(cancel(merge_rotations(cancel(merge_runs(best))))))
        if _fewer(smaller) >= _fewer(best):
            return best
        best = smaller


def _local(gates: Sequence[Gate], wires: int) -> list[list[Gate]]:
    return [local(gates), slide(gates), merge_runs(cancel(merge_rotations(gates)))]


def _network(gates: Sequence[Gate], wires: int) -> list[list[Gate]]:
    """As turns about Pauli strings, weighed in several ways; of the smallest of these what is local."""
    form = pauli_form(gates, wires)
    affordable = int(_WORK / max(1, len(form.turns) ** 2 * wires**2))
    written = [rewrite(form, wires, weighing) for weighing in WEIGHINGS[:affordable]]
    written.sort(key=size)
    return [local(one) for one in written[:_REFINED]]


def _pennylane(gates: Sequence[Gate], wires: int) -> list[list[Gate]]:
    """PennyLane's own: inverses cancelled, controlled gates commuted, rotations merged."""
    (found,), _ = qml.compile(QuantumScript([gate.operation() for gate in gates]), num_passes=2)
    return [lower(found, range(wires))]


def _excitations(script: QuantumScript) -> list[list[Gate]]:
    return [local(lower(each)) for each in rearranged(script)]


def _fewer(gates: Sequence[Gate]) -> tuple[int, int, int]:
    cx, depth, number = size(gates)
    return cx, number, depth


PASSES = {
    "excitations": Pass(start=_excitations),
    "local": Pass(_local),
    "pauli-network": Pass(_network),
    "pennylane": Pass(_pennylane),
    "qiskit": Pass(lambda gates, wires: [local(transpiled(gates, wires))], installed=installed),
}
