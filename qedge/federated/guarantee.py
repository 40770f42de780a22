"""What a run under privacy will cost and may claim, decided whole before anything is computed.

Central client-level differential privacy on the integer grid: relation zero-out (one client's rows emptied, the number of
clients public), sensitivity one bound, discrete Gaussian noise (Canonne, Kamath, Steinke 2020), Poisson sampling accounted at
integer orders (Mironov, Talwar, Zhang 2019). A cohort of fixed size is accounted without amplification, at twice the bound.
Clients that take turns are accounted as one release of the whole run, its noise correlated over rounds (`qedge.privacy.banded`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from pydantic import JsonValue

from qedge.errors import InvalidPrivacy
from qedge.federated.selection.drawing import expected_cohort
from qedge.job import Privacy, TrainingJob
from qedge.privacy import banded
from qedge.privacy.accounting import (
    Calibration,
    RenyiCost,
    allowance,
    best_order,
    calibrate,
    epsilon_of,
    evaluation_variance,
    exact_delta,
    sampled_gaussian,
)
from qedge.privacy.banded import BandedStrategy
from qedge.privacy.clipping import Grid
from qedge.privacy.example_sums import NoisySteps, SumGrid
from qedge.privacy.mechanisms import DiscreteGaussian

EVALUATION_ROWS = 64  # public cap on the held-out rows of a client that a charged evaluation looks at
EVALUATION_SENSITIVITY_SQUARED = 2 * EVALUATION_ROWS**2  # two counts, to each of which a client adds at most so many
_UNCOUNTED = 1e-9  # of delta; less than the rounding of the number that is shown
_MOST_BANDS = 32  # as many exact sums have to be kept; more gain little
_EVALUATION_SHARE = 0.05  # of the run's allowance, for the one evaluation at the end


@dataclass(frozen=True)
class Guarantee:
    """The mechanism of a run and its cost.

    sensitivity_squared: squared norm, in grid units, of what one client may change in the sum as the accountant sees it;
    variance: of the noise, in grid units squared; evaluation_variance: of the noise on either count of the one charged evaluation, or
    None; count_weight: w of `release.AdaptiveClipping`, or 0; strategy: coefficients of the banded strategy and separation, the rounds
    between two of a client, where clients take turns, else () and 0; steps, max_rows: with DP-SGD at the clients, whose grid, sensitivity,
    variance and rate are those of a step, else 0; unit: what it holds for, the unit of the scope that it charges.
    """

    grid: Grid | SumGrid
    sensitivity_squared: int
    variance: int
    rate: float
    rounds: int
    order: int
    delta: float
    per_round: RenyiCost
    evaluation: RenyiCost | None = None
    evaluation_variance: int | None = None
    count_weight: int = 0
    strategy: tuple[int, ...] = ()
    separation: int = 0
    steps: int = 0
    max_rows: int = 0
    unit: str = "client"

    @property
    def noisy_steps(self) -> NoisySteps | None:
        """What clients do in a round of DP-SGD; None where their updates are clipped whole."""
        return NoisySteps(self.grid, self.variance, self.rate, self.steps, self.max_rows) if isinstance(self.grid, SumGrid) else None

    @property
    def updates_grid(self) -> Grid | None:
        """What clients' whole updates are clipped and rounded to; None under DP-SGD."""
        return self.grid if isinstance(self.grid, Grid) else None

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the sensitivity."""
        return float((self.variance / self.sensitivity_squared) ** 0.5)

    @property
    def total_variation(self) -> float:
        """How far the sampled noise of the whole run may be from the exact distribution (see `is_exact_at`)."""
        dimensions = self.grid.params + (1 if self.count_weight else 0)
        whole = DiscreteGaussian(self.variance).total_variation * dimensions * self.rounds * max(1, self.steps)
        return whole + (2 * DiscreteGaussian(self.evaluation_variance).total_variation if self.evaluation_variance else 0.0)

    def cost(self, rounds: int, *, evaluated: bool) -> RenyiCost:
        """What so many rounds spend, with the evaluation or without."""
        cost = self._first(rounds) if self.strategy and rounds < self.rounds else self.per_round * rounds
        return cost + self.evaluation if evaluated and self.evaluation else cost

    def _first(self, rounds: int) -> RenyiCost:
        """Of the first rounds where clients take turns: they alone are the same mechanism over so many rounds."""
        factor = banded.sensitivity_squared(BandedStrategy(self.strategy), rounds, self.separation) if rounds else 0
        return sampled_gaussian(self.grid.sensitivity_squared * factor, self.variance, 1.0) if rounds else RenyiCost.zero()

    def epsilon(self, rounds: int, *, evaluated: bool = False) -> float:
        """Of the released models after so many rounds, at the scope's order."""
        if rounds == 0:
            return 0.0
        return epsilon_of(self.cost(rounds, evaluated=evaluated).at(self.order), self.order, self.delta)

    def roster_epsilon(self) -> float | None:
        """Against whoever knows who took part in every round: the same noise with no amplification by sampling.

        None where the noise is not sampled exactly enough to prove so large an epsilon. DP-SGD does not count on secret cohorts.
        """
        if self.steps:
            return self.epsilon(self.rounds)
        once = sampled_gaussian(self.sensitivity_squared, self.variance, 1.0)
        unsampled = self.per_round * self.rounds if self.strategy else once * self.rounds
        whole = unsampled + self.evaluation if self.evaluation else unsampled
        bound = best_order(whole, self.delta)[1] * 1.001 + 0.01
        try:  # what inexact sampling takes of delta at `bound` is more than it takes below
            epsilon = best_order(whole, exact_delta(self.delta, bound, self.total_variation))[1]
        except InvalidPrivacy:
            return None
        return epsilon if epsilon <= bound else None

    def is_exact_at(self, epsilon: float) -> bool:
        """Whether sampling that is off by a total variation τ, which costs (1 + e^ε)τ of delta, costs too little to be counted."""
        try:
            return exact_delta(self.delta, epsilon, self.total_variation) >= (1 - _UNCOUNTED) * self.delta
        except InvalidPrivacy:
            return False

    def epsilon_at(self, delta: float) -> float:
        """Of the whole run at another delta, at its best order (the plan was fixed before it ran)."""
        return best_order(self.cost(self.rounds, evaluated=True), delta)[1]

    def plain(self) -> dict[str, JsonValue]:
        """What is put on record and read back by `read`; numbers that are not integers as decimal strings."""
        return {
            "bound": repr(self.grid.bound),
            "params": self.grid.params,
            "sensitivity_squared": self.sensitivity_squared,
            "variance": self.variance,
            "rate": repr(self.rate),
            "rounds": self.rounds,
            "order": self.order,
            "delta": repr(self.delta),
            "per_round": list(self.per_round.nanos),
            "evaluation": list(self.evaluation.nanos) if self.evaluation else None,
            "evaluation_variance": self.evaluation_variance,
            "count_weight": self.count_weight,
            "strategy": list(self.strategy),
            "separation": self.separation,
            "steps": self.steps,
            "max_rows": self.max_rows,
            "unit": self.unit,
            "refined": self.grid.refined if isinstance(self.grid, SumGrid) else 0,
        }


