"""`qedge query` as a user has it: its table, its JSON, its files, its exit codes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from qedge.cli import main
from tests.analytics.populations import query_of

STATISTICS = [{"kind": "count"}, {"kind": "histogram", "column": "hue", "range": [0, 2], "bins": 2}]


@pytest.fixture
def qedge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in a folder and home of its own; what it said, and its JSON."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[Result, Any]:
        result = CliRunner().invoke(main, [*arguments, "--home", "home", "--json"], catch_exceptions=False)
        return result, json.loads(result.stdout.splitlines()[-1])

    return run


def _file(**changes: Any) -> str:
    Path("stats.yaml").write_text(yaml.safe_dump(query_of(*STATISTICS).plain() | changes))
    return "stats.yaml"


def test_a_query_prints_its_numbers_and_intervals_and_the_run_can_be_asked_about(qedge):
    result, answer = qedge("query", _file(), "--backend", "serial", "--output", "answers.csv")
    assert result.exit_code == 0, result.output
    keys = {"run_id", "answers", "intervals", "statement", "epsilon", "delta", "clients", "seconds", "output"}
    assert answer.keys() == keys
    assert "interval, 95 %" in result.stderr
    assert "Sampling error is not included" in result.stderr.replace("\n", " ")
    with Path("answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["statistic"], row["of"]) for row in rows] == [("count", "rows"), ("histogram hue", "0 to 1"), ("histogram hue", "1 to 2")]
    assert [float(row["value"]) for row in rows] == [number["value"] for one in answer["answers"] for number in one["estimates"]]
    _, runs = qedge("runs")
    assert runs["runs"] == [{"run": answer["run_id"], "status": "finished", "rounds": 1, "of": 1, "published": True}]
    _, again = qedge("query", "--resume", answer["run_id"], "--backend", "serial", "--output", "answers.json")
    assert again["answers"] == answer["answers"] == json.loads(Path("answers.json").read_text())["answers"]
    _, shown = qedge("budget", "show")
    assert shown["scopes"][0]["spent"] == pytest.approx(answer["epsilon"])
    assert qedge("status")[0].exit_code == 0
    assert qedge("log", "verify")[0].exit_code == 0


def test_what_clients_wrote_is_shown_as_text_and_obeyed_by_nobody(qedge):
    """Markup that rich would refuse, and the escape sequence that clears a terminal; more lines than are shown."""
    words = ["[/red]", "\x1b[2Jcleared", *(f"w{number}" for number in range(80))]
    Path("t.csv").write_text("who,word\n" + "".join(f'p{row},"{word}"\n' for word in words for row in range(3)), encoding="utf-8")
    hunt = {"kind": "heavy-hitters", "column": "word", "length": 12, "most": 100}
    changes = {"data": {"source": "t.csv", "client": "who"}, "privacy": "none", "max_rows": 200, "statistics": [hunt]}
    result, answer = qedge("query", _file(**changes), "--backend", "serial")
    assert result.exit_code == 0, result.output
    assert "\x1b[2J" not in result.output
    assert "\\x1b[2Jcleared" in result.stderr
    assert "[/red]" in result.stderr
    assert "… and 22 more" in result.stderr
    assert {one["of"] for one in answer["answers"][0]["estimates"]} == set(words)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "job.invalid"),
        (("stats.yaml", "--resume", "one"), "job.invalid"),
        (("elsewhere.yaml",), "job.invalid"),
        (("--resume", "one"), "run.unknown"),
        (("stats.yaml", "--output", "answers.xls"), "request.invalid"),
        (("stats.yaml", "--output", "nowhere/answers.csv"), "request.invalid"),
        (("stats.yaml", "--backend", "seriel"), "config.invalid"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_nothing_written(qedge, arguments: tuple[str, ...], code: str):
    _file()
    result, answer = qedge("query", *arguments, *([] if "--backend" in arguments else ["--backend", "serial"]))
    assert (result.exit_code, answer["error"]["code"]) == (2, code)
    assert not (Path("home") / "runs").exists() or not list((Path("home") / "runs").iterdir())


def test_a_query_over_a_column_that_is_not_there_names_the_nearest(qedge):
    changes = {"statistics": [{"kind": "mean", "column": "alcohole", "range": [10, 16]}]}
    result, answer = qedge("query", _file(**changes), "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (2, "data.not-found")
    assert "did you mean 'alcohol'?" in answer["error"]["message"]


def test_a_search_that_finds_nothing_says_so_and_what_it_could_have_missed(qedge):
    hunt = {"kind": "heavy-hitters", "column": "word", "length": 4, "most": 5}
    Path("words.csv").write_text("who,word,share\n" + "".join(f"p{row},w{row},{row / 3}\n" for row in range(60)))
    asked = query_of(hunt, data={"source": str(Path("words.csv").resolve()), "client": "who"}, privacy={"epsilon": 4, "delta": 1e-3})
    Path("stats.yaml").write_text(yaml.safe_dump(asked.plain()))
    result, answer = qedge("query", "stats.yaml", "--backend", "serial")
    assert (result.exit_code, answer["answers"][0]["estimates"]) == (0, [])
    said = " ".join(result.stderr.split())
    assert "nothing found" in said
    assert "rows have may be missed" in said


def test_decimals_are_no_words_to_hunt_for(qedge):
    hunt = {"kind": "heavy-hitters", "column": "share", "length": 4, "most": 5}
    Path("words.csv").write_text("who,word,share\n" + "".join(f"p{row},w{row},{row / 3}\n" for row in range(60)))
    asked = query_of(hunt, data={"source": str(Path("words.csv").resolve()), "client": "who"}, privacy={"epsilon": 4, "delta": 1e-3})
    Path("stats.yaml").write_text(yaml.safe_dump(asked.plain()))
    result, answer = qedge("query", "stats.yaml", "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (2, "data.invalid-value")
    assert "decimals" in answer["error"]["message"]
