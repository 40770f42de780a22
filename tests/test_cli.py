"""The command line as a user has it: what it prints, its JSON, its exit codes, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from qedge.cli import main
from qedge.security.keys import Keys
from serve_apps.inference import InferenceServer, ModelFolder
from tests.conftest import PRIVATE
from tests.endpoint import endpoint
from tests.served_models import FEATURES, answer, graph, write


@pytest.fixture
def qedge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in a folder and home of its own: `qedge("train", "job.yaml")`; the answer and its JSON."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("QEDGE_", "RAY_ADDRESS"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> tuple[Result, Any]:
        result = CliRunner().invoke(main, [*arguments, "--home", str(tmp_path / "home"), "--json"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        lines = result.stdout.splitlines()
        return result, json.loads(lines[-1]) if lines else None

    return run


def _job(**changes: Any) -> str:
    values = {**PRIVATE, **{key: {**PRIVATE[key], **value} if isinstance(value, dict) else value for key, value in changes.items()}}
    Path("job.yaml").write_text(yaml.safe_dump(values))
    return "job.yaml"


def test_train_prints_what_the_contract_says_and_the_models_it_made_can_be_asked_about(qedge):
    result, answer = qedge("train", _job(), "--backend", "serial")
    assert result.exit_code == 0, result.output
    contract = "run_id model version accuracy loss epsilon delta rounds clients seconds seconds_per_round receipt"
    assert set(answer) == set(contract.split())
    assert answer["version"] == 1
    assert answer["clients"] == 30

    _, models = qedge("models")
    assert [(m["name"], m["version"], set(m["aliases"])) for m in models["models"]] == [("tiny", 1, {"challenger", "champion"})]
    _, runs = qedge("runs")
    assert runs["runs"] == [{"run": answer["run_id"], "status": "finished", "rounds": 4, "of": 4, "published": True}]
    _, receipt = qedge("receipt", "show", "tiny@champion")
    assert receipt["id"] == answer["receipt"]
    verified, facts = qedge("receipt", "verify", "tiny@champion")
    assert verified.exit_code == 0
    assert facts["pinned"] == "this home's key"
    _, logged = qedge("log", "verify")
    copy = Path("copy.log")
    copy.write_bytes((Path("home") / "audit.log").read_bytes())
    offline, held = qedge("log", "verify", "--file", "copy.log", "--key", logged["public_key"])
    assert offline.exit_code == 0
    assert held["entries"] == held["signed up to"] + 1 == logged["entries"]
    copy.write_bytes(copy.read_bytes().replace(b"run.prepared", b"run.Prepared"))
    assert qedge("log", "verify", "--file", "copy.log", "--key", logged["public_key"])[1]["error"]["code"] == "tampered.log"
    _, history = qedge("budget", "history", "wine")
    assert [event["kind"] for event in history["events"]] == ["open", "hold", "take-over", *["commit"] * 4, "close"]
    _, shown = qedge("budget", "show")
    (scope,) = shown["scopes"]
    assert scope["spent"] == pytest.approx(answer["epsilon"])
    _, promoted = qedge("promote", "tiny/1", "--alias", "stable")
    assert promoted == {"model": "tiny", "version": 1, "alias": "stable"}


def test_a_plan_over_budget_exits_2_and_says_how_many_rounds_would_fit(qedge):
    assert qedge("budget", "set", "wine", "--epsilon", "4", "--delta", "0.01")[0].exit_code == 0
    result, answer = qedge("train", _job(privacy={"epsilon": 5}, rounds=30), "--backend", "serial")
    assert result.exit_code == 2
    assert answer["error"]["code"] == "privacy.budget-exceeded"
    assert 0 < answer["error"]["rounds_that_fit"] < 30
    assert "rounds" in result.stderr
    assert list((Path("home") / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"epsilonn": 3}, "job.unknown-key", "epsilonn"),
        ({"model": {"kind": "mpl"}}, "job.unknown-key", "mlp"),
        ({"aggregation": "krum"}, "job.not-in-this-version", "mean"),
        ({"privacy": {"epsilon": -1}}, "privacy.invalid", "epsilon"),
        ({"privacy": {"delta": 0.5}}, "privacy.invalid", "1/clients"),
        ({"cohort": {"rate": 0}}, "privacy.invalid", "(0, 1]"),
        ({"data": {"source": "missing.csv", "client": "c", "label": "y", "partition": None}}, "data.not-found", "missing.csv"),
        ({"model": {"kind": "tests.test_cli:with_batch_norm"}}, "model.invalid", "GroupNorm"),
        ({"model": {"kind": "tests.test_cli:with_too_few_outputs"}}, "data.label-mismatch", "label"),
    ],
)
def test_bad_input_exits_2_with_its_code_and_writes_nothing(qedge, changes, code, said):
    result, answer = qedge("train", _job(**changes), "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (2, code)
    assert said in answer["error"]["message"]
    assert not (Path("home") / "ledger.db").exists()


def with_batch_norm(features: int, classes: int) -> Any:
    """A model that private training must refuse."""
    import torch

    return torch.nn.Sequential(torch.nn.BatchNorm1d(features), torch.nn.Linear(features, classes))


def with_too_few_outputs(features: int, classes: int) -> Any:
    """A model whose output does not fit the labels."""
    import torch

    return torch.nn.Linear(features, classes - 1)


def test_unknown_names_exit_2_and_offer_the_nearest(qedge):
    qedge("train", _job(rounds=1), "--backend", "serial")
    for command, code in (
        (("receipt", "show", "tinny@champion"), "model.unknown"),
        (("budget", "show", "whine"), "privacy.unknown-scope"),
        (("train", "--resume", "nothing"), "run.unknown"),
        (("train", "absent.yaml"), "job.invalid"),
        (("predict", "tiny", "absent.csv", "--url", "http://127.0.0.1:9"), "address.unreachable"),
    ):
        result, answer = qedge(*command)
        assert (result.exit_code, answer["error"]["code"]) == (2, code), result.output


def _apart(home: Path, *arguments: str) -> tuple[int, Any]:
    """A command in a process of its own, which holds nothing open afterwards."""
    command = [sys.executable, "-m", "qedge", *arguments, "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_a_ledger_that_was_altered_or_put_back_stops_every_command_that_reads_it(qedge, tmp_path):
    home = tmp_path / "home"
    assert _apart(home, "budget", "set", "wine", "--epsilon", "8", "--delta", "0.01")[0] == 0
    old = (home / "ledger.db").read_bytes()
    assert _apart(home, "budget", "set", "wine", "--epsilon", "9", "--delta", "0.01")[0] == 0
    now = (home / "ledger.db").read_bytes()
    (home / "ledger.db").write_bytes(old)
    code, answer = _apart(home, "budget", "show")
    assert (code, answer["error"]["code"]) == (2, "tampered.rolled-back")
    (home / "ledger.db").write_bytes(now.replace(b'"9.0"', b'"7.0"'))
    code, answer = _apart(home, "train", _job(rounds=1), "--backend", "serial")
    assert (code, answer["error"]["code"]) == (2, "tampered.ledger")


def test_a_model_file_altered_by_one_byte_is_noticed(qedge, tmp_path):
    qedge("train", _job(rounds=1, privacy="none"), "--backend", "serial")
    (model,) = (tmp_path / "home" / "artifacts").rglob("model.onnx")
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(bytes(content))
    result, answer = qedge("receipt", "verify", "tiny@champion")
    assert (result.exit_code, answer["error"]["code"]) == (2, "tampered.artifact")


def test_a_home_that_cannot_be_written_exits_2(qedge, tmp_path):
    (tmp_path / "home").write_text("not a folder")
    result, answer = qedge("train", _job(), "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (2, "home.unusable")


def test_a_stopped_run_shows_as_unfinished_and_resumes(qedge, tmp_path):
    from qedge.config import load
    from qedge.job import TrainingJob
    from qedge.runs.preparation import prepare

    folder = prepare(TrainingJob.load(_job()), load(home=tmp_path / "home", environ={}))
    _, before = qedge("runs")
    assert before["runs"][0]["status"] == "unfinished"
    result, answer = qedge("train", "--resume", folder.run, "--backend", "serial")
    assert result.exit_code == 0
    assert answer["run_id"] == folder.run
    again, same = qedge("train", "--resume", folder.run, "--backend", "serial")
    assert again.exit_code == 0
    assert same["receipt"] == answer["receipt"]


def test_doctor_names_the_versions_and_what_is_missing(qedge):
    _, answer = qedge("doctor")
    assert answer["missing"] == "nothing"
    assert "CPUExecutionProvider" in answer["execution providers"]


def test_the_command_is_installed_and_help_names_every_command():
    shown = subprocess.run([sys.executable, "-m", "qedge", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in main.commands)


def test_predict_standardises_a_table_where_the_model_wants_it_as_a_whole_or_per_client(qedge, tmp_path):
    draw = np.random.default_rng(0)
    owner, values = draw.integers(0, 3, 30), draw.normal(size=(30, FEATURES)) * [1, 5, 0.1, 0] + 1000
    values = (values + 20 * owner[:, None] * [1, 1, 1, 0]).astype(np.float32)
    columns = [[f"c{k}" for k in owner], *values.T]
    lines = [",".join(["who", *(f"f{at}" for at in range(FEATURES))]), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    per_client = np.empty_like(values)
    for k in range(3):
        per_client[owner == k] = _standard(values[owner == k])
    keys = Keys.open(tmp_path / "serving")
    local = graph(seed=1)
    local.metadata_props.add(key="scale", value="local")
    served = InferenceServer()
    models = {"near": local, "raw": graph(seed=1)}
    served.serve([ModelFolder(name, "1", str(write(tmp_path / name, name, keys, model))) for name, model in models.items()])
    with endpoint(served) as url:
        for arguments, rows in ((("near",), _standard(values)), (("near", "--client", "who"), per_client), (("raw",), values)):
            result, answered = qedge("predict", *arguments[:1], "rows.csv", *arguments[1:], "--url", url)
            assert result.exit_code == 0, result.output
            assert answered["labels"] == answer(rows, seed=1)[0].tolist()
            assert ("standardised" in result.stderr) == (arguments != ("raw",))
        for arguments, code in (
            (("raw", "rows.csv", "--client", "who"), "request.invalid"),
            (("near", "rows.csv", "--client", "whom"), "data.not-found"),
            (("near", "--job", _job(), "--client", "who"), "request.invalid"),
        ):
            result, refused = qedge("predict", *arguments, "--url", url)
            assert (result.exit_code, refused["error"]["code"]) == (2, code)


def test_one_file_under_another_client_column_and_fewer_features_gets_no_second_budget(qedge):
    draw = np.random.default_rng(0)
    person = np.arange(120) % 24
    columns = [person, person // 2, *draw.normal(size=(2, 120)), draw.integers(0, 2, 120)]
    lines = ["person,household,a,c,y", *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    Path("people.csv").write_text("\n".join(lines) + "\n")
    table = {"source": "people.csv", "partition": None, "label": "y", "labels": [0, 1], "evaluation": None}
    first = _job(rounds=1, data={**table, "client": "person"}, privacy={"budget": "persons", "delta": 1e-3})
    assert qedge("train", first, "--backend", "serial")[0].exit_code == 0
    second = {"client": "household", "drop": ["person", "c"]}
    job = _job(rounds=1, data={**table, **second}, privacy={"budget": "households", "delta": 1e-3})
    result, answer = qedge("train", job, "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (2, "privacy.scope-conflict")
    assert [scope["scope"] for scope in qedge("budget", "show")[1]["scopes"]] == ["persons"]
    result, answer = qedge("train", _job(rounds=1, data={**table, **second}, privacy="none"), "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (2, "privacy.scope-conflict")


def _standard(rows: np.ndarray) -> np.ndarray:
    """Rows by their own mean and standard deviation; a feature that does not vary becomes 0."""
    wide = rows.astype(np.float64)
    spread = wide.std(axis=0)
    return ((wide - wide.mean(axis=0)) / np.where(spread == 0, 1, spread)).astype(np.float32)
