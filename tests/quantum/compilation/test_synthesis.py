"""Unitaries on one and two wires in as few gates as there can be; scipy's random unitaries and exponentials are the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.stats import unitary_group

from qedge.quantum.compilation.equivalence import applied
from qedge.quantum.compilation.gate import AXES, Gate, cnot, hadamard
from qedge.quantum.compilation.one_qubit import gates_of, matrix
from qedge.quantum.compilation.sliding import slide
from qedge.quantum.compilation.two_qubit import cheapest, weyl

PAULIS = [np.array(one, dtype=np.complex128) for one in ([[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]])]
QUARTER = math.pi / 4
SEEDS = st.integers(0, 10**6)
ANGLES = st.one_of(st.sampled_from([0.0, QUARTER, 2 * QUARTER, 4 * QUARTER, -2 * QUARTER, 1e-7]), st.floats(-7, 7))


def error(gates: list[Gate], unitary: NDArray[np.complex128]) -> float:
    """Over all phases."""
    wires = len(unitary).bit_length() - 1
    found = applied(gates, np.eye(len(unitary), dtype=np.complex128), wires)
    overlap = np.vdot(found, unitary)
    return float(np.abs(unitary - found * overlap / abs(overlap)).max())


@given(SEEDS)
def test_any_one_qubit_unitary_takes_at_most_three_gates(seed: int) -> None:
    unitary = unitary_group.rvs(2, random_state=seed)
    gates = gates_of(unitary, 0)
    assert len(gates) <= 3
    assert error(gates, unitary) < 1e-13


@given(st.sampled_from("XYZ"), st.sampled_from("XYZ"), ANGLES, ANGLES)
def test_what_two_turns_do_takes_at_most_two_gates(first: str, second: str, one: float, other: float) -> None:
    unitary = matrix(AXES[second](other, 0)) @ matrix(AXES[first](one, 0))
    gates = gates_of(unitary, 0)
    assert len(gates) <= 2
    assert error(gates, unitary) < 1e-10


def test_a_hadamard_stays_one_gate() -> None:
    assert gates_of(matrix(hadamard(0)), 3) == [hadamard(3)]


@pytest.mark.parametrize(
    ("coordinates", "cx"),
    [
        ((0, 0, 0), 0),
        ((QUARTER, 0, 0), 1),
        ((0, 0, 3 * QUARTER), 1),
        ((0.3, 0, 0), 2),
        ((0, 1.1, -2.3), 2),
        ((QUARTER, QUARTER, 0), 2),
        ((0.5, 0.3, -0.1), 3),
        ((-2.5, 1.3, 0.7), 3),
        ((QUARTER, QUARTER, QUARTER), 3),
        ((QUARTER, 0.2, -0.2), 3),
    ],
)
def test_two_qubit_unitaries_take_as_few_cnots_as_their_weyl_coordinates_say(coordinates: tuple[float, ...], cx: int) -> None:
    for seed in range(5):
        locals_ = unitary_group.rvs(2, size=4, random_state=seed)
        middle = expm(1j * sum(by * np.kron(one, one) for by, one in zip(coordinates, PAULIS, strict=True)))
        unitary = np.kron(locals_[0], locals_[1]) @ middle @ np.kron(locals_[2], locals_[3])
        gates = cheapest(unitary, (0, 1))
        assert sum(len(gate.wires) == 2 for gate in gates) == cx
        assert error(gates, unitary) < 1e-10


@settings(deadline=None)
@given(SEEDS)
def test_weyl_coordinates_lie_in_the_chamber_and_do_not_change_with_local_gates(seed: int) -> None:
    unitary = unitary_group.rvs(4, random_state=seed)
    a, b, c = weyl(unitary).coordinates
    assert QUARTER + 1e-12 >= a >= b - 1e-12
    assert b >= abs(c) - 1e-12
    one, other = unitary_group.rvs(2, size=2, random_state=seed + 1)
    np.testing.assert_allclose(weyl(np.kron(one, other) @ unitary).coordinates, (a, b, c), atol=1e-9)


def test_a_generic_cnot_keeps_at_most_four_turns() -> None:
    random = np.random.default_rng(3)
    gates: list[Gate] = []
    for _ in range(20):
        control, target = random.permutation(4)[:2].tolist()
        gates += [AXES[axis](float(random.uniform(-3, 3)), wire) for wire in (control, target) for axis in "ZYZ"]
        gates.append(cnot(control, target))
    slid = slide(gates)
    assert len(slid) <= 4 * 20 + 3 * 4 + 20 < len(gates)
    assert error(slid, applied(gates, np.eye(16, dtype=np.complex128), 4)) < 1e-10
