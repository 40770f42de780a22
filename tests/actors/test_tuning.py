"""A search on a real Ray Tune, a real ledger and a real MLflow: what it ends early, what it costs, and that it survives its driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.cluster import start_head, stop_head
from actors.tuning import search_on_tune
from qedge.config import Settings, load
from qedge.errors import BudgetExceeded
from qedge.federated.run_folder import RunFolder, recorded_guarantee
from qedge.privacy.accounting import RenyiCost
from qedge.records import Records
from qedge.registry.registry import Registry
from qedge.registry.tracking import connection
from qedge.search.progress import Progress, SearchBegan, TrialEnded, TrialRound
from tests.search.searches import search_values, small_search

pytestmark = pytest.mark.slow
ROUNDS = 6
SPACE = {"algorithm.learning_rate": {"choice": [0.3, 1e-6, 2e-6, 3e-6]}}  # one learns, three stand still
PATIENCE_S = 240


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home whose Ray runs."""
    settings = load(home=tmp_path_factory.mktemp("tune") / "home", environ={}, cluster={"cpus": 2, "object_store_bytes": 100 * 2**20})
    start_head(settings)
    try:
        yield settings
    finally:
        stop_head(settings)


def open_budget(settings: Settings, epsilon: float = 20) -> None:
    Records.open(settings.home).ledger.set_budget("wine", epsilon=epsilon, delta=0.01, order=3, actor="test")


def values(**search: Any) -> dict[str, Any]:
    """A private search of 4 trials, of which those that stand still are ended after 2 rounds when they come after the other."""
    asked = {"space": SPACE, "trials": 4, "grace_rounds": 2, "reduction": 2, "seed": 0, **search}
    return search_values(asked, privacy={"epsilon": 2}, rounds=ROUNDS, name="tuned")


def test_a_private_search_ends_laggards_early_and_the_ledger_has_what_was_released_and_nothing_else(running: Settings) -> None:
    open_budget(running)
    told: list[Progress] = []
    result = search_on_tune(
        small_search(values()["search"], privacy={"epsilon": 2}, rounds=ROUNDS, name="tuned"), settings=running, on_progress=told.append
    )

    states = [trial.status for trial in result.trials]
    assert states.count("best") == 1
    assert states.count("stopped") >= 1
    assert set(states) <= {"best", "stopped", "tried"}
    assert all((trial.rounds == ROUNDS) == (trial.status != "stopped") for trial in result.trials)

    ledger, whole = Records.open(running.home).ledger, RenyiCost.zero()
    scope = ledger.scope("wine")
    for trial in result.trials:
        guarantee = recorded_guarantee(RunFolder(running.home, trial.run))
        assert guarantee is not None
        assert sorted(ledger.releases(trial.run)) == list(range(1, trial.rounds + 1))
        assert trial.epsilon_spent == guarantee.epsilon(trial.rounds)
        whole = whole + guarantee.per_round * trial.rounds
    assert scope.committed == whole
    assert scope.held == RenyiCost.zero()
    assert result.epsilon == scope.epsilon_of(whole)
    assert result.epsilon_at_most is not None
    assert result.epsilon < result.epsilon_at_most

    began, *rest = told
    assert isinstance(began, SearchBegan)
    assert began.epsilon == result.epsilon_at_most
    assert [news.round for news in rest if isinstance(news, TrialRound) and news.number == 1] == list(range(1, result.trials[0].rounds + 1))
    assert sorted(news.number for news in rest if isinstance(news, TrialEnded)) == [1, 2, 3, 4]
    assert Path(result.plot).read_bytes().startswith(b"\x89PNG")
    assert len(Path(result.trials_csv).read_text().splitlines()) == 5
    refuse_stray_models(running, result.best.run)
    check_children(running, result.search, {trial.run: trial.status for trial in result.trials})


def refuse_stray_models(settings: Settings, best: str) -> None:
    assert [model.run_id for model in Registry(settings).models() if model.name == "tuned"] == [best]


