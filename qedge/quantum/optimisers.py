"""Minimisers: L-BFGS, Adam, SPSA; the best point so far is kept, and a search that diverges is stopped and says so.

Sources: J. C. Spall, "Implementation of the Simultaneous Perturbation Algorithm", IEEE Trans. Aerospace and Electronic Systems 34 (1998);
A. Kandala et al., Nature 549 (2017) 242, supplement (its first step calibrated); D. P. Kingma, J. Ba, "Adam" (2015), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize

from qedge.quantum.method import Method
from qedge.quantum.progress import OnStep, Step, untold

Parameters = NDArray[np.float64]
Smooth = Callable[[Parameters], tuple[float, Parameters]]
Measure = Callable[[Sequence[Parameters]], list[float]]
CALIBRATION = 10  # pairs of measurements that set the length of SPSA's first step
PATIENCE = 20  # steps on end that stand above the beginning before a search counts as diverged


@dataclass
class Search:
    """A search under way, and what it came to. history: the value of each step; evaluations: of the function."""

    stage: str
    told: OnStep = untold
    steps: int | None = None
    value: float = math.inf
    parameters: Parameters = field(default_factory=lambda: np.zeros(0))
    history: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    evaluations: int = 0

    def step(self, value: float, parameters: Parameters) -> bool:
        """Take a step down; whether to go on: no, when the search has diverged."""
        if not (math.isfinite(value) and np.isfinite(parameters).all()):
            self.warnings.append(f"{self.stage} diverged at step {len(self.history) + 1}: not finite; the best so far is kept")
            return False
        self.history.append(value)
        self.told(Step(self.stage, len(self.history), self.steps, value))
        if value < self.value:
            self.value, self.parameters = value, parameters.copy()
        if len(self.history) > PATIENCE and self._stands_above_the_beginning():
            self.warnings.append(
                f"{self.stage} diverged: above its beginning for {PATIENCE} steps until step {len(self.history)}; the best so far is kept"
            )
            return False
        return True

    def _stands_above_the_beginning(self) -> bool:
        last = np.array(self.history[-PATIENCE:])
        return bool(last.min() > self.history[0] and last.mean() - 3 * last.std() / math.sqrt(PATIENCE) > self.history[0])


def descend(function: Smooth, start: Parameters, method: Method, stage: str, told: OnStep = untold) -> Search:
    """Minimise by exact gradients, with L-BFGS or Adam; function: value and gradient [parameters]."""
    search = Search(stage, told, method.steps, parameters=start.copy())
    if not len(start):
        search.value, search.evaluations = function(start)[0], 1
        search.history.append(search.value)
        return search
    return (_adam if method.kind == "adam" else _lbfgs)(function, start, method, search)


def _lbfgs(function: Smooth, start: Parameters, method: Method, search: Search) -> Search:
    finite = True

    def counted(parameters: Parameters) -> tuple[float, Parameters]:
        nonlocal finite
        search.evaluations += 1
        value, gradient = function(parameters)
        finite = finite and math.isfinite(value) and bool(np.isfinite(gradient).all())
        return value, gradient

    def stepped(intermediate_result: OptimizeResult) -> None:  # scipy looks at this name
        before = search.value
        going_on = search.step(float(intermediate_result.fun), np.asarray(intermediate_result.x))
        if not going_on or 0 <= before - search.value < method.tolerance:
            raise StopIteration

    search.step(counted(start)[0], start)
    steps = method.steps
    options = {"maxiter": steps, "maxfun": 20 * steps, "ftol": 0, "gtol": 1e-12, "maxls": 40}
    minimize(counted, start, jac=True, method="L-BFGS-B", callback=stepped, options=options)
    if not finite and not search.warnings:
        search.warnings.append(f"{search.stage} diverged: not finite after step {len(search.history)}; the best so far is kept")
    return search


def _adam(function: Smooth, start: Parameters, method: Method, search: Search) -> Search:
    parameters, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, method.steps + 1):
        value, gradient = function(parameters)
        search.evaluations += 1
        before = search.value
        if not search.step(value, parameters):
            break
        if 0 <= before - value < method.tolerance:
            break
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameters = parameters - method.rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return search


def perturb(measure: Measure, start: Parameters, method: Method, draw: np.random.Generator, stage: str, told: OnStep = untold) -> Search:
    """Minimise from measured values alone, with SPSA; measure: the value of each of several points, measured together.

    The point that comes out is the mean of the last tenth of the steps, not the luckiest measurement; where the search has diverged, it is
    the point of the best step.
    """
    steps = method.steps
    search = Search(stage, told, steps, parameters=start.copy())
    shift = method.perturbation

    def pair(parameters: Parameters, size: float) -> tuple[Parameters, list[Parameters]]:
        direction = draw.choice([-1.0, 1.0], len(parameters))
        return direction, [parameters + size * direction, parameters - size * direction]

    tried = [pair(start, shift) for _ in range(CALIBRATION)]
    values = measure([point for _, both in tried for point in both])
    search.evaluations += len(values)
    slope = float(np.mean(np.abs(np.subtract(values[::2], values[1::2])))) / (2 * shift)
    delay = steps / 10
    gain = method.rate * (1 + delay) ** 0.602 / max(slope, method.flat)
    parameters, tail = start.copy(), []
    for step in range(steps):
        size = shift / (1 + step) ** 0.101
        direction, points = pair(parameters, size)
        high, low = measure(points)
        search.evaluations += 2
        if not search.step((high + low) / 2, parameters):
            return search
        parameters = parameters - gain / (1 + step + delay) ** 0.602 * (high - low) / (2 * size) * direction
        if step >= steps - max(1, steps // 10):
            tail.append(parameters)
    search.parameters = np.mean(tail, axis=0)
    return search
