"""OpenQASM 2: what is written is read again as the same circuit, and what is malformed is refused with its line and column."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pennylane.tape import QuantumScript

from qedge.errors import DataNotFound, InvalidCircuit
from qedge.quantum import qasm
from qedge.quantum.backend import Backend
from qedge.quantum.circuit_run import run_circuit
from qedge.quantum.compilation.compiler import compile_circuit
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.qasm_gates import DEFINED, NATIVE

HEAD = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'
PLAIN = [qml.PauliX, qml.PauliY, qml.PauliZ, qml.Hadamard, qml.S, qml.T, qml.SX, qml.Identity]
TURNS = [qml.RX, qml.RY, qml.RZ, qml.PhaseShift]
PAIRS = [qml.CNOT, qml.CZ, qml.CY, qml.SWAP, qml.CH, qml.ISWAP]
TURNED_PAIRS = [qml.CRX, qml.CRY, qml.CRZ, qml.IsingXX, qml.IsingYY, qml.IsingZZ, qml.SingleExcitation, qml.ControlledPhaseShift]
QUBITS = 4


@st.composite
def operations(draw: st.DrawFn) -> list[qml.operation.Operator]:
    """Gates of every kind on four wires, some adjoint."""
    made = []
    for _ in range(draw(st.integers(0, 8))):
        wires = draw(st.permutations(range(QUBITS)))
        angle = draw(st.floats(-10, 10))
        one = draw(st.integers(0, 6))
        if one == 0:
            gate = draw(st.sampled_from(PLAIN))(wires[0])
        elif one == 1:
            gate = draw(st.sampled_from(TURNS))(angle, wires[0])
        elif one == 2:
            gate = draw(st.sampled_from(PAIRS))(wires[:2])
        elif one == 3:
            gate = draw(st.sampled_from(TURNED_PAIRS))(angle, wires[:2])
        elif one == 4:
            gate = draw(st.sampled_from([qml.Toffoli, qml.CSWAP]))(wires[:3])
        elif one == 5:
            gate = qml.U3(angle, angle / 2, -angle, wires[0])
        else:
            gate = qml.DoubleExcitation(angle, wires)
        made.append(qml.adjoint(gate) if draw(st.booleans()) else gate)
    return made


def matrix(gates: list[qml.operation.Operator], qubits: int = QUBITS) -> NDArray[np.complex128]:
    """What the gates do, in order."""
    whole = np.eye(2**qubits, dtype=complex)
    for gate in gates:
        whole = qml.matrix(gate, wire_order=range(qubits)) @ whole
    return whole


def same_up_to_phase(one: NDArray[np.complex128], other: NDArray[np.complex128]) -> bool:
    """Of two unitaries."""
    return bool(abs(abs(np.vdot(one, other)) - len(one)) < 1e-9)


@settings(max_examples=60)
@given(operations(), st.sets(st.integers(0, QUBITS - 1)))
def test_what_is_written_is_read_again_as_the_same_circuit(gates: list[qml.operation.Operator], measured: set[int]) -> None:
    wires = sorted(measured)
    script = QuantumScript([*(qml.Identity(wire) for wire in range(QUBITS)), *gates], [qml.probs(wires=wires)] if wires else [])
    text = qasm.write(script)
    again = qasm.read(text)
    assert same_up_to_phase(matrix(again.operations), matrix(gates))
    assert [list(one.wires) for one in again.measurements] == ([wires] if wires else [])
    assert qasm.write(again) == text


@pytest.mark.parametrize("angle", [0.1234567890123456, -1e-17, 1e300])
@pytest.mark.parametrize("kind", [float, np.float64, np.array, torch.tensor, qml.numpy.array])
def test_parameters_keep_every_digit_whatever_they_were_kept_in(angle: float, kind: type) -> None:
    number = kind(angle) if kind is not torch.tensor else torch.tensor(angle, dtype=torch.float64)
    again = qasm.read(qasm.write(QuantumScript([qml.RX(number, 0)], [])))
    assert again.operations[0].data == (angle,)


def test_wires_are_numbered_in_ascending_order_or_as_they_come() -> None:
    numbers = QuantumScript([qml.CNOT([7, 3])], [qml.expval(qml.Z(7))])
    assert qasm.write(numbers).endswith("qreg q[2];\ncx q[1],q[0];\ncreg c[1];\nmeasure q[1] -> c[0];\n")
    names = QuantumScript([qml.CNOT(["b", "a"])], [qml.probs()])
    assert "cx q[0],q[1];\ncreg c[2];\nmeasure q[0] -> c[0];\nmeasure q[1] -> c[1];" in qasm.write(names)
    assert qasm.write(QuantumScript([], [qml.probs(wires=[0])])).endswith("qreg q[1];\ncreg c[1];\nmeasure q[0] -> c[0];\n")


@pytest.mark.parametrize("word", ["XZ", "YX", "ZY"])
def test_what_is_measured_in_another_basis_is_rotated_first(word: str) -> None:
    gates = [qml.RX(0.3, 0), qml.RY(0.7, 1), qml.CNOT([0, 1]), qml.RZ(0.2, 1)]
    asked = QuantumScript(gates, [qml.expval(qml.pauli.string_to_pauli_word(word))])
    expected, probabilities = LocalExecutor().run([asked, qasm.read(qasm.write(asked))], Backend())
    assert np.dot([1, -1, -1, 1], probabilities) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("circuit", "said"),
    [
        (QuantumScript([qml.X(0)], [qml.expval(qml.X(0)), qml.expval(qml.Z(0))]), "takes 2 circuits"),
        (QuantumScript([qml.DepolarizingChannel(0.1, 0)], []), "DepolarizingChannel"),
        (QuantumScript([qml.RX(np.array([0.1, 0.2]), 0)], []), "make 2 circuits in one"),
        (QuantumScript([qml.RX(math.nan, 0)], []), "no finite number"),
        (QuantumScript([], []), "without a qubit"),
    ],
)
def test_a_circuit_that_openqasm_has_no_words_for_is_refused(circuit: QuantumScript, said: str) -> None:
    with pytest.raises(InvalidCircuit, match=said):
        qasm.write(circuit)


# The definitions of qelib1.inc (arXiv:1707.03429, and Qiskit's for rxx) of gates that are PennyLane's own here.
BY_DEFINITION = {
    "y": "gate _y a { u3(pi,pi/2,pi/2) a; }",
    "sx": "gate _sx a { sdg a; h a; sdg a; }",
    "sxdg": "gate _sxdg a { s a; h a; s a; }",
    "cz": "gate _cz a,b { h b; cx a,b; h b; }",
    "cy": "gate _cy a,b { sdg b; cx a,b; s b; }",
    "ch": "gate _ch a,b { h b; sdg b; cx a,b; h b; t b; cx a,b; t b; h b; s b; x b; s a; }",
    "ccx": "gate _ccx a,b,c { h c; cx b,c; tdg c; cx a,c; t c; cx b,c; tdg c; cx a,c; t b; t c; h c; cx a,b; t a; tdg b; cx a,b; }",
    "cswap": "gate _cswap a,b,c { cx c,b; ccx a,b,c; cx c,b; }",
    "crx": "gate _crx(l) a,b { u1(pi/2) b; cx a,b; u3(-l/2,0,0) b; cx a,b; u3(l/2,-pi/2,0) b; }",
    "cry": "gate _cry(l) a,b { ry(l/2) b; cx a,b; ry(-l/2) b; cx a,b; }",
    "crz": "gate _crz(l) a,b { rz(l/2) b; cx a,b; rz(-l/2) b; cx a,b; }",
    "cu1": "gate _cu1(l) a,b { u1(l/2) a; cx a,b; u1(-l/2) b; cx a,b; u1(l/2) b; }",
    "rxx": "gate _rxx(t) a,b { u3(pi/2,t,0) a; h b; cx a,b; u1(-t) b; cx a,b; h b; u2(-pi,pi-t) a; }",
    "rzz": "gate _rzz(t) a,b { cx a,b; u1(t) b; cx a,b; }",
    "p": "gate _p(l) a { U(0,0,l) a; }",
    "u2": "gate _u2(f,l) a { U(pi/2,f,l) a; }",
}


@pytest.mark.parametrize("name", list(BY_DEFINITION))
def test_a_gate_is_what_qelib1_defines_it_to_be(name: str) -> None:
    parameters, qubits, _ = NATIVE[name]
    given, wires = f"({','.join(['0.7', '-0.3'][:parameters])})" if parameters else "", ",".join(f"q[{wire}]" for wire in range(qubits))
    own, defined = (
        qasm.read(f"{HEAD}{BY_DEFINITION[name]} qreg q[{qubits}]; {used}{given} {wires};").operations for used in (name, f"_{name}")
    )
    assert same_up_to_phase(matrix(own, qubits), matrix(defined, qubits))


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        ("cu3(0.3,0.5,-0.7) q[0],q[1];", qml.ctrl(qml.U3(0.3, 0.5, -0.7, 1), 0)),
        ("cu(0.3,0.5,-0.7,0.2) q[0],q[1];", qml.prod(qml.PhaseShift(0.2, 0), qml.ctrl(qml.U3(0.3, 0.5, -0.7, 1), 0))),
        ("csx q[0],q[1];", qml.ctrl(qml.SX(1), 0)),
        ("c3x q[0],q[1],q[2],q[3];", qml.MultiControlledX([0, 1, 2, 3])),
        ("c3sqrtx q[0],q[1],q[2],q[3];", qml.ctrl(qml.SX(3), [0, 1, 2])),
        ("u2(0.4,0.9) q[0];", qml.U2(0.4, 0.9, 0)),
    ],
)
def test_controlled_gates_are_what_their_names_say(applied: str, expected: qml.operation.Operator) -> None:
    read = qasm.read(f"{HEAD}qreg q[4];{applied}").operations
    assert same_up_to_phase(matrix(read), matrix([expected]))


@pytest.mark.parametrize(("name", "controls"), [("rccx", 2), ("rc3x", 3)])
def test_relative_phase_gates_flip_as_the_controlled_ones_do(name: str, controls: int) -> None:
    wires = ",".join(f"q[{wire}]" for wire in range(controls + 1))
    read = matrix(qasm.read(f"{HEAD}qreg q[{controls + 1}];{name} {wires};").operations, controls + 1)
    assert np.abs(read) == pytest.approx(np.abs(qml.matrix(qml.MultiControlledX(range(controls + 1)))), abs=1e-12)


def test_the_example_of_the_paper_is_read_with_definitions_broadcast_and_measurement(tmp_path: Path) -> None:
    program = """// quantum ripple-carry adder from Cuccaro et al., quant-ph/0410184 (arXiv:1707.03429, figure 5)
