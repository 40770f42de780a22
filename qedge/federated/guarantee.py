"""What a run under privacy costs and may claim: decided whole before anything is computed (`planning`, `example_guarantee`).

Central client-level differential privacy on the integer grid: relation zero-out (one client's rows emptied, the number of
clients public), sensitivity one bound, discrete Gaussian noise (Canonne, Kamath, Steinke 2020), Poisson sampling accounted at
integer orders (Mironov, Talwar, Zhang 2019). A cohort of fixed size is accounted without amplification, at twice the bound.
Clients that take turns are accounted as one release of the whole run, its noise correlated over rounds (`qedge.privacy.banded`); in secure
sums clients add the noise, and the server is who it is accounted against (`qedge.privacy.distributed`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from qedge.errors import InvalidPrivacy
from qedge.job import TrainingJob
from qedge.privacy import banded
from qedge.privacy.accounting import (
    RenyiCost,
    best_order,
    epsilon_of,
    exact_delta,
    sampled_gaussian,
)
from qedge.privacy.banded import BandedStrategy
from qedge.privacy.clipping import Grid
from qedge.privacy.example_sums import NoisySteps, SumGrid
from qedge.privacy.mechanisms import DiscreteGaussian
from qedge.privacy.noise_share import NoiseShare

EVALUATION_ROWS = 64  # public cap on the held-out rows of a client that a charged evaluation looks at
EVALUATION_SENSITIVITY_SQUARED = 2 * EVALUATION_ROWS**2  # two counts, to each of which a client adds at most so many
_UNCOUNTED = 1e-9  # of delta; less than the rounding of the number that is shown


@dataclass(frozen=True)
class Scaling:
    """The release before training, under `scale: private`. See `qedge.analytics.averages`.

    bound: what a client moves a coordinate by at most; dimensions: two for each feature; variance: of the noise, in units squared.
    """

    bound: int
    dimensions: int
    variance: int
    cost: RenyiCost

    @property
    def sensitivity_squared(self) -> int:
        """The largest squared norm of what one client sends."""
        return self.dimensions * self.bound**2


@dataclass(frozen=True)
class Guarantee:
    """The mechanism of a run and its cost.

    sensitivity_squared: squared norm, in grid units, of what one client may change in the sum as the accountant sees it;
    variance: of the noise, in grid units squared; evaluation_variance: of the noise on either count of the one charged evaluation, or
    None; count_weight: w of `release.AdaptiveClipping`, or 0; strategy: coefficients of the banded strategy and separation, the rounds
    between two of a client, where clients take turns, else () and 0; share: what each client adds where nobody else adds noise, in secure
    sums on `ring_bits`, of updates that are rotated where that takes fewer; honest: how many shares at least are in the sum of a group
    that no colluder knows, which `variance` counts on; opened: how many shares at least are in the sum of all groups, and how many of
    them no colluder knows; steps, max_rows: with DP-SGD at the clients, whose grid, sensitivity, variance and rate are those of a step,
    else 0; unit: what it holds for, the unit of the scope that it charges.
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
    scaling: Scaling | None = None
    share: NoiseShare | None = None
    honest: int = 0
    opened: tuple[int, int] = (0, 0)
    ring_bits: int = 0
    rotated: bool = False
    steps: int = 0
    max_rows: int = 0
    unit: str = "client"

    @property
    def length(self) -> int:
        """Entries of what a client gives: its update, and whether it was within the bound where clients say so."""
        return self.grid.params + (1 if self.count_weight else 0)

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
        if self.share is not None:  # each of the shares that are counted on may be off by as much
            return self.share.total_variation * self.length * self.rounds * self.honest
        whole = DiscreteGaussian(self.variance).total_variation * dimensions * self.rounds * max(1, self.steps)
        whole += 2 * DiscreteGaussian(self.evaluation_variance).total_variation if self.evaluation_variance else 0.0
        return whole + (self.scaling.dimensions * DiscreteGaussian(self.scaling.variance).total_variation if self.scaling else 0.0)

    def cost(self, rounds: int, *, evaluated: bool) -> RenyiCost:
        """What so many rounds spend, and what comes before the first; with the evaluation or without."""
        cost = self._first(rounds) if self.strategy and rounds < self.rounds else self.per_round * rounds
        cost = cost + self.scaling.cost if self.scaling else cost
        return cost + self.evaluation if evaluated and self.evaluation else cost

    def _first(self, rounds: int) -> RenyiCost:
        """Of the first rounds where clients take turns: they alone are the same mechanism over so many rounds."""
        factor = banded.sensitivity_squared(BandedStrategy(self.strategy), rounds, self.separation) if rounds else 0
        return sampled_gaussian(self.grid.sensitivity_squared * factor, self.variance, 1.0) if rounds else RenyiCost.zero()

    def epsilon(self, rounds: int, *, evaluated: bool = False) -> float:
        """Of the released models after so many rounds, at the scope's order."""
        if rounds == 0 and self.scaling is None:
            return 0.0
        return epsilon_of(self.cost(rounds, evaluated=evaluated).at(self.order), self.order, self.delta)

    def roster_epsilon(self) -> float | None:
        """Against whoever knows who took part in every round: the same noise with no amplification by sampling.

        None where the noise is not sampled exactly enough to prove so large an epsilon. Under secure aggregation that is whom the plan is
        charged against, the server; and DP-SGD does not count on secret cohorts.
        """
        if self.share is not None or self.steps:
            return self.epsilon(self.rounds)
        once = sampled_gaussian(self.sensitivity_squared, self.variance, 1.0)
        unsampled = self.per_round * self.rounds if self.strategy else once * self.rounds
        whole = unsampled + self.evaluation if self.evaluation else unsampled
        whole = whole + self.scaling.cost if self.scaling else whole
        bound = best_order(whole, self.delta)[1] * 1.001 + 0.01
        try:  # what inexact sampling takes of delta at `bound` is more than it takes below
            epsilon = best_order(whole, exact_delta(self.delta, bound, self.total_variation))[1]
        except InvalidPrivacy:
            return None
        return epsilon if epsilon <= bound else None

    def sum_epsilon(self, *, colluding: bool) -> float:
        """Against whoever sees the sum of all groups, and not those of each: with fellow participants that collude, or without."""
        if self.share is None:
            raise TypeError("noise that is added to the sum of all is the same for both")
        shares = self.opened[1] if colluding else self.opened[0]
        cost = self.share.cost(self.sensitivity_squared, self.length, shares) * self.rounds
        return min(best_order(cost, self.delta)[1], self.epsilon(self.rounds))

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
        scaling: dict[str, JsonValue] = {}
        if self.scaling is not None:
            scaling = {"scaling": {**vars(self.scaling), "cost": list(self.scaling.cost.nanos)}}
        return scaling | {
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
            "share": [self.share.kind, self.share.variance] if self.share else None,
            "honest": self.honest,
            "opened": list(self.opened),
            "ring_bits": self.ring_bits,
            "rotated": self.rotated,
            "steps": self.steps,
            "max_rows": self.max_rows,
            "unit": self.unit,
            "refined": self.grid.refined if isinstance(self.grid, SumGrid) else 0,
        }


