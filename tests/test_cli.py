"""The command line as a user has it: what it prints, its JSON, its exit codes, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner, Result

from qedge.audit.receipt import Body, Receipt, issue
from qedge.cli import main
from qedge.config import load
from qedge.demo import to_go_on
from qedge.federated.guarantee import EVALUATION_ROWS
from qedge.federated.run_folder import RunFolder, recorded_guarantee
from qedge.job import TrainingJob
from qedge.records import Records
from qedge.registry.registry import Registry
from qedge.runs.preparation import prepare
from qedge.security.keys import Keys
from qedge.uncertainty import plus_minus, rounded
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder
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


@pytest.fixture(scope="module")
def charged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Any]:
    """A home in which one run with a charged evaluation was trained, and what the command said; to be read only."""
    folder = tmp_path_factory.mktemp("charged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = ["train", _job(data={"evaluation": None}), "--backend", "serial", "--home", "home", "--json"]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return folder / "home", result, json.loads(result.stdout.splitlines()[-1])


def _ask(home: Path, *arguments: str) -> tuple[Result, Any]:
    result = CliRunner().invoke(main, [*arguments, "--home", str(home), "--json"], catch_exceptions=False)
    return result, json.loads(result.stdout.splitlines()[-1])


def _job(**changes: Any) -> str:
    values = {**PRIVATE, **{key: {**PRIVATE[key], **value} if isinstance(value, dict) else value for key, value in changes.items()}}
    Path("job.yaml").write_text(yaml.safe_dump(values))
    return "job.yaml"


def test_train_prints_what_the_contract_says_and_the_models_it_made_can_be_asked_about(qedge):
    result, answer = qedge("train", _job(), "--backend", "serial")
    assert result.exit_code == 0, result.output
    contract = "run_id model version accuracy accuracy_std loss epsilon delta rounds clients of_clients"
    assert set(answer) == {*contract.split(), "seconds", "seconds_per_round", "profile", "receipt"}
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


def test_a_charged_evaluation_tells_its_noise_and_shows_no_digit_that_it_hides(charged):
    """In the summary, and in MLflow's metrics and tags; its deviation is that of the noise on record."""
    home, result, answer = charged
    settings = load(home=home, environ={})
    guarantee = recorded_guarantee(RunFolder.open(settings.home, answer["run_id"]))
    # On two counts that a client adds at most 64 to each; all 30 hold rows out, which noise blurs: at most twice as much is possible.
    least = guarantee.evaluation_variance**0.5 / (EVALUATION_ROWS * 30)
    assert 0.5 * least < answer["accuracy_std"] < 4 * least
    told = plus_minus(answer["accuracy"], answer["accuracy_std"])
    assert f"accuracy         {told} (one standard deviation" in result.stderr
    (run,) = Registry(settings).runs()
    assert run.metrics["final_accuracy"] == rounded(answer["accuracy"], answer["accuracy_std"])
    assert run.metrics["final_accuracy_std"] == answer["accuracy_std"]
    assert run.tags["qedge.accuracy"] == told


def test_the_history_of_a_budget_tells_costs_totals_and_which_release_was_the_evaluation(charged):
    home, _, answer = charged
    result, history = _ask(home, "budget", "history", "wine")
    commits = [event for event in history["events"] if event["kind"] == "commit"]
    assert [event["what"] for event in commits] == [*(f"round {number} of 4" for number in (1, 2, 3, 4)), "evaluation"]
    assert sum(event["cost"] for event in history["events"]) == pytest.approx(answer["epsilon"])
    assert commits[-1]["spent"] == pytest.approx(answer["epsilon"])
    assert "evaluation" in result.stderr
    assert f"{commits[0]['cost']:.4g}" in result.stderr


