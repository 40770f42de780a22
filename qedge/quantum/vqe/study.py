"""A variational ground energy, beside exact diagonalisation and what chemists would try first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from qedge.errors import InvalidHamiltonian
from qedge.quantum.backend import device
from qedge.quantum.execution import Executor, LocalExecutor
from qedge.quantum.hamiltonians.exact import all_states
from qedge.quantum.hamiltonians.problem import Molecule
from qedge.quantum.hamiltonians.system import System, system_of
from qedge.quantum.optimisers import Search, descend, perturb
from qedge.quantum.progress import OnStep, untold
from qedge.quantum.resources import count
from qedge.quantum.result import Baseline, Result
from qedge.quantum.verdict import Compared, Verdict, compare
from qedge.quantum.vqe.adaptive import grow
from qedge.quantum.vqe.adjoint import Energy, check_memory, energy_of
from qedge.quantum.vqe.ansatz import AnsatzCircuit, excitations, hardware_efficient
from qedge.quantum.vqe.job import VQE
from qedge.quantum.vqe.measured import Meter

CHEMICAL_ACCURACY = 1.6e-3  # hartree, one kilocalorie a mole
PART_OF_NORM = 1e-3  # of the sum of all coefficients: the same for what is no molecule
SPREAD = 0.5  # radians; of the beginnings of hardware-efficient ansaetze
MOST_LAYERS = 10  # of hardware-efficient ansaetze, where none are asked for
_STREAMS_APART = 10**6  # more batches than any study measures
COUNTED = 1e-3  # electrons more or fewer than there are, from which on a state is not of the molecule


@dataclass(frozen=True)
class Trained:
    """An ansatz at its best parameters."""

    ansatz: AnsatzCircuit
    search: Search
    energy: Energy


def run(job: VQE, *, executor: Executor | None = None, on_step: OnStep = untold) -> Result:
    """The ground energy, in hartree for molecules; details: `exact`, `history` (energy of each step), `operators`, `parameters`.

    A quiet simulator's part is taken by the fast adjoint, which answers the same; everything else measures through the executor.

    Raises:
        InvalidHamiltonian: Hartree-Fock does not converge, or nothing is left of the terms.
        TooManyQubits: it would not fit in memory; said before anything is allocated.
        UnknownBackend, BackendUnavailable: as the executor does.
    """
    return _study(job, executor or LocalExecutor(), on_step, None, 0)[0]


def energies(job: VQE, lengths: Sequence[float], *, executor: Executor | None = None, on_step: OnStep = untold) -> list[Result]:
    """One result for each bond length, in ångström, each search beginning where the one before ended; adapt chooses operators anew.

    Raises:
        InvalidHamiltonian: the problem is no molecule with a bond length, or as `run` does.
    """
    if not isinstance(job.problem, Molecule) or job.problem.atoms is not None:
        raise InvalidHamiltonian("a scan of bond lengths; accepted: a molecule by name", given=job.problem.kind)
    molecules = [Molecule.model_validate({**job.problem.model_dump(), "bond_length": length}) for length in lengths]
    results: list[Result] = []
    start: NDArray[np.float64] | None = None
    for place, molecule in enumerate(molecules):
        of_one = job.model_copy(update={"problem": molecule})
        result, parameters = _study(of_one, executor or LocalExecutor(), on_step, start, place * _STREAMS_APART)
        results.append(result)
        start = None if job.ansatz_kind == "adapt" else parameters
    return results


def _study(
    job: VQE, executor: Executor, told: OnStep, start: NDArray[np.float64] | None, stream: int
) -> tuple[Result, NDArray[np.float64]]:
    """stream: of the first shots; studies with others draw independently."""
    begun = time.perf_counter()
    system = system_of(job.problem)
    meter = None
    if job.on_backend:
        device(job.backend, system.hamiltonian.wires, job.backend.seed)  # refused now, not after the training
        meter = Meter(system.hamiltonian, job.backend, executor, stream)
    trained = _train(job, system, meter, start, told)
    search = trained.search
    simulated = trained.energy.value(search.parameters)
    value, error = simulated, 0.0
    if meter is not None:
        ((value, error),) = meter.measure(trained.ansatz, [search.parameters])
    exact = system.exact()
    accuracy = CHEMICAL_ACCURACY if system.electrons else PART_OF_NORM * system.hamiltonian.norm
    taken = count(trained.ansatz.circuit(search.parameters))
    circuits, shots = (meter.circuits, meter.shots) if meter else (search.evaluations, 0)
    strayed = _of_other_particles(system, trained)
    warnings = [*search.warnings, *strayed, *_of_few_shots(job, error, accuracy), *_below(value, exact.value, accuracy)]
    details: dict[str, JsonValue] = {
        "exact": exact.value,
        "error_to_exact": value - exact.value,
        "accuracy": accuracy,
        "simulated": simulated,
        "ansatz": job.ansatz_kind,
        "optimiser": job.optimiser_kind,
        "optimised_on": _where(job, meter),
        "evaluations": search.evaluations,
        "operators": [gate.name for gate in trained.ansatz.gates],
        "parameters": search.parameters.tolist(),
        "history": list(search.history),
        "measured_groups": len(meter.groups) if meter else 0,
        "bond_length": job.problem.length if isinstance(job.problem, Molecule) else None,
        "warnings": list(warnings),
    }
    result = Result(
        kind="vqe",
        title=system.title,
        quantity=f"ground energy ({system.unit})" if system.unit else "ground energy",
        value=value,
        error=error,
        baseline=replace(exact, how=f"{exact.how}; a difference within {accuracy:.2g} is none"),
        compared=_against_exact(compare(value, exact.value, better="lower", error=error, tolerance=accuracy), strayed=bool(strayed)),
        resources=replace(taken, circuits=circuits, shots=shots, seconds=time.perf_counter() - begun),
        others=(*system.approximate(), *_product_state(job, system)),
        details=details,
    )
    return result, search.parameters


def _train(job: VQE, system: System, meter: Meter | None, start: NDArray[np.float64] | None, told: OnStep) -> Trained:
    wires, electrons, kind = system.hamiltonian.wires, system.electrons or 0, job.optimiser_kind
    basis = system.basis
    if job.ansatz_kind == "adapt":
        ansatz, grown = grow(job, system.matrix, basis, wires, electrons, told)
        energy = energy_of(ansatz, system.matrix, basis)
        if kind == "lbfgs" or not ansatz.gates:
            return Trained(ansatz, grown, energy)
    elif job.ansatz_kind == "hardware-efficient":
        layers = job.ansatz.layers or min(wires, MOST_LAYERS)
        ansatz = hardware_efficient(wires, electrons, layers, real=system.hamiltonian.is_real)
        every = all_states(wires)  # it does not keep the number of electrons
        check_memory(ansatz, len(every))
        energy = energy_of(ansatz, system.hamiltonian.matrix(every) if system.electrons else system.matrix, every)
    else:
        ansatz = AnsatzCircuit(wires, electrons, tuple(excitations(wires, electrons, fermionic=job.ansatz_kind == "uccsd")))
        energy = energy_of(ansatz, system.matrix, basis)
    beginnings = [start] if start is not None else _beginnings(job, ansatz)
    if kind == "spsa" and ansatz.gates:

        def measure(points: Sequence[NDArray[np.float64]]) -> list[float]:
            return [value for value, _ in meter.measure(ansatz, points)] if meter else [energy.value(point) for point in points]

        draw = np.random.default_rng(job.seed)
        return Trained(ansatz, perturb(measure, beginnings[0], job.method(kind), draw, "spsa", told), energy)
    searches = [descend(energy.value_and_gradient, beginning, job.method(kind), kind, told) for beginning in beginnings]
    best = min(searches, key=lambda search: search.value)
    best.evaluations = sum(search.evaluations for search in searches)
    return Trained(ansatz, best, energy)


def _beginnings(job: VQE, ansatz: AnsatzCircuit) -> list[NDArray[np.float64]]:
    """Where searches begin: at Hartree-Fock where the ansatz holds it, else at random beside the basis state."""
    if job.ansatz_kind != "hardware-efficient":
        return [np.zeros(len(ansatz.gates))]
    draw = np.random.default_rng(job.seed)
    return [draw.normal(0, SPREAD, len(ansatz.gates)) for _ in range(job.optimiser.restarts)]


def _of_other_particles(system: System, trained: Trained) -> list[str]:
    """A warning where the state has not the molecule's number of electrons."""
    if system.electrons is None or len(trained.energy.rotations.start) == len(system.basis):
        return []
    state = trained.energy.rotations.final(trained.search.parameters)
    electrons = float(np.abs(state) ** 2 @ np.bitwise_count(all_states(system.hamiltonian.wires)))
    if math.isclose(electrons, system.electrons, abs_tol=COUNTED):
        return []
    return [f"the state has {electrons:.3f} electrons where the molecule has {system.electrons}: its energy is not that of the molecule"]


