"""Values mitigated by mitiq, asked for line by line: run by the peer's own Python; whatever it wants measured it asks back for.

A line in, as JSON: gates ([name, angle or null, wires]), qubits, confusions ([qubits, read, prepared]), values (of each outcome),
asymptote, seed. A line out is either {"measure": gates}, to be answered by counts of each outcome, or {"values": of each curve, "failed":
…}: how many measurements mitiq could not undo the readout of, which stand as they were read, and exponentials that it could not fit, where
the line stands.
"""

import json
import sys
import warnings

import cirq
import numpy as np
from mitiq.rem import generate_tensored_inverse_confusion_matrix
from mitiq.rem.inverse_confusion_matrix import closest_positive_distribution
from mitiq.zne.inference import ExpFactory, ExtrapolationError, LinearFactory, RichardsonFactory
from mitiq.zne.scaling import fold_gates_at_random

SCALES = [1.0, 2.0, 3.0]
TURNS = {"RX": cirq.rx, "RY": cirq.ry, "RZ": cirq.rz}
NAMES = {cirq.Rx: "RX", cirq.Ry: "RY", cirq.Rz: "RZ"}


def answered(question: dict[str, object]) -> None:
    """Write what is asked for back, until it can be answered."""
    json.dump(question, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


def circuit_of(gates: list[list[object]]) -> cirq.Circuit:
    """In cirq's terms."""
    made = []
    for name, angle, wires in gates:
        qubits = [cirq.LineQubit(wire) for wire in wires]
        made.append(TURNS[name](angle)(*qubits) if name in TURNS else cirq.CNOT(*qubits) if name == "CNOT" else cirq.H(*qubits))
    return cirq.Circuit(made)


def gates_of(circuit: cirq.Circuit) -> list[list[object]]:
    """And back: a power of H or CNOT is an odd one here."""
    found: list[list[object]] = []
    for operation in circuit.all_operations():
        wires, gate = [qubit.x for qubit in operation.qubits], operation.gate
        if type(gate) in NAMES:
            found.append([NAMES[type(gate)], float(gate._rads), wires])
        elif isinstance(gate, cirq.CXPowGate) and abs(gate.exponent) == 1:
            found.append(["CNOT", None, wires])
        elif isinstance(gate, cirq.HPowGate) and abs(gate.exponent) == 1:
            found.append(["Hadamard", None, wires])
        else:
            raise ValueError(f"{operation} is none of the gates that were given")
    return found


def mitigated(asked: dict[str, object]) -> dict[str, object]:
    """The values of each curve through the same measurements."""
    failed = [0]
    qubits = int(asked["qubits"])
    inverse = generate_tensored_inverse_confusion_matrix(qubits, [np.array(one) for one in asked["confusions"]])
    values = np.array(asked["values"])

    def execute(circuit: cirq.Circuit) -> float:
        answered({"measure": gates_of(circuit)})
        counts = json.loads(sys.stdin.readline())
        chances = np.array(counts) / sum(counts)
        try:
            return float(np.array(closest_positive_distribution(inverse @ chances)) @ values)
        except ValueError:
            failed[0] += 1
            return float(chances @ values)

    seeds = np.random.default_rng(int(asked["seed"]))
    richardson = RichardsonFactory(SCALES)
    richardson.run(
        circuit_of(asked["gates"]),
        execute,
        scale_noise=lambda circuit, scale: fold_gates_at_random(circuit, scale, seed=int(seeds.integers(2**31))),
    )
    points = richardson.get_scale_factors(), richardson.get_expectation_values()
    linear = LinearFactory.extrapolate(*points)
    try:
        exponential = ExpFactory.extrapolate(*points, asymptote=asked["asymptote"])
    except ExtrapolationError:
        failed[0] += 1
        exponential = linear
    found = {"richardson": richardson.reduce(), "linear": linear, "exponential": exponential}
    return {"values": {curve: float(value) for curve, value in found.items()}, "failed": failed[0]}


def main() -> None:
    """Until nothing more is asked."""
    warnings.simplefilter("ignore")
    for line in iter(sys.stdin.readline, ""):
        answered(mitigated(json.loads(line)))


if __name__ == "__main__":
    main()
