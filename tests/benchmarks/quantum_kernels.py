"""The Gram matrix of a fidelity kernel, 400 rows, 8 qubits, ZZ feature map with two repetitions, beside Qiskit Machine Learning's
statevector kernel and PennyLane's `square_kernel_matrix`.

Rows are normal, the same for all. Qiskit's process and ours take turns; both have one thread. PennyLane's function runs a circuit for every
pair, which for 400 rows would take hours: it is measured at 40 rows, 780 pairs, and scaled by the number of pairs to 79,800. Its circuit is
a QNode on lightning.qubit that goes forth by one row and back by the other, as its documentation has it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything that looks at it is loaded

import json
import subprocess
import time

import numpy as np
import pennylane as qml
from threadpoolctl import threadpool_limits

from qedge.quantum.qsvm.feature_maps import circuit
from qedge.quantum.qsvm.job import FeatureMap, Kernel
from qedge.quantum.qsvm.kernels import encode
from tests.benchmarks.figures import Figure, at_least, beside, never_more
from tests.benchmarks.peers import HERE, QISKIT
from tests.benchmarks.surroundings import environment

REPEAT = 5
ROWS, FEW, QUBITS = 400, 40, 8
MAP = FeatureMap()


def measure(repeat: int) -> list[Figure]:
    """All of them, `repeat` times, in turn."""
    ours, theirs, scaled, off, apart = [], [], [], [], []
    line = [str(QISKIT.python()), str(HERE / "qiskit_kernels.py")]
    environ = environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", RAYON_NUM_THREADS="1", QISKIT_NUM_PROCS="1")
    with (
        threadpool_limits(1),
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as peer,
    ):
        assert peer.stdin is not None
        assert peer.stdout is not None
        encode(MAP, Kernel(), np.zeros((2, QUBITS))).gram()
        for seed in range(repeat):
            rows = np.random.default_rng(seed).normal(size=(ROWS, QUBITS))
            begun = time.perf_counter()
            gram = encode(MAP, Kernel(), rows).gram()
            ours.append(time.perf_counter() - begun)
            peer.stdin.write(json.dumps(rows.tolist()) + "\n")
            peer.stdin.flush()
            told = json.loads(peer.stdout.readline())
            theirs.append(told["seconds"])
            apart.append(float(np.abs(gram - np.array(told["gram"])).max()))
            seconds, matrix = _pennylane(rows[:FEW])
            scaled.append(seconds * (ROWS * (ROWS - 1)) / (FEW * (FEW - 1)))
            off.append(float(np.abs(gram[:FEW, :FEW] - matrix).max()))
        peer.stdin.close()
    over_qiskit, over_pennylane = ([slow / fast for fast, slow in zip(ours, peer, strict=True)] for peer in (theirs, scaled))
    return [
        at_least("Qiskit's time over ours", 50, over_qiskit, "times"),
        at_least("PennyLane's time, scaled from 40 rows, over ours", 1000, over_pennylane, "times"),
        never_more("largest entry off PennyLane's, 40 rows", 1e-12, off),
        beside("largest entry off Qiskit's, 400 rows", apart, ""),
        beside("ours", [1000 * one for one in ours], "ms"),
        beside("Qiskit", theirs, "s"),
        beside("PennyLane, scaled", scaled, "s"),
    ]


def _pennylane(rows: np.ndarray) -> tuple[float, np.ndarray]:
    @qml.qnode(qml.device("lightning.qubit", wires=QUBITS))
    def overlap(one: np.ndarray, other: np.ndarray) -> object:
        with qml.QueuingManager.stop_recording():
            forth, back = circuit(MAP, one).operations, circuit(MAP, other).operations
        for gate in forth:
            qml.apply(gate)
        for gate in reversed(back):
            qml.adjoint(gate)
        return qml.probs(wires=range(QUBITS))

    begun = time.perf_counter()
    matrix = qml.kernels.square_kernel_matrix(list(rows), lambda one, other: overlap(one, other)[0], assume_normalized_kernel=True)
    return time.perf_counter() - begun, np.array(matrix, dtype=np.float64)
