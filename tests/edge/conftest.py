"""A home with one trained model, an MLP on the digits without privacy, and its ladder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from qedge import TrainingJob, train
from qedge.config import Settings, ensure_home, load
from qedge.edge.building.build import MODEL, Asked, build
from qedge.edge.building.graph import read as read_graph
from qedge.edge.calibration import Calibration, Taken
from qedge.edge.calibration import read as read_rows
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import Ladder
from qedge.edge.node import keep_card
from qedge.edge.rung import RungName
from qedge.records import Records
from qedge.registry.registry import Registry
from tests.edge_ladders import Told

ONNX_RUNGS: tuple[RungName, ...] = ("fp32", "fp16", "int8", "int4", "int2")
JOB = {
    "name": "digits",
    "data": {"source": "digits", "partition": {"dirichlet": 5.0, "clients": 10}, "test": 0.2},
    "model": {"kind": "mlp", "hidden": [64]},
    "algorithm": {"local_epochs": 3, "batch_size": 16, "learning_rate": 0.3, "kernel": "sequential"},
    "cohort": {"sampling": "uniform", "size": 10},
    "privacy": "none",
    "rounds": 4,
}


@dataclass(frozen=True)
class Home:
    """Where the model is: its folder is that of version 1."""

    settings: Settings
    model: Path
    calibration: Calibration

    @property
    def records(self) -> Records:
        """Keys, log and ledger."""
        return Records.open(self.settings.home)

    def asked(self, *rungs: RungName, public: bool = True) -> Asked:
        """These rungs of the model, by the digits."""
        return Asked("digits", "1", rungs or ONNX_RUNGS, self.calibration, public)

    def attached(self, folder: Path, rungs: dict[RungName, Told], *, public: bool = True) -> Ladder:
        """A new ladder of the version, kept with it, and said to have been measured here, with these costs."""
        ladder = build(self.asked(*rungs, public=public), self.model, folder, self.records)
        registry = Registry(self.settings)
        registry.attach_ladder(registry.resolve("digits/1"), folder, ladder.id)
        keep_card(self.settings.home, ladder.id, ladder.card.measured({rung: told.cost() for rung, told in rungs.items()}, this_machine()))
        return ladder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Home:
    """With a model that was trained there; no test gives it another version."""
    return _trained(tmp_path_factory.mktemp("edge") / "home", empty_store)


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Home:
    """One that a module has for itself, to register versions in."""
    return _trained(tmp_path_factory.mktemp("own") / "home", empty_store)


def _trained(place: Path, empty_store: Path) -> Home:
    ensure_home(place)
    shutil.copy(empty_store / "mlflow.db", place)
    settings = load(home=place, environ={})
    result = train(TrainingJob.parse(JOB), backend="serial", settings=settings)
    model = place / "runs" / result.run_id / "model"
    return Home(settings, model, read_rows("digits", "label", Taken.of(read_graph(model / MODEL))))


@pytest.fixture(scope="session")
def built(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    """All rungs but the trained one; not to be changed."""
    return build(home.asked(), home.model, tmp_path_factory.mktemp("built") / "ladder", home.records)


@pytest.fixture
def ladder(built: Ladder, tmp_path: Path) -> Ladder:
    """A copy of it, to do with as one likes."""
    shutil.copytree(built.folder, tmp_path / "ladder")
    return Ladder.open(tmp_path / "ladder")
