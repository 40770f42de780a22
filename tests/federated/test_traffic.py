"""Bytes a round, by hand, and that they are among a run's metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge import train
from qedge.config import Settings
from qedge.federated.planning import plan_guarantee
from qedge.federated.run_folder import RunFolder
from qedge.federated.traffic import Traffic
from qedge.job import TrainingJob
from qedge.privacy.clipping import Grid, to_grid

Make = Callable[..., TrainingJob]


def test_by_hand(make_job: Make):
    assert Traffic.of(100, None, controlled=False) == Traffic(down=400, up=400)
    assert Traffic.of(100, None, controlled=True) == Traffic(down=800, up=800)
    counted = plan_guarantee(make_job(privacy={"clipping": {"bound": 0.5, "quantile": 0.5}}), 30, 100, None)
    assert Traffic.of(100, counted, controlled=False) == Traffic(down=400, up=404)
    assert Traffic(400, 404).metrics(2.5) == {"bytes_down": 1000, "bytes_up": 1010}


@given(params=st.integers(1, 2000), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
def test_an_update_on_the_grid_fits_four_bytes_a_number(params, seed, scale):
    generator = np.random.default_rng(seed)
    rounded = to_grid(generator.normal(0, scale, (1, params)), Grid(0.5, params), generator, lambda row: np.random.default_rng(row))
    assert np.abs(rounded).max() < 2**31


@pytest.mark.parametrize("privacy", ["none", None])
def test_every_round_of_a_run_says_what_it_is_worth(settings: Settings, make_job: Make, privacy):
    result = train(make_job(rounds=2, **({} if privacy is None else {"privacy": privacy})), backend="serial", settings=settings)
    metrics = RunFolder.open(settings.home, result.run_id).metrics_by_round()
    params = 13 * 3 + 3
    assert [one["bytes_up"] for one in metrics.values()] == [15 * 4 * params] * 2


def test_a_secure_round_is_worth_what_its_messages_come_to(settings: Settings, make_job: Make):
    """Of 12 clients: 11 sealed messages of 1,234 bytes each way for each, and for the vectors less than the plain four bytes a number."""
    cohort = {"sampling": "uniform", "rate": None, "size": 12}
    result = train(make_job(rounds=2, cohort=cohort, secure_aggregation={}), backend="serial", settings=settings)
    metrics = RunFolder.open(settings.home, result.run_id).metrics_by_round().values()
    params = 13 * 3 + 3
    for one in metrics:
        assert 12 * 11 * 1234 + 12 * 2 * params < one["bytes_up"] < 12 * (11 * 1300 + 2400)
        assert one["bytes_down"] > 12 * (4 * params + 11 * 1234 + 12 * 1216)
