"""The gates of qelib1.inc: as PennyLane's own where it has them, else by their definition in OpenQASM 2.

Both are the gate up to a global phase. Source of the definitions: qelib1.inc as Qiskit ships it (Apache-2.0); its `cu3` has the phase on
the control that the one in arXiv:1707.03429 leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pennylane as qml
from pennylane.operation import Operator

Build = Callable[..., Operator]

# name: parameters, qubits, gate; parameters come first, then `wires`
NATIVE: Mapping[str, tuple[int, int, Build]] = {
    "U": (3, 1, qml.U3),
    "CX": (0, 2, qml.CNOT),
    "u3": (3, 1, qml.U3),
    "u2": (2, 1, qml.U2),
    "u1": (1, 1, qml.PhaseShift),
    "u": (3, 1, qml.U3),
    "p": (1, 1, qml.PhaseShift),
    "u0": (1, 1, lambda _, wires: qml.Identity(wires)),
    "id": (0, 1, qml.Identity),
    "x": (0, 1, qml.PauliX),
    "y": (0, 1, qml.PauliY),
    "z": (0, 1, qml.PauliZ),
    "h": (0, 1, qml.Hadamard),
    "s": (0, 1, qml.S),
    "sdg": (0, 1, lambda wires: qml.adjoint(qml.S(wires))),
    "t": (0, 1, qml.T),
    "tdg": (0, 1, lambda wires: qml.adjoint(qml.T(wires))),
    "sx": (0, 1, qml.SX),
    "sxdg": (0, 1, lambda wires: qml.adjoint(qml.SX(wires))),
    "rx": (1, 1, qml.RX),
    "ry": (1, 1, qml.RY),
    "rz": (1, 1, qml.RZ),
    "cx": (0, 2, qml.CNOT),
    "cy": (0, 2, qml.CY),
    "cz": (0, 2, qml.CZ),
    "ch": (0, 2, qml.CH),
    "swap": (0, 2, qml.SWAP),
    "ccx": (0, 3, qml.Toffoli),
    "cswap": (0, 3, qml.CSWAP),
    "crx": (1, 2, qml.CRX),
    "cry": (1, 2, qml.CRY),
    "crz": (1, 2, qml.CRZ),
    "cu1": (1, 2, qml.ControlledPhaseShift),
    "cp": (1, 2, qml.ControlledPhaseShift),
    "rxx": (1, 2, qml.IsingXX),
    "rzz": (1, 2, qml.IsingZZ),
    "c3x": (0, 4, qml.MultiControlledX),
    "c4x": (0, 5, qml.MultiControlledX),
}

DEFINED = """
gate cu3(theta,phi,lambda) c,t {
  u1((lambda+phi)/2) c; u1((lambda-phi)/2) t; cx c,t; u3(-theta/2,0,-(phi+lambda)/2) t; cx c,t; u3(theta/2,phi,0) t;
}
gate cu(theta,phi,lambda,gamma) c,t { p(gamma) c; cu3(theta,phi,lambda) c,t; }
gate csx c,t { h t; cu1(pi/2) c,t; h t; }
gate rccx a,b,c { u2(0,pi) c; u1(pi/4) c; cx b,c; u1(-pi/4) c; cx a,c; u1(pi/4) c; cx b,c; u1(-pi/4) c; u2(0,pi) c; }
gate rc3x a,b,c,d {
  u2(0,pi) d; u1(pi/4) d; cx c,d; u1(-pi/4) d; u2(0,pi) d; cx a,d; u1(pi/4) d; cx b,d; u1(-pi/4) d; cx a,d; u1(pi/4) d; cx b,d;
  u1(-pi/4) d; u2(0,pi) d; u1(pi/4) d; cx c,d; u1(-pi/4) d; u2(0,pi) d;
}
gate c3sqrtx a,b,c,d {
  h d; cu1(pi/8) a,d; h d; cx a,b; h d; cu1(-pi/8) b,d; h d; cx a,b; h d; cu1(pi/8) b,d; h d; cx b,c; h d; cu1(-pi/8) c,d; h d;
  cx a,c; h d; cu1(pi/8) c,d; h d; cx b,c; h d; cu1(-pi/8) c,d; h d; cx a,c; h d; cu1(pi/8) c,d; h d;
}
"""
