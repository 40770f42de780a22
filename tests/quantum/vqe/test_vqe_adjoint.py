"""The fast adjoint against PennyLane's devices: energies and whole gradients, on every ansatz."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qedge.errors import TooManyQubits
from qedge.quantum.hamiltonians.exact import all_states, sector
from qedge.quantum.hamiltonians.pauli import Hamiltonian, from_terms
from qedge.quantum.hamiltonians.problem import Molecule
from qedge.quantum.hamiltonians.system import system_of
from qedge.quantum.vqe.adjoint import energy_of, gradients_at, rotations_of
from qedge.quantum.vqe.ansatz import AnsatzCircuit, Entangler, Excitation, excitations, hardware_efficient

seeds = st.integers(0, 2**32 - 1)


def theirs(ansatz: AnsatzCircuit, hamiltonian: Hamiltonian, parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Energy and gradient of lightning's adjoint, through autograd."""
    device = qml.device("lightning.qubit", wires=ansatz.wires)

    @qml.qnode(device, diff_method="adjoint")
    def energy(values: NDArray[np.float64]) -> object:
        for wire in range(ansatz.occupied):
            qml.X(wire)
        left = iter(values)
        for part in ansatz.parts:
            if isinstance(part, Entangler):
                part.operations()
            else:
                part.operation(next(left))
        return qml.expval(hamiltonian.observable())

    return float(energy(parameters)), np.asarray(qml.grad(energy)(qml.numpy.array(parameters, requires_grad=True)))


def random_sum(wires: int, seed: int, letters: str = "IXYZ") -> Hamiltonian:
    draw = np.random.default_rng(seed)
    return from_terms({"".join(draw.choice(list(letters), wires)): float(draw.normal()) for _ in range(6)} | {"Z" * wires: 1.0})


@pytest.mark.parametrize("fermionic", [False, True])
@pytest.mark.parametrize("name", ["H2", "LiH"])
def test_excitations_of_a_molecule_have_lightnings_energy_and_gradient(name: str, fermionic: bool) -> None:
    system = system_of(Molecule(name=name))
    wires, electrons = system.hamiltonian.wires, system.electrons or 0
    ansatz = AnsatzCircuit(wires, electrons, tuple(excitations(wires, electrons, fermionic=fermionic)))
    parameters = np.random.default_rng(3).normal(0, 1, len(ansatz.gates))
    value, gradient = energy_of(ansatz, system.matrix, system.basis).value_and_gradient(parameters)
    expected, slopes = theirs(ansatz, system.hamiltonian, parameters)
    assert value == pytest.approx(expected, abs=1e-10)
    np.testing.assert_allclose(gradient, slopes, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 5), st.integers(0, 3), st.booleans())
def test_hardware_efficient_layers_have_lightnings_energy_and_gradient(seed: int, wires: int, layers: int, real: bool) -> None:
    ansatz = hardware_efficient(wires, seed % wires, layers, real=real)
    hamiltonian = random_sum(wires, seed)
    parameters = np.random.default_rng(seed).normal(0, 1, len(ansatz.gates))
    basis = all_states(wires)
    value, gradient = energy_of(ansatz, hamiltonian.matrix(basis), basis).value_and_gradient(parameters)
    expected, slopes = theirs(ansatz, hamiltonian, parameters)
    assert value == pytest.approx(expected, abs=1e-10)
    np.testing.assert_allclose(gradient, slopes, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans(), st.data())
def test_an_excitation_anywhere_turns_the_state_as_its_operation_does(seed: int, fermionic: bool, data: st.DataObject) -> None:
    wires = sorted(data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=4, unique=True)))
    half = len(wires) // 2
    gate = Excitation(tuple(wires[:half]), tuple(wires[half : 2 * half]), fermionic)
    ansatz = AnsatzCircuit(6, 3, (gate, *hardware_efficient(6, 0, 0, real=True).parts, gate))
    parameters = np.random.default_rng(seed).normal(0, 1, len(ansatz.gates))
    circuit = qml.tape.QuantumScript(ansatz.operations(parameters), [qml.state()])
    (expected,) = qml.execute([circuit], qml.device("default.qubit", wires=6))
    ours = rotations_of(ansatz, all_states(6)).final(parameters)
    turn = np.vdot(expected, ours)
    np.testing.assert_allclose(ours, turn * expected, atol=1e-10)
    assert abs(turn) == pytest.approx(1, abs=1e-10)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_the_sector_answers_what_all_states_do(seed: int) -> None:
    system = system_of(Molecule(name="LiH"))
    ansatz = AnsatzCircuit(10, 2, tuple(excitations(10, 2)))
    parameters = np.random.default_rng(seed).normal(0, 1, len(ansatz.gates))
    whole = energy_of(ansatz, system.hamiltonian.matrix(all_states(10)), all_states(10))
    small = energy_of(ansatz, system.matrix, system.basis)
    assert small.value(parameters) == pytest.approx(whole.value(parameters), abs=1e-11)
    np.testing.assert_allclose(small.value_and_gradient(parameters)[1], whole.value_and_gradient(parameters)[1], atol=1e-11)


def test_layers_entangle_wherever_the_number_of_wires_ends() -> None:
    for wires in (2, 3, 4, 5):
        pairs = {pair for part in hardware_efficient(wires, 0, 2, real=True).parts if isinstance(part, Entangler) for pair in part.pairs}
        assert pairs == {(wire, wire + 1) for wire in range(wires - 1)}


def test_slopes_of_a_pool_are_derivatives_at_zero() -> None:
    system = system_of(Molecule(name="LiH"))
    pool = excitations(10, 2)
    begun = AnsatzCircuit(10, 2, tuple(pool[:4]))
    parameters = np.array([0.3, -0.2, 0.5, 0.1])
    energy = energy_of(begun, system.matrix, system.basis)
    state = energy.rotations.final(parameters)
    slopes = gradients_at(state, energy.matrix @ state, pool, system.basis, 10)
    for gate, slope in zip(pool, slopes, strict=True):
        longer = energy_of(begun.with_gate(gate), system.matrix, system.basis)
        high, low = (longer.value(np.append(parameters, shift)) for shift in (1e-5, -1e-5))
        assert slope == pytest.approx((high - low) / 2e-5, abs=1e-8)


def test_excitations_are_those_that_keep_the_spin_and_stay_in_the_sector() -> None:
    assert len(excitations(10, 2)) == 16 + 8
    assert excitations(4, 4) == []
    basis = sector(12, 4)
    for gate in excitations(12, 4, fermionic=True):
        partners, couplings = gate.coupling(basis, 12)
        assert (partners[partners] == np.arange(len(basis))).all()
        np.testing.assert_array_equal(couplings[partners], -couplings)


def test_an_ansatz_without_gates_has_the_energy_of_its_basis_state() -> None:
    system = system_of(Molecule())
    value, gradient = energy_of(AnsatzCircuit(4, 2, ()), system.matrix, system.basis).value_and_gradient(np.zeros(0))
    assert value == pytest.approx(system.hartree_fock, abs=1e-10)
    assert len(gradient) == 0


def test_passes_that_would_not_fit_in_memory_are_refused() -> None:
    with pytest.raises(TooManyQubits, match="GiB"):
        rotations_of(hardware_efficient(16, 0, 60, real=True), all_states(16))
