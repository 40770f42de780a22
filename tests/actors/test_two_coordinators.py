"""Two processes that carry out one private run at once: one goes on with it, the other is told, and no round is released twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qedge import TrainingJob, train
from qedge.config import Settings
from qedge.errors import Failed, Fenced
from qedge.federated.events import Event, RoundFinished
from qedge.federated.run_folder import RunFolder
from qedge.records import Records
from qedge.runs.preparation import prepare

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("pausing_driver.py")
ROUNDS = 30
PAUSED_AT = 3


@contextmanager
def paused(settings: Settings, run: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of the run."""
    command = [sys.executable, str(DRIVER), str(settings.home), run, str(PAUSED_AT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ending(process: subprocess.Popen[str]) -> dict[str, object]:
    """What the process says of how its run ended."""
    said, _ = process.communicate(timeout=120)
    told: dict[str, object] = json.loads(said.splitlines()[-1])
    return told


def rounds_charged(settings: Settings, run: str) -> list[object]:
    events = Records.open(settings.home).ledger.history()
    return [event.facts["round"] for event in events if event.kind == "commit" and event.facts["run"] == run]


def test_who_takes_a_run_over_goes_on_with_it_and_the_one_before_is_fenced(
    settings: Settings, make_job: Callable[..., TrainingJob]
) -> None:
    """As where the lock does not hold, on a file system without locks: the ledger's epoch alone is between the two."""
    folder = prepare(make_job(rounds=ROUNDS), settings)
    with paused(settings, folder.run) as first:
        (folder.path / "lock").unlink()
        seen: list[int] = []

        def both_at_once(event: Event) -> None:
            if isinstance(event, RoundFinished):
                seen.append(event.round)
                if len(seen) == PAUSED_AT + 1:  # its own first round, after those it found
                    go_on(first)

        second = train(resume=folder.run, backend="serial", settings=settings, on_event=both_at_once)
        assert ending(first) == {"error": Fenced.code}
    assert second.rounds == ROUNDS
    assert seen == list(range(1, ROUNDS + 1))
    assert rounds_charged(settings, folder.run) == list(range(1, ROUNDS + 1))
    assert sorted(RunFolder.open(settings.home, folder.run).metrics_by_round()) == list(range(1, ROUNDS + 1))
    assert Records.open(settings.home).ledger.plan(folder.run) is not None


def test_while_a_run_is_under_way_another_process_is_refused_it_and_changes_nothing(
    settings: Settings, make_job: Callable[..., TrainingJob]
) -> None:
    folder = prepare(make_job(rounds=ROUNDS), settings)
    with paused(settings, folder.run) as first:
        with pytest.raises(Failed, match="locked by another process"):
            train(resume=folder.run, backend="serial", settings=settings)
        assert rounds_charged(settings, folder.run) == list(range(1, PAUSED_AT + 1))
        go_on(first)
        assert ending(first) == {"rounds": ROUNDS}
    assert rounds_charged(settings, folder.run) == list(range(1, ROUNDS + 1))
