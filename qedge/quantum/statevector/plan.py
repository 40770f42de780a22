"""What circuits of so many qubits share: where the CNOT ring takes each basis state, the signs of Z, and contractions with X, Y and Z.

Wire 0 is the most significant bit of a basis state's number, as in PennyLane. The wires are cut into a left half (floor(n/2) of them) and
a right half, so that the one-qubit gates of a layer are two small matrices. A state is then an array [left, right]; after the gates it
lies turned, as [right, left].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from qedge.errors import InvalidValue, TooManyQubits

MOST_QUBITS = 12
_PAULI = (((0, 1), (1, 0)), ((0, -1), (1, 0)), ((1, 0), (0, -1)))  # X, Y / i, Z


@dataclass(frozen=True)
class Constants:
    """In one dtype.

    signs: [qubits, 2 * 2^qubits], of Z after the ring, for the planes of a turned state; left, right: [entries, 3 * wires], what takes the
    sums over φ[s] μ[s'] of a half, both in two planes, to the imaginary parts of <μ|P|φ>, P each of X, Y, Z on each wire.
    """

    signs: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


class Plan:
    """ring: places in the two planes of a turned state, [2 * 2^qubits], that gather the state after the CNOT ring; back: its inverse.

    The ring has a CNOT from each wire to the next and from the last to the first, in this order, as
    `StronglyEntanglingLayers(ranges=[1, ...])`; on one wire there is none.

    Raises:
        InvalidValue: no qubit.
        TooManyQubits: more than 12.
    """

    def __init__(self, qubits: int) -> None:
        if qubits < 1:
            raise InvalidValue(f"a circuit has at least one qubit; given: {qubits}", given=qubits)
        if qubits > MOST_QUBITS:
            size = 2 ** (qubits + 3) / 2**20
            raise TooManyQubits(
                f"{qubits} qubits: a state takes {size:.3g} MiB for each row and layer; accepted here: at most {MOST_QUBITS}",
                given=qubits,
                limit=MOST_QUBITS,
            )
        self.qubits, self.left, self.right = qubits, qubits // 2, qubits - qubits // 2
        after = _ring(qubits)  # where a basis state goes
        states = np.arange(2**qubits)
        turned = states.reshape(2**self.left, 2**self.right).T.ravel()  # the basis state at each place of a turned state
        place = np.empty_like(states)
        place[turned] = states
        comes_from = np.empty_like(states)
        comes_from[after] = place
        both = np.concatenate([comes_from, comes_from + len(states)])
        self.ring = torch.from_numpy(both)
        self.back = torch.from_numpy(np.argsort(both))
        signs = np.tile(_signs(qubits)[:, after[turned]], 2)
        self._constants = {
            dtype: Constants(*(torch.tensor(part, dtype=dtype) for part in (signs, _contraction(self.left), _contraction(self.right))))
            for dtype in (torch.float32, torch.float64)
        }

    def constants(self, dtype: torch.dtype) -> Constants:
        """In that dtype.

        Raises:
            InvalidValue: neither float32 nor float64.
        """
        if dtype not in self._constants:
            raise InvalidValue(f"a statevector in {dtype}; accepted: torch.float32, torch.float64", given=str(dtype))
        return self._constants[dtype]

    def __deepcopy__(self, memo: object) -> Plan:
        """Itself: nothing in it changes."""
        return self

    def __reduce__(self) -> tuple[type[Plan], tuple[int]]:
        """Made anew where it is unpickled."""
        return Plan, (self.qubits,)


def _ring(qubits: int) -> npt.NDArray[np.int64]:
    """The number of the basis state that each becomes."""
    states = np.arange(2**qubits)
    for control in range(qubits if qubits > 1 else 0):
        target = (control + 1) % qubits
        states = states ^ (((states >> (qubits - 1 - control)) & 1) << (qubits - 1 - target))
    return states


def _signs(qubits: int) -> npt.NDArray[np.int64]:
    """Of Z on each wire in each basis state, [qubits, 2^qubits]."""
    places = np.arange(qubits)[::-1, None]
    return 1 - 2 * ((np.arange(2**qubits) >> places) & 1)


def _contraction(wires: int) -> npt.NDArray[np.float64]:
    """See `Constants`: entries are (plane of φ, s, plane of μ, s'). Im(conj(μ') P φ) for real P is P (μ'_r φ_i - μ'_i φ_r), and for
    P = i y it is y (μ'_r φ_r + μ'_i φ_i)."""
    size = 2**wires
    found = np.zeros((2, size, 2, size, wires, 3))
    for wire in range(wires):
        for kind, pauli in enumerate(_PAULI):
            matrix = np.kron(np.kron(np.eye(2**wire), np.array(pauli)), np.eye(2 ** (wires - 1 - wire))).T  # [s, s']
            if kind == 1:
                found[0, :, 0, :, wire, kind] = found[1, :, 1, :, wire, kind] = matrix
            else:
                found[1, :, 0, :, wire, kind], found[0, :, 1, :, wire, kind] = matrix, -matrix
    return found.reshape(4 * size * size, 3 * wires)
