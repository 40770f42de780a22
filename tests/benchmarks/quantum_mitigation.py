"""Expectation values with readout errors undone and noise extrapolated to zero, beside mitiq, on five circuits under three noise models.

Ours are the product's defaults in every cell: local folding, an exponential towards the value of a wholly mixed state, as much of the
correction as has the smallest error, and no value that no state has. They were chosen on 13 other circuits under six other noise models,
and the angles of these circuits were drawn afterwards. mitiq folds gates at random, its default, and each of its curves goes through the
same measurements: Richardson's, which it takes when none is named, a line, and an exponential given the same asymptote. Its readout is
undone by `closest_positive_distribution`, without the new draw of `mitigate_measurements`, which would only add noise. Where "the best of
them" stands, it is chosen anew in every cell by its mean error, which no user could do. mitiq offers nothing that cuts values to those
that a state can have, which helps ours on the GHZ state and the mirror circuit, whose ideal value is an extreme one. So every comparison
stands twice, the second time with mitiq's values cut here as ours are.

mitiq runs in a process of its own and asks for every measurement here, where both sides' shots are drawn from the same noisy density
matrices: 6000 in all for either, which mitiq divides evenly over noise 1, 2 and 3 times as strong and we as we please; the raw value
takes 6000 as well. Both are given the same calibration, measured anew, 2000 shots a state, in every repetition. An error is the distance
from the ideal value; the interval is that of the mean paired difference over repetitions, 95 %, by Student's t.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pennylane as qml
from numpy.typing import NDArray
from pennylane.operation import Operator
from pennylane.tape import QuantumScript
from scipy.stats import t

from qedge.quantum.backend import Backend
from qedge.quantum.execution import Answer, LocalExecutor
from qedge.quantum.mitigation import readout
from qedge.quantum.mitigation.job import Mitigation
from qedge.quantum.mitigation.readout import Confusion
from qedge.quantum.mitigation.settings import measurement
from qedge.quantum.mitigation.study import exact, mitigate
from qedge.quantum.noise import Noise
from tests.benchmarks.figures import Figure
from tests.benchmarks.peers import HERE, MITIQ
from tests.benchmarks.surroundings import environment

REPEAT = 100
SHOTS = 2000
QUBITS = 4
ENOUGH = 12
NOISES = {
    "depolarizing": Noise(depolarizing=0.002, two_qubit=0.01, readout=(0.02, 0.05)),
    "amplitude damping": Noise(amplitude_damping=0.01, readout=(0.02, 0.05)),
    "all of them": Noise(depolarizing=0.002, amplitude_damping=0.004, phase_damping=0.004, readout=(0.04, 0.08)),
}


@dataclass
class Drawn:
    """An executor that works each circuit's probabilities out once, and draws shots from them."""

    exact: LocalExecutor = field(default_factory=LocalExecutor)
    known: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def run(self, circuits: Sequence[QuantumScript], backend: Backend, *, stream: int = 0) -> list[Answer]:
        """Probabilities, as an `Executor` gives them."""
        quiet, found = backend.model_copy(update={"shots": None}), list[Answer]()
        for place, circuit in enumerate(circuits):
            gates = [(one.name, [float(angle) for angle in one.data], list(one.wires)) for one in circuit.operations]
            key = json.dumps([gates, repr(backend.noise)])
            if key not in self.known:
                (answer,) = self.exact.run([circuit.copy(shots=None)], quiet)
                self.known[key] = np.clip(np.asarray(answer, dtype=np.float64), 0, None)
            shots, chances = circuit.shots.total_shots, self.known[key]
            found.append(np.random.default_rng([stream, place]).multinomial(shots, chances / chances.sum()) / shots)
        return found