def test_a_budget_says_what_a_new_job_may_ask_and_such_a_job_is_held(qedge):
    settings = load(home="home", environ={})
    qedge("budget", "set", "wine", "--epsilon", "10", "--delta", "0.01", "--order", "4")
    prepare(TrainingJob.load(_job()), settings)
    _, shown = qedge("budget", "show", "wine")
    (scope,) = shown["scopes"]
    assert scope["new_job_epsilon"] > 10 - scope["reserved"], "epsilons do not subtract"
    too_little, refused = qedge("train", _job(privacy={"epsilon": scope["least_job_epsilon"]}), "--backend", "serial")
    assert (too_little.exit_code, refused["error"]["code"]) == (2, "privacy.invalid")
    too_much, refused = qedge("train", _job(privacy={"epsilon": scope["new_job_epsilon"] + 0.2}), "--backend", "serial")
    assert (too_much.exit_code, refused["error"]["code"]) == (2, "privacy.budget-exceeded")
    assert refused["error"]["new_job_epsilon"] == scope["new_job_epsilon"]
    held = prepare(TrainingJob.load(_job(privacy={"epsilon": scope["new_job_epsilon"]})), settings)
    assert Records.open(settings.home).ledger.plan(held.run) is not None


def test_a_budget_can_be_opened_for_single_examples_and_its_unit_is_frozen(qedge):
    qedge("budget", "set", "wine", "--epsilon", "10", "--delta", "0.001", "--unit", "example")
    _, shown = qedge("budget", "show", "wine")
    assert shown["scopes"][0]["unit"] == "example"
    kept, _ = qedge("budget", "set", "wine", "--epsilon", "12", "--delta", "0.001")
    assert kept.exit_code == 0
    other, refused = qedge("budget", "set", "wine", "--epsilon", "12", "--delta", "0.001", "--unit", "client")
    assert (other.exit_code, refused["error"]["code"]) == (2, "privacy.invalid")
    unfit, refused = qedge("train", _job(), "--backend", "serial")
    assert (unfit.exit_code, refused["error"]["code"]) == (2, "privacy.scope-conflict")


def test_a_cap_below_what_is_spent_is_set_with_a_warning_that_nothing_more_fits(qedge):
    set_first = ("budget", "set", "wine", "--epsilon", "10", "--delta", "0.01")
    result, answer = qedge(*set_first)
    assert answer["warnings"] == []
    assert "warning" not in result.stderr
    prepare(TrainingJob.load(_job()), load(home="home", environ={}))
    result, answer = qedge(*set_first[:4], "2", *set_first[5:])
    assert result.exit_code == 0
    assert answer["scopes"][0]["new_job_epsilon"] == 0
    assert "no new job fits" in answer["warnings"][0]
    assert answer["warnings"][0] in result.stderr


