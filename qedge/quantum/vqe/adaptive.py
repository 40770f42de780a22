"""An ansatz grown one excitation at a time, always the one along which the energy falls most steeply.

Source: H. R. Grimsley et al., "An adaptive variational algorithm for exact molecular simulations on a quantum computer", Nature
Communications 10 (2019) 3007, here with Givens rotations as the pool, which take fewer gates than fermionic excitations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from qedge.quantum.optimisers import Search, descend
from qedge.quantum.progress import OnStep, Step, untold
from qedge.quantum.vqe.adjoint import energy_of, gradients_at
from qedge.quantum.vqe.ansatz import AnsatzCircuit, excitations
from qedge.quantum.vqe.job import VQE


def grow(
    job: VQE, matrix: csr_array, basis: NDArray[np.int64], wires: int, electrons: int, told: OnStep = untold
) -> tuple[AnsatzCircuit, Search]:
    """The ansatz and the search whose point it stands at; history: the energy after each excitation.

    It ends when no gradient in the pool passes the threshold, when the last excitation changed nothing, or at the most operators.
    """
    pool = excitations(wires, electrons)
    ansatz = AnsatzCircuit(wires, electrons, ())
    energy = energy_of(ansatz, matrix, basis)
    grown = Search("adapt", told, job.ansatz.operators)
    grown.step(energy.value(grown.parameters), grown.parameters)
    for _ in range(job.ansatz.operators if pool else 0):
        state = energy.rotations.final(grown.parameters)
        slopes = np.abs(gradients_at(state, energy.matrix @ state, pool, basis, wires))
        best = int(np.argmax(np.round(slopes, 9)))  # of equal slopes, which symmetry makes, the first: rounding must not choose
        if slopes[best] < job.ansatz.threshold:
            return ansatz, grown
        longer = ansatz.with_gate(pool[best])
        longer_energy = energy_of(longer, matrix, basis)
        found = descend(longer_energy.value_and_gradient, np.append(grown.parameters, 0.0), job.method("lbfgs"), "adapt")
        grown.evaluations += found.evaluations
        if not found.value < grown.value - job.optimiser.tolerance:
            return ansatz, grown
        ansatz, energy = longer, longer_energy
        grown.value, grown.parameters = found.value, found.parameters
        grown.history.append(found.value)
        told(Step("adapt", len(grown.history) - 1, None, found.value))
    if pool:
        grown.warnings.append(f"adapt stopped at {job.ansatz.operators} operators with gradients left over the threshold")
    return ansatz, grown
