"""The study: the same effort on both sides, splits that are repeated, and files that do not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import nn

from qedge.errors import DataNotFound, InvalidJob, InvalidValue, LabelMismatch, TooManyQubits, UnknownKey
from qedge.quantum.backend import Backend
from qedge.quantum.progress import Step
from qedge.quantum.qnn.job import QNN
from qedge.quantum.qnn.study import _fit, _mlp, _split, _tuned, read, run
from qedge.quantum.result import Result
from qedge.quantum.state_size import refuse_too_deep
from qedge.quantum.verdict import Verdict


def _small(**changes: object) -> QNN:
    asked = {"data": "wine", "qubits": 3, "layers": 1, "splits": 3, "epochs": 6, "learning_rates": (0.03, 0.1), "batch_size": 16}
    return QNN.model_validate({**asked, **changes})


def test_both_models_are_tuned_alike_and_the_result_says_so(tmp_path: Path):
    steps: list[Step] = []
    found = run(_small(backend=Backend(name="default.qubit", shots=200), most_rows=10), on_step=steps.append)
    assert found.value > 0.8
    assert found.baseline.value > 0.8
    assert found.compared.verdict in set(Verdict)
    assert "each model 3 fits a split of 6 epochs" in found.baseline.how
    own, other = found.details["parameters"]["quantum"], found.details["parameters"]["classical"]
    assert abs(own - other) <= (13 + 3 + 1) / 2
    assert [step.number for step in steps] == [1, 2, 3]
    assert (found.resources.qubits, found.resources.cx, found.resources.shots) == (3, 3, 2000)
    assert found.details["backend"]["rows"] == 10
    found.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json").plain() == found.plain()


def test_the_same_job_gives_the_same_scores():
    first, second = (run(_small(splits=2, epochs=2)) for _ in range(2))
    assert first.details["scores"] == second.details["scores"]
    assert run(_small(splits=2, epochs=2, seed=1)).details["scores"] != first.details["scores"]


def test_a_file_is_read_and_one_that_does_not_fit_is_refused(tmp_path: Path):
    generator = np.random.default_rng(0)
    rows, labels = generator.standard_normal((40, 2)), np.arange(40) % 2
    np.savez(tmp_path / "table.npz", x=rows, kind=labels)
    found = run(_small(data=str(tmp_path / "table.npz"), label="kind", splits=2, epochs=1))
    assert (found.details["features"], found.details["classes"]) == (2, 2)
    with pytest.raises(DataNotFound):
        run(_small(data=str(tmp_path / "table.npz"), label="sort"))
    with pytest.raises(DataNotFound):
        run(_small(data=str(tmp_path / "none.csv")))
    np.savez(tmp_path / "one.npz", x=rows, label=np.zeros(40, int))
    with pytest.raises(LabelMismatch, match="fewer than two labels"):
        run(_small(data=str(tmp_path / "one.npz")))
    np.savez(tmp_path / "nan.npz", x=np.where(rows > 2, np.nan, rows), label=labels)
    with pytest.raises(InvalidValue, match="NaN"):
        run(_small(data=str(tmp_path / "nan.npz")))
    np.savez(tmp_path / "few.npz", x=rows[:3], label=labels[:3])
    with pytest.raises(InvalidValue, match="too few"):
        run(_small(data=str(tmp_path / "few.npz")))
    with pytest.raises(UnknownKey, match="did you mean 'digits'"):
        run(_small(data="digit"))


def test_a_fit_whose_loss_is_no_number_is_stopped_at_the_best_weights_so_far():
    rows, labels = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    module, early = _fit(lambda: nn.Linear(2, 2), torch.where(rows > 1, torch.inf, rows), labels, 0.1, _small(), 0)
    assert early
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
    assert not _fit(lambda: nn.Linear(2, 2), rows.clamp(max=1), labels, 0.1, _small(), 0)[1]


def test_a_job_is_read_from_yaml_and_bad_values_are_refused(tmp_path: Path):
    path = tmp_path / "qnn.yaml"
    path.write_text("data: rows.csv\nqubits: 3\nbackend: {name: default.qubit, shots: 100}\n")
    job = QNN.load(path)
    assert (job.data, job.qubits, job.backend) == (str(tmp_path / "rows.csv"), 3, Backend(name="default.qubit", shots=100))
    for text, error in (
        ("qubit: 3", UnknownKey),
        ("qubits: 13", InvalidJob),
        ("test: 1.0", InvalidJob),
        ("backend: {name: default.qubit, shots: 0}", InvalidJob),
        ("learning_rates: [0.1, 0.1]", InvalidJob),
    ):
        path.write_text(text + "\n")
        with pytest.raises(error):
            QNN.load(path)
    with pytest.raises(InvalidJob, match="splits: input should be greater than or equal to 2; given: 1"):
        QNN(splits=1)


def test_layers_whose_states_do_not_fit_are_refused_before_anything_is_computed() -> None:
    with pytest.raises(TooManyQubits, match="accepted: fewer qubits or layers, or smaller batches"):
        refuse_too_deep(12, 100, 449, limit=2**30)
    refuse_too_deep(6, 3, 256, limit=2**30)


def test_rates_are_chosen_without_the_rows_that_are_tested_on() -> None:
    job = QNN(data="wine", qubits=2, layers=1, epochs=3, learning_rates=(1e-4, 0.03, 0.3), splits=2)
    table = read(job)
    make = _mlp(job, table.features.shape[1], len(table.vocabulary))
    for number in range(3):
        true = _split(table, job, number)
        turned = [replace(true, test=(true.test[0], (true.test[1] + shift) % 3)) for shift in (0, 1, 2)]
        assert len({_tuned(make, one, job, number)[1] for one in turned}) == 1


def test_rows_are_scaled_by_training_rows_alone() -> None:
    job = QNN(data="wine", splits=2)
    table = read(job)
    strange = replace(table, features=table.features.copy())
    tested = round(len(table.labels) * job.test)
    order = np.random.default_rng([job.seed, 0]).permutation(len(table.labels))
    strange.features[order[:tested]] *= 1000
    assert torch.equal(_split(table, job, 0).train[0], _split(strange, job, 0).train[0])


class Seen(nn.Linear):
    """A linear model that keeps the rows it was trained on, and those that it was asked about."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.trained: set[bytes] = set()
        self.asked: set[bytes] = set()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        (self.trained if torch.is_grad_enabled() else self.asked).update(row.numpy().tobytes() for row in rows)
        return super().forward(rows)


