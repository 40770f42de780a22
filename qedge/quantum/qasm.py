"""OpenQASM 2 in and out.

PennyLane writes it; it reads it only with Qiskit, whose errors and gates are not ours to state, so it is read here: all of the language
(gate definitions, parameter expressions, registers broadcast) but what has no place in a circuit that runs from its beginning to its end:
`reset`, `if` and gates after a measurement are refused. Wires are 0, 1, ... over all registers in the order of their declaration.

Source: A. Cross, L. Bishop, J. Smolin, J. Gambetta, "Open Quantum Assembly Language", arXiv:1707.03429 (2017).
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pennylane as qml
from pennylane.io.to_openqasm import OPENQASM_GATES
from pennylane.operation import Operator
from pennylane.tape import QuantumScript

from qedge.errors import DataNotFound, InvalidCircuit
from qedge.quantum.execution import with_idle
from qedge.quantum.qasm_gates import DEFINED, NATIVE
from qedge.quantum.qasm_program import Gate, Program
from qedge.quantum.qasm_tokens import tokens

_NO_GATE = frozenset({"GlobalPhase", "Barrier"})  # a phase of the whole has no effect, and OpenQASM 2 no word for it
_LATER = frozenset({"SWAP", "CSWAP", "CRX", "CRY"})  # in some versions of qelib1.inc, not in that of OpenQASM 2
_UNCHANGED = frozenset({*OPENQASM_GATES, *_NO_GATE}) - _LATER
_LIBRARY = "qelib1.inc"
_UNWRITABLE = (
    qml.exceptions.DecompositionUndefinedError,
    qml.exceptions.DiagGatesUndefinedError,
    qml.exceptions.QuantumFunctionError,
    NotImplementedError,
    ValueError,
)


def read(source: Path | str) -> QuantumScript:
    """The circuit of a program: its operations and, where it measures, the probabilities of the qubits that it does.

    source: a file, by a Path or by a name; a str with a semicolon in it is the program itself. The probabilities' first wire, the most
    significant, is the qubit measured into the first bit of the first classical register, and so on.

    Raises:
        DataNotFound: no such file.
        InvalidCircuit: what is wrong, with its line and column, both from 1, among the facts.
    """
    return _circuit(source if isinstance(source, str) and ";" in source else _text(source))


def _text(source: Path | str) -> str:
    try:
        content = Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise DataNotFound(f"no OpenQASM program can be read at {source}: {error}", given=str(source)) from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise InvalidCircuit(f"line {line}, column {column}: not UTF-8", line=line, column=column) from error


def declared_qubits(source: Path) -> int:
    """How many qubits a program's registers have, whether or not gates touch them.

    Raises:
        As `read`.
    """
    return _program(_text(source)).qubits


def write(circuit: QuantumScript, *, qubits: int = 0) -> str:
    """A program of a circuit's operations, and of the measurement of those wires that it measures, in the order in which it names them.

    What is measured in another than the computational basis is rotated into it first. A global phase is left out, and what qelib1.inc
    has no gate for is decomposed. qubits: the register has at least so many, of which some may be idle.

    Raises:
        InvalidCircuit: an operation that has no decomposition into gates of qelib1.inc, one that measures on its way and goes on, or
            observables that cannot be measured together.
    """
    wires = with_idle(circuit, qubits)
    if not wires:
        raise InvalidCircuit("a circuit without a qubit is no OpenQASM program")
    if circuit.batch_size is not None:
        raise InvalidCircuit(f"parameters that are arrays make {circuit.batch_size} circuits in one; write them one by one")
    try:
        together, _ = qml.transforms.split_non_commuting(circuit)
        if len(together) > 1:
            raise InvalidCircuit(f"what is measured takes {len(together)} circuits, since it does not commute; write them one by one")
        operations = [*circuit.operations, *together[0].diagonalizing_gates]
        for one in operations:
            if one.name not in _UNCHANGED and not one.has_decomposition:
                raise InvalidCircuit(f"OpenQASM 2 has no gate for {one.name}", given=one.name)
        (decomposed,), _ = qml.transforms.decompose(QuantumScript(operations), gate_set=_UNCHANGED)
    except _UNWRITABLE as error:
        raise InvalidCircuit(f"the circuit cannot be written in OpenQASM 2: {error}") from error
    gates = [_with_floats(one) for one in decomposed.operations if one.name not in _NO_GATE]
    # Its own lines of measurements take the order in which gates name the wires for that of the wires.
    program = str(qml.to_openqasm(QuantumScript(gates), wires=qml.wires.Wires(wires), measure_all=False)) if gates else _head(len(wires))
    measured = [wires.index(wire) for wire in _measured(circuit)]
    lines = [f"measure q[{wire}] -> c[{bit}];\n" for bit, wire in enumerate(measured)]
    return program + (f"creg c[{len(measured)}];\n" if measured else "") + "".join(lines)


def _with_floats(gate: Operator) -> Operator:
    """The gate with parameters that are written to the last digit."""
    if gate.name not in OPENQASM_GATES:
        raise InvalidCircuit(f"OpenQASM 2 has no gate for {gate.name}", given=gate.name)
    values = [float(value) for value in gate.data]
    if not all(map(math.isfinite, values)):
        raise InvalidCircuit(f"{gate.name}: {values} is no finite number", given=gate.name)
    return qml.ops.functions.bind_new_parameters(gate, values) if values else gate


def _head(qubits: int) -> str:
    return f'OPENQASM 2.0;\ninclude "{_LIBRARY}";\nqreg q[{qubits}];\n'


def _measured(circuit: QuantumScript) -> list[object]:
    """The wires that are measured; a measurement that names none measures all."""
    if any(not one.wires for one in circuit.measurements):
        return list(circuit.wires)
    return list(qml.wires.Wires.all_wires([one.wires for one in circuit.measurements]))


def _circuit(text: str) -> QuantumScript:
    program = _program(text)
    operations: list[Operator] = [NATIVE[name][2](*parameters, wires=wires) for name, parameters, wires in program.applied]
    measured = [program.bits[bit] for bit in sorted(program.bits)]
    return QuantumScript(operations, [qml.probs(wires=measured)] if measured else [])


def _program(text: str) -> Program:
    program = Program(tokens(text), {_LIBRARY: _library()})
    program.read()
    return program


@cache
def _library() -> dict[str, Gate]:
    """The gates of qelib1.inc."""
    own = {name: Gate(name, parameters, qubits) for name, (parameters, qubits, _) in NATIVE.items()}
    return Program(tokens(DEFINED), {}, own).definitions()
