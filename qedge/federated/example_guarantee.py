"""What a run of DP-SGD at the clients will cost and may claim, and which plan a job takes.

A client takes part in `rounds` rounds at most, and each is `steps` releases of its own, whatever the cohort: who is drawn amplifies
nothing here, so that the same holds against the server, and against whoever knows the roster. Where the data have no scope, or one whose
unit is the example, a step is a Poisson-sampled Gaussian and one row what is emptied. Where they have a scope of whole clients, a step
costs that scope what the client's rows in a batch may move together (`qedge.privacy.mixture`).
"""

from __future__ import annotations

from qedge.errors import InvalidPrivacy, ScopeConflict
from qedge.federated.guarantee import Guarantee
from qedge.federated.planning import plan_guarantee
from qedge.job import Privacy, TrainingJob
from qedge.privacy.accounting import ORDERS, RenyiCost, calibrate
from qedge.privacy.example_sums import NoisySteps, SumGrid, least_variance
from qedge.privacy.ledger_events import Scope
from qedge.privacy.mixture import group_nanos, group_variance, most_nanos


def refuse_hopeless(job: TrainingJob, clients: int, params: int) -> None:
    """Refuse a job that no scope could take, before it is known which one it would charge.

    Raises:
        InvalidPrivacy: as `plan_guarantee`.
    """
    if job.privacy is None or job.privacy.unit == "client":
        plan_guarantee(job, clients, params, order=None)
    else:
        _refuse_delta(job.privacy, clients, "clients")
        _plan(job.privacy, SumGrid(job.privacy.clipping.bound, params), job.rounds, None, "example")


def plan_for(job: TrainingJob, clients: int, params: int, scope: Scope | None) -> Guarantee:
    """The least noise with which the whole job costs the scope at most the job's epsilon; scope: None when the job will open it.

    Raises:
        InvalidPrivacy: as `plan_guarantee`.
        ScopeConflict: the scope protects another unit, and the job cannot be accounted in it.
    """
    privacy, order = job.privacy, scope.order if scope else None
    if privacy is None or privacy.unit == "client":
        if scope is not None and scope.unit != "client":
            raise ScopeConflict(
                f"scope '{scope.name}' counts what single examples lose, and this job protects whole clients; accepted on these data: "
                "'privacy.unit: example'",
                scope=scope.name,
                unit=scope.unit,
            )
        return plan_guarantee(job, clients, params, order)
    unit = scope.unit if scope else "example"
    if unit == "example":
        _refuse_delta(privacy, clients * (privacy.max_rows or 1), "clients × privacy.max_rows")
    else:
        _refuse_delta(privacy, clients, "clients")
    return _plan(privacy, SumGrid(privacy.clipping.bound, params), job.rounds, order, unit)


def _plan(privacy: Privacy, coarse: SumGrid, rounds: int, order: int | None, unit: str) -> Guarantee:
    rate, steps, rows = privacy.rate or 0.0, privacy.steps or 0, privacy.max_rows or 0
    together = rows if unit == "client" else 1
    variance, chosen = _least_noise(privacy, coarse, rounds * steps, order, together)
    grid = coarse.refined_for(variance, least := least_variance(chosen, together))
    variance, chosen = _least_noise(privacy, grid, rounds * steps, order, together)
    variance = max(variance, least)
    step = [_step_nanos(grid, variance, rate, together, each) for each in ORDERS]
    guarantee = Guarantee(
        grid,
        sensitivity_squared=grid.sensitivity_squared,
        variance=variance,
        rate=rate,
        rounds=rounds,
        order=chosen,
        delta=privacy.delta,
        per_round=RenyiCost(tuple(step)) * steps,
        steps=steps,
        max_rows=rows,
        unit=unit,
    )
    NoisySteps(grid, variance, rate, steps, rows)  # refuses noise that cannot be drawn
    if not guarantee.is_exact_at(privacy.epsilon):
        raise InvalidPrivacy(
            f"privacy.epsilon is {privacy.epsilon}; so little noise protects nothing that could be proved; accepted: less, as 10"
        )
    return guarantee


def _step_nanos(grid: SumGrid, variance: int, rate: float, rows: int, order: int) -> int:
    return group_nanos(grid.sensitivity_squared_at(order, rows, variance), variance, rate, rows, order)


def _least_noise(privacy: Privacy, grid: SumGrid, releases: int, order: int | None, rows: int) -> tuple[int, int]:
    """The variance, and the order at which it is counted: the scope's, or the best where the job opens one."""
    if rows > 1 and order is not None:
        nanos = most_nanos(privacy.epsilon, privacy.delta, order, releases)
        return group_variance(nanos, order, grid.sensitivity_squared, privacy.rate or 0.0, rows), order
    fit = calibrate(privacy.epsilon, privacy.delta, grid.sensitivity_squared, privacy.rate or 0.0, releases, order=order)
    return fit.variance, fit.order


def _refuse_delta(privacy: Privacy, units: int, what: str) -> None:
    """Refuse a delta that could give up one of so many units whole."""
    if privacy.delta * units >= 1:
        raise InvalidPrivacy(f"privacy.delta is {privacy.delta}; accepted: below 1/({what}) = {1 / units:.3g}", given=privacy.delta)
