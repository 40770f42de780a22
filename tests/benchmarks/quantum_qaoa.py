"""QAOA's mean cost and gradient from precomputed diagonals against lightning's adjoint differentiation, on MaxCut of random 3-regular
graphs with three layers, at the same random angles.

lightning runs the QNode its users write: Hadamard, IsingZZ and RX, the cost a Hamiltonian, `diff_method="adjoint"`, the gradient by
`qml.grad`. Its device alone, without the QNode, is shown beside, given every gate's derivative and not yet the two sums over them.
They take turns, some calls in a row as in an optimiser, on one thread and on as many as the libraries choose, after one call of each to
warm up; each counts with whichever is faster for it, by the median of the turns, and a ratio is lightning's time over ours. They agree
to 1e-10 at every size, or the benchmark fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pennylane as qml
from pennylane import numpy as pnp
from pennylane.devices import ExecutionConfig
from pennylane.tape import QuantumScript
from threadpoolctl import threadpool_limits

from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.problems import Problem, problem_of
from qedge.quantum.qaoa.simulation import Simulation
from tests.benchmarks.figures import Figure, at_least, beside, never_more

REPEAT = 5
IN_A_ROW = 5
THREADS = (1, None)  # None: as the libraries choose
LAYERS = 3
SIZES = (8, 10, 12, 14, 16, 18, 20)
PROMISED, NOT_SLOWER = {10: 20.0, 12: 20.0}, 1.0
TURNS = {8: 9, 10: 9, 12: 9, 14: 5, 16: 3, 18: 1, 20: 1}
Answer = tuple[float, np.ndarray]


def measure(repeat: int) -> list[Figure]:
    """`repeat` graphs of each size."""
    figures, errors = [], []
    for size in SIZES:
        ratios, alone, ours = [], [], []
        for seed in range(repeat):
            seconds, error = _compare(size, seed)
            ratios.append(seconds[1] / seconds[0])
            alone.append(seconds[2] / seconds[0])
            ours.append(1000 * seconds[0])
            errors.append(error)
        figures += [
            at_least(f"lightning's QNode over ours, {size} qubits", PROMISED.get(size, NOT_SLOWER), ratios, "times"),
            at_least(f"lightning's device alone over ours, {size} qubits", NOT_SLOWER, alone, "times"),
            beside(f"ours, {size} qubits", ours, "ms"),
        ]
    return [*figures, never_more("largest difference of cost or gradient from lightning's", 1e-10, errors)]


def _compare(size: int, seed: int) -> tuple[list[float], float]:
    """Median seconds of ours, of the QNode and of the device alone; and the largest difference between the first two."""
    problem = problem_of(QAOA(random_regular={"degree": 3, "nodes": size, "seed": seed}))
    angles = np.random.default_rng(seed).uniform(-1, 1, (2, LAYERS))
    simulation = Simulation(problem)

    def ours() -> Answer:
        mean, by_gamma, by_beta = simulation.gain_and_gradient(*angles)
        return mean, np.array([by_gamma, by_beta])

    calls: list[Callable[[], Answer]] = [ours, _qnode(problem, angles), _device_alone(problem, angles)]
    (mean, gradient), (theirs, slopes), _ = (call() for call in calls)
    taken: list[dict[int | None, list[float]]] = [{threads: [] for threads in THREADS} for _ in calls]
    calls_in_a_row = IN_A_ROW if size <= 14 else 1
    for threads in THREADS * TURNS[size]:
        with threadpool_limits(threads):
            for call, seconds in zip(calls, taken, strict=True):
                begun = time.perf_counter()
                for _ in range(calls_in_a_row):
                    call()
                seconds[threads].append((time.perf_counter() - begun) / calls_in_a_row)
    return [min(statistics.median(one) for one in seconds.values()) for seconds in taken], max(
        abs(mean - theirs), float(np.abs(gradient - slopes).max())
    )


def _hamiltonian(problem: Problem) -> qml.Hamiltonian:
    return qml.Hamiltonian(problem.couplings.tolist(), [qml.Z(a) @ qml.Z(b) for a, b in problem.pairs.tolist()])


def _circuit(problem: Problem, angles: np.ndarray) -> None:
    for wire in range(problem.qubits):
        qml.Hadamard(wire)
    for layer in range(LAYERS):
        for (a, b), coupling in zip(problem.pairs.tolist(), problem.couplings.tolist(), strict=True):
            qml.IsingZZ(2 * coupling * angles[0, layer], wires=[a, b])
        for wire in range(problem.qubits):
            qml.RX(2 * angles[1, layer], wires=wire)


def _qnode(problem: Problem, angles: np.ndarray) -> Callable[[], Answer]:
    gain, point = _hamiltonian(problem), pnp.array(angles, requires_grad=True)

    @qml.qnode(qml.device("lightning.qubit", wires=problem.qubits), diff_method="adjoint")
    def mean(given: np.ndarray) -> object:
        _circuit(problem, given)
        return qml.expval(gain)

    gradient = qml.grad(mean)

    def call() -> Answer:
        slopes = np.asarray(gradient(point))
        return float(gradient.forward) + problem.constant, slopes  # the value is left by the same pass

    return call


def _device_alone(problem: Problem, angles: np.ndarray) -> Callable[[], Answer]:
    with qml.queuing.AnnotatedQueue() as queue:
        _circuit(problem, angles)
        qml.expval(_hamiltonian(problem))
    tape = QuantumScript.from_queue(queue)
    tape.trainable_params = list(range(LAYERS * (len(problem.couplings) + problem.qubits)))
    device = qml.device("lightning.qubit", wires=problem.qubits)
    config = ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)
    return lambda: device.execute_and_compute_derivatives([tape], config)
