"""CNOTs of six circuits after compilation, beside Qiskit at level 3 (one-qubit gates and CX, any qubit next to any, best of five seeds).

Ours has no Qiskit: passes of its own and PennyLane's. Qiskit gets the same circuit as OpenQASM, its swaps as swaps, which both turn into
new names of qubits. Unitaries, but for those names, are compared in every entry. The ways that Pauli networks are weighed were chosen on
circuits of these kinds, but not on these random ones.
"""

from __future__ import annotations

import json
import subprocess
import time

from pennylane.tape import QuantumScript

from qedge.quantum import qasm
from qedge.quantum.compilation.compiler import compile_circuit
from qedge.quantum.compilation.equivalence import distance
from qedge.quantum.compilation.lowering import lower, without_swaps
from qedge.quantum.compilation.passes import PASSES
from tests.benchmarks.figures import Figure, beside, never_more
from tests.benchmarks.peers import HERE, QISKIT
from tests.benchmarks.quantum_circuits import CIRCUITS
from tests.benchmarks.surroundings import environment

REPEAT = 1
WITHIN, ENOUGH = 1.05, 4
OWN = [name for name in PASSES if name != "qiskit"]


def measure(repeat: int) -> list[Figure]:
    """Counts are the same in every repetition; `repeat` compilations are timed."""
    scripts = {name: make() for name, make in CIRCUITS.items()}
    asked = json.dumps({name: program(script) for name, script in scripts.items()})
    line = [str(QISKIT.python()), str(HERE / "qiskit_compilation.py")]
    answer = subprocess.run(line, input=asked, capture_output=True, text=True, check=True, env=environment())
    theirs = json.loads(answer.stdout)
    figures, near, more, seconds = [], 0, 0, []
    for name, script in scripts.items():
        for _ in range(repeat):
            begun = time.perf_counter()
            compiled = compile_circuit(script, passes=OWN)
            seconds.append(time.perf_counter() - begun)
        cx, before, peer = compiled.after.cx, compiled.before.cx, theirs[name]
        near += cx <= WITHIN * peer["cx"]
        more += cx > before
        said = f"{cx} CNOTs of {before}, depth {compiled.after.depth} of {compiled.before.depth}, by {compiled.by}"
        figures.append(Figure(name, "", f"{said}; Qiskit {peer['cx']} CX, depth {peer['depth']}"))
    off = [_off(script) for script in scripts.values()]
    return [
        Figure("circuits of 6 with at most 5 % more CNOTs than Qiskit's level 3", f"≥ {ENOUGH}", str(near), near >= ENOUGH),
        never_more("circuits with more CNOTs than they came with", 0, [more]),
        never_more("largest amplitude off, up to a phase", 1e-8, off),
        *figures,
        beside("seconds to compile a circuit", seconds, "s"),
        beside("… Qiskit", [one["seconds"] for one in theirs.values()], "s"),
    ]


def program(script: QuantumScript) -> str:
    """OpenQASM with swaps as swaps, which a strict reader knows only by their definition."""
    lines, held = [], []
    for one in script.operations:
        if one.name == "SWAP":
            lines += _gates(held, script)
            held = []
            lines.append(f"swap q[{one.wires[0]}],q[{one.wires[1]}];")
        else:
            held.append(one)
    lines += _gates(held, script)
    wires = len(script.wires)
    measured = [f"measure q[{wire}] -> c[{bit}];" for bit, wire in enumerate(script.measurements[0].wires)]
    head = ["OPENQASM 2.0;", 'include "qelib1.inc";', f"qreg q[{wires}];", f"creg c[{wires}];"]
    return "\n".join([*head, *lines, *measured, ""])


def _gates(operations: list[object], script: QuantumScript) -> list[str]:
    if not operations:
        return []
    written = qasm.write(QuantumScript([*operations], [script.measurements[0]]))
    return [line for line in written.splitlines() if not line.startswith(("OPENQASM", "include", "qreg", "creg", "measure"))]


def _off(script: QuantumScript) -> float:
    """How far what comes out is from what went in: of the whole unitary."""
    wires = range(len(script.wires))
    return distance(lower(without_swaps(script), wires), lower(compile_circuit(script, passes=OWN).script, wires), len(wires))