OPENQASM 2.0;
include "qelib1.inc";
gate majority a,b,c { cx c,b; cx c,a; ccx a,b,c; }
gate unmaj a,b,c { ccx a,b,c; cx c,a; cx a,b; }
qreg cin[1]; qreg a[4]; qreg b[4]; qreg cout[1]; creg ans[5];
x a[0]; // a = 0001
x b;    // b = 1111
barrier a, b;
majority cin[0],b[0],a[0]; majority a[0],b[1],a[1]; majority a[1],b[2],a[2]; majority a[2],b[3],a[3];
cx a[3],cout[0];
unmaj a[2],b[3],a[3]; unmaj a[1],b[2],a[2]; unmaj a[0],b[1],a[1]; unmaj cin[0],b[0],a[0];
measure b[0] -> ans[0]; measure b[1] -> ans[1]; measure b[2] -> ans[2]; measure b[3] -> ans[3]; measure cout[0] -> ans[4];
"""
    (tmp_path / "adder.qasm").write_text(program)
    for source in (program, tmp_path / "adder.qasm", str(tmp_path / "adder.qasm")):
        circuit = qasm.read(source)
        (probabilities,) = LocalExecutor().run([circuit], Backend())
        assert np.argmax(probabilities) == 0b00001, "1 + 15 = 16: the last bit alone"
        assert np.max(probabilities) == pytest.approx(1)
    assert list(circuit.measurements[0].wires) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("pi/2", math.pi / 2),
        ("-pi^2", -(math.pi**2)),
        ("2^3^2", 512),
        ("2^-1", 0.5),
        ("1-2-3", -4),
        ("8/4/2", 1),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("--1", 1),
        ("sin(pi/6)*cos(0)+tan(0)", 0.5),
        ("ln(exp(2))+sqrt(16)", 6),
        (".5e1", 5),
        ("1.", 1),
        ("1e-3", 1e-3),
    ],
)
def test_an_expression_comes_to_what_it_says(written: str, number: float) -> None:
    (gate,) = qasm.read(f"{HEAD}qreg q[1]; rx({written}) q[0];").operations
    assert gate.data[0] == pytest.approx(number, rel=1e-14)


@pytest.mark.parametrize(
    ("program", "line", "column", "said"),
    [
        ("qreg q[2];", 1, 1, "expected 'OPENQASM'"),
        ("OPENQASM 3.0; qubit q;", 1, 10, "OpenQASM 2.0 is read here, given '3.0'"),
        ("OPENQASM 2.0;\nqreg q[2]\nh q;", 3, 1, "expected ';', found 'h'"),
        ("OPENQASM 2.0;\nqreg q[1]; h q[0];", 2, 12, r"unknown gate 'h'; include"),
        (HEAD + "qreg q[2];\nhh q[0];", 4, 1, "unknown gate 'hh'"),
        (HEAD + "qreg q[2];\n  h q[2];", 4, 7, "'q' has 2 members, 0 to 1; given 2"),
        (HEAD + "qreg q[2];\nh r[0];", 4, 3, "no quantum register 'r'; declared: q"),
        (HEAD + "qreg q[2]; cx q[0],q[0];", 3, 12, "same qubit twice"),
        (HEAD + "qreg q[2]; cx q,q;", 3, 12, "same qubit twice"),
        (HEAD + "qreg q[2]; qreg r[3]; cx q,r;", 3, 23, "registers of 2 and 3 qubits"),
        (HEAD + "qreg q[2]; cx q[0];", 3, 12, "takes 2 qubits, given 1"),
        (HEAD + "qreg q[2]; rx q[0];", 3, 12, "takes 1 parameters, given 0"),
        (HEAD + "qreg q[2]; rx(1,2) q[0];", 3, 12, "takes 1 parameters, given 2"),
        (HEAD + "qreg q[2]; rx(1/0) q[0];", 3, 16, "no finite number"),
        (HEAD + "qreg q[2]; rx(ln(-1)) q[0];", 3, 15, "no finite number"),
        (HEAD + "qreg q[2]; rx(10^400) q[0];", 3, 17, "no finite number"),
        (HEAD + "qreg q[2]; rx(1e999) q[0];", 3, 15, "too large"),
        (HEAD + "qreg q[2]; rx(theta) q[0];", 3, 15, "expected a number or one of pi"),
        (HEAD + "qreg q[2]; rx(1 2) q[0];", 3, 17, "expected ','"),
        (HEAD + "qreg q[2]; rx(" + "(" * 60 + "1" + ")" * 60 + ") q[0];", 3, None, "more than 50 deep"),
        (HEAD + "qreg q[2]; rx(" + "1+" * 5000 + "1) q[0];", 3, None, "more than 200 words"),
        (HEAD + "qreg q[0];", 3, 8, "no members"),
        (HEAD + "qreg q[1.5];", 3, 8, "expected a whole number"),
        (HEAD + "qreg q[2]; creg q[2];", 3, 17, "'q' is declared already"),
        (HEAD + "qreg q[2]; creg c[1]; measure q -> c;", 3, 36, "2 qubits do not go into 1 bits"),
        (HEAD + "qreg q[2]; creg c[2]; measure q[0] -> c[0]; h q[0];", 3, 45, "measured before"),
        (HEAD + "qreg q[2]; creg c[2]; measure q[0] -> c[0]; measure q[1] -> c[0];", 3, 53, "written twice"),
        (HEAD + "qreg q[2]; reset q;", 3, 12, "a qubit that is reset"),
        (HEAD + "qreg q[2]; creg c[1]; if (c==1) x q[0];", 3, 23, "depends on a measurement"),
        (HEAD + "gate g a { h b; }", 3, 14, "unknown qubit 'b'; known here: a"),
        (HEAD + "gate g(x,x) a { }", 3, 10, "named twice"),
        (HEAD + "gate h a { }", 3, 6, "'h' is defined already"),
        (HEAD + "gate g a { g a; }", 3, 12, "unknown gate 'g'"),
        (HEAD + "gate g a { h a;", 3, 16, "expected the name of a gate, found the end of the program"),
        (HEAD + "opaque magic a; qreg q[1]; magic q[0];", 3, 28, "opaque"),
        (HEAD + 'include "other.inc";', 3, 9, 'only "qelib1.inc" can be included'),
        (HEAD + 'include "qelib1.inc";', 3, 9, "defined already"),
        (HEAD + "qreg q[2]; h q[0]; ?", 3, 20, "no meaning"),
        (HEAD + "creg c[2];", 3, 11, "without a qubit"),
        (HEAD + "qreg q[999999999]; h q;", 3, 20, "more than 1000000 gates"),
        (HEAD + ";", 3, 1, "expected a statement"),
    ],
)
def test_what_is_malformed_is_refused_with_its_line_and_column(program: str, line: int, column: int | None, said: str) -> None:
    with pytest.raises(InvalidCircuit, match=said) as refused:
        qasm.read(program)
    assert refused.value.facts["line"] == line
    assert column is None or refused.value.facts["column"] == column
    assert refused.value.message.startswith(f"line {line}, column ")


@pytest.mark.parametrize("inner", ["", "x a;"])
def test_definitions_that_double_again_and_again_are_refused_before_they_are_laid_out(inner: str) -> None:
    definitions = f"gate g0 a {{ {inner} }}" + "".join(f"gate g{level + 1} a {{ g{level} a; g{level} a; }}\n" for level in range(60))
    with pytest.raises(InvalidCircuit, match="more than 1000000 gates"):
        qasm.read(f"{HEAD}{definitions} qreg q[1]; g60 q[0];")
    chain = "".join(f"gate g{level + 1} a {{ g{level} a; }}\n" for level in range(5000))
    with pytest.raises(InvalidCircuit, match="more than 100 deep"):
        qasm.read(f"{HEAD}gate g0 a {{ }} {chain} qreg q[1]; g5000 q[0];")


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"nowhere\.qasm"):
        qasm.read(tmp_path / "nowhere.qasm")
    with pytest.raises(DataNotFound):
        qasm.read("a\0b")
    (tmp_path / "binary.qasm").write_bytes(b"OPENQASM 2.0;\nqr\xffeg")
    with pytest.raises(InvalidCircuit, match="line 2, column 3: not UTF-8"):
        qasm.read(tmp_path / "binary.qasm")


WORDS = """OPENQASM 2.0 ; include "qelib1.inc" qreg q [ 2 ] h rx ( pi / ) , { } gate a measure -> creg c cx q[0] 1e5 ^ - if =="""


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=40).map(" ".join) | st.text(max_size=60))
@example("gate")
def test_no_text_whatever_ends_in_anything_but_a_circuit_or_a_refusal_with_a_place(text: str) -> None:
    try:
        qasm.read(HEAD + "qreg q[2];" + text)
    except InvalidCircuit as error:
        refused = error
    else:
        return
    assert {"line", "column"} <= set(refused.facts)


LIBRARY = """
    u3 u2 u1 cx id u0 u p x y z h s sdg t tdg rx ry rz sx sxdg cz cy swap ch ccx cswap crx cry crz cu1 cp cu3 csx cu rxx rzz
    rccx rc3x c3x c3sqrtx c4x"""


def test_every_gate_of_the_library_is_known() -> None:
    """Names of qelib1.inc as Qiskit ships it."""
    assert all(name in NATIVE or f"gate {name}" in DEFINED for name in LIBRARY.split())


IDLE = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[3];\nx q[2];\nh q[2];\nh q[2];\n'


def test_qubits_that_no_gate_touches_stay_in_their_register(tmp_path: Path) -> None:
    path = tmp_path / "idle.qasm"
    path.write_text(IDLE)
    compiled = compile_circuit(qasm.read(path)).script
    written = qasm.write(compiled, qubits=qasm.declared_qubits(path))
    assert "qreg q[3];" in written
    assert "q[2]" in written
    run = run_circuit(compiled, Backend(name="default.qubit"), qubits=3)
    assert run.probabilities.keys() == {"001"}
    assert run_circuit(QuantumScript([]), Backend(name="default.qubit"), qubits=2).probabilities == {"00": (1.0, 0.0)}


def test_shots_that_all_agree_are_no_certainty() -> None:
    """P(1) = 0.061: 5 shots often show no 1."""
    run = run_circuit(QuantumScript([qml.RX(0.5, 0)]), Backend(name="default.qubit", shots=5, seed=1))
    assert all(0 < error < 0.5 for _, error in run.probabilities.values())
