"""Variational ground energies: time of an energy with its whole gradient beside PennyLane's lightning, energies beside exact ones, gates.

LiH has 2 active electrons in 5 orbitals, 10 qubits, 24 excitations. Both compute in this process, on one thread, at the same parameters;
lightning is called below its autograd wrapper, by `execute_and_compute_derivatives` with the adjoint method on one decomposed tape. Gates
are counted in one-qubit gates and CNOT, as PennyLane decomposes them, with nothing optimised after.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before lightning is loaded, which has one thread for each core else

import statistics
import time
from collections.abc import Callable

import numpy as np
import pennylane as qml
from pennylane.devices import ExecutionConfig

from qedge.quantum.hamiltonians.exact import all_states
from qedge.quantum.hamiltonians.problem import Ising, Molecule, Problem
from qedge.quantum.hamiltonians.system import System, system_of
from qedge.quantum.vqe.adjoint import energy_of
from qedge.quantum.vqe.ansatz import AnsatzCircuit, excitations, hardware_efficient
from qedge.quantum.vqe.job import VQE, Ansatz
from qedge.quantum.vqe.study import CHEMICAL_ACCURACY, run
from tests.benchmarks.figures import Figure, at_least, at_most, beside, never_more

REPEAT = 5
OURS, THEIRS = 50, 15  # evaluations of which the median is taken


def measure(repeat: int) -> list[Figure]:
    """`repeat` measurements of each time; energies are the same in every run."""
    lih = system_of(Molecule(name="LiH"))
    figures = []
    for name, system, ansatz, promised in _cases(lih):
        ours, theirs, off = zip(*(_both(system, ansatz, seed) for seed in range(repeat)), strict=True)
        ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
        what = f"{name}, lightning's time over ours"
        figures.append(at_least(what, 20, ratios, "times") if promised else beside(what, ratios, "times"))
        figures += [beside(f"{name}, ours", ours, "ms"), beside(f"{name}, lightning", theirs, "ms")]
        figures.append(never_more(f"{name}, energy and gradient off lightning's", 1e-10, off))
    called = [_as_called(lih, seed) for seed in range(repeat)]
    figures.append(beside("LiH, Givens, lightning as its users call it, value and `qml.grad` of a QNode", called, "ms"))
    return figures + _energies()


def _cases(lih: System) -> list[tuple[str, System, AnsatzCircuit, bool]]:
    wires, electrons = lih.hamiltonian.wires, lih.electrons or 0
    chain = system_of(Ising(sites=10))
    return [
        ("LiH, Givens", lih, AnsatzCircuit(wires, electrons, tuple(excitations(wires, electrons))), True),
        ("LiH, hardware-efficient, 4 layers", lih, hardware_efficient(wires, electrons, 4, real=True), False),
        ("Ising chain of 10, hardware-efficient, 4 layers", chain, hardware_efficient(10, 0, 4, real=True), False),
    ]


def _both(system: System, ansatz: AnsatzCircuit, seed: int) -> tuple[float, float, float]:
    """Milliseconds here, milliseconds of lightning alone, and how far apart the answers are."""
    parameters = np.random.default_rng(seed).normal(0, 1, len(ansatz.gates))
    keeps = not any(gate.name.startswith("R") for gate in ansatz.gates)
    basis = system.basis if keeps else all_states(ansatz.wires)
    energy = energy_of(ansatz, system.hamiltonian.matrix(basis), basis)
    device = qml.device("lightning.qubit", wires=ansatz.wires)
    tape = ansatz.circuit(parameters, [qml.expval(system.hamiltonian.observable())])
    tape.trainable_params = list(range(len(ansatz.gates)))  # not the coefficients
    config = ExecutionConfig(gradient_method="adjoint")
    config = device.setup_execution_config(config, tape)
    (tape,), _ = device.preprocess_transforms(config)([tape])
    value, gradient = energy.value_and_gradient(parameters)
    (their_value,), (their_gradient,) = device.execute_and_compute_derivatives((tape,), config)
    off = max(abs(value - float(their_value)), float(np.abs(gradient - np.ravel(their_gradient)).max()))
    ours = _median_ms(lambda: energy.value_and_gradient(parameters), OURS)
    return ours, _median_ms(lambda: device.execute_and_compute_derivatives((tape,), config), THEIRS), off


def _as_called(system: System, seed: int) -> float:
    """Milliseconds of lightning with all that PennyLane does around it."""
    gates = excitations(system.hamiltonian.wires, system.electrons or 0)
    observable = system.hamiltonian.observable()

    @qml.qnode(qml.device("lightning.qubit", wires=system.hamiltonian.wires), diff_method="adjoint")
    def energy(parameters: object) -> object:
        for wire in range(system.electrons or 0):
            qml.X(wire)
        for gate, parameter in zip(gates, parameters, strict=True):
            gate.operation(parameter)
        return qml.expval(observable)

    slope = qml.grad(energy)
    parameters = qml.numpy.array(np.random.default_rng(seed).normal(0, 1, len(gates)), requires_grad=True)
    return _median_ms(lambda: (energy(parameters), slope(parameters)), THEIRS)


def _median_ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


def _energies() -> list[Figure]:
    figures = []
    asked: tuple[tuple[str, Problem, Ansatz, float], ...] = (
        ("H2, adapt", Molecule(), Ansatz(), 1e-8),
        ("LiH, adapt", Molecule(name="LiH"), Ansatz(), CHEMICAL_ACCURACY),
        ("LiH, adapt until 0.01 Ha", Molecule(name="LiH"), Ansatz(threshold=1e-2), CHEMICAL_ACCURACY),
        ("LiH, Givens", Molecule(name="LiH"), Ansatz(kind="givens"), CHEMICAL_ACCURACY),
        ("LiH, UCCSD", Molecule(name="LiH"), Ansatz(kind="uccsd"), CHEMICAL_ACCURACY),
        ("BeH2, adapt", Molecule(name="BeH2"), Ansatz(), CHEMICAL_ACCURACY),
    )
    for name, problem, ansatz, accuracy in asked:
        result = run(VQE(problem=problem, ansatz=ansatz))
        off = abs(result.value - result.baseline.value)
        figures.append(at_most(f"{name}, off exact diagonalisation", accuracy, [off], "Ha"))
        gates, cx = float(result.resources.gates), float(result.resources.cx)
        promised = name.startswith("LiH, adapt")
        figures.append(at_most(f"{name}, gates", 1000, [gates], "", 4) if promised else beside(f"{name}, gates", [gates], "", 4))
        figures += [beside(f"{name}, of which CX", [cx], "", 4), beside(f"{name}, whole job", [result.resources.seconds], "s")]
    return figures
