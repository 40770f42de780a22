"""Noise models: what every gate and every readout suffers, as PennyLane noise models.

A circuit is first written in one-qubit gates and CNOT, as its resources are counted, so that a gate on four wires does not pass for one;
observables are rotated into the computational basis next, and the noise comes last, on those rotations too.

Asymmetric readout is a channel on each wire just before it is measured: with e01 and e10 the probabilities of reading 0 as 1 and 1 as 0,
its Kraus operators are sqrt(1-e01)|0><0|, sqrt(e01)|1><0|, sqrt(e10)|0><1|, sqrt(1-e10)|1><1|. On what is measured it does what a
confusion matrix does to probabilities (Bravyi et al., Phys. Rev. A 103, 042605 (2021), section II).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from qedge.quantum.asked import Asked

if TYPE_CHECKING:
    import pennylane as qml
    from pennylane.tape import QuantumScript

Rate = Annotated[float, Field(ge=0, le=1)]
Combine = Callable[[Sequence[object]], object]


class Noise(Asked):
    """Probabilities of channels. After a gate on two wires, each of the two suffers depolarizing by `two_qubit`, if that is given."""

    depolarizing: Rate = Field(default=0.0, description="after each gate, on each of its wires")
    two_qubit: Rate | None = Field(default=None, description="depolarizing after each gate on two wires instead, on each")
    amplitude_damping: Rate = Field(default=0.0, description="after each gate, on each of its wires")
    phase_damping: Rate = Field(default=0.0, description="after each gate, on each of its wires")
    readout: tuple[Rate, Rate] = Field(default=(0.0, 0.0), description="probabilities of reading 0 as 1, and 1 as 0")


def noise_model(noise: Noise) -> qml.NoiseModel:
    """What gates suffer, for circuits in one-qubit gates and CNOT; channels in the order of the fields, those of probability 0 left out."""
    import pennylane as qml

    from qedge.quantum.resources import CX_BASIS

    def after(gate: qml.operation.Operator, **_: object) -> None:
        depolarizing = noise.depolarizing if len(gate.wires) == 1 or noise.two_qubit is None else noise.two_qubit
        channels = (
            (qml.DepolarizingChannel, depolarizing),
            (qml.AmplitudeDamping, noise.amplitude_damping),
            (qml.PhaseDamping, noise.phase_damping),
        )
        for channel, rate in channels:
            for wire in gate.wires if rate else ():
                channel(rate, wires=wire)

    return qml.NoiseModel({qml.BooleanFn(lambda gate: gate.name in CX_BASIS): after})


def noisy(circuit: QuantumScript, noise: Noise) -> tuple[list[QuantumScript], Combine]:
    """Circuits with the noise in them, and what puts their answers together to that of the circuit.

    There are several where what is measured does not commute, and its readout is noisy: each is measured by itself.

    Raises:
        InvalidCircuit: an operation that has no decomposition into one-qubit gates and CNOT, or an observable that is not made of Paulis
            where the readout is noisy.
    """
    import pennylane as qml

    from qedge.errors import InvalidCircuit
    from qedge.quantum.resources import in_cx_basis

    read = any(noise.readout) and not _of_state(circuit)
    circuits, combine = [circuit], _only
    if read:
        if odd := [one.obs for one in circuit.measurements if one.obs is not None and one.obs.pauli_rep is None]:
            raise InvalidCircuit(f"noisy readout takes observables that are sums of Pauli words; given: {odd[0]}", given=str(odd[0]))
        circuits, combine = qml.transforms.split_non_commuting(circuit)
        circuits = [one for part in circuits for one in qml.transforms.diagonalize_measurements(part)[0]]
    model = noise_model(noise)
    circuits = [one for part in circuits for one in qml.noise.add_noise(in_cx_basis(part), model)[0]]
    if read:
        circuits = [_misread(one, circuit.wires, noise.readout) for one in circuits]
    return circuits, combine


def _only(answers: Sequence[object]) -> object:
    return answers[0]


def _of_state(circuit: QuantumScript) -> bool:
    """Whether what is asked of the circuit is its state, which nobody reads out."""
    import pennylane as qml

    measured = qml.measurements.SampleMeasurement
    return not any(isinstance(one, measured) for one in circuit.measurements)


def _misread(circuit: QuantumScript, wires: Sequence[object], readout: tuple[float, float]) -> QuantumScript:
    import pennylane as qml

    zero_as_one, one_as_zero = readout
    kraus = np.zeros((4, 2, 2))
    kraus[0, 0, 0], kraus[1, 1, 0] = np.sqrt(1 - zero_as_one), np.sqrt(zero_as_one)
    kraus[2, 0, 1], kraus[3, 1, 1] = np.sqrt(one_as_zero), np.sqrt(1 - one_as_zero)
    channels = [qml.QubitChannel(list(kraus), wires=wire) for wire in wires]
    return circuit.copy(operations=[*circuit.operations, *channels])