def plan_guarantee(job: TrainingJob, clients: int, params: int, order: int | None) -> Guarantee:
    """The least noise with which the whole job costs at most its epsilon.

    order: the Rényi order that the scope to be charged has frozen, or None when the job will open it.

    Raises:
        InvalidPrivacy: one client, delta not below 1/clients, or no noise that would do.
    """
    privacy = job.privacy
    if privacy is None:
        raise InvalidPrivacy("the job says 'privacy: none', there is nothing to guarantee")
    if clients < 2:
        raise InvalidPrivacy("client-level privacy needs at least two clients; the client column names one")
    if privacy.delta >= 1 / clients:
        raise InvalidPrivacy(f"privacy.delta is {privacy.delta}; accepted: below 1/clients = {1 / clients:.3g}", given=privacy.delta)
    grid = Grid(privacy.clipping.bound, params)
    evaluated = job.data.test is not None and charged_evaluation(job)
    share = 1 - _EVALUATION_SHARE if evaluated else 1.0
    if job.cohort.period is not None:
        guarantee = _in_turns(job, privacy, grid, job.cohort.period, share, order)
    else:
        guarantee = _sampled(job, privacy, grid, expected_cohort(job.cohort, clients), share, order)
    if evaluated:
        left = round(guarantee.per_round.at(guarantee.order) * job.rounds * _EVALUATION_SHARE / share)
        variance = evaluation_variance(left, guarantee.order, EVALUATION_SENSITIVITY_SQUARED)
        evaluation = sampled_gaussian(EVALUATION_SENSITIVITY_SQUARED, variance, 1.0)
        guarantee = replace(guarantee, evaluation=evaluation, evaluation_variance=variance)
    if not guarantee.is_exact_at(privacy.epsilon):
        raise InvalidPrivacy(f"privacy.epsilon is {privacy.epsilon}; past about 40 the noise protects nothing that could be proved")
    return guarantee


