"""Gates that follow one another on two wires taken as one unitary, and written anew in as few CNOTs as it takes.

Source: as Qiskit's Collect2qBlocks and ConsolidateBlocks; the unitary's decomposition is in `two_qubit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qedge.quantum.compilation.gate import Gate
from qedge.quantum.compilation.one_qubit import Matrix, matrix, merge_runs
from qedge.quantum.compilation.two_qubit import cheapest

_CX = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=np.complex128)
_XC = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=np.complex128)


@dataclass
class _Block:
    wires: tuple[int, int]
    gates: list[Gate]


def resynthesise_blocks(gates: Sequence[Gate]) -> list[Gate]:
    """The gates with each block that can do with fewer CNOTs, or as many and fewer gates, written anew."""
    done: list[Gate] = []
    blocks: dict[int, _Block] = {}
    waiting: dict[int, list[Gate]] = {}

    def close(wire: int) -> None:
        if wire in blocks:
            block = blocks.pop(wire)
            del blocks[block.wires[1] if wire == block.wires[0] else block.wires[0]]
            done.extend(_smaller(block))

    for gate in gates:
        if len(gate.wires) == 1:
            (wire,) = gate.wires
            (blocks[wire].gates if wire in blocks else waiting.setdefault(wire, [])).append(gate)
            continue
        first, second = gate.wires
        if first not in blocks or blocks[first] is not blocks.get(second):
            close(first)
            close(second)
            opened = [*waiting.pop(first, []), *waiting.pop(second, [])]
            blocks[first] = blocks[second] = _Block((first, second), opened)
        blocks[first].gates.append(gate)
    for wire in list(blocks):
        close(wire)
    for wire in waiting:
        done += waiting[wire]
    return done


def _smaller(block: _Block) -> list[Gate]:
    kept = merge_runs(block.gates)
    before = sum(len(gate.wires) == 2 for gate in kept)
    if before < 2:
        return kept
    anew = cheapest(_unitary(block), block.wires)
    after = sum(len(gate.wires) == 2 for gate in anew)
    return anew if (after, len(anew)) < (before, len(kept)) else kept


def _unitary(block: _Block) -> Matrix:
    found = np.eye(4, dtype=np.complex128)
    for gate in block.gates:
        if len(gate.wires) == 2:
            found = (_CX if gate.wires[0] == block.wires[0] else _XC) @ found
        elif gate.wires[0] == block.wires[0]:
            found = np.kron(matrix(gate), np.eye(2)) @ found
        else:
            found = np.kron(np.eye(2), matrix(gate)) @ found
    return found
