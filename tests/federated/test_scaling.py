"""`scale: private`: one charged release before training, by which rows are scaled, and which the exported graph carries."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qedge import train
from qedge.analytics.averages import AveragesEncoder
from qedge.audit.receipt import Receipt, verify
from qedge.config import Settings
from qedge.data.federation import load
from qedge.data.indexing import make_index
from qedge.data.rows import Rows
from qedge.errors import BudgetExceeded, CheckpointTampered, DataNotFound, InvalidJob
from qedge.federated.coordinator import Coordinator
from qedge.federated.guarantee import read_guarantee
from qedge.federated.planning import plan_guarantee
from qedge.federated.randomness import RunKey
from qedge.federated.run_folder import RunFolder
from qedge.federated.scaling import NUMBER
from qedge.job import TrainingJob
from qedge.models import set_parameters
from qedge.privacy.accounting import epsilon_of
from qedge.privacy.mechanisms import DiscreteGaussian, SeededNoise
from qedge.privacy.statement import statement
from qedge.records import Records
from qedge.runs.backend import local_workers
from qedge.runs.preparation import prepare

RANGES = {"x": [900.0, 1100.0], "y": [-1.0, 3.0]}
Make = Callable[..., TrainingJob]


@pytest.fixture
def job(tmp_path: Path, make_job: Make) -> Callable[..., TrainingJob]:
    """A job on 60 clients with a feature near 1000, which only scaled rows can be learned from."""
    draw = random.Random(1)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", "x", "y", "label"])
        for row in range(1200):
            label = draw.choice(["rest", "walk"])
            writer.writerow([f"p{row % 60}", 1000 + draw.gauss(4 if label == "walk" else -4, 3), draw.gauss(1, 0.5), label])

    def make(**changes: Any) -> TrainingJob:
        data = {"source": str(tmp_path / "t.csv"), "client": "who", "label": "label", "scale": "private", "ranges": RANGES, "test": 0.2}
        data |= {"labels": ["rest", "walk"], "evaluation": "public"} | changes.pop("data", {})
        job = make_job(**{"privacy": {"epsilon": 20, "delta": 1e-3}, "rounds": 3} | changes)
        return TrainingJob.parse({**job.plain(), "data": data})

    return make


def _encoder(bound: int, seed: int = 0, ranges: tuple[tuple[float, float], ...] = ((0.0, 1.0), (-3.0, 5.0))) -> AveragesEncoder:
    low, high = np.array(ranges).T
    return AveragesEncoder(low, high, bound, RunKey.from_seed(seed))


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 2), max_size=20), st.integers(1, 1 << 20), st.integers(0, 99))
def test_no_rows_whatever_move_the_sum_by_more_than_the_declared_norm(rows, bound, seed):
    encoder = _encoder(bound, seed)
    sent = encoder.encode(np.array(rows, np.float32).reshape(-1, 2), seed)
    assert sent.shape == (encoder.dimensions,)
    assert sum(int(number) ** 2 for number in sent) <= encoder.sensitivity_squared
    assert rows or not sent.any()


def test_what_is_read_off_is_the_clients_mean_and_deviation():
    """3,000 clients: centers within 6 standard errors of the rounding and the noise of the mean and deviation of clipped rows (1e-8)."""
    generator = np.random.default_rng(2)
    sizes = generator.integers(0, 6, 3000)
    features = generator.normal([0.4, 2], [0.2, 1.5], (sizes.sum(), 2)).astype(np.float32)
    rows = Rows(features, np.zeros(len(features), np.int64), np.concatenate([[0], np.cumsum(sizes)]))
    encoder = _encoder(300)
    assert (encoder.total(rows, range(3000)) == encoder.total(rows, range(1500)) + encoder.total(rows, range(1500, 3000))).all()
    total = encoder.total(rows, range(3000)) + DiscreteGaussian(2000**2).sample(4, SeededNoise(1))
    center, spread = encoder.read_off(total, 2000**2, 3000)
    held = [np.clip(rows.of(k)[0], [0, -3], [1, 5]) for k in range(3000) if sizes[k]]
    empty = 3000 - len(held)  # they count as the middle of the range, with half its square as their deviation
    mean = (sum(one.mean(0) for one in held) + empty * np.array([0.5, 1])) / 3000
    square = sum((np.square(one - [0.5, 1])).mean(0) for one in held) + empty * np.array([0.125, 8])
    deviation = np.sqrt(square / 3000 - np.square(mean - [0.5, 1]))
    off = 6 * np.sqrt(2000**2 + 3000 / 4) / (300 * 3000) * np.array([0.5, 4])
    assert (np.abs(center - mean) < off).all()
    assert (np.abs(np.square(spread) - np.square(deviation)) < 3 * off * np.array([0.5, 4])).all()


def test_a_spread_is_never_less_than_the_noise_lets_be_known():
    """Of a feature that does not vary at all, with noise of a tenth of what clients send; and never more than half of the range."""
    encoder = _encoder(100, ranges=((0.0, 2.0),))
    for seed in range(50):
        noise = DiscreteGaussian(1000**2).sample(2, SeededNoise(seed))
        center, spread = encoder.read_off(np.array([0, -10_000]) + noise, 1000**2, 100)
        assert np.sqrt(0.2) - 1e-3 <= spread[0] <= 1
        assert 0 <= center[0] <= 2


def test_the_plan_holds_training_evaluation_and_scaling_within_the_jobs_epsilon(job: Make):
    """Epsilon counted again from sensitivities and variances, by Rényi divergences in floats."""
    asked = job(data={"evaluation": None, "scale_epsilon": 0.2})
    guarantee = plan_guarantee(asked, 60, 6, None)
    scaling, whole = guarantee.scaling, guarantee.cost(3, evaluated=True).at(guarantee.order)
    assert epsilon_of(whole, guarantee.order, 1e-3) <= 20
    assert scaling.cost.at(guarantee.order) / whole == pytest.approx(0.2, rel=0.01)
    divergence = guarantee.order * scaling.sensitivity_squared / (2 * scaling.variance)
    assert divergence <= scaling.cost.at(guarantee.order) / 1e9 <= divergence * 1.001
    assert guarantee.epsilon(0) > 0
    assert guarantee.roster_epsilon() > guarantee.epsilon(3, evaluated=True)
    assert read_guarantee(guarantee.plain()) == guarantee


def test_a_run_releases_its_scaling_once_charges_it_and_says_so(settings: Settings, job: Make):
    result = train(job(), backend="serial", settings=settings)
    records, folder = Records.open(settings.home), RunFolder.open(settings.home, result.run_id)
    assert sorted(records.ledger.releases(result.run_id)) == [0, 1, 2, 3]
    assert records.ledger.scope("t").spent == pytest.approx(result.epsilon)
    assert result.epsilon <= 20
    said = [line.what for line in statement(records.ledger.history())]
    assert "scaling and 3 rounds held" in said
    assert said.count("scaling") == 1
    receipt = Receipt.read(folder.model / "receipt.json")
    verify(receipt, records.keys.public, folder.model)
    assert ("standardisation", "charged") in {(use.what, use.covered) for use in receipt.uses}


def _coordinator(settings: Settings, folder: RunFolder, records: Records | None = None) -> Coordinator:
    return Coordinator(folder, records or Records.open(settings.home), local_workers, lambda event: None)


def test_the_graph_takes_raw_rows_and_scales_them_by_what_was_released(settings: Settings, job: Make):
    asked = job()
    run = train(asked, backend="serial", settings=settings).run_id
    coordinator = _coordinator(settings, RunFolder.open(settings.home, run))
    schema = coordinator.federation.schema
    assert schema.scale == "given"
    assert np.abs(schema.center - [1000, 1]).max() < 60
    assert (schema.spread > 0).all()
    raw = load(asked.data, asked.seed)
    assert np.allclose(coordinator.federation.train.of(3)[0], 0)  # given away to whoever trains
    session = onnxruntime.InferenceSession(coordinator.folder.model / "model.onnx")
    state = coordinator._restore()
    set_parameters(coordinator.module, state.model)
    with torch.no_grad():
        scaled = (raw.test_raw - schema.center) / schema.spread
        wanted = torch.softmax(coordinator.module(torch.tensor(scaled)), 1).numpy()
    assert np.allclose(session.run(["probabilities"], {"features": raw.test_raw})[0], wanted, atol=1e-5)


class Cut(Exception):
    """A coordinator stopped dead, at a point that the test chose."""


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_cut_around_the_charge_draws_no_second_noise(settings: Settings, job: Make, monkeypatch: pytest.MonkeyPatch, where: str):
    folder = prepare(job(), settings)
    records = Records.open(settings.home)
    commit = records.ledger.commit

    def cut(run: str, number: int, digest: str, epoch: int) -> None:
        if where == "after":
            commit(run, number, digest, epoch)
        raise Cut

    monkeypatch.setattr(records.ledger, "commit", cut)
    with pytest.raises(Cut):
        _coordinator(settings, folder, records)
    monkeypatch.undo()
    first = _coordinator(settings, folder)
    digest = first.records.ledger.releases(folder.run)[NUMBER]
    assert len(list(folder.path.glob("scaling.wal"))) == 1
    again = _coordinator(settings, folder)
    assert again.records.ledger.releases(folder.run) == {NUMBER: digest}
    assert (again.federation.schema.center == first.federation.schema.center).all()
    (folder.path / "scaling.wal").unlink()
    with pytest.raises(CheckpointTampered, match="scaling was charged"):
        _coordinator(settings, folder)


def test_where_the_plan_does_not_fit_nothing_is_asked_of_anybody(settings: Settings, job: Make):
    train(job(privacy={"epsilon": 8, "delta": 1e-3}), backend="serial", settings=settings)
    before = Records.open(settings.home).ledger.head()
    with pytest.raises(BudgetExceeded):
        train(job(privacy={"epsilon": 8, "delta": 1e-3}), backend="serial", settings=settings)
    assert Records.open(settings.home).ledger.head() == before
    assert len(list((settings.home / "runs").glob("*/scaling.wal"))) == 1


def test_an_index_is_scaled_as_its_table_is(tmp_path: Path, job: Make):
    asked = job()
    index = make_index(tmp_path / "t.csv", "who", "label", (), None).path
    affine = np.array([1000, 1], np.float32), np.array([5, 0.5], np.float32)
    by_table = load(asked.data, 0, affine)
    by_index = load(asked.data.model_copy(update={"source": str(index)}), 0, affine)
    assert by_table.schema.scale == by_index.schema.scale == "given"
    assert (by_table.train.features == by_index.train.features).all()
    assert (by_table.test_raw == by_index.test_raw).all()


def test_what_makes_no_sense_is_refused(settings: Settings, job: Make, make_job: Make):
    with pytest.raises(InvalidJob, match="spends a privacy budget"):
        job(privacy="none")
    with pytest.raises(InvalidJob, match="go together"):
        job(data={"ranges": None})
    with pytest.raises(InvalidJob, match="scale_epsilon"):
        job(data={"scale": "given", "scale_epsilon": 0.2})
    with pytest.raises(InvalidJob, match="less than or equal"):
        job(data={"scale_epsilon": 0.9})
    with pytest.raises(InvalidJob, match="brings its own"):
        make_job(data={"scale": "private", "ranges": RANGES})
    with pytest.raises(DataNotFound, match="no range for the feature 'y'"):
        train(job(data={"ranges": {"x": [900, 1100]}}), backend="serial", settings=settings)
