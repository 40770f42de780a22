"""A hybrid model, 6 qubits, on all ten digits over 400 clients: private beside itself without privacy, and an MLP of the same size.

A split is a seed: it moves the initial weights, the partition and the held-out rows. Client-level privacy at epsilon 8 by the ledger; noise
and cohorts are drawn anew each time. The run without privacy has the same job but for `privacy: none`: nothing is clipped either. The MLP
has one hidden layer of as many units as come nearest to the same number of parameters, and the hybrid's settings, which were chosen for
the hybrid: it is the job's own kind of model with ReLU. Nothing goes past the quantum layer. The interval of a difference is the 95 % one
of Nadeau and Bengio (2003) for splits that overlap.

The settings, and the hybrid's fixed gains, were chosen by the private hybrid's test accuracies on these data, about fifty combinations on
some of seeds 0 to 3. The seeds measured here are others, 10 and on, but the rows are the same 1797, dealt and split anew: the private
hybrid's accuracies may still be optimistic, and epsilon does not count the search. Nothing was tuned for the runs without privacy nor for
the MLP, so that what privacy costs is against the same job, not against the best there is.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qedge import train
from qedge.job import TrainingJob
from qedge.quantum.verdict import compare_splits
from qedge.records import Records
from tests.benchmarks.figures import Figure
from tests.benchmarks.surroundings import JOBS, changed, scratch, settings_of

REPEAT = 10
FIRST_SEED = 10  # those before were used to choose settings
WITHIN = 0.04
TEST_SHARE, TESTED = 0.2, 359  # of 1797 digits
HIDDEN = 7  # 535 parameters; the hybrid has 514


MODELS: dict[str, dict[str, object]] = {
    "hybrid": {"kind": "hybrid", "qubits": 6, "layers": 3},
    "MLP": {"kind": "mlp", "hidden": [HIDDEN]},
}


@dataclass(frozen=True)
class Run:
    """One run's accuracy on the held-out rows, and what it cost by its ledger, 0 without privacy."""

    model: str
    private: bool
    accuracy: float
    spent: float


def measure(repeat: int) -> list[Figure]:
    """Both models, private and not, `repeat` splits of each, a process on each core."""
    with scratch() as folder:
        seeds = range(FIRST_SEED, FIRST_SEED + repeat)
        asked = [(model, private, seed, folder) for seed in seeds for model in MODELS for private in (True, False)]
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            runs = list(pool.map(_run, *zip(*asked, strict=True)))
    found = {key: [run.accuracy for run in runs if (run.model, run.private) == key] for key in {(run.model, run.private) for run in runs}}
    figures = []
    for model in MODELS:
        own, without = found[model, True], found[model, False]
        compared = compare_splits(own, without, test_share=TEST_SHARE, tested=TESTED)
        figures.append(
            Figure(
                f"{model}: points lost to privacy at epsilon 8",
                f"≤ {100 * WITHIN:g}" if model == "hybrid" else "",
                f"{-100 * compared.advantage:.2f} ({-100 * compared.high:.2f} to {-100 * compared.low:.2f}, {repeat} splits)",
                model != "hybrid" or -compared.advantage <= WITHIN,
            )
        )
        figures += [Figure(f"… {model}, {name}", "", _spread(values)) for name, values in (("private", own), ("without privacy", without))]
    beside = compare_splits(found["hybrid", True], found["MLP", True], test_share=TEST_SHARE, tested=TESTED)
    points = f"{100 * beside.advantage:+.2f} points ({100 * beside.low:+.2f} to {100 * beside.high:+.2f}): {beside.verdict}"
    spent = max(run.spent for run in runs)
    return [
        *figures,
        Figure("private hybrid over private MLP of its size", "", points),
        Figure("epsilon as the ledger counts it", "≤ 8", f"{spent:.4f}", spent <= 8),
    ]


def _run(model: str, private: bool, seed: int, folder: Path) -> Run:
    job = TrainingJob.load(JOBS / "digits-hybrid-epsilon-8.yaml")
    values = changed(job, seed=seed).plain() | {"model": MODELS[model]} | ({} if private else {"privacy": "none"})
    home = folder / f"{model}-{private}-{seed}"
    result = train(TrainingJob.parse(values), backend="serial", settings=settings_of(home))
    if result.accuracy is None:
        raise RuntimeError(f"run {result.run_id} has no accuracy")
    return Run(model, private, result.accuracy, Records.open(home).ledger.scope("digits").spent if private else 0.0)


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} (deviation {statistics.stdev(values):.4f}; {', '.join(f'{one:.3f}' for one in values)})"
