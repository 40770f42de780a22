"""Ansaetze: parts of a circuit, each as PennyLane's operation and as the rotation of amplitudes that the fast adjoint uses.

Every parametrised part is exp(θ A / 2), A² = -1 where A moves amplitudes and 0 elsewhere, (A ψ)[b] = couplings[b] ψ[partners[b]].
Wire 0 is the most significant bit of a basis state.
Sources: J. M. Arrazola et al., "Universal quantum circuits for quantum chemistry", Quantum 6 (2022) 742 (Givens rotations);
P. K. Barkoutsos et al., Phys. Rev. A 98 (2018) 022322 (UCCSD as PennyLane writes it); A. Kandala et al., Nature 549 (2017) 242.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.measurements import MeasurementProcess
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.quantum.hamiltonians.pauli import locate, parity

Coupling = tuple[NDArray[np.int64], NDArray[np.inexact]]


class Gate(Protocol):
    """A part with one parameter."""

    @property
    def name(self) -> str:
        """As shown to people."""
        ...

    def operation(self, parameter: float) -> Operator:
        """As PennyLane's."""
        ...

    def coupling(self, basis: NDArray[np.int64], wires: int) -> Coupling:
        """Partners and couplings of the basis states."""
        ...


@dataclass(frozen=True)
class Excitation:
    """Electrons from full orbitals to empty ones, by one or by two; wires ascend, all of `full` below all of `empty`.

    fermionic: with the signs of exchanged electrons, as in UCCSD; else without, a Givens rotation, which takes far fewer gates.
    """

    full: tuple[int, ...]
    empty: tuple[int, ...]
    fermionic: bool = False

    @property
    def name(self) -> str:
        """Wires emptied, wires filled."""
        return f"{','.join(map(str, self.full))}→{','.join(map(str, self.empty))}"

    def operation(self, parameter: float) -> Operator:
        """As `Gate.operation`."""
        if not self.fermionic:
            kind = qml.SingleExcitation if len(self.full) == 1 else qml.DoubleExcitation
            return kind(parameter, wires=[*self.full, *self.empty])
        if len(self.full) == 1:
            return qml.FermionicSingleExcitation(parameter, wires=range(self.full[0], self.empty[0] + 1))
        below, above = (range(pair[0], pair[1] + 1) for pair in (self.full, self.empty))
        return qml.FermionicDoubleExcitation(parameter, wires1=below, wires2=above)

    def coupling(self, basis: NDArray[np.int64], wires: int) -> Coupling:
        """As `Gate.coupling`."""
        full, empty = _bits(self.full, wires), _bits(self.empty, wires)
        ground, excited = basis & (full | empty) == full, basis & (full | empty) == empty
        partners, _ = locate(basis, np.where(ground | excited, basis ^ (full | empty), basis))
        signs = excited.astype(np.float64) - ground
        if not self.fermionic:
            return partners, -signs
        first, last = (self.full, self.empty) if len(self.full) == 2 else ((self.full[0], self.empty[0]), ())
        between = [wire for ends in (first, last) if ends for wire in range(ends[0] + 1, ends[1])]
        exchange = parity(basis & _bits(between, wires))
        return partners, signs * exchange * (1 if len(self.full) == 1 else -1)


@dataclass(frozen=True)
class Turn:
    """One wire turned about Y or Z."""

    axis: str
    wire: int

    @property
    def name(self) -> str:
        """Axis and wire."""
        return f"R{self.axis}({self.wire})"

    def operation(self, parameter: float) -> Operator:
        """As `Gate.operation`."""
        return (qml.RY if self.axis == "Y" else qml.RZ)(parameter, wires=self.wire)

    def coupling(self, basis: NDArray[np.int64], wires: int) -> Coupling:
        """As `Gate.coupling`."""
        bit = np.int64(_bits([self.wire], wires))
        signs = parity(basis & bit)
        if self.axis == "Y":
            return locate(basis, basis ^ bit)[0], -signs
        return np.arange(len(basis)), -1j * signs


@dataclass(frozen=True)
class Entangler:
    """CZ between every other pair of neighbours, the first at wire `first`; no parameter.

    All pairs at once would leave a group that no number of layers makes whole: conjugation then knows Y and ZYZ alone.
    """

    wires: int
    first: int

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The wires that meet."""
        return [(wire, wire + 1) for wire in range(self.first, self.wires - 1, 2)]

    def operations(self) -> list[Operator]:
        """As PennyLane's."""
        return [qml.CZ(wires=pair) for pair in self.pairs]

    def signs(self, basis: NDArray[np.int64]) -> NDArray[np.float64]:
        """What it multiplies amplitudes by."""
        return parity(basis & (basis << 1) & _bits([one for one, _ in self.pairs], self.wires))


@dataclass(frozen=True)
class AnsatzCircuit:
    """Wires in `occupied` flipped, then the parts one after another; as many parameters as parts that have one, in their order."""

    wires: int
    occupied: int
    parts: tuple[Gate | Entangler, ...]

    @property
    def gates(self) -> list[Gate]:
        """The parts that have a parameter."""
        return [part for part in self.parts if not isinstance(part, Entangler)]

    def with_gate(self, gate: Gate) -> AnsatzCircuit:
        """This one with a gate more at its end."""
        return replace(self, parts=(*self.parts, gate))

    def circuit(
        self, parameters: Sequence[float] | NDArray[np.float64], measured: Sequence[MeasurementProcess] = (), shots: int | None = None
    ) -> QuantumScript:
        """The circuit at these parameters [as many as gates]."""
        return QuantumScript(self.operations(parameters), measured, shots=shots)

    def operations(self, parameters: Sequence[float] | NDArray[np.float64]) -> list[Operator]:
        """Its operations at these parameters [as many as gates]."""
        values = iter(parameters)
        operations: list[Operator] = [qml.X(wire) for wire in range(self.occupied)]
        for part in self.parts:
            operations += part.operations() if isinstance(part, Entangler) else [part.operation(float(next(values)))]
        return operations


def excitations(wires: int, electrons: int, *, fermionic: bool = False) -> list[Excitation]:
    """All single and double excitations that keep the spin, doubles first."""
    if electrons == wires:
        return []
    singles, doubles = qml.qchem.excitations(electrons, wires)
    pairs = [((s, r), (q, p)) for s, r, q, p in doubles] + [((r,), (p,)) for r, p in singles]
    return [Excitation(full, empty, fermionic) for full, empty in pairs]


def hardware_efficient(wires: int, occupied: int, layers: int, *, real: bool) -> AnsatzCircuit:
    """Turns of every wire, and so many layers of CZ and turns after them; about Y alone where amplitudes are real, else about Y and Z."""
    turns: list[Gate | Entangler] = [Turn(axis, wire) for axis in ("Y" if real else "YZ") for wire in range(wires)]
    entangled: list[Gate | Entangler] = [part for layer in range(layers) for part in (Entangler(wires, layer % 2), *turns)]
    return AnsatzCircuit(wires, occupied, (*turns, *entangled))


def _bits(chosen: Sequence[int], wires: int) -> int:
    return sum(1 << (wires - 1 - wire) for wire in chosen)
