"""What a run under privacy costs and claims, before it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qedge.errors import InvalidPrivacy
from qedge.federated.guarantee import EVALUATION_SENSITIVITY_SQUARED, read_guarantee
from qedge.federated.planning import plan_guarantee
from qedge.job import TrainingJob
from qedge.privacy.accounting import epsilon_of, sampled_gaussian

Make = Callable[..., TrainingJob]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epsilon=st.floats(0.1, 20),
    rate=st.floats(0.01, 1),
    rounds=st.integers(1, 300),
    params=st.integers(1, 5000),
    order=st.one_of(st.none(), st.integers(2, 30)),
)
def test_the_whole_plan_costs_at_most_its_epsilon_and_hardly_less(make_job: Make, epsilon, rate, rounds, params, order):
    job = make_job(rounds=rounds, cohort={"rate": rate}, privacy={"epsilon": epsilon, "delta": 1e-3})
    try:
        guarantee = plan_guarantee(job, 400, params, order)
    except InvalidPrivacy:
        # Only where that order cannot express so small an epsilon at this delta, whatever the noise.
        assert order is not None
        assert epsilon_of(0, order, 1e-3) > epsilon * 0.9
        return
    assert 0.9 * epsilon <= guarantee.epsilon(rounds) <= epsilon
    if order is None:  # else the released model is converted at that order, the roster holder's figure at its best
        roster = guarantee.roster_epsilon()
        assert roster is None or roster >= guarantee.epsilon(rounds) * (1 - 1e-9)
    # The cost is that of the noise that will be drawn, against the sensitivity of the grid it will be drawn on.
    assert guarantee.per_round == sampled_gaussian(guarantee.grid.sensitivity_squared, guarantee.variance, rate)
    assert read_guarantee(guarantee.plain()) == guarantee


def test_a_cohort_of_fixed_size_is_accounted_without_amplification_at_twice_the_bound(make_job: Make):
    uniform = plan_guarantee(make_job(cohort={"sampling": "uniform", "rate": None, "size": 10}), 30, 100, None)
    assert uniform.rate == 1
    assert uniform.sensitivity_squared == 4 * uniform.grid.sensitivity_squared
    poisson = plan_guarantee(make_job(cohort={"rate": 1 / 3}), 30, 100, None)
    assert uniform.variance > 4 * poisson.variance


def test_an_evaluation_of_private_rows_is_part_of_the_plan_and_of_its_epsilon(make_job: Make):
    charged = plan_guarantee(make_job(data={"evaluation": None}), 30, 100, None)
    public = plan_guarantee(make_job(), 30, 100, None)
    assert charged.evaluation is not None
    assert charged.evaluation_variance is not None
    assert charged.evaluation == sampled_gaussian(EVALUATION_SENSITIVITY_SQUARED, charged.evaluation_variance, 1.0)
    assert charged.epsilon(4) < charged.epsilon(4, evaluated=True) <= 6
    assert charged.variance > public.variance
    assert public.evaluation is None


@pytest.mark.parametrize(("clients", "said"), [(1, "two clients"), (100, "1/clients")])
def test_too_few_clients_or_too_large_a_delta_is_refused(make_job: Make, clients: int, said: str):
    with pytest.raises(InvalidPrivacy, match=said):
        plan_guarantee(make_job(privacy={"delta": 0.01}), clients, 100, None)


def test_an_epsilon_that_no_sampler_could_prove_is_refused(make_job: Make):
    with pytest.raises(InvalidPrivacy, match="epsilon"):
        plan_guarantee(make_job(privacy={"epsilon": 200}), 30, 100, None)


def test_a_roster_figure_that_the_sampler_cannot_prove_is_not_given(make_job: Make):
    sampled_rarely = plan_guarantee(make_job(rounds=200, cohort={"rate": 0.05}, privacy={"epsilon": 8, "delta": 1e-3}), 400, 650, None)
    assert sampled_rarely.roster_epsilon() is None
    often = plan_guarantee(make_job(rounds=60, cohort={"rate": 0.25}, privacy={"epsilon": 8, "delta": 1e-3}), 400, 650, None)
    assert 40 < often.roster_epsilon() < 60


def test_nothing_is_spent_before_the_first_round(make_job: Make):
    guarantee = plan_guarantee(make_job(), 30, 100, None)
    assert guarantee.epsilon(0) == 0.0
    spent = [guarantee.epsilon(number) for number in range(5)]
    assert spent == sorted(spent)
