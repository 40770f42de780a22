"""How far two circuits are from each other, up to global phase.

Up to 10 wires on every basis state, which is the whole unitary; above on random states, which shows a difference with probability 1 but
bounds it only on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qedge.quantum.compilation.gate import Gate
from qedge.quantum.compilation.one_qubit import Matrix, matrix

EXACT_WIRES, MOST_WIRES = 10, 22
_RANDOM_STATES = 4
_TOGETHER = 2**14  # amplitudes


def distance(one: Sequence[Gate], other: Sequence[Gate], wires: int, *, sampled: bool = False) -> float:
    """The largest difference of an entry of the unitaries, or of a random state's amplitude, over all phases common to all of them.

    Both in one-qubit gates and CNOT on wires 0 … wires - 1. sampled: on random states whatever the number of wires.
    """
    if not sampled and wires <= EXACT_WIRES:
        states = np.eye(2**wires, dtype=np.complex128)
    else:
        random = np.random.default_rng(0).normal(size=(2, 2**wires, _RANDOM_STATES))
        states = random[0] + 1j * random[1]
        states /= np.linalg.norm(states, axis=0)
    first, second = applied(one, states, wires), applied(other, states, wires)
    overlap = np.vdot(second, first)
    phase = overlap / abs(overlap) if overlap else 1
    return float(np.abs(first - phase * second).max())


def applied(gates: Sequence[Gate], states: NDArray[np.complex128], wires: int) -> NDArray[np.complex128]:
    """The states [2^wires, batch] after the gates; wire 0 is the most significant bit. So many at a time as stay near the processor."""
    after, steps = np.empty_like(states), _merged(gates)
    width = max(1, _TOGETHER >> wires)
    for start in range(0, states.shape[1], width):
        part = states[:, start : start + width].copy()
        for first, second in steps:
            if isinstance(first, int):
                _cnot(part, first, second)
            else:
                _turn(part, first, second)
        after[:, start : start + width] = part
    return after


def _merged(gates: Sequence[Gate]) -> list[tuple[int | Matrix, int]]:
    """Control and target, or what a run of one-qubit gates is, and its wire."""
    steps: list[tuple[int | Matrix, int]] = []
    runs: dict[int, Matrix] = {}
    for gate in gates:
        if len(gate.wires) == 1:
            runs[gate.wires[0]] = matrix(gate) @ runs.get(gate.wires[0], np.eye(2))
            continue
        steps += [(runs.pop(wire), wire) for wire in gate.wires if wire in runs]
        control, target = gate.wires
        steps.append((control, target))
    return [*steps, *((run, wire) for wire, run in runs.items())]


def _cnot(states: NDArray[np.complex128], control: int, target: int) -> None:
    low, high = sorted((control, target))
    parts = states.reshape(2**low, 2, 2 ** (high - low - 1), 2, -1)
    zero, one = (parts[:, 1, :, 0], parts[:, 1, :, 1]) if control == low else (parts[:, 0, :, 1], parts[:, 1, :, 1])
    kept = zero.copy()
    zero[...] = one
    one[...] = kept


def _turn(states: NDArray[np.complex128], unitary: Matrix, wire: int) -> None:
    parts = states.reshape(2**wire, 2, -1)
    (a, b), (c, d) = unitary
    zero, one = parts[:, 0], parts[:, 1]
    if b == c == 0:
        zero *= a
        one *= d
        return
    kept = zero * c
    zero *= a
    zero += b * one
    one *= d
    one += kept