def check_children(settings: Settings, search: str, states: dict[str, str]) -> None:
    """In MLflow every trial's run is under the search's, ended as it ended here."""
    ended = {"best": "FINISHED", "tried": "FINISHED", "stopped": "KILLED"}
    with connection(settings) as client:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        (parent,) = client.search_runs(experiments, f"tags.`qedge.search_id` = '{search}' and tags.`qedge.kind` = 'search'")
        children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {child.data.tags["qedge.run_id"]: child.info.status for child in children} == {
        run: ended[state] for run, state in states.items()
    }
    assert parent.info.status == "FINISHED"
    assert {"trials.csv", "plot.png"} <= files
    assert parent.data.params["trials"] == "4"


def test_without_privacy_trials_train_beside_each_other_and_one_that_diverges_ends_no_other(running: Settings) -> None:
    space = {"algorithm.learning_rate": {"choice": [0.1, 0.3, 1e30]}}
    asked = small_search(
        {"space": space, "concurrent": 2, "metric": "loss", "reduction": 10},
        privacy="none",
        name="open",
        data={"source": "breast-cancer", "evaluation": None},
    )
    result = search_on_tune(asked, settings=running)
    assert sorted(trial.status for trial in result.trials) == ["best", "failed", "tried"]
    assert result.epsilon is None
    assert result.best.metric == min(trial.metric for trial in result.trials if trial.status != "failed" and trial.metric is not None)


def test_a_search_that_does_not_fit_is_refused_before_any_trial_begins(settings: Settings) -> None:
    open_budget(settings, 3)
    with pytest.raises(BudgetExceeded, match="4 trials do not all fit"):
        search_on_tune(small_search(values()["search"], privacy={"epsilon": 2}, rounds=ROUNDS), settings=settings)
    assert list((settings.home / "runs").iterdir()) == []
    assert Records.open(settings.home).ledger.history("wine")[-1].kind == "open"


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`qedge tune` in a process of its own."""
    line = [sys.executable, "-m", "qedge", "tune", *arguments, "--home", str(folder / "home"), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("QEDGE_", "RAY_"))}
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_the_midst(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until one trial has ended and another has done a round."""
    deadline = time.monotonic() + PATIENCE_S
    runs = folder / "home" / "runs"
    while not any(runs.glob("[!.]*/result.json")) or len(list(runs.glob("[!.]*/metrics.jsonl"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_search_whose_driver_was_ended_goes_on_where_it_stood(tmp_path: Path, sign: signal.Signals) -> None:
    """Finished trials are not run again, the one in flight keeps its run, and no round is released twice."""
    settings = load(home=tmp_path / "home", environ={})
    open_budget(settings)
    asked = values() | {"rounds": 40}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(asked))
    first = command(tmp_path, "tune.yaml")
    in_the_midst(tmp_path, first)
    first.send_signal(sign)
    _, said = first.communicate(timeout=PATIENCE_S)
    (search,) = [path.name for path in (settings.home / "searches").iterdir()]
    if sign == signal.SIGINT:
        assert first.returncode == 130
        assert f"go on with: qedge tune --resume {search}" in said
    runs = {path.name for path in (settings.home / "runs").glob("[!.]*")}
    ended = {path.parent.parent.name: path.read_bytes() for path in (settings.home / "runs").glob("[!.]*/model/receipt.json")}

    out, said = command(tmp_path, "--resume", search).communicate(timeout=PATIENCE_S)
    answer = json.loads(out.splitlines()[-1])
    assert "error" not in answer, said
    assert {trial["run"] for trial in answer["trials"]} == runs
    assert len(runs) == 4
    assert {trial["status"] for trial in answer["trials"]} <= {"best", "tried", "stopped"}
    assert list((settings.home / "searches" / search).glob(".tune-*")) == []
    for run, receipt in ended.items():
        assert (settings.home / "runs" / run / "model" / "receipt.json").read_bytes() == receipt
    ledger = Records.open(settings.home).ledger
    committed = [(event.run, event.facts["round"]) for event in ledger.history("wine") if event.kind == "commit"]
    assert len(committed) == len(set(committed)) == sum(trial["rounds"] for trial in answer["trials"])
    assert answer["epsilon"] == ledger.scope("wine").spent == ledger.scope("wine").reserved
