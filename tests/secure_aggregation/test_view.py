"""The server's whole view of many sessions: all that it cannot remove from the survivors' vectors is uniform, given their sum."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from qedge.secure_aggregation.client import SecureClient
from tests.secure_aggregation import views
from tests.secure_aggregation.views import INPUTS, SURVIVORS, TERMS, Views

RUNS = 10_000


@pytest.mark.slow
def test_what_is_left_of_the_survivors_vectors_is_uniform_given_the_sum():
    """10,000 whole sessions with the same vectors, one member lost when vectors were due; false alarm: 1e-6.

    That the same statistics find worse masks, and worse escrow, in 200 sessions is shown in test_broken_variants.
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(views.taken, [RUNS // 2] * 2, [SecureClient] * 2))
    all_runs = Views(np.concatenate([part.left for part in parts]), np.concatenate([part.escrow for part in parts]))
    sums = TERMS.ring.centred(all_runs.left.sum(axis=1, dtype=np.uint16))
    assert (sums == INPUTS[list(SURVIVORS)].sum(axis=0)).all()  # nothing else is left: in each run the sum is there
    assert views.surprises(all_runs) == []


def test_a_view_with_one_entry_that_leans_by_a_fiftieth_towards_its_input_is_found():
    """So that the claim above can fail: 10,000 uniform views but for that; they are seeded."""
    generator = np.random.default_rng(1)
    left = generator.integers(0, 2**16, (RUNS, len(SURVIVORS), TERMS.length), dtype=np.uint16)
    escrow = generator.integers(0, 256, (RUNS, 3, 3, 32), dtype=np.uint8)
    assert views.surprises(Views(left, escrow)) == []
    leaning = left.copy()
    some = generator.random(RUNS) < 0.02
    leaning[some, 1, 0] = TERMS.ring.elements(INPUTS[1, :1])[0]
    assert views.surprises(Views(leaning, escrow)) != []