def _sampled(job: TrainingJob, privacy: Privacy, grid: Grid, expected: float, share: float, order: int | None) -> Guarantee:
    """Cohorts drawn anew each round, with independent noise."""
    poisson = job.cohort.sampling == "poisson"
    rate = job.cohort.rate or 1.0 if poisson else 1.0

    def calibrated(sensitivity_squared: int) -> Calibration:
        return calibrate(privacy.epsilon, privacy.delta, sensitivity_squared, rate, job.rounds, order=order, share=share)

    def counted(count_weight: int) -> int:
        return (grid.sensitivity_squared + count_weight**2) * (1 if poisson else 4)

    fit, weight = calibrated(counted(0)), 0
    if privacy.clipping.quantile is not None:
        # A standard deviation of a twentieth of the cohort on the count, as Andrew et al. (2021) advise, σ/(2w) = m/20; but of small
        # cohorts, where that would cost most of the budget, no more than a twentieth of the squared sensitivity.
        most = math.isqrt(grid.sensitivity_squared // 20)
        weight = max(1, min(most, round(10 * math.sqrt(fit.variance) / max(1.0, expected))))
        fit = calibrated(counted(weight))
    return Guarantee(
        grid,
        sensitivity_squared=counted(weight),
        variance=fit.variance,
        rate=rate,
        rounds=job.rounds,
        order=fit.order,
        delta=privacy.delta,
        per_round=fit.cost_round,
        count_weight=weight,
    )


def _in_turns(job: TrainingJob, privacy: Privacy, grid: Grid, period: int, share: float, order: int | None) -> Guarantee:
    """Every client once a period, with noise correlated over rounds: one release of the whole run, held and charged in equal parts.

    A part may be less than a round cost by itself, so such a plan is never given back.
    """
    strategy = banded.design(job.rounds, period, _MOST_BANDS)
    sensitivity_squared = grid.sensitivity_squared * banded.sensitivity_squared(strategy, job.rounds, period)
    fit = calibrate(privacy.epsilon, privacy.delta, sensitivity_squared, 1.0, 1, order=order, share=share)
    allowed, variance = math.floor(Fraction(share) * allowance(privacy.epsilon, privacy.delta, fit.order)), fit.variance
    while (per_round := _parts(sensitivity_squared, variance, job.rounds)).at(fit.order) * job.rounds > allowed:
        variance += variance // 10**6 + 1  # parts are rounded up
    return Guarantee(
        grid,
        sensitivity_squared=sensitivity_squared,
        variance=variance,
        rate=1.0,
        rounds=job.rounds,
        order=fit.order,
        delta=privacy.delta,
        per_round=per_round,
        strategy=strategy.coefficients,
        separation=period,
    )


def _parts(sensitivity_squared: int, variance: int, rounds: int) -> RenyiCost:
    """One of so many equal parts of an unsampled release, rounded up."""
    return RenyiCost(tuple(-(-nanos // rounds) for nanos in sampled_gaussian(sensitivity_squared, variance, 1.0).nanos))


def read_guarantee(values: dict[str, JsonValue]) -> Guarantee:
    """The guarantee that `plain` put on record."""
    evaluation, variance = values["evaluation"], values["evaluation_variance"]
    bound, params, refined = float(str(values["bound"])), int(str(values["params"])), int(str(values["refined"]))
    return Guarantee(
        grid=SumGrid(bound, params, refined) if refined else Grid(bound, params),
        sensitivity_squared=int(str(values["sensitivity_squared"])),
        variance=int(str(values["variance"])),
        rate=float(str(values["rate"])),
        rounds=int(str(values["rounds"])),
        order=int(str(values["order"])),
        delta=float(str(values["delta"])),
        per_round=_cost(values["per_round"]),
        evaluation=_cost(evaluation) if evaluation is not None else None,
        evaluation_variance=int(str(variance)) if variance is not None else None,
        count_weight=int(str(values["count_weight"])),
        strategy=_whole(values["strategy"]),
        separation=int(str(values["separation"])),
        steps=int(str(values["steps"])),
        max_rows=int(str(values["max_rows"])),
        unit=str(values["unit"]),
    )


def charged_evaluation(job: TrainingJob) -> bool:
    """Whether clients' held-out rows are private: then they are looked at once, at the end, by noisy counts."""
    return job.privacy is not None and job.data.evaluation != "public" and not isinstance(job.data.test, str)


def _cost(values: JsonValue) -> RenyiCost:
    return RenyiCost(_whole(values)) if isinstance(values, list) else RenyiCost.zero()


def _whole(values: JsonValue) -> tuple[int, ...]:
    return tuple(int(str(value)) for value in values) if isinstance(values, list) else ()
