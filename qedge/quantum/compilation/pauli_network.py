"""Turns about Pauli strings written anew: CNOTs are chosen one at a time so that all strings that are left become short.

Whatever string has come down to one wire is turned about there. What the CNOTs leave behind is a Clifford unitary, brought back the same
way at the end.
Source: T. Goubault de Brugière, S. Martiel, "Faster and shorter synthesis of Hamiltonian simulation circuits", arXiv:2404.03280; S. Bravyi
et al., "6-qubit Optimal Clifford Circuits", npj Quantum Information 8, 79 (2022), for a Clifford's rows in pairs. Here all strings that are
left are weighed, each less the more turns it has to wait for, and the Clifford's rows with them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pennylane as qml
from numpy.typing import NDArray

from qedge.quantum.compilation.gate import AXES, Gate, cnot, hadamard, rx, rz
from qedge.quantum.compilation.one_qubit import gates_of
from qedge.quantum.compilation.pauli_form import Pauli, PauliForm

# one wire's part of a string as x + 2 z: I, X, Z, Y
_I, _X, _Z, _Y = range(4)
_KINDS = [(a, b) for a in (_X, _Z, _Y) for b in (_X, _Z, _Y)]


def _anticommute(a: int, b: int) -> bool:
    return bool(((a & 1) * (b >> 1) + (a >> 1) * (b & 1)) % 2)


# _CHANGE[kind, 4 p + q]: by how much the weight of a string that is p, q on the gate's wires grows
_CHANGE = np.array(
    [
        [
            ((p ^ (a if _anticommute(q, b) else 0)) > 0) + ((q ^ (b if _anticommute(p, a) else 0)) > 0) - (p > 0) - (q > 0)
            for p, q in itertools.product(range(4), repeat=2)
        ]
        for a, b in _KINDS
    ]
)


@dataclass(frozen=True)
class Weighing:
    """What the choice of a CNOT looks at.

    wait: what a turn counts less for each turn that must come before it; clifford: what a row of the Clifford counts; logarithmic: whether
    rows count by the logarithm of their weight; seed: which of equals is taken.
    """

    wait: float
    clifford: float
    logarithmic: bool = False
    seed: int = 0


class _Rows:
    """Strings i^phase X^x Z^z, one a row [rows, wires]: the turns' first, then the Clifford's images of X and of Z."""

    def __init__(self, strings: list[Pauli], wires: int) -> None:
        bits = range(wires)
        self.x = np.array([[one.x >> wire & 1 for wire in bits] for one in strings], dtype=np.int64).reshape(-1, wires)
        self.z = np.array([[one.z >> wire & 1 for wire in bits] for one in strings], dtype=np.int64).reshape(-1, wires)
        self.phase = np.array([one.phase for one in strings], dtype=np.int64)

    def codes(self) -> NDArray[np.int64]:
        """Each wire's part of each string."""
        return self.x + 2 * self.z

    def conjugate(self, first: int, a: int, second: int, b: int) -> None:
        """Every row by the gate C = (1 + A + B - AB) / 2: A before and B after it where the other's anticommutes."""
        (xa, za), (xb, zb) = (a & 1, a >> 1), (b & 1, b >> 1)
        by_b = (self.x[:, first] & za) ^ (self.z[:, first] & xa)
        by_a = (self.x[:, second] & zb) ^ (self.z[:, second] & xb)
        self.phase += by_a * (xa * za + 2 * za * self.x[:, first])
        self.x[:, first] ^= by_a * xa
        self.z[:, first] ^= by_a * za
        self.phase += by_b * (xb * zb + 2 * xb * self.z[:, second])
        self.x[:, second] ^= by_b * xb
        self.z[:, second] ^= by_b * zb
        self.phase %= 4

    def signs(self) -> NDArray[np.int64]:
        """Before the products of X, Y and Z."""
        signs: NDArray[np.int64] = 1 - (self.phase - (self.x & self.z).sum(axis=1)) % 4
        return signs


