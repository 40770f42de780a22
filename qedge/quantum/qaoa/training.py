"""Angles of a QAOA circuit: found exactly here, or on the backend that runs it, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qedge.quantum.backend import device
from qedge.quantum.execution import Executor
from qedge.quantum.optimisers import Search, descend, perturb
from qedge.quantum.progress import OnStep, Step
from qedge.quantum.qaoa import angles
from qedge.quantum.qaoa.classical import Found, ascend
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.problems import Problem, Reals
from qedge.quantum.qaoa.sampling import Drawn, Sampler
from qedge.quantum.qaoa.simulation import Simulation, refuse_too_large

MEAN = 1000  # shots that leave an error of 3 % of the spread of the gain


class Training:
    """The search for one job's angles, and what it took.

    Raises, when it is made: TooManyQubits, UnknownBackend, BackendUnavailable.

    evaluations: of mean gains; started: the solution of a warm start; sampler: of the backend; history: the mean gain, step by step.
    """

    def __init__(self, job: QAOA, problem: Problem, executor: Executor, on_step: OnStep) -> None:
        self.job, self.problem = job, problem
        self.started: Found | None = ascend(problem, np.random.default_rng([job.seed, 0])) if job.warm_start else None
        self.thetas = None if self.started is None else angles.warm(self.started.bits)
        self.on_backend = job.on_backend and job.optimiser.kind == "spsa"
        self.sampler = Sampler(problem, job.backend, executor, self.thetas)
        self.evaluations = 0
        self.history: list[float] = []
        self.warnings: list[str] = []
        self._draw = np.random.default_rng([job.seed, 1])
        self._on_step = on_step
        self._simulation: Simulation | None = None
        if job.on_backend:
            device(job.backend, problem.qubits, job.backend.seed)  # one that there is not is refused before any angle is sought
        if not self.on_backend:
            refuse_too_large(problem, job.layers, warm=job.warm_start)
            self._simulation = Simulation(problem, self.thetas)

    def find(self) -> Reals:
        """The angles, [2p], in units of the problem's couplings.

        Raises:
            TooManyQubits, UnknownBackend, BackendUnavailable, InvalidCircuit: as the executor does.
        """
        job = self.job
        if job.start == "interpolate":
            found = self._best_of([angles.one_layer(self.problem)], 1)
            while len(found) < 2 * job.layers:
                found = self._best_of([angles.one_more(found)], len(found) // 2 + 1, restarts=1)
            return found
        return self._best_of([angles.straight(job.layers)] if job.start == "ramp" else [], job.layers)

    @property
    def executions(self) -> int:
        """Circuits that ran: on the backend, and as states here."""
        return self.sampler.circuits + (0 if self.on_backend else self.evaluations)

    @property
    def effort(self) -> int:
        """Evaluations of the gain of a bitstring: one for each shot, those of the warm start, and for a mean that is known exactly as many
        as a device would take to know it well."""
        means = self.executions - (self.sampler.circuits if self.job.backend.shots else 0)
        return self.sampler.shots + MEAN * means + (self.started.evaluations if self.started else 0)

    def outcome(self, found: Reals) -> Drawn:
        """What the circuit yields at these angles: measured where the backend measures, else exact."""
        if self.job.on_backend:
            self._on_step(Step("measuring", 1, 1))
            return self.sampler.draw([found])[0]
        assert self._simulation is not None
        return Drawn(self.problem.diagonal(), self._simulation.probabilities(*angles.split(self.problem, found)), None)

    def _best_of(self, starts: list[Reals], layers: int, restarts: int | None = None) -> Reals:
        """From the given beginnings, and from random ones until there are as many as asked for."""
        restarts = self.job.optimiser.restarts if restarts is None else restarts
        starts = starts + [angles.at_random(layers, self._draw) for _ in range(restarts - len(starts))]
        searches = [self._search(start, layers) for start in starts]
        best = min(searches, key=lambda search: search.value)
        self.evaluations += sum(search.evaluations for search in searches)
        self.warnings += [warning for search in searches for warning in search.warnings]
        self.history += [self._gain(-value) for value in best.history]
        return best.parameters

    def _search(self, start: Reals, layers: int) -> Search:
        """Optimisers go down, so they are told what a gain falls short of."""
        method, stage = self.job.optimiser.method, f"{layers} layer{'s' * (layers > 1)}"

        def told(step: Step) -> None:
            self._on_step(replace(step, value=None if step.value is None else self._gain(-step.value)))

        if method.kind == "spsa":
            return perturb(self._values, start, method, self._draw, stage, told)
        return descend(self._value_and_gradient, start, method, stage, told)

    def _value_and_gradient(self, point: Reals) -> tuple[float, Reals]:
        assert self._simulation is not None
        mean, by_gamma, by_beta = self._simulation.gain_and_gradient(*angles.split(self.problem, point))
        scale = 1 / self.problem.spread
        return -self._scaled(mean), np.concatenate([by_gamma / angles.unit(self.problem), by_beta]) * -scale

    def _values(self, points: Sequence[Reals]) -> list[float]:
        if self._simulation is None:
            return [-self._scaled(mean) for mean in self.sampler.means(points)]
        return [-self._scaled(self._simulation.gain(*angles.split(self.problem, point))) for point in points]

    def _scaled(self, mean: float) -> float:
        """In standard deviations of a random bitstring above its mean: what optimisers see."""
        return (mean - self.problem.constant) / self.problem.spread

    def _gain(self, scaled: float) -> float:
        return self.problem.constant + scaled * self.problem.spread