def test_no_line_for_people_is_wider_than_80_columns_or_holds_a_whole_digest(charged, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    home, _, answer = charged
    commands = "budget show,budget history,models,runs,receipt verify tiny,log verify,log show,status"
    for asked in commands.split(","):
        shown = CliRunner().invoke(main, [*asked.split(), "--home", str(home)])
        assert shown.exit_code == 0, shown.output
        assert not re.search(r"(?<!ed25519:)\b[0-9a-f]{64}", shown.output), asked
        # A path and a key are printed in one piece, to be copied.
        lines = [line for line in shown.output.splitlines() if str(home) not in line]
        assert max(map(len, lines), default=0) <= 80, asked
    assert answer["receipt"][:12] in CliRunner().invoke(main, ["models", "--home", str(home)]).output


def test_a_receipt_that_is_shown_to_a_program_is_whole(charged):
    home, _, answer = charged
    shown = CliRunner().invoke(main, ["receipt", "show", "tiny", "--home", str(home)])
    stored = Receipt.read(home / "runs" / answer["run_id"] / "model" / "receipt.json")
    assert json.loads(shown.output) == stored.plain()


@pytest.mark.parametrize(
    "arguments", [("train", "--epsilonn"), ("trian",), ("budget",), ("receipt", "show"), ("ui", "--port", "x"), ("--no",)]
)
def test_what_the_command_line_does_not_take_is_a_typed_error_as_json_and_exits_2(arguments):
    result = CliRunner().invoke(main, [*arguments, "--json"])
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert (result.exit_code, error["code"]) == (2, "command.invalid")
    assert error["message"] in result.stderr
    plain = CliRunner().invoke(main, arguments)
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert "Usage:" in plain.stderr


def test_every_command_that_takes_a_model_says_how_to_name_one():
    taking = [(*group, name) for *group, name, one in _walk(main) if any(parameter.name == "model" for parameter in one.params)]
    assert len(taking) == 14
    for words in taking:
        assert "NAME, NAME@alias or NAME/version" in CliRunner().invoke(main, [*words, "--help"]).output


def _walk(group: click.Group, *above: str):
    for name, one in group.commands.items():
        yield from _walk(one, *above, name) if isinstance(one, click.Group) else [(*above, name, one)]


@pytest.mark.parametrize(
    "arguments", ["runs", "models", "status", "doctor", "budget show", "log show", "receipt show tiny", "predict tiny rows.csv"]
)
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_home_that_is_no_folder_is_a_typed_error_for_whoever_reads_it(tmp_path, arguments, below):
    (tmp_path / "file").write_text("not a folder")
    result = CliRunner().invoke(main, [*arguments.split(), "--home", f"{tmp_path}/file{below}", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "home.unusable")
    assert "no folder" in result.stderr


def test_the_receipt_of_a_folder_tells_the_files_and_the_releases_that_it_does_not_list(charged, tmp_path):
    home, _, answer = charged
    folder = shutil.copytree(home / "runs" / answer["run_id"] / "model", tmp_path / "model")
    assert _ask(home, "receipt", "verify", str(folder))[1]["unlisted"] == []
    (folder / "extra.bin").write_bytes(b"what is this")
    result, verified = _ask(home, "receipt", "verify", str(folder))
    assert verified["unlisted"] == ["extra.bin"]
    assert "extra.bin" in result.stderr
    (folder / "extra.bin").unlink()
    said = Receipt.read(folder / "receipt.json")
    fewer = said.model_copy(update={"mechanism": said.mechanism.model_copy(update={"rounds": 2})})
    body = {name: value for name, value in fewer if name in Body.model_fields}
    issue(Body(**body), Keys.open(home)).write(folder / "receipt.json")
    _, verified = _ask(home, "receipt", "verify", str(folder))
    assert verified["unlisted"] == [f"release {number} of run {answer['run_id']}" for number in (4, 5)]


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
        (("status", "--address", "127.0.0.1:1"), "address.unreachable"),
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
    folder = prepare(TrainingJob.load(_job()), load(home=tmp_path / "home", environ={}))
    _, before = qedge("runs")
    assert before["runs"][0]["status"] == "unfinished"
    result, answer = qedge("train", "--resume", folder.run, "--backend", "serial")
    assert result.exit_code == 0
    assert answer["run_id"] == folder.run
    phases = ["reading the data", "training", "evaluating", "exporting", "publishing", "done"]
    assert [line for line in result.stderr.splitlines() if line.startswith(tuple(phases))] == [
        next(line for line in result.stderr.splitlines() if line.startswith(phase)) for phase in phases
    ]
    again, same = qedge("train", "--resume", folder.run, "--backend", "serial")
    assert again.exit_code == 0
    assert same["receipt"] == answer["receipt"]


def test_what_the_registry_shows_of_a_run_is_its_job_whatever_was_written_over_it(qedge, tmp_path):
    settings = load(home=tmp_path / "home", environ={})
    folder = prepare(TrainingJob.load(_job()), settings)
    told = folder.read("run.json")
    folder.write("run.json", told | {"params": told["params"] | {"privacy.epsilon": "0.1"}})
    assert qedge("train", "--resume", folder.run, "--backend", "serial")[0].exit_code == 0
    (run,) = Registry(settings).runs()
    assert run.params["privacy.epsilon"] == told["params"]["privacy.epsilon"] != "0.1"
    assert folder.read("run.json") == told


def test_a_run_whose_job_was_altered_does_not_hide_the_others(qedge, tmp_path):
    settings = load(home=tmp_path / "home", environ={})
    broken, whole = (prepare(TrainingJob.load(_job(privacy="none", name=name)), settings) for name in ("broken", "whole"))
    (broken.path / "job.json").write_text("{")
    result, answer = qedge("runs")
    assert result.exit_code == 0
    assert {run["run"]: run["status"] for run in answer["runs"]} == {broken.run: "tampered.checkpoint", whole.run: "unfinished"}


def test_a_receipt_is_not_said_to_hold_where_there_is_no_key_to_trust(charged, tmp_path):
    """Anybody may sign a receipt with a key of their own and enclose it."""
    home, _, answer = charged
    model = str(home / "runs" / answer["run_id"] / "model")
    refused, told = _ask(tmp_path / "elsewhere", "receipt", "verify", model)
    assert (refused.exit_code, told["error"]["code"]) == (2, "config.invalid")
    key = _ask(home, "log", "verify")[1]["public_key"]
    verified, facts = _ask(tmp_path / "elsewhere", "receipt", "verify", model, "--key", key)
    assert (verified.exit_code, facts["pinned"]) == (0, "given key")


def test_a_run_that_fails_is_not_said_to_be_published(qedge):
    job = _job(privacy="none", algorithm={"learning_rate": 1e30})
    result, answer = qedge("train", job, "--backend", "serial")
    assert (result.exit_code, answer["error"]["code"]) == (1, "round.diverged")
    assert "training" in result.stderr
    assert "publishing" not in result.stderr
    assert Registry(load(home="home", environ={})).runs()[0].status == "FAILED", "what there is, is"


@pytest.mark.slow
def test_ctrl_c_ends_training_without_a_traceback_and_says_how_to_go_on(qedge, tmp_path):
    command = [sys.executable, "-m", "qedge", "train", _job(rounds=5000), "--backend", "serial", "--home", "home", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "training" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["error"]["code"] == "interrupted"
    assert "Traceback" not in err
    (run,) = (tmp_path / "home" / "runs").iterdir()
    assert f"qedge train --resume {run.name} --home {tmp_path / 'home'}" in err


def test_the_demo_says_how_to_go_on_with_a_run_that_was_begun_and_only_with_such(qedge, tmp_path):
    settings = load(home=tmp_path / "home", environ={})
    assert to_go_on(settings.home) == []
    folder = prepare(TrainingJob.load(_job(rounds=1)), settings)
    (line,) = to_go_on(settings.home)
    words = shlex.split(line.partition(".venv/bin/qedge ")[2])
    assert words == ["train", "--resume", folder.run, "--home", str(settings.home)]
    assert CliRunner().invoke(main, [*words, "--backend", "serial"]).exit_code == 0
    assert to_go_on(settings.home) == []


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


def test_predict_writes_all_labels_with_their_probabilities_and_shows_the_first(qedge, tmp_path):
    rows = np.random.default_rng(0).normal(size=(37, FEATURES)).astype(np.float32)
    lines = [",".join(f"f{at}" for at in range(FEATURES)), *(",".join(map(repr, map(float, row))) for row in rows)]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    served = InferenceServer()
    served.serve([ModelFolder("mail", "3", str(write(tmp_path / "mail", "mail", Keys.open(tmp_path / "serving"), graph(seed=1))))])
    labels, probabilities = answer(rows, seed=1)
    with endpoint(served) as url:
        result, answered = qedge("predict", "mail/3", "rows.csv", "--url", url)
        assert "… and 17 more (--output FILE for all)" in result.stderr
        assert answered["probability"] == pytest.approx(probabilities.max(axis=1).tolist(), abs=1e-6)
        assert f"{labels[19]}" in result.stderr
        for name in ("out.csv", "out.json", "out.parquet"):
            result, answered = qedge("predict", "mail", "rows.csv", "--url", url, "--output", name)
            assert result.exit_code == 0, result.output
            assert f"all are in {name}" in result.stderr
            written = _written(Path(name))
            assert [row["row"] for row in written] == list(range(37))
            assert [row["label"] for row in written] == answered["labels"] == labels.tolist()
            assert [row["probability"] for row in written] == pytest.approx(answered["probability"])
        for name in ("out.txt", "out", "nowhere/out.csv", "."):
            result, refused = qedge("predict", "mail", "rows.csv", "--url", url, "--output", name)
            assert (result.exit_code, refused["error"]["code"]) == (2, "request.invalid"), name
        result, refused = qedge("predict", "mail/2", "rows.csv", "--url", url, "--output", "other.csv")
        assert (result.exit_code, refused["error"]["code"]) == (2, "model.unknown")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("o", "."))) == ["out.csv", "out.json", "out.parquet"]


def _written(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return (pyarrow.csv.read_csv if path.suffix == ".csv" else pyarrow.parquet.read_table)(path).to_pylist()


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
