"""An OpenQASM 2 program read from its words: declarations and definitions are checked, what is applied is laid out gate by gate.

Source: A. Cross, L. Bishop, J. Smolin, J. Gambetta, "Open Quantum Assembly Language", arXiv:1707.03429 (2017), section 3 and appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qedge.quantum.qasm_expressions import Expression, expression
from qedge.quantum.qasm_tokens import Token, refuse

MOST_GATES = 1_000_000  # a few definitions of definitions could ask for more than any memory holds
_DEEPEST = 100  # definitions in definitions
_BUILT_IN = ("U", "CX")
_NOT_HERE = {
    "reset": "a qubit that is reset",
    "if": "a gate that depends on a measurement",
}


@dataclass(frozen=True)
class Call:
    """A gate applied inside a definition: expressions in its parameters, places among its qubits."""

    gate: Gate
    parameters: tuple[Expression, ...]
    qubits: tuple[int, ...]


@dataclass(frozen=True)
class Gate:
    """A gate; body: of what it is made, None for one that is known by its name; opaque: declared and never defined.

    size: in such gates, one without any counted as one; depth: of definitions in definitions.
    """

    name: str
    parameters: int
    qubits: int
    body: tuple[Call, ...] | None = None
    size: int = 1
    depth: int = 0
    opaque: bool = False


@dataclass(frozen=True)
class Register:
    """Qubits, or bits, first to first + size - 1 of all."""

    name: str
    first: int
    size: int
    quantum: bool


@dataclass(frozen=True)
class _Argument:
    """A register or (index) one of its members."""

    where: Token
    register: Register
    index: int | None

    @property
    def members(self) -> range:
        first = self.register.first + (self.index or 0)
        return range(first, first + (self.register.size if self.index is None else 1))


class Program:
    """A program under way.

    applied: name, parameters and wires of each gate that is known by its name; bits: which qubit was measured into which bit.
    """

    def __init__(
        self, words: Sequence[Token], libraries: Mapping[str, Mapping[str, Gate]], gates: Mapping[str, Gate] | None = None
    ) -> None:
        self.words, self.at = words, 0
        self.libraries = libraries
        self.gates: dict[str, Gate] = dict(gates) if gates else {"U": Gate("U", 3, 1), "CX": Gate("CX", 0, 2)}
        self.registers: dict[str, Register] = {}
        self.qubits = self.classical = 0
        self.applied: list[tuple[str, tuple[float, ...], tuple[int, ...]]] = []
        self.bits: dict[int, int] = {}
        self.measured: set[int] = set()

    def read(self) -> None:
        """All of it, from its first line.

        Raises:
            InvalidCircuit: with line and column.
        """
        self._take("OPENQASM")
        version = self._next()
        if version.text not in ("2.0", "2"):
            refuse(version, f"OpenQASM 2.0 is read here, given {version}")
        self._take(";")
        while self.word.kind != "end":
            self._statement()
        if not self.qubits:
            refuse(self.word, "a program without a qubit; declare some: qreg q[2];")

    def definitions(self) -> dict[str, Gate]:
        """The gates of a program that does nothing but define some, those known before among them."""
        while self.word.kind != "end":
            self._take("gate")
            self._define(opaque=False)
        return self.gates

    @property
    def word(self) -> Token:
        """The word that comes next."""
        return self.words[self.at]

    def _next(self) -> Token:
        found = self.word
        self.at += found.kind != "end"
        return found

    def _take(self, text: str) -> Token:
        if self.word.text != text or self.word.kind in ("text", "end"):
            refuse(self.word, f"expected '{text}', found {self.word}")
        return self._next()

    def _takes(self, text: str) -> bool:
        if self.word.kind == "sign" and self.word.text == text:
            self.at += 1
            return True
        return False

    def _name(self, what: str) -> Token:
        if self.word.kind != "word":
            refuse(self.word, f"expected the name of {what}, found {self.word}")
        return self._next()

    def _names(self, what: str) -> list[Token]:
        found = [self._name(what)]
        while self._takes(","):
            found.append(self._name(what))
        seen: set[str] = set()
        for name in found:
            if name.text in seen:
                refuse(name, f"{name} is named twice")
            seen.add(name.text)
        return found

    def _integer(self) -> tuple[Token, int]:
        where = self._next()
        if where.kind != "integer" or len(where.text) > 9:
            refuse(where, f"expected a whole number below 1000000000, found {where}")
        return where, int(where.text)

    def _statement(self) -> None:
        first = self._next()
        if first.text in _NOT_HERE:
            refuse(first, f"'{first.text}': {_NOT_HERE[first.text]} is not supported; a circuit here runs from its beginning to its end")
        if first.kind != "word":
            refuse(first, f"expected a statement, found {first}")
        match first.text:
            case "include":
                self._include()
            case "qreg" | "creg":
                self._register(quantum=first.text == "qreg")
            case "gate" | "opaque":
                self._define(opaque=first.text == "opaque")
            case "barrier":
                self._arguments()
            case "measure":
                self._measure()
            case _:
                self._apply(first)
        if first.text != "gate":
            self._take(";")

    def _include(self) -> None:
        where = self._next()
        if where.kind != "text" or where.text.strip('"') not in self.libraries:
            known = ", ".join(f'"{name}"' for name in self.libraries)
            refuse(where, f"only {known} can be included, found {where}")
        library = self.libraries[where.text.strip('"')]
        for name in library:
            if name not in _BUILT_IN and name in self.gates:
                refuse(where, f"{where} defines '{name}', which is defined already")
        self.gates.update(library)

    def _register(self, *, quantum: bool) -> None:
        name = self._name("a register")
        self._take("[")
        where, size = self._integer()
        if not size:
            refuse(where, f"the register {name} has no members; give it at least 1")
        self._take("]")
        if name.text in self.registers or name.text in self.gates:
            refuse(name, f"{name} is declared already")
        self.registers[name.text] = Register(name.text, self.qubits if quantum else self.classical, size, quantum)
        if quantum:
            self.qubits += size
        else:
            self.classical += size

    def _define(self, *, opaque: bool) -> None:
        name = self._name("a gate")
        if name.text in self.gates or name.text in self.registers:
            refuse(name, f"{name} is defined already")
        parameters: list[Token] = []
        if self._takes("("):
            parameters = [] if self.word.text == ")" else self._names("a parameter")
            self._take(")")
        qubits = self._names("a qubit")
        if opaque:
            self.gates[name.text] = Gate(name.text, len(parameters), len(qubits), opaque=True)
            return
        self._take("{")
        places = {qubit.text: place for place, qubit in enumerate(qubits)}
        allowed = {parameter.text: place for place, parameter in enumerate(parameters)}
        body: list[Call] = []
        while not self._takes("}"):
            if (call := self._call(places, allowed)) is not None:
                body.append(call)
        size, depth = sum(call.gate.size for call in body), 1 + max((call.gate.depth for call in body), default=0)
        if depth > _DEEPEST:
            refuse(name, f"definitions more than {_DEEPEST} deep")
        self.gates[name.text] = Gate(name.text, len(parameters), len(qubits), tuple(body), max(1, size), depth)

    def _call(self, places: Mapping[str, int], parameters: Mapping[str, int]) -> Call | None:
        """A statement inside a definition; None for a barrier."""
        first = self._name("a gate")
        if first.text != "barrier":
            gate, values = self._gate(first, parameters)
        given = self._names("a qubit")
        for qubit in given:
            if qubit.text not in places:
                refuse(qubit, f"unknown qubit {qubit}; known here: {', '.join(places)}")
        self._take(";")
        if first.text == "barrier":
            return None
        self._refuse_number(first, gate, len(given))
        return Call(gate, values, tuple(places[qubit.text] for qubit in given))

    def _gate(self, name: Token, parameters: Mapping[str, int]) -> tuple[Gate, tuple[Expression, ...]]:
        """A gate that is applied, and its parameters in parentheses."""
        gate = self.gates.get(name.text)
        if gate is None:
            hint = "" if len(self.gates) > len(_BUILT_IN) else '; include "qelib1.inc"; has the usual ones'
            refuse(name, f"unknown gate {name}{hint}")
        if gate.opaque:
            refuse(name, f"the gate {name} is opaque: nothing says what it does")
        values: list[Expression] = []
        if self._takes("("):
            while not self._takes(")"):
                if values:
                    self._take(",")
                read, self.at = expression(self.words, self.at, parameters)
                values.append(read)
        if len(values) != gate.parameters:
            refuse(name, f"the gate {name} takes {gate.parameters} parameters, given {len(values)}")
        return gate, tuple(values)

    def _refuse_number(self, name: Token, gate: Gate, given: int) -> None:
        if given != gate.qubits:
            refuse(name, f"the gate {name} takes {gate.qubits} qubits, given {given}")

    def _argument(self, *, quantum: bool) -> _Argument:
        where = self._name("a register")
        register = self.registers.get(where.text)
        kind = "quantum" if quantum else "classical"
        if register is None or register.quantum != quantum:
            known = ", ".join(name for name, one in self.registers.items() if one.quantum == quantum) or "none"
            refuse(where, f"no {kind} register {where}; declared: {known}")
        if not self._takes("["):
            return _Argument(where, register, None)
        at, index = self._integer()
        if index >= register.size:
            refuse(at, f"{where} has {register.size} members, 0 to {register.size - 1}; given {index}")
        self._take("]")
        return _Argument(where, register, index)

    def _arguments(self) -> list[_Argument]:
        found = [self._argument(quantum=True)]
        while self._takes(","):
            found.append(self._argument(quantum=True))
        return found

    def _measure(self) -> None:
        qubits = self._argument(quantum=True)
        self._take("->")
        bits = self._argument(quantum=False)
        if len(qubits.members) != len(bits.members):
            refuse(bits.where, f"{len(qubits.members)} qubits do not go into {len(bits.members)} bits")
        if len(bits.members) > MOST_GATES:
            refuse(qubits.where, f"more than {MOST_GATES} qubits")
        for qubit, bit in zip(qubits.members, bits.members, strict=True):
            if qubit in self.measured or bit in self.bits:
                refuse(qubits.where, "a qubit measured twice, or a bit written twice, is not supported")
            self.measured.add(qubit)
            self.bits[bit] = qubit

    def _apply(self, name: Token) -> None:
        """A gate on qubits, or on registers, whose members it is applied to one after another (section 3.2, "broadcast")."""
        gate, read = self._gate(name, {})
        values = tuple(one.value(()) for one in read)
        arguments = self._arguments()
        self._refuse_number(name, gate, len(arguments))
        sizes = {len(one.members) for one in arguments if one.index is None}
        if len(sizes) > 1:
            refuse(name, f"registers of {' and '.join(map(str, sorted(sizes)))} qubits cannot go together")
        times = sizes.pop() if sizes else 1
        if len(self.applied) + times * gate.size > MOST_GATES:
            refuse(name, f"more than {MOST_GATES} gates")
        for turn in range(times):
            wires = tuple(one.members[turn if one.index is None else 0] for one in arguments)
            if len(set(wires)) < len(wires):
                refuse(name, f"the gate {name} is given the same qubit twice")
            if self.measured & set(wires):
                refuse(name, f"the gate {name} on a qubit that was measured before is not supported; measure at the end")
            self._lay_out(gate, values, wires)

    def _lay_out(self, gate: Gate, values: tuple[float, ...], wires: tuple[int, ...]) -> None:
        if gate.body is None:
            self.applied.append((gate.name, values, wires))
            return
        for call in gate.body:
            inner = tuple(one.value(values) for one in call.parameters)
            self._lay_out(call.gate, inner, tuple(wires[place] for place in call.qubits))
