"""How much noise a job takes: the least with which the whole of it costs at most its epsilon."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from qedge.analytics.encoding import bounds_of
from qedge.errors import InvalidPrivacy
from qedge.federated.guarantee import EVALUATION_SENSITIVITY_SQUARED, Guarantee, Scaling, charged_evaluation
from qedge.federated.selection.drawing import expected_cohort
from qedge.job import Privacy, SecureAggregation, TrainingJob
from qedge.privacy import banded
from qedge.privacy.accounting import (
    NANO,
    Calibration,
    RenyiCost,
    allowance,
    calibrate,
    evaluation_variance,
    sampled_gaussian,
)
from qedge.privacy.clipping import Grid
from qedge.privacy.distributed import calibrate_shares
from qedge.privacy.mechanisms import NoiseKind
from qedge.privacy.noise_share import NoiseShare
from qedge.privacy.rotation import ring_bits, rotation_pays, signal_reach

_MOST_BANDS = 32  # as many exact sums have to be kept; more gain little
WRAPS = 1e-9  # chance a round, at most, that noise takes a secure sum out of its ring
_SCALING_DEVIATION = 1 << 14  # of its noise in grid units, roughly: rounding is lost in it up to millions of clients
_EVALUATION_SHARE = 0.05  # of the run's allowance, for the one evaluation at the end


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
    scaled = job.data.scale_epsilon if job.data.scale == "private" else 0.0
    share = 1 - (_EVALUATION_SHARE if evaluated else 0.0) - scaled
    if job.secure_aggregation is not None:
        guarantee = _shared(job, privacy, grid, job.secure_aggregation, order)
    elif job.cohort.period is not None:
        guarantee = _in_turns(job, privacy, grid, job.cohort.period, share, order)
    else:
        guarantee = _sampled(job, privacy, grid, expected_cohort(job.cohort, clients), share, order)
    if evaluated:
        left = round(guarantee.per_round.at(guarantee.order) * job.rounds * _EVALUATION_SHARE / share)
        variance = evaluation_variance(left, guarantee.order, EVALUATION_SENSITIVITY_SQUARED)
        evaluation = sampled_gaussian(EVALUATION_SENSITIVITY_SQUARED, variance, 1.0)
        guarantee = replace(guarantee, evaluation=evaluation, evaluation_variance=variance)
    if scaled:
        guarantee = replace(guarantee, scaling=_scaling(guarantee, 2 * len(job.data.ranges or {}), scaled / share))
    if not guarantee.is_exact_at(privacy.epsilon):
        raise InvalidPrivacy(
            f"privacy.epsilon is {privacy.epsilon}; so little noise protects nothing that could be proved; accepted: less, as 10"
        )
    return guarantee


def _scaling(guarantee: Guarantee, dimensions: int, of_rounds: float) -> Scaling:
    """The least noise for the release before training. of_rounds: what it may cost, as a share of all rounds."""
    nanos = math.floor(Fraction(of_rounds) * guarantee.per_round.at(guarantee.order) * guarantee.rounds)
    if nanos < 1:
        raise InvalidPrivacy("privacy.epsilon leaves nothing for 'scale: private'; accepted: a larger one, or 'scale: given'")
    multiplier = math.sqrt(guarantee.order * NANO / (2 * nanos))
    bound = bounds_of([Fraction(1)] * dimensions, multiplier, _SCALING_DEVIATION)[0]
    variance = evaluation_variance(nanos, guarantee.order, dimensions * bound**2)
    return Scaling(bound, dimensions, variance, sampled_gaussian(dimensions * bound**2, variance, 1.0))


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
        weight = _count_weight(grid, fit.variance, expected)
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


def _shared(job: TrainingJob, privacy: Privacy, grid: Grid, secure: SecureAggregation, order: int | None) -> Guarantee:
    """Each client adds a share of the noise: accounted against the server, which knows the cohort and sees the sum of each group.

    Nothing is amplified: cohorts are no secret to the server, and do not depend on anybody's rows, so that emptying a client moves its
    group's sum by one bound.
    """
    kind: NoiseKind = "skellam" if job.noise == "skellam" else "discrete-gaussian"
    groups = secure.groups(job.cohort.size or 0)
    honest, most = min(group.honest for group in groups), max(group.members for group in groups)

    def fit(count_weight: int) -> Calibration:
        squared, length = grid.sensitivity_squared + count_weight**2, grid.params + (1 if count_weight else 0)
        return calibrate_shares(kind, privacy.epsilon, privacy.delta, squared, length, honest, job.rounds, order=order)

    calibrated, weight = fit(0), 0
    if privacy.clipping.quantile is not None:
        weight = _count_weight(grid, calibrated.variance * honest, float(job.cohort.size or 1))
        calibrated = fit(weight)
    squared, length = grid.sensitivity_squared + weight**2, grid.params + (1 if weight else 0)
    share = NoiseShare(kind, calibrated.variance, honest)
    noise = share.reach(most, length, WRAPS)
    rotated = rotation_pays(grid.params, grid.sensitivity_squared, most, noise, chance=WRAPS)
    signal = max(signal_reach(grid.params, grid.sensitivity_squared, most, rotated=rotated, chance=WRAPS), most * weight)
    return Guarantee(
        grid,
        sensitivity_squared=squared,
        variance=calibrated.variance * honest,
        rate=1.0,
        rounds=job.rounds,
        order=calibrated.order,
        delta=privacy.delta,
        per_round=calibrated.cost_round,
        count_weight=weight,
        share=share,
        honest=honest,
        opened=(sum(group.survivors for group in groups), sum(group.honest for group in groups)),
        ring_bits=ring_bits(signal, noise),
        rotated=rotated,
    )


def _count_weight(grid: Grid, variance: int, expected: float) -> int:
    """What a client adds to the count of those within the clipping bound.

    A standard deviation of a twentieth of the cohort on the count, as Andrew et al. (2021) advise, σ/(2w) = m/20; but of small cohorts,
    where that would cost most of the budget, no more than a twentieth of the squared sensitivity.
    """
    most = math.isqrt(grid.sensitivity_squared // 20)
    return max(1, min(most, round(10 * math.sqrt(variance) / max(1.0, expected))))


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