def read_guarantee(values: dict[str, JsonValue]) -> Guarantee:
    """The guarantee that `plain` put on record."""
    evaluation, variance, share, opened = (values[name] for name in ("evaluation", "evaluation_variance", "share", "opened"))
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
        share=NoiseShare.read(share, int(str(values["variance"]))),
        honest=int(str(values["honest"])),
        opened=(int(str(opened[0])), int(str(opened[1]))) if isinstance(opened, list) else (0, 0),
        ring_bits=int(str(values["ring_bits"])),
        rotated=bool(values["rotated"]),
        scaling=_read_scaling(values.get("scaling")),
        steps=int(str(values["steps"])),
        max_rows=int(str(values["max_rows"])),
        unit=str(values["unit"]),
    )


def charged_evaluation(job: TrainingJob) -> bool:
    """Whether clients' held-out rows are private: then they are looked at once, at the end, by noisy counts."""
    return job.privacy is not None and job.data.evaluation != "public" and not isinstance(job.data.test, str)


def _read_scaling(values: JsonValue) -> Scaling | None:
    if not isinstance(values, dict):
        return None
    bound, dimensions, variance = (int(str(values[name])) for name in ("bound", "dimensions", "variance"))
    return Scaling(bound, dimensions, variance, _cost(values["cost"]))


def _cost(values: JsonValue) -> RenyiCost:
    return RenyiCost(_whole(values)) if isinstance(values, list) else RenyiCost.zero()


def _whole(values: JsonValue) -> tuple[int, ...]:
    return tuple(int(str(value)) for value in values) if isinstance(values, list) else ()
