"""Processes of a private run killed with SIGKILL: the run ends as it should, nothing is released uncharged, nothing is charged twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qedge import TrainingJob
from qedge.federated.run_folder import RunFolder
from qedge.records import Records
from tests.benchmarks.crashes import (
    Cluster,
    Moment,
    crash,
    draw_moment,
    known_releases,
    new_home,
    run_and_kill,
    running_cluster,
    what_is_wrong,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("victim", ["coordinator", "client", "driver"])
def test_whoever_is_killed_and_whenever_each_round_is_released_and_charged_once(
    cluster: Cluster, tmp_path: Path, make_job: Callable[..., TrainingJob], victim: str, seed: int
) -> None:
    assert crash(victim, make_job(rounds=ROUNDS), tmp_path, cluster, random.Random(f"{victim} {seed}")).wrong == []


def test_a_driver_that_dies_takes_its_own_ray_with_it_and_another_goes_on_with_the_run(
    tmp_path: Path, make_job: Callable[..., TrainingJob]
) -> None:
    assert crash("driver", make_job(rounds=ROUNDS), tmp_path, None, random.Random(3)).wrong == []


def test_the_check_of_a_run_sees_a_sum_that_was_not_charged_and_a_round_that_is_missing(
    tmp_path: Path, make_job: Callable[..., TrainingJob]
) -> None:
    """The claims above are as good as this check: it must complain of what did not happen."""
    job, generator, killed = make_job(rounds=ROUNDS), random.Random(4), None
    while killed is None:
        home, moment = new_home(tmp_path), Moment(generator.randint(1, ROUNDS // 2), 0.0)
        killed = run_and_kill("driver", moment, job, home, None, "serial")
    assert killed.wrong == []
    rounds_known = sorted(number for number, _ in killed.known)
    assert rounds_known == list(range(1, len(rounds_known) + 1)), "none is missed, whether a checkpoint covers it or not"
    assert len(rounds_known) >= moment.rounds
    assert what_is_wrong(home, killed.run, killed.known) == []
    assert not RunFolder.open(home, killed.run).releases.exists()
    assert known_releases(home, killed.run) == set(Records.open(home).ledger.releases(killed.run).items())
    drawn_again = frozenset({*killed.known, (3, "0" * 64)})
    assert what_is_wrong(home, killed.run, drawn_again) == ["of rounds [3] another sum is charged than the one there was at the kill"]
    folder = RunFolder.open(home, killed.run)
    lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[:-1]), encoding="utf-8")
    assert [complaint[:11] for complaint in what_is_wrong(home, killed.run, killed.known)] == ["metrics are"]
    records = Records.open(home)
    records.ledger.set_budget("another", epsilon=1, delta=0.001, actor="tester")
    with pytest.raises(ValueError, match="too many values"):
        what_is_wrong(home, killed.run, killed.known)


def test_moments_cover_the_start_the_rounds_and_the_end() -> None:
    """Chance that 200 draws miss a stage: under 2 * 0.75 ** 200, about 1e-24."""
    generator = random.Random(0)
    moments = [draw_moment(ROUNDS, generator) for _ in range(200)]
    assert {0, ROUNDS} < {moment.rounds for moment in moments} <= set(range(ROUNDS + 1))