class Mitiq:
    """The peer, which asks back."""

    def __init__(self, executor: Drawn) -> None:
        line = [str(MITIQ.python()), str(HERE / "mitiq_estimates.py")]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        )
        self.executor, self.failed = executor, 0

    def values(self, circuit: QuantumScript, backend: Backend, confusion: Confusion, stream: int) -> dict[str, float]:
        """What each of its curves makes of one circuit, of as many shots."""
        measured = measurement(circuit)
        asked = {
            "gates": [[one.name, float(one.data[0]) if one.data else None, list(one.wires)] for one in circuit.operations],
            "qubits": QUBITS,
            "confusions": confusion.matrices.tolist(),
            "values": (measured.constant + measured.settings[0].values).tolist(),
            "asymptote": measured.constant,
            "seed": stream,
        }
        told = self._told(asked)
        while "measure" in told:
            gates = [getattr(qml, name)(*([] if angle is None else [angle]), wires=wires) for name, angle, wires in told["measure"]]
            stream += 1
            answers = self.executor.run(measured.circuits(gates, SHOTS), backend, stream=stream)
            told = self._told(np.rint(np.asarray(answers[0]) * SHOTS).astype(int).tolist())
        self.failed += int(told["failed"])
        return told["values"]

    def _told(self, said: object) -> dict[str, object]:
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"mitiq ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Nothing more is asked."""
        self.process.stdin.close()
        self.process.wait(60)


def circuits(seed: int = 2026) -> dict[str, QuantumScript]:
    """Five on four qubits, of rotations, Hadamards and CNOTs; what is measured is in Z. seed: of their angles."""
    generator = np.random.default_rng(seed)
    chain = [qml.CNOT([wire, wire + 1]) for wire in range(QUBITS - 1)]
    neighbours = sum(qml.Z(wire) @ qml.Z(wire + 1) for wire in range(QUBITS - 1))
    ising, angles = list[Operator](), generator.uniform(-np.pi / 2, np.pi / 2, (3, QUBITS))
    coupling, field_, phase, mixing = generator.uniform(0.2, 0.9, 4)
    for _ in range(3):
        ising += [one for wire in range(QUBITS - 1) for one in _together(coupling, wire, wire + 1)]
        ising += [qml.RX(field_, wire) for wire in range(QUBITS)]
    ring = [(wire, (wire + 1) % QUBITS) for wire in range(QUBITS)]
    alternating = [qml.Hadamard(wire) for wire in range(QUBITS)]
    alternating += [one for first, second in ring for one in _together(-phase, first, second)]
    alternating += [qml.RX(mixing, wire) for wire in range(QUBITS)]
    layered = [one for layer in angles for one in (*(qml.RY(angle, wire) for wire, angle in enumerate(layer)), *chain)]
    magnetisation = sum(qml.Z(wire) for wire in range(QUBITS))
    entangled = [qml.Hadamard(0), *chain]
    return {
        "GHZ": QuantumScript(entangled, [qml.expval(qml.prod(*(qml.Z(wire) for wire in range(QUBITS))))]),
        "Ising chain": QuantumScript(ising, [qml.expval(magnetisation)]),
        "QAOA ring": QuantumScript(alternating, [qml.expval(sum(qml.Z(one) @ qml.Z(other) for one, other in ring))]),
        "layers": QuantumScript(layered, [qml.expval(neighbours + 0.5 * magnetisation)]),
        "mirror": QuantumScript([*layered, *(qml.adjoint(one, lazy=False) for one in reversed(layered))], [qml.expval(neighbours)]),
    }


def measure(repeat: int) -> list[Figure]:
    """Each circuit under each noise model, `repeat` times."""
    executor = Drawn()
    peer = Mitiq(executor)
    try:
        cells = [
            _cell(f"{name}, {noise}", circuit, NOISES[noise], executor, peer, repeat, 1_000_000 * place)
            for place, ((name, circuit), noise) in enumerate(itertools.product(circuits().items(), NOISES))
        ]
    finally:
        peer.close()
    counts = [
        _count(cells, "richardson", "mitiq's, by its defaults", ENOUGH),
        _count(cells, "linear", "mitiq's line", ENOUGH),
        _count(cells, "exponential", "mitiq's exponential with the same asymptote", ENOUGH),
        _count(cells, "richardson_cut", "mitiq's, by its defaults, cut as ours", ENOUGH),
        _count(cells, "linear_cut", "mitiq's line, cut as ours", ENOUGH),
        _count(cells, "exponential_cut", "mitiq's exponential, cut as ours", ENOUGH),
        _count(cells, "best", "the best of all of them in that cell", 0),
        _count(cells, "raw", "that of the raw value with as many shots", 0),
    ]
    failed = Figure("readouts or fits that mitiq failed at", "", str(peer.failed))
    return [*counts, failed, *(cell.figure() for cell in cells)]


