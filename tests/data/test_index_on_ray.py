"""An index read by client actors on a real Ray: the bits of the serial run, and a clean end when the file is damaged under them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.cluster import start_head, stop_head
from qedge import TrainingJob, train
from qedge.config import Settings, load
from qedge.data.index import FEATURES
from qedge.data.indexing import make_index
from qedge.errors import Failed
from qedge.federated.events import Event, RoundFinished
from tests.endpoint import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a home with a Ray of its own."""
    settings = load(home=tmp_path_factory.mktemp("ray") / "home", environ={}, serve={"port": free_port()})
    start_head(settings)
    try:
        yield settings
    finally:
        stop_head(settings)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(4000), 4)  # most of them not read yet when the file is cut
    np.savez(tmp_path / "t.npz", client=owner, features=rng.normal(size=(len(owner), 8)), kind=rng.integers(0, 3, len(owner)))
    return make_index(tmp_path / "t.npz", "client", "kind").path


def job_on(index: Path) -> TrainingJob:
    data = {"source": str(index), "client": "client", "label": "kind", "labels": [0, 1, 2], "scale": "local", "test": 0.2}
    sgd = {"local_epochs": 1, "batch_size": 4, "learning_rate": 0.1, "kernel": "stacked"}
    job = {"name": "indexed", "data": data, "model": {"kind": "linear"}, "algorithm": sgd, "privacy": "none", "rounds": 300}
    return TrainingJob.parse(job | {"cohort": {"sampling": "uniform", "size": 20}})


def weights(settings: Settings, run: str) -> bytes:
    return (settings.home / "runs" / run / "model" / "weights.safetensors").read_bytes()


def test_actors_that_read_a_damaged_index_end_the_run_naming_it_and_it_goes_on_when_it_is_mended(settings: Settings, index: Path) -> None:
    whole, seen = (index / FEATURES).read_bytes(), list[str]()
    serial = train(job_on(index), backend="serial", settings=settings)

    def cut(event: Event) -> None:
        if isinstance(event, RoundFinished) and not seen:
            seen.append(event.run)
            os.truncate(index / FEATURES, 200)

    with pytest.raises(Failed, match=r"t\.index is not as it was made"):
        train(job_on(index), backend="ray", settings=settings, on_event=cut)
    (index / FEATURES).write_bytes(whole)
    resumed = train(resume=seen[0], backend="ray", settings=settings)
    assert weights(settings, resumed.run_id) == weights(settings, serial.run_id)
    assert resumed.accuracy == serial.accuracy
