"""What several tests need: a home of their own, small jobs, and a MLflow that stays quiet."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from qedge.config import Settings, ensure_home, load
from qedge.job import TrainingJob
from qedge.registry.tracking import connection

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # in the background of a shell; the processes that tests interrupt would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("qedge", deadline=None)  # a speed is never asserted here
hypothesis.settings.load_profile("qedge")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one of minutes would be waited for alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told when it happens: a run that is cut off afterwards has said so."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nfailed: {report.nodeid}\n{report.longreprtext[-4000:]}", flush=True)


PRIVATE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "wine", "partition": {"dirichlet": 1.0, "clients": 30}, "test": 0.3, "evaluation": "public"},
    "model": {"kind": "linear"},
    "algorithm": {"local_epochs": 2, "batch_size": 4, "learning_rate": 0.3, "kernel": "stacked"},
    "cohort": {"sampling": "poisson", "rate": 0.5},
    "privacy": {"unit": "client", "epsilon": 6, "delta": 0.01, "clipping": {"bound": 0.5}},
    "rounds": 4,
}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose MLflow database has its tables: creating them takes a second of every home that is given a copy."""
    home = ensure_home(tmp_path_factory.mktemp("template") / "home")
    with connection(Settings(home=home)):
        return home


@pytest.fixture
def settings(tmp_path: Path, empty_store: Path) -> Settings:
    """Settings of a home that nobody else has, and that holds an MLflow database without runs."""
    home = ensure_home(tmp_path / "home")
    shutil.copy(empty_store / "mlflow.db", home)
    return load(home=home, environ={})


@pytest.fixture
def make_job() -> Callable[..., TrainingJob]:
    """A small private job, with changes: `make_job(rounds=2, privacy="none")`; a dict is merged into its part."""

    def make(**changes: Any) -> TrainingJob:
        values = copy.deepcopy(PRIVATE)
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        return TrainingJob.parse(values)

    return make
