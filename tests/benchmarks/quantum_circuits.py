"""The six circuits on which compilation is measured; random ones by fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pennylane as qml
from pennylane.operation import Operator
from pennylane.tape import QuantumScript
from scipy.stats import unitary_group

from qedge.quantum.vqe.ansatz import AnsatzCircuit, excitations


def qft() -> QuantumScript:
    """The Fourier transform on 8 qubits, measured."""
    return QuantumScript(qml.QFT(range(8)).decomposition(), [qml.probs(wires=range(8))])


def uccsd_h2() -> QuantumScript:
    """Unitary coupled cluster of H2, 4 qubits, with amplitudes that are no round numbers."""
    singles, doubles = qml.qchem.excitations_to_wires(*qml.qchem.excitations(2, 4))
    weights = np.array([0.11, -0.07, 0.23])
    state = np.array([1, 1, 0, 0])
    return QuantumScript([qml.UCCSD(weights, range(4), s_wires=singles, d_wires=doubles, init_state=state)], [qml.probs(wires=range(4))])


def givens_lih() -> QuantumScript:
    """All single and double excitations of LiH's two active electrons as Givens rotations, 10 qubits."""
    gates = tuple(excitations(10, 2))
    ansatz = AnsatzCircuit(10, 2, gates)
    return QuantumScript(ansatz.operations(np.random.default_rng(0).uniform(0.05, 0.4, len(gates))), [qml.probs(wires=range(10))])


def clifford_t() -> QuantumScript:
    """120 gates of H, S, T and CNOT on 5 qubits."""
    draw, gates = np.random.default_rng(1), list[Operator]()
    for _ in range(120):
        kind, (one, other) = draw.integers(5), draw.choice(5, 2, replace=False)
        gates.append(qml.CNOT([int(one), int(other)]) if kind > 2 else (qml.Hadamard, qml.S, qml.T)[kind](int(one)))
    return QuantumScript(gates, [qml.probs(wires=range(5))])


def rotations() -> QuantumScript:
    """150 rotations and CNOTs on 6 qubits, half of each."""
    draw, gates = np.random.default_rng(2), list[Operator]()
    for _ in range(150):
        one, other = (int(wire) for wire in draw.choice(6, 2, replace=False))
        gates.append(qml.CNOT([one, other]) if draw.random() < 0.5 else (qml.RX, qml.RY, qml.RZ)[draw.integers(3)](draw.uniform(0, 6), one))
    return QuantumScript(gates, [qml.probs(wires=range(6))])


def volume() -> QuantumScript:
    """Six layers of random two-qubit unitaries on 6 qubits, paired at random, each written with three CNOTs."""
    draw, gates = np.random.default_rng(3), list[Operator]()
    for _ in range(6):
        wires = [int(wire) for wire in draw.permutation(6)]
        for pair in zip(wires[::2], wires[1::2], strict=True):
            gates += qml.ops.two_qubit_decomposition(unitary_group.rvs(4, random_state=draw), list(pair))
    return QuantumScript(gates, [qml.probs(wires=range(6))])


CIRCUITS: dict[str, Callable[[], QuantumScript]] = {
    "QFT-8": qft,
    "UCCSD-H2": uccsd_h2,
    "Givens-LiH": givens_lih,
    "Clifford + T": clifford_t,
    "rotations": rotations,
    "quantum volume": volume,
}