def test_a_rate_is_judged_by_training_rows_that_its_fit_did_not_see() -> None:
    job = _small(epochs=1)
    table = read(job)
    split, made = _split(table, job, 0), []

    def make() -> nn.Module:
        made.append(Seen(table.features.shape[1], len(table.vocabulary)))
        return made[-1]

    _tuned(make, split, job, 0)
    every = {row.numpy().tobytes() for row in split.train[0]}
    *tried, last = made
    assert len(tried) == len(job.learning_rates)
    for one in tried:
        assert one.asked
        assert not one.asked & one.trained
        assert one.asked | one.trained == every
    assert (last.trained, last.asked) == (every, set())


def test_error_bars_and_verdict_reckon_with_splits_that_overlap() -> None:
    """The interval is Student's, by scipy, with Nadeau and Bengio's variance."""
    found = run(_small(splits=5, epochs=1, test=0.4))
    own, other = (np.array(found.details["scores"][name]) for name in ("quantum", "classical"))
    widening = math.sqrt(1 / 5 + 0.4 / 0.6)
    assert found.error == pytest.approx(own.std(ddof=1) * widening)
    assert found.baseline.error == pytest.approx(other.std(ddof=1) * widening)
    interval = t.interval(0.95, 4, (own - other).mean(), max((own - other).std(ddof=1), 1 / 71) * widening)
    assert (found.compared.low, found.compared.high) == pytest.approx(interval)
