"""Edge searches on a real Ray Tune: cut off and gone on with, ended early, over the limits."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.cluster import connect
from actors.edge_search import edge_search
from qedge import TrainingJob, train
from qedge.config import Cluster, Settings, load
from qedge.edge.search.job import EdgeSearch
from qedge.edge.search.trial import Limits
from qedge.errors import NoRungFits, ScopeConflict, UnknownRun
from qedge.network import rebuilt
from qedge.records import Records
from qedge.registry.registry import Registry
from qedge.runs.edge_search import begin
from tests.conftest import PRIVATE
from tests.endpoint import eventually

pytestmark = pytest.mark.slow
ASKED = {
    "name": "digits",
    "source": "digits",
    "public": True,
    "space": {"width": {"integers": [4, 40]}, "depth": {"choice": [1, 2]}, "rung": {"choice": ["fp32", "int8"]}},
    "trials": 6,
    "steps": 200,
    "checks": 2,
}


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    small = Cluster(cpus=2, object_store_bytes=80 * 2**20)
    settings = load(environ={}, home=tmp_path_factory.mktemp("home"), address="local", cluster=small)
    with connect(settings, start=True):
        yield settings


def test_a_front_comes_of_it_and_the_best_network_is_registered(connected: Settings) -> None:
    lines: list[str] = []
    result = edge_search(EdgeSearch.parse(ASKED), Limits(5.0, 200_000), settings=connected, told=lines.append)
    assert result.published
    assert sum(result.ended.values()) == 6
    assert result.best.number in {one.number for one in result.points}
    assert result.best.chosen_by == max(one.chosen_by for one in result.points)
    version = Registry(connected).resolve("digits")
    assert version.version == result.version == 1
    folder = connected.home / "runs" / f"{result.search}-{result.best.number:04}" / "model"
    network = rebuilt(folder, "digits", Records.open(connected.home).keys.public)
    assert network.model.hidden == (result.best.values["width"],) * int(str(result.best.values["depth"]))
    runs = [row for row in Registry(connected).runs() if row.tags.get("qedge.search") == result.search]
    assert len(runs) == 6
    assert Path(result.front).read_bytes().startswith(b"\x89PNG")
    assert sum(" ended" not in line and line.startswith("trial ") for line in lines) == 6
    again = edge_search(going_on=result.search, settings=connected)
    assert (again.best, again.version) == (result.best, result.version)


def test_limits_that_nothing_meets_name_the_nearest_and_nothing_is_trained(connected: Settings) -> None:
    with pytest.raises(NoRungFits, match=r"over 0\.1"):
        edge_search(EdgeSearch.parse(ASKED | {"trials": 2}), Limits(None, 100), settings=connected)
    newest = max((connected.home / "searches").iterdir(), key=lambda path: path.stat().st_mtime)
    ended = [json.loads(path.read_bytes()) for path in newest.glob("trials/*/trial.json")]
    assert [(one["ended"], one["steps"]) for one in ended] == [("over the limits", 0)] * 2


def test_an_unknown_search_and_rows_with_a_budget_are_refused(connected: Settings) -> None:
    with pytest.raises(UnknownRun, match="no edge search"):
        edge_search(going_on="nothing", settings=connected)
    with pytest.raises(ScopeConflict):
        edge_search(EdgeSearch.parse(ASKED), Limits(), settings=_with_budget(connected))


def test_rows_that_changed_since_it_began_are_not_searched_on(connected: Settings, tmp_path: Path) -> None:
    lines = ["a,b,label", *(f"{k},{k % 7},{'yes' if k % 2 else 'no'}" for k in range(60))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    asked = EdgeSearch.parse({"name": "rows", "source": str(tmp_path / "rows.csv"), "space": {"width": {"choice": [2, 3]}}, "trials": 2})
    under_way = begin(asked, Limits(), connected)
    assert len(under_way.table().labels) == 60
    (tmp_path / "rows.csv").write_text("\n".join([*lines[:-1], "0,0,yes"]))
    with pytest.raises(ScopeConflict, match="other rows"):
        edge_search(going_on=under_way.id, settings=connected)


def _with_budget(settings: Settings) -> Settings:
    """A home in which the digits have a budget."""
    other = settings.model_copy(update={"home": settings.home / "other"})
    job = copy.deepcopy(PRIVATE) | {"data": {**PRIVATE["data"], "source": "digits"}, "rounds": 1}
    train(TrainingJob.parse(job), backend="serial", settings=other)
    return other


def test_a_search_that_was_killed_goes_on_with_what_had_not_ended(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(json.dumps(ASKED))
    command = [sys.executable, "-m", "qedge", "edge", "search", str(tmp_path / "search.yaml"), "--home", str(tmp_path / "home")]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("QEDGE_", "RAY_"))}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables, start_new_session=True) as driver:
        assert eventually(lambda: len(list((tmp_path / "home").glob("searches/*/trials/*/trial.json"))) >= 2, within_s=120)
        os.killpg(driver.pid, signal.SIGKILL)
    (search,) = (path.name for path in (tmp_path / "home" / "searches").iterdir())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "home").glob("searches/*/trials/*/trial.json")}
    assert len(before) < 6
    going_on = [*command[:5], "--resume", search, "--home", str(tmp_path / "home"), "--json"]
    done = subprocess.run(going_on, capture_output=True, text=True, env=variables, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["ended"].values()) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
