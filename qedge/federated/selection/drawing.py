"""Who takes part in a round.

Poisson sampling takes each client independently, which is what the accountant's amplification by sampling assumes;
uniform sampling takes a fixed number without replacement; under cyclic sampling clients take turns. These look at nothing that
clients have or do; those that do are in `qedge.federated.selection.informed`.
"""

from __future__ import annotations

import numpy as np

from qedge.federated.randomness import RunKey
from qedge.job import Cohort


def draw_cohort(cohort: Cohort, clients: int, key: RunKey, round_number: int, available: np.ndarray | None = None) -> np.ndarray:
    """The clients of one round, [cohort] int64, ascending; the same for the same key and round.

    available: [clients] bool, who may be drawn; everybody under privacy. Where fewer are left than a cohort has, all of them are.
    """
    if cohort.period is not None:
        turn = turns(clients, cohort.period, key)[(round_number - 1) % cohort.period]
        return turn if available is None else turn[available[turn]]
    words = key.derive("cohort", round_number).uniform_words(clients)
    if available is not None and not available.all():
        may = np.flatnonzero(available)
        cohort_of_them: np.ndarray = may[draw_among(cohort, words[may])]
        return cohort_of_them
    return draw_among(cohort, words)


def draw_among(cohort: Cohort, words: np.ndarray) -> np.ndarray:
    """Which of some clients are drawn, ascending places; words: [clients] uint64, a uniform one for each."""
    if cohort.sampling == "poisson":
        return np.flatnonzero(words < threshold(cohort.rate or 0.0)) if cohort.rate != 1 else np.arange(len(words))
    return np.sort(np.argsort(words, kind="stable")[: cohort.size])


def turns(clients: int, period: int, key: RunKey) -> list[np.ndarray]:
    """The clients in `period` groups of the same size but for one, drawn once a run; a group takes part every `period` rounds."""
    order = np.argsort(key.derive("turns").uniform_words(clients), kind="stable")
    return [np.sort(order[start::period]) for start in range(period)]


def expected_cohort(cohort: Cohort, clients: int) -> float:
    """q·N, the public stand-in for the realised size."""
    if cohort.period is not None:
        return clients / cohort.period
    return (cohort.rate or 0.0) * clients if cohort.sampling == "poisson" else float(cohort.size or 0)


def threshold(rate: float) -> np.uint64:
    """What a uniform word of 64 bits is below with this probability."""
    # Rounded down, so that the realised rate is never above the one accounted for (they differ by less than 2**-64).
    numerator, denominator = rate.as_integer_ratio()
    return np.uint64((numerator << 64) // denominator)