def _against_exact(found: Compared, *, strayed: bool) -> Compared:
    """No state of the molecule lies below exact diagonalisation: what seems to is chance, or another molecule's."""
    if strayed:
        return replace(found, verdict=Verdict.CLASSICAL)
    return replace(found, verdict=Verdict.NEITHER) if found.verdict is Verdict.QUANTUM else found


def _below(value: float, exact: float, accuracy: float) -> list[str]:
    """A warning where the value is one that no state has."""
    if value >= exact - accuracy:
        return []
    return [f"the value lies {exact - value:.2g} below the exact ground energy, where no state of the problem is: it is no better for that"]


def _where(job: VQE, meter: Meter | None) -> str:
    if meter is None or job.optimiser_kind != "spsa":
        return "exact simulation"
    return "backend, with operators chosen and trained by exact simulation first" if job.ansatz_kind == "adapt" else "backend"


def _of_few_shots(job: VQE, error: float, accuracy: float) -> list[str]:
    """A warning where the error bar hides differences that would count."""
    if job.backend.shots is None or error <= accuracy:
        return []
    enough = math.ceil(job.backend.shots * (error / accuracy) ** 2)
    return [f"the error bar, {error:.2g}, is wider than the accuracy asked for, {accuracy:.2g}: about {enough} shots a circuit would do"]


def _product_state(job: VQE, system: System) -> tuple[Baseline, ...]:
    """The best state without entanglement; of molecules that is Hartree-Fock, which stands there already."""
    if system.electrons:
        return ()
    wires, real = system.hamiltonian.wires, system.hamiltonian.is_real
    ansatz = hardware_efficient(wires, 0, 0, real=real)
    energy = energy_of(ansatz, system.matrix, system.basis)
    draw = np.random.default_rng(job.seed)
    found = [
        descend(energy.value_and_gradient, draw.normal(0, 1, len(ansatz.gates)), job.method("lbfgs"), "product state")
        for _ in range(job.optimiser.restarts)
    ]
    return (Baseline("product state", min(one.value for one in found), how=f"mean field, best of {len(found)} beginnings with L-BFGS"),)