@dataclass(frozen=True)
class Cell:
    """Errors of each repetition."""

    name: str
    raw: list[float]
    ours: list[float]
    richardson: list[float]
    linear: list[float]
    exponential: list[float]
    richardson_cut: list[float]
    linear_cut: list[float]
    exponential_cut: list[float]

    @property
    def best(self) -> list[float]:
        """Of mitiq's, those with the smallest mean."""
        uncut = (self.richardson, self.linear, self.exponential)
        return min((*uncut, self.richardson_cut, self.linear_cut, self.exponential_cut), key=statistics.mean)

    def figure(self) -> Figure:
        """All of them, and how they differ."""
        means = {what: statistics.mean(errors) for what, errors in vars(self).items() if what != "name"}
        text = ", ".join(f"{what.replace('_', ' ')} {mean:.4f}" for what, mean in means.items())
        gains = [f"less than {what} by {_interval(self.ours, getattr(self, what))}" for what in ("richardson", "best")]
        return Figure(f"{self.name}: mean error", "", f"{text}; {'; '.join(gains)}")


def _count(cells: Sequence[Cell], than: str, what: str, enough: int) -> Figure:
    """In how many cells ours is no larger, and in how many that or the opposite is beyond doubt."""
    kept = sum(statistics.mean(cell.ours) <= statistics.mean(getattr(cell, than)) for cell in cells)
    sure = [_bounds(cell.ours, getattr(cell, than)) for cell in cells]
    told = f"{kept} (surely less in {sum(low > 0 for low, _ in sure)}, surely more in {sum(high < 0 for _, high in sure)})"
    return Figure(f"cells of {len(cells)} with a mean error ≤ {what}", f"≥ {enough}" if enough else "", told, kept >= enough)


def _cell(name: str, circuit: QuantumScript, noise: Noise, executor: Drawn, peer: Mitiq, repeat: int, first: int) -> Cell:
    backend, ideal, measured = Backend(name="default.mixed", noise=noise, shots=SHOTS), exact(circuit), measurement(circuit)
    cell, plain = Cell(name, *([] for _ in range(8))), measured.circuits(circuit.operations, 3 * SHOTS)
    for stream in range(first, first + 100 * repeat, 100):
        answers = executor.run(readout.calibration(range(QUBITS), SHOTS), backend, stream=stream)
        confusion = readout.confusion(answers, SHOTS)
        found = mitigate(circuit, Mitigation(readout=True), backend, executor=executor, stream=stream + 1, confusion=confusion)
        cell.raw.append(abs(measured.estimate(executor.run(plain, backend, stream=stream + 2), plain).value - ideal))
        cell.ours.append(abs(found.value - ideal))
        for curve, value in peer.values(circuit, backend, confusion, stream + 10).items():
            getattr(cell, curve).append(abs(value - ideal))
            getattr(cell, f"{curve}_cut").append(abs(np.clip(value, *measured.range) - ideal))
    return cell


def _bounds(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Of the mean difference, theirs less ours; without bounds where there is one."""
    gains = np.subtract(theirs, ours)
    if len(gains) < 2:
        return -np.inf, np.inf
    half = float(t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return float(gains.mean()) - half, float(gains.mean()) + half


def _interval(ours: Sequence[float], theirs: Sequence[float]) -> str:
    low, high = _bounds(ours, theirs)
    return f"{np.subtract(theirs, ours).mean():.4f} ({low:.4f} to {high:.4f})"


def _together(angle: float, first: int, second: int) -> list[Operator]:
    return [qml.CNOT([first, second]), qml.RZ(2 * angle, second), qml.CNOT([first, second])]
