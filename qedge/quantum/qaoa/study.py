"""A QAOA run from its problem to its result: angles found, circuit measured, classical searches with as many evaluations beside it."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from qedge.quantum.execution import Executor, LocalExecutor
from qedge.quantum.progress import OnStep, untold
from qedge.quantum.qaoa import angles
from qedge.quantum.qaoa.circuit import circuit
from qedge.quantum.qaoa.classical import Bounds, Found, anneal, ascend, best_of_random, bounds, greedy, repeated
from qedge.quantum.qaoa.job import QAOA
from qedge.quantum.qaoa.problems import Problem, problem_of
from qedge.quantum.qaoa.sampling import Drawn
from qedge.quantum.qaoa.training import Training
from qedge.quantum.resources import count
from qedge.quantum.result import Baseline, Result
from qedge.quantum.verdict import compare

MOST_EFFORT = 5000  # evaluations of each classical search, where the quantum side took more
TOLERANCE = 1e-6  # of the ratio: less is rounding
QUANTITY = "mean gain of a bitstring, from the worst (0) to the best (1)"


def run(job: QAOA, *, executor: Executor | None = None, on_step: OnStep = untold) -> Result:
    """Find angles, and what the circuit then yields: the mean gain of a bitstring, between the worst (0) and the best (1).

    For a cut of weights that are not negative this is the approximation ratio, mean cut over largest cut. Angles are found here, exactly,
    unless the optimiser is SPSA and the backend measures; then there. The baseline is a greedy search with restarts, given as many
    evaluations of the cost as the quantum side took, or 5000 if it took more: one for each shot, 1000 for each mean computed exactly.

    Raises:
        TooManyQubits: the exact state would not fit in memory, or the backend's would not.
        InvalidProblem: nothing to optimise.
        UnknownBackend, BackendUnavailable, InvalidCircuit: as the executor does.
    """
    begun = time.perf_counter()
    problem = problem_of(job)
    training = Training(job, problem, executor or LocalExecutor(), on_step)
    found = training.find()
    drawn = training.outcome(found)
    gammas, betas = angles.split(problem, found)
    taken = replace(count(circuit(problem, gammas, betas, [], thetas=training.thetas)), circuits=0)
    effort = training.effort
    searches = {name: repeated(search, problem, job.seed, min(effort, MOST_EFFORT)) for name, search in _SEARCHES.items()}
    limits = bounds(problem, job.seed, [found.gain for one in searches.values() for found in one])
    value, error = limits.ratio(drawn.mean[0]), drawn.mean[1] / limits.range
    baseline, *others = (_baseline(name, found, limits, effort) for name, found in searches.items())
    details: dict[str, JsonValue] = {
        "layers": job.layers,
        **_cost(problem, limits, drawn),
        **_optimum(problem, limits, drawn, searches[baseline.name]),
        "gammas": gammas.tolist(),
        "betas": betas.tolist(),
        "history": [problem.sign * gain for gain in training.history],
        "evaluations": effort,
        "classical_evaluations": max(one.evaluations for one in searches[baseline.name]),
        "warnings": [*training.warnings, *_warnings(limits, training)],
    }
    if training.started is not None:
        details["warm_start_ratio"] = limits.ratio(training.started.gain)
    if drawn.shots is not None:
        details["best_bitstring"] = _best(problem, limits, drawn, drawn.shots)
    return Result(
        kind="qaoa",
        title=f"{problem.title}, {job.layers} layer{'s' * (job.layers > 1)}",
        quantity=QUANTITY,
        value=value,
        error=error,
        baseline=baseline,
        compared=compare(value, baseline.value, better="higher", error=error, baseline_error=baseline.error, tolerance=TOLERANCE),
        resources=taken.spent(shots=training.sampler.shots, circuits=training.executions, seconds=time.perf_counter() - begun),
        others=(*others, Baseline("random bitstring", limits.ratio(problem.constant), how="exact mean of all bitstrings")),
        details=details,
    )


def _one_ascent(problem: Problem, draw: np.random.Generator, _: int) -> Found:
    return ascend(problem, draw)


_SEARCHES = {"greedy with restarts": greedy, "simulated annealing": anneal, "one greedy ascent": _one_ascent}


def _baseline(name: str, found: list[Found], limits: Bounds, effort: int) -> Baseline:
    """The mean of repeated searches, as the quantum value is the mean of a bitstring, not the best of them."""
    ratios = np.array([limits.ratio(one.gain) for one in found])
    took = max(one.evaluations for one in found)
    how = f"mean of {len(found)} untuned searches, each of at most {took} evaluations of the cost; the circuit took {effort}"
    return Baseline(name, float(ratios.mean()), float(ratios.std(ddof=1)) / math.sqrt(len(found)), how)


def _cost(problem: Problem, limits: Bounds, drawn: Drawn) -> dict[str, JsonValue]:
    """As the user counts it."""
    mean, deviation = drawn.mean
    return {
        "mean_cost": problem.sign * mean,
        "mean_cost_error": deviation,
        "best_cost": problem.sign * limits.best,
        "worst_cost": problem.sign * limits.worst,
        "best_is_exact": limits.exact,
    }


def _optimum(problem: Problem, limits: Bounds, drawn: Drawn, found: list[Found]) -> dict[str, JsonValue]:
    """How often a bitstring is an optimum: of the circuit, of a random one, and of the baseline."""
    chance, error = drawn.optimum(limits)
    reached = limits.are_optima(np.array([one.gain for one in found]))
    return {
        "optimum_probability": chance,
        "optimum_probability_error": error,
        "optimum_chance": None if limits.optima is None else limits.optima / 2**problem.qubits,
        "optimum_baseline": float(reached.mean()),
        "optima": limits.optima,
    }


def _best(problem: Problem, limits: Bounds, drawn: Drawn, shots: int) -> dict[str, JsonValue]:
    """The best bitstring that was measured, beside what as many random ones give: on small problems these find the optimum too."""
    bits, gain = drawn.best(problem.qubits)
    return {
        "bits": bits,
        "names": list(problem.names),
        "cost": problem.sign * gain,
        "ratio": limits.ratio(gain),
        "random_draws_ratio": limits.ratio(best_of_random(problem, shots)) if limits.exact else None,
        "note": f"no evidence: the best of {shots} shots; random_draws_ratio is the mean best of as many random bitstrings",
    }


def _warnings(limits: Bounds, training: Training) -> list[str]:
    warnings = []
    if not limits.exact:
        warnings.append("the best and the worst cost are those of classical searches, not proven; the true ratio may be lower")
    if training.started is not None:
        warnings.append("warm start: the circuit begins near a solution of a greedy search, whose ratio is `warm_start_ratio`")
    return warnings
