"""A circuit as turns about Pauli strings and a Clifford unitary after them.

Every Clifford gate is moved to the end; what it passes turns its axis. Two turns about one string merge where all between them commute
with it: this contains the merging of phases over CNOT and RZ.
Sources: D. Litinski, "A Game of Surface Codes", Quantum 3, 128 (2019), section 1; F. Zhang, J. Chen, arXiv:1903.12456 (merging).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from qedge.quantum.compilation.cancellation import TURNS, angle
from qedge.quantum.compilation.gate import AXES, Gate
from qedge.quantum.compilation.one_qubit import TOLERANCE


@dataclass(frozen=True)
class Pauli:
    """i^phase X^x Z^z; bit w of x and z is wire w."""

    phase: int
    x: int
    z: int

    def __mul__(self, other: Pauli) -> Pauli:
        phase = self.phase + other.phase + 2 * (self.z & other.x).bit_count()
        return Pauli(phase % 4, self.x ^ other.x, self.z ^ other.z)

    def times_i(self, times: int) -> Pauli:
        """i^times of it."""
        return Pauli((self.phase + times) % 4, self.x, self.z)

    def commutes(self, other: Pauli) -> bool:
        """Or else it anticommutes."""
        return not ((self.x & other.z).bit_count() + (self.z & other.x).bit_count()) % 2

    @property
    def sign(self) -> int:
        """1 or -1 before the product of X, Y and Z."""
        return 1 if (self.phase - (self.x & self.z).bit_count()) % 4 == 0 else -1


@dataclass
class Frame:
    """A Clifford unitary C by its images C† X_w C and C† Z_w C."""

    x: list[Pauli]
    z: list[Pauli]

    @classmethod
    def identity(cls, wires: int) -> Frame:
        """That does nothing."""
        return cls([Pauli(0, 1 << wire, 0) for wire in range(wires)], [Pauli(0, 0, 1 << wire) for wire in range(wires)])

    def image(self, axis: str, wire: int) -> Pauli:
        """Of X, Y or Z on a wire."""
        return self.x[wire] if axis == "X" else self.z[wire] if axis == "Z" else (self.x[wire] * self.z[wire]).times_i(1)

    def cnot(self, control: int, target: int) -> None:
        """A CNOT after it."""
        self.x[control] *= self.x[target]
        self.z[target] = self.z[control] * self.z[target]

    def quarter_turns(self, axis: str, wire: int, times: int) -> None:
        """So many turns by π/2 after it."""
        self.turn_images(self.image(axis, wire), times)

    def turn_images(self, about: Pauli, times: int) -> None:
        """What a turn by π/2 about a string does before it, as often."""
        self.x = [turned(one, about, times) for one in self.x]
        self.z = [turned(one, about, times) for one in self.z]


def turned(one: Pauli, about: Pauli, times: int) -> Pauli:
    """Q† P Q for a turn Q by `times` π/2 about a string: i^times of their product, or P itself with a sign."""
    if one.commutes(about) or times % 4 == 0:
        return one
    return one.times_i(2) if times % 4 == 2 else (about * one).times_i(times)


@dataclass
class PauliForm:
    """Turns exp(-i angle/2 P), the first applied first, then the frame's Clifford. turns: string (sign +1), angle, source."""

    frame: Frame
    turns: list[tuple[Pauli, float, int]] = field(default_factory=list)

    def add(self, about: Pauli, by: float, source: int) -> int | None:
        """Put a turn in; where it merged with an earlier one, that one's place."""
        by, about = by * about.sign, about.times_i(0 if about.sign == 1 else 2)
        for place in range(len(self.turns) - 1, -1, -1):
            other, angle_there, from_there = self.turns[place]
            if other == about:
                self.turns[place] = (other, angle_there + by, from_there)
                return place
            if not other.commutes(about):
                break
        self.turns.append((about, by, source))
        return None


def turns_of(gate: Gate) -> list[tuple[str, float]]:
    """A one-qubit gate as turns about axes, in their order."""
    return [("Y", math.pi / 2), ("X", math.pi)] if gate.name == "Hadamard" else [(TURNS[gate.name], angle(gate))]


def pauli_form(gates: Sequence[Gate], wires: int) -> PauliForm:
    """Of gates in one-qubit gates and CNOT; turns that became Clifford when they merged are moved to the end as well."""
    form = _form(gates, wires)
    while any(quarters(by) is not None for _, by, _ in form.turns):
        given, form = form.turns, PauliForm(form.frame)
        cliffords: list[tuple[Pauli, int]] = []
        for about, by, source in given:
            if (times := quarters(by)) is not None:
                cliffords.insert(0, (about, times))
                continue
            for other, times in cliffords:
                about = turned(about, other, times)
            form.add(about, by, source)
        for other, times in cliffords:
            form.frame.turn_images(other, times)
    return form


def merge_rotations(gates: Sequence[Gate]) -> list[Gate]:
    """The same gates, each turn that merges with an earlier one left out and the earlier one's angle changed."""
    wires = 1 + max((wire for gate in gates for wire in gate.wires), default=0)
    form = _form(gates, wires)
    stays = {source: by for _, by, source in form.turns}
    changed: list[Gate] = []
    frame = Frame.identity(wires)
    for place, gate in enumerate(gates):
        if len(gate.wires) == 2:
            frame.cnot(*gate.wires)
            changed.append(gate)
        elif gate.name == "Hadamard" or quarters(angle(gate)) is not None:
            for axis, by in turns_of(gate):
                frame.quarter_turns(axis, gate.wires[0], quarters(by) or 0)
            changed.append(gate)
        elif place in stays:
            axis = TURNS[gate.name]
            by = math.remainder(stays[place] * frame.image(axis, gate.wires[0]).sign, 2 * math.pi)
            if abs(by) > TOLERANCE:
                changed.append(AXES[axis](by, gate.wires[0]))
    return changed


def quarters(by: float) -> int | None:
    """How many times π/2 an angle is, or None."""
    times = round(by / (math.pi / 2))
    return times if abs(by - times * math.pi / 2) < TOLERANCE else None


def _form(gates: Sequence[Gate], wires: int) -> PauliForm:
    form = PauliForm(Frame.identity(wires))
    for place, gate in enumerate(gates):
        if len(gate.wires) == 2:
            form.frame.cnot(*gate.wires)
            continue
        (wire,) = gate.wires
        for axis, by in turns_of(gate):
            if (times := quarters(by)) is not None:
                form.frame.quarter_turns(axis, wire, times)
            else:
                form.add(form.frame.image(axis, wire), by, place)
    return form
