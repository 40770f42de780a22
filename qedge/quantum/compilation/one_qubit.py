"""One-qubit unitaries in the fewest gates, and runs of one-qubit gates merged into them.

A unitary is taken as a unit quaternion, U ∝ w - i (x X + y Y + z Z): its rotations can be read off without a matrix logarithm, and to full
accuracy near every special angle.
Source: M. Nielsen, I. Chuang, "Quantum Computation and Quantum Information" (2010), theorem 4.1 (ZYZ).
"""

from __future__ import annotations

import cmath
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qedge.quantum.compilation.gate import AXES, Gate, hadamard, ry, rz

Matrix = NDArray[np.complex128]
TOLERANCE = 1e-11
_HADAMARD = np.array([[1, 1], [1, -1]]) / math.sqrt(2)


def matrix(gate: Gate) -> Matrix:
    """Of a one-qubit gate [2, 2]; not to be written to."""
    return _matrix(gate.name, gate.parameters)


@functools.lru_cache(maxsize=4096)
def _matrix(name: str, parameters: tuple[float, ...]) -> Matrix:
    found = np.asarray(Gate(name, (0,), parameters).operation().matrix(), dtype=np.complex128)
    found.flags.writeable = False
    return found


def gates_of(unitary: Matrix, wire: int) -> list[Gate]:
    """The unitary [2, 2] up to its phase in at most three gates, the first to be applied first."""
    if (simple := _one_or_none(unitary, wire)) is not None:
        return simple
    for gates in (
        _put(_one_or_none(unitary @ _HADAMARD, wire), before=hadamard(wire)),
        _put(_one_or_none(_HADAMARD @ unitary, wire), after=hadamard(wire)),
        _two_turns(unitary, wire),
    ):
        if gates is not None:
            return gates
    first, middle, last = _zyz(unitary)
    return [rz(first, wire), ry(middle, wire), rz(last, wire)]


def opening_turn(unitary: Matrix) -> float:
    """The angle of the first of the turns about Z, Y and Z that the unitary is."""
    return _zyz(unitary)[0]


def merge_runs(gates: Sequence[Gate]) -> list[Gate]:
    """Each run of one-qubit gates on a wire in the fewest gates; a run that cannot be shortened stays as it is."""
    merged: list[Gate] = []
    open_runs: dict[int, list[Gate]] = {}
    for gate in gates:
        if len(gate.wires) == 1:
            open_runs.setdefault(gate.wires[0], []).append(gate)
        else:
            for wire in gate.wires:
                merged += shortened(open_runs.pop(wire, []), wire)
            merged.append(gate)
    for wire, run in open_runs.items():
        merged += shortened(run, wire)
    return merged


def shortened(run: list[Gate], wire: int) -> list[Gate]:
    """A run of one-qubit gates on a wire, or fewer gates that do the same."""
    if not run:
        return run
    unitary = np.eye(2, dtype=np.complex128)
    for gate in run:
        unitary = matrix(gate) @ unitary
    fewer = gates_of(unitary, wire)
    return fewer if len(fewer) < len(run) else run


def _quaternion(unitary: Matrix) -> tuple[float, float, float, float]:
    (a, b), (c, d) = unitary.tolist()
    root = 2 * cmath.sqrt(a * d - b * c)
    w, x, y, z = ((a + d) / root).real, -((b + c) / root).imag, ((c - b) / root).real, ((d - a) / root).imag
    length = math.hypot(w, x, y, z)
    return w / length, x / length, y / length, z / length


def _zyz(unitary: Matrix) -> tuple[float, float, float]:
    w, x, y, z = _quaternion(unitary)
    middle = 2 * math.atan2(math.hypot(x, y), math.hypot(w, z))
    total, difference = math.atan2(z, w), math.atan2(-x, y)
    return _wrapped(total - difference), middle, _wrapped(total + difference)


def _one_or_none(unitary: Matrix, wire: int) -> list[Gate] | None:
    """No gate or one, if these do."""
    w, *parts = _quaternion(unitary)
    turned = [axis for axis, part in zip(AXES, parts, strict=True) if abs(part) > TOLERANCE]
    if not turned:
        return []
    if len(turned) == 1:
        return [AXES[turned[0]](_wrapped(2 * math.atan2(parts["XYZ".index(turned[0])], w)), wire)]
    x, y, z = parts
    return [hadamard(wire)] if max(abs(w), abs(y), abs(x - z)) < TOLERANCE else None


def _put(gates: list[Gate] | None, before: Gate | None = None, after: Gate | None = None) -> list[Gate] | None:
    if gates is None:
        return None
    return [*([before] if before is not None else []), *gates, *([after] if after is not None else [])]


def _two_turns(unitary: Matrix, wire: int) -> list[Gate] | None:
    """Turns about two axes, if these do: b's first, then a's; the third part is then the product of theirs over w, up to sign."""
    w, *parts = _quaternion(unitary)
    for a, b, sign in ((0, 1, 1), (1, 2, 1), (2, 0, 1), (1, 0, -1), (2, 1, -1), (0, 2, -1)):
        third = parts[3 - a - b]
        if abs(w * third - sign * parts[a] * parts[b]) < TOLERANCE:
            last = 2 * math.atan2(parts[a], w) if math.hypot(parts[a], w) > 0.5 else 2 * math.atan2(sign * third, parts[b])
            half = last / 2
            along = math.cos(half) * w + math.sin(half) * parts[a]
            across = math.cos(half) * parts[b] + sign * math.sin(half) * third
            names = "XYZ"
            return [AXES[names[b]](_wrapped(2 * math.atan2(across, along)), wire), AXES[names[a]](_wrapped(last), wire)]
    return None


def _wrapped(angle: float) -> float:
    """In (-π, π]; the sign of the unitary is a phase."""
    return -((math.pi - angle) % (2 * math.pi)) + math.pi
