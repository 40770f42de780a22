"""The tables of the benchmarks: what they say is reached, and how a section takes the place of the last."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedge import TrainingJob
from tests.benchmarks.figures import Figure, at_least, at_most, beside, spread
from tests.benchmarks.results import machine, put, section
from tests.benchmarks.run import NAMES
from tests.benchmarks.surroundings import JOBS, changed, digits_job, environment

HERE = Path(__file__).parent
VALUES = st.lists(st.floats(0.001, 1000), min_size=1, max_size=9)


@given(values=VALUES, limit=st.floats(0.001, 1000))
def test_a_figure_is_reached_exactly_when_its_median_is_on_the_right_side(values: list[float], limit: float) -> None:
    middle = sorted(values + values)[len(values) - 1 : len(values) + 1]
    median = sum(middle) / 2
    assert at_most("x", limit, values, "ms").kept == (median <= limit)
    assert at_least("x", limit, values, "ms").kept == (median >= limit)
    assert beside("x", values, "ms").kept


def test_a_spread_gives_median_range_and_number() -> None:
    assert spread([3.0, 1.0, 2.26], "ms", 2) == "2.3 ms (1 to 3, 3 repetitions)"
    assert spread([0.51234], "") == "0.512"


def test_a_section_marks_what_was_missed_and_names_machine_and_command() -> None:
    text = section("x", "About.", [Figure("a", "≤ 1", "2", False), Figure("b", "≤ 1", "1"), Figure("c", "", "3")], "do x")
    assert "| a | ≤ 1 | 2 | **missed** |" in text
    assert "| b | ≤ 1 | 1 | reached |" in text
    assert "| c | — | 3 |  |" in text
    assert "`do x` · " in text
    assert all(word in machine() for word in ("cores", "Python 3", "ray 2", "torch 2", "UTC", "commit"))


@given(order=st.permutations(["one", "two", "three"]), again=st.sampled_from(["one", "two", "three"]))
def test_a_section_is_replaced_and_the_others_stay_in_order(tmp_path_factory: pytest.TempPathFactory, order: list[str], again: str) -> None:
    path = tmp_path_factory.mktemp("results") / "RESULTS.md"
    known = ("one", "two", "three")
    for name in [*order, again]:
        put(path, name, section(name, f"About {name}.", [Figure("x", "", f"{name} was measured")], "do"), known)
    text = path.read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(known)
    assert all(text.count(f"{name} was measured") == 1 for name in known)
    assert text.startswith("# Results\n")
    assert path.stat().st_mode & 0o777 == 0o644


def test_every_benchmark_can_be_called_and_says_how_often_it_repeats() -> None:
    for name in NAMES:
        tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
        functions = {node.name: [argument.arg for argument in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
        assigned = {
            target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
        }
        assert functions["measure"] == ["repeat"], name
        assert "REPEAT" in assigned, name
        assert ast.get_docstring(tree)


@pytest.mark.parametrize("arguments", [["nothing"], ["rounds", "--repeat", "0"]])
def test_a_benchmark_that_is_not_there_is_refused_with_the_names_of_those_that_are(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, HERE / "run.py", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--repeat must be" in done.stderr or all(name in done.stderr for name in NAMES)


@pytest.mark.parametrize("epsilon", [8, 3])
def test_the_jobs_that_are_measured_are_the_ones_that_were_promised(epsilon: int) -> None:
    job = digits_job(epsilon)
    assert sorted(path.name for path in JOBS.iterdir()) == [
        "digits-epsilon-3.yaml",
        "digits-epsilon-8.yaml",
        "digits-hybrid-epsilon-8.yaml",
    ]
    assert job.data.source == "digits"
    assert job.data.partition is not None
    assert job.privacy is not None
    assert (job.data.partition.clients, job.privacy.unit, job.privacy.epsilon) == (400, "client", epsilon)
    assert job.privacy.delta <= 400**-1.1


def test_a_change_of_a_job_touches_nothing_else() -> None:
    job = digits_job(8)
    other = changed(job, privacy="none", algorithm={"kernel": "stacked"}, rounds=3)
    assert (other.privacy, other.algorithm.kernel, other.rounds) == (None, "stacked", 3)
    back = other.plain() | {"privacy": job.plain()["privacy"], "rounds": job.rounds, "algorithm": job.plain()["algorithm"]}
    assert TrainingJob.parse(back) == job


def test_a_child_sees_nothing_of_the_users_ray_or_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "QEDGE_HOME", "IN_QEDGE_CLUSTER"):
        monkeypatch.setenv(name, "the user's")
    assert "the user's" not in environment().values()
    assert environment(RAY_ADDRESS="ours")["RAY_ADDRESS"] == "ours"