class _Network:
    def __init__(self, form: PauliForm, wires: int, weighing: Weighing) -> None:
        self.wires, self.weighing = wires, weighing
        self.angles = [by for _, by, _ in form.turns]
        self.rows = _Rows([*(about for about, _, _ in form.turns), *form.frame.x, *form.frame.z], wires)
        self.count = len(self.angles)
        x, z = self.rows.x[: self.count], self.rows.z[: self.count]
        self.after = np.triu((x @ z.T + z @ x.T) % 2, 1)  # [earlier, later]: the later turn waits for the earlier
        self.waits = self.after.sum(axis=0)
        self.left = np.ones(self.count, dtype=bool)
        self.gates: list[Gate] = []
        self.pairs = np.array(list(itertools.combinations(range(wires), 2)), dtype=np.int64).reshape(-1, 2)
        self.random = np.random.default_rng(weighing.seed)

    def written(self) -> list[Gate]:
        while self._turn() or self.left.any():
            weights = (self.rows.codes()[: self.count] > 0).sum(axis=1)
            front = np.flatnonzero(self.left & (self.waits == 0))
            self._step(front[weights[front] == weights[front].min()])
        self._clifford()
        return self.gates

    def _turn(self) -> bool:
        """Turn about what has come down to one wire; never true: the caller looks at what is left."""
        codes = self.rows.codes()[: self.count]
        ready = (codes > 0).sum(axis=1) == 1
        while len(now := np.flatnonzero(self.left & ready & (self.waits == 0))):
            signs = self.rows.signs()
            for turn in now:
                wire = int(np.flatnonzero(codes[turn])[0])
                axis = " XZY"[codes[turn, wire]]
                self.gates.append(AXES[axis](math.remainder(self.angles[turn] * signs[turn], 2 * math.pi), wire))
                self.left[turn] = False
                self.waits -= self.after[turn]
        return False

    def _scores(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each gate [pairs, kinds] costs, over all rows."""
        rows = np.concatenate([np.flatnonzero(self.left), np.arange(self.count, len(codes))])
        codes = codes[rows]
        value = np.full(len(rows), self.weighing.clifford)
        turns = int(self.left.sum())
        value[:turns] = self.weighing.wait ** self.waits[rows[:turns]]
        up = down = value
        if self.weighing.logarithmic:
            weight = np.maximum((codes > 0).sum(axis=1), 1)
            up, down = value * np.log((weight + 1) / weight), value * np.log(weight / np.maximum(weight - 1, 0.5))
        both = 4 * codes[:, self.pairs[:, 0]] + codes[:, self.pairs[:, 1]]
        places = both + 16 * np.arange(len(self.pairs))
        shape = (len(self.pairs), 16)
        ups, downs = (
            np.bincount(places.ravel(), np.repeat(each, len(self.pairs)), minlength=16 * len(self.pairs)).reshape(shape)
            for each in (up, down)
        )
        return np.asarray(ups @ np.maximum(_CHANGE, 0).T - downs @ np.maximum(-_CHANGE, 0).T)

    def _shortens(self, string: NDArray[np.int64]) -> NDArray[np.int64]:
        """By how much each gate [pairs, kinds] lengthens a string of codes [wires]."""
        changes: NDArray[np.int64] = _CHANGE[:, 4 * string[self.pairs[:, 0]] + string[self.pairs[:, 1]]].T
        return changes

    def _step(self, targets: NDArray[np.int64]) -> None:
        """The best gate that shortens one of the targets."""
        codes = self.rows.codes()
        shortens = np.any([self._shortens(codes[one]) < 0 for one in targets], axis=0)
        self._choose(np.where(shortens, self._scores(codes), math.inf))

    def _choose(self, scores: NDArray[np.float64]) -> None:
        scores = scores + self.random.uniform(0, 1e-6, scores.shape)
        pair, kind = np.unravel_index(int(scores.argmin()), scores.shape)
        first, second = map(int, self.pairs[pair])
        self._apply(first, second, *_KINDS[int(kind)])

    def _apply(self, first: int, second: int, a: int, b: int) -> None:
        self.rows.conjugate(first, a, second, b)
        to_z, to_x = _to_z(a, first), _to_x(b, second)
        self.gates += [*to_z, *to_x, cnot(first, second), *_undone(to_z), *_undone(to_x)]

    def _clifford(self) -> None:
        """What is left of the Clifford: rows in pairs are brought down to one wire each."""
        while True:
            codes = self.rows.codes()
            weights = (codes[self.count :] > 0).sum(axis=1).reshape(2, self.wires)
            if weights.max() == 1:
                break
            scores = self._scores(codes)
            if scores.min() >= -1e-9:
                self._force(codes, weights, scores)
            else:
                self._choose(scores)
        self._local_and_permutation(codes[self.count :])

    def _force(self, codes: NDArray[np.int64], weights: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """The best gate that shortens the shortest pair of rows: the image of X, and when that is done that of Z."""
        total = np.where(weights.max(axis=0) > 1, weights.sum(axis=0), 10 * self.wires)
        pair = self.count + int(total.argmin())
        of_x, of_z = (self._shortens(codes[row]) for row in (pair, pair + self.wires))
        allowed = of_x < 0 if weights[0, pair - self.count] > 1 else (of_z < 0) & (of_x <= 0)
        self._choose(np.where(allowed, scores, math.inf))

    def _local_and_permutation(self, codes: NDArray[np.int64]) -> None:
        signs = self.rows.signs()[self.count :]
        held = [0] * self.wires
        for wire in range(self.wires):
            place = int(np.flatnonzero(codes[wire])[0])
            images = [(int(codes[row, place]), int(signs[row])) for row in (wire, wire + self.wires)]
            self.gates += gates_of(_local(images[0], images[1]), place)
            held[place] = wire
        for wire in range(self.wires):
            while held[wire] != wire:
                other = held[wire]
                self.gates += [cnot(wire, other), cnot(other, wire), cnot(wire, other)]
                held[wire], held[other] = held[other], held[wire]


def rewrite(form: PauliForm, wires: int, weighing: Weighing) -> list[Gate]:
    """The form in one-qubit gates and CNOT."""
    return _Network(form, wires, weighing).written()


def _to_z(code: int, wire: int) -> list[Gate]:
    return {_X: [hadamard(wire)], _Y: [rx(math.pi / 2, wire)], _Z: []}[code]


def _to_x(code: int, wire: int) -> list[Gate]:
    return {_Z: [hadamard(wire)], _Y: [rz(-math.pi / 2, wire)], _X: []}[code]


def _undone(gates: list[Gate]) -> list[Gate]:
    return [Gate(gate.name, gate.wires, tuple(-one for one in gate.parameters)) for gate in gates]


def _local(of_x: tuple[int, int], of_z: tuple[int, int]) -> NDArray[np.complex128]:
    """The one-qubit V with V† X V and V† Z V as given, each code and sign: it maps their eigenvectors to those of X and Z."""
    paulis = {_X: qml.X, _Y: qml.Y, _Z: qml.Z}
    x, z = (sign * paulis[code].compute_matrix() for code, sign in (of_x, of_z))
    zero = np.linalg.eigh(z)[1][:, 1]
    return np.array([zero.conj(), (x @ zero).conj()], dtype=np.complex128)
