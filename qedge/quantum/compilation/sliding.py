"""One-qubit gates slid back through CNOTs as far as that leaves fewer of them.

What stands after a CNOT is split into a turn that commutes with it, about Z on the control and about X on the target, and the rest; the
turn joins what stands before. Four turns a CNOT are then enough.
Source: V. Shende, I. Markov, S. Bullock, "Minimal universal two-qubit controlled-NOT-based circuits", Phys. Rev. A 69, 062321 (2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qedge.quantum.compilation.gate import AXES, Gate
from qedge.quantum.compilation.one_qubit import Matrix, gates_of, matrix, opening_turn

_HADAMARD = np.array([[1, 1], [1, -1]], dtype=np.complex128) / math.sqrt(2)


def slide(gates: Sequence[Gate]) -> list[Gate]:
    """The gates, from the last to the first, each with what can go moved before the CNOT it stands after."""
    backwards: list[Gate] = []
    runs: dict[int, Matrix] = {}
    for gate in reversed(gates):
        if len(gate.wires) == 1:
            (wire,) = gate.wires
            runs[wire] = runs.get(wire, np.eye(2)) @ matrix(gate)
            continue
        for wire, axis in zip(gate.wires, "ZX", strict=True):
            if wire in runs:
                stay, runs[wire] = _split(runs[wire], axis, wire)
                backwards += reversed(stay)
        backwards.append(gate)
    for wire, run in runs.items():
        backwards += reversed(gates_of(run, wire))
    return backwards[::-1]


def _split(run: Matrix, axis: str, wire: int) -> tuple[list[Gate], Matrix]:
    """The fewest gates that the run is after a turn about the axis, and the turn."""
    first = opening_turn(run if axis == "Z" else _HADAMARD @ run @ _HADAMARD)
    best, turn = gates_of(run, wire), np.eye(2, dtype=np.complex128)
    for extra in (0, math.pi / 2, -math.pi / 2, math.pi):
        if len(best) <= (0 if extra == 0 else 1):
            break
        candidate = matrix(AXES[axis](first + extra, wire))
        if len(left := gates_of(run @ candidate.conj().T, wire)) < len(best):
            best, turn = left, candidate
    return best, turn
