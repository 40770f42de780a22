"""Settings: what wins over what, what is refused, and a home that cannot be used."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qedge import config
from qedge.errors import HomeUnusable, InvalidConfig


def written(folder: Path, text: str) -> Path:
    path = folder / "qedge.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_given_all_state_lives_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = config.load(environ={})
    assert given.home == tmp_path / ".qedge"
    assert given.serve.host == "127.0.0.1"
    assert given.address is None
    assert given.mlflow_uri == f"sqlite:///{tmp_path / '.qedge' / 'mlflow.db'}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources=st.sets(st.sampled_from(["file", "environment", "argument"])))
def test_argument_wins_over_environment_over_file_over_default(tmp_path: Path, sources: set[str]) -> None:
    path = written(tmp_path, "address: file:1" if "file" in sources else "")
    environ = {"RAY_ADDRESS": "ray:1"} | ({"QEDGE_ADDRESS": "environment:1"} if "environment" in sources else {})
    address = "argument:1" if "argument" in sources else None
    expected = next((f"{name}:1" for name in ("argument", "environment", "file") if name in sources), "ray:1")
    assert config.load(path, environ, address=address).address == expected


def test_environment_overrides_one_field_of_a_group_and_leaves_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "serve: {port: 1234, host: 0.0.0.0}")
    serve = config.load(path, {"QEDGE_SERVE__PORT": "4321"}).serve
    assert (serve.port, serve.host, serve.replicas) == (4321, "0.0.0.0", 1)


def test_the_file_may_be_named_by_the_environment_and_the_argument_wins(tmp_path: Path) -> None:
    named = written(tmp_path, "serve: {port: 1111}")
    other = tmp_path / "other.yaml"
    other.write_text("serve: {port: 2222}")
    assert config.load(environ={"QEDGE_CONFIG": str(named)}).serve.port == 1111
    assert config.load(other, environ={"QEDGE_CONFIG": str(named)}).serve.port == 2222


def test_an_empty_variable_counts_as_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty = {"QEDGE_HOME": "", "QEDGE_ADDRESS": "", "QEDGE_SERVE__PORT": "", "RAY_ADDRESS": ""}
    assert config.load(environ=empty) == config.load(environ={})


def test_a_group_left_empty_in_the_file_keeps_its_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "serve:\ncluster:\nhome:\n")
    assert config.load(path, {"QEDGE_SERVE__PORT": "9"}).serve == config.Serve(port=9)


def test_home_in_a_file_is_taken_from_where_the_file_lies(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "home: state"), {}).home == tmp_path / "state"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"QEDGE_HOEM": "x"}, "did you mean 'home'"),
        ({"QEDGE_SERVE__PRT": "1"}, "unknown setting 'serve.prt'; did you mean 'port'"),
        ({"QEDGE_": "x"}, "known: address"),
        ({"QEDGE_SERVE__PORT": "eighty"}, "'serve.port'"),
        ({"QEDGE_SERVE__PORT": "0"}, "'serve.port'"),
        ({"QEDGE_SERVE__PORT": "65536"}, "'serve.port'"),
        ({"QEDGE_SERVE__PORT__X": "1"}, "'serve.port'"),
        ({"QEDGE_SERVE": "x"}, "'serve' must be a mapping with the keys host, port"),
        ({"QEDGE_SERVE": "x", "QEDGE_SERVE__PORT": "1"}, "steps into 'serve'"),
        ({"QEDGE_CLUSTER__START_TIMEOUT_S": "inf"}, "finite"),
        ({"QEDGE_CLUSTER__START_TIMEOUT_S": "nan"}, "'cluster.start_timeout_s'"),
        ({"QEDGE_LEDGER__OPEN_BY_JOB": "perhaps"}, "'ledger.open_by_job'"),
    ],
)
def test_a_wrong_variable_is_refused_and_the_message_names_it(environ: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        config.load(environ=environ)
    assert says in str(refusal.value)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("srve: {}", "did you mean 'serve'"),
        ("serve: {prt: 1}", "did you mean 'port'"),
        ("serve: 3", "must be a mapping with the keys host, port"),
        ("- serve", "must be a mapping with the keys home"),
        ("serve: [", "is not YAML"),
        ("home: 2024-13-45", "is not YAML"),
        ("home: a\nhome: b", "'home' is given twice"),
        ("serve: {port: 1, port: 2}", "'port' is given twice"),
    ],
)
def test_a_wrong_file_is_refused_and_the_message_says_why(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        config.load(written(tmp_path, text), {})
    assert says in str(refusal.value)


def test_a_wrong_file_is_refused_even_where_the_environment_would_step_into_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="steps into 'serve'"):
        config.load(written(tmp_path, "serve: 3"), {"QEDGE_SERVE__PORT": "1"})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        config.load(tmp_path / "none.yaml", {})


@settings(max_examples=200)
@given(st.dictionaries(st.text("ABEHMOPRST_", max_size=12).map("QEDGE_".__add__), st.text(min_size=1, max_size=5), max_size=4))
def test_any_environment_gives_settings_or_a_refusal(environ: dict[str, str]) -> None:
    environ.pop("QEDGE_CONFIG", None)
    try:
        assert config.load(environ=environ).home.is_absolute()
    except (InvalidConfig, HomeUnusable):
        assert environ


@pytest.mark.parametrize("home", ["~nobody-of-this-name/x", "a\0b"])
def test_a_home_that_is_no_path_is_refused(home: str) -> None:
    with pytest.raises(HomeUnusable, match="is not a folder's path"):
        config.load(environ={"QEDGE_HOME": home})


def test_the_home_is_made_with_its_folders_closed_to_others(tmp_path: Path) -> None:
    home = config.ensure_home(tmp_path / "above" / "home")
    assert {entry.name for entry in home.iterdir()} == {"runs", "keys", "artifacts"}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (home, *home.iterdir())} == {0o700}
    assert config.ensure_home(home) == home


@pytest.mark.parametrize("stands_in_the_way", ["home", "home/keys", "parent"])
def test_a_file_where_a_folder_should_be_is_a_home_that_cannot_be_used(tmp_path: Path, stands_in_the_way: str) -> None:
    home = tmp_path / "parent" / "home"
    obstacle = {"home": home, "home/keys": home / "keys", "parent": home.parent}[stands_in_the_way]
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("in the way")
    with pytest.raises(HomeUnusable, match="cannot be written") as refusal:
        config.ensure_home(home)
    assert refusal.value.facts["home"] == str(home)
    assert obstacle.read_text() == "in the way"


def test_many_threads_may_make_one_home_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def make() -> None:
        try:
            for _ in range(50):
                config.ensure_home(tmp_path / "home")
        except HomeUnusable as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
