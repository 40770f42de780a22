"""The registry on a real MLflow: SQLite, and its own server; processes that are killed, a store that is away."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qedge.config import Settings, ensure_home
from qedge.errors import ArtifactTampered, InvalidConfig, InvalidRequest, RegistryUnavailable, UnknownModel, UnknownRun
from qedge.registry.outbox import Outbox, read_published
from qedge.registry.publisher import Publisher, _name, pending, publish
from qedge.registry.registry import RUN_TAG, ModelVersion, Registry
from qedge.registry.tracking import connection

FEATURES, CLASSES = 4, 3
START_MS = 1_700_000_000_000
ROUNDS = 60


def onnx_model() -> bytes:
    """Softmax of a matrix product, and the name of the likeliest class; the batch is free."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "weights"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"]),
            helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["names", "index"], ["label"]),
        ],
        "softmax",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
        ],
        [
            numpy_helper.from_array(np.eye(FEATURES, CLASSES, dtype=np.float32), "weights"),
            numpy_helper.from_array(np.array(["walk", "sit", "run"], dtype=object), "names"),
        ],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()

    return content


def line(number: int, **metrics: float) -> str:
    return json.dumps({"round": number, "time_ms": START_MS + 1000 * number, "metrics": metrics}) + "\n"


def begin(home: Path, run: str = "har-1", name: str = "har", rounds: int = ROUNDS, created_ms: int = START_MS) -> Path:
    """A run's folder as training leaves it while it goes on."""
    folder = home / "runs" / run
    folder.mkdir(parents=True)
    params = {"rounds": str(rounds), "data.ranges.température (°C)": "[0, 1]", "note": "x" * 7000}
    described = {"run_id": run, "name": name, "created_ms": created_ms, "params": params, "tags": {RUN_TAG: run, "qedge.privacy": "client"}}
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "metrics.jsonl").write_text("".join(line(number, epsilon=number / 10, accuracy=0.5) for number in range(1, rounds + 1)))
    return folder


def end(folder: Path, status: str = "finished", model: bool = True, **tags: str) -> None:
    """How the run ended, and its model."""
    receipt = f"receipt-of-{folder.name}"
    if model:
        content = onnx_model()
        (folder / "model").mkdir()
        (folder / "model" / "model.onnx").write_bytes(content)
        (folder / "model" / "weights.safetensors").write_bytes(b"weights of " + folder.name.encode())
        (folder / "model" / "card.json").write_text("{}")
        digests = {
            name: hashlib.sha256((folder / "model" / name).read_bytes()).hexdigest() for name in ("model.onnx", "weights.safetensors")
        }
        (folder / "model" / "receipt.json").write_text(json.dumps({"id": receipt, "artifacts": digests}))
    known = {"qedge.receipt_id": receipt, "qedge.epsilon": "7.93", "qedge.delta": "0.001", **tags}
    (folder / "result.json").write_text(json.dumps({"status": status, "metrics": {"accuracy": 0.96, "loss": 0.1}, "tags": known}))


def census(asked: Settings) -> dict[str, object]:
    """Everything MLflow holds, without what two publications may differ in (its own random ids, its clock)."""
    with connection(asked) as client:
        experiment = client.get_experiment_by_name("qedge")
        runs = client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
        models = client.search_logged_models([experiment.experiment_id]) if experiment else []
        seen: dict[str, object] = {
            "registered": {model.name: dict(model.aliases) for model in client.search_registered_models()},
            "versions": sorted((found.name, int(found.version), sorted(found.tags.items())) for found in client.search_model_versions()),
            "logged": sorted((model.name, str(model.status), model.tags["qedge.receipt_id"]) for model in models),
        }
        for run in runs:
            points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            history = {
                key: [(point.step, point.timestamp, point.value) for point in sorted(found, key=lambda p: (p.step, p.timestamp))]
                for key, found in points.items()
            }
            outputs = len(run.outputs.model_outputs) if run.outputs else 0
            shown = (run.info.status, run.info.run_name, sorted(run.data.params.items()), sorted(run.data.tags.items()), history, outputs)
            assert run.data.tags[RUN_TAG] not in seen, "one run twice"
            seen[run.data.tags[RUN_TAG]] = shown
    return seen


@pytest.fixture
def asked(tmp_path: Path, empty_store: Path) -> Settings:
    home = ensure_home(tmp_path / "a home")
    shutil.copy(empty_store / "mlflow.db", home)
    return Settings(home=home)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def elsewhere(asked: Settings, uri: str) -> Settings:
    return asked.model_copy(update={"tracking_uri": uri})


# What is published


def test_a_finished_run_is_in_mlflow_whole(asked: Settings) -> None:
    end(begin(asked.home))
    published = publish(asked, "har-1")
    assert (published.rounds, published.last_round, published.version, published.done) == (ROUNDS, ROUNDS, 1, True)
    (row,) = Registry(asked).runs()
    assert (row.run_id, row.name, row.status, row.created_ms) == ("har-1", "har", "FINISHED", START_MS)
    assert row.metrics["accuracy"] == 0.96
    assert row.params["rounds"] == "60"
    assert len(row.params["note"]) == 6000
    assert row.tags["qedge.epsilon"] == "7.93"
    assert row.tags["qedge.model_version"] == "1"
    with connection(asked) as client:
        history = client.get_metric_history(row.mlflow_run_id, "epsilon")
    assert [(point.step, point.value) for point in history] == [(number, number / 10) for number in range(1, ROUNDS + 1)]


def test_a_version_says_whose_it_is_and_what_it_cost(asked: Settings) -> None:
    end(begin(asked.home))
    publish(asked, "har-1")
    version = Registry(asked).resolve("har@champion")
    expected = ModelVersion(
        "har", 1, "har-1", ("challenger", "champion"), "receipt-of-har-1", "7.93", "0.001", version.created_ms, version.source
    )
    assert version == expected
    assert Registry(asked).models() == [version]


def test_the_registered_files_are_the_runs_own_bytes_and_are_not_copied_again(asked: Settings, tmp_path: Path) -> None:
    folder = begin(asked.home)
    end(folder)
    publish(asked, "har-1")
    got = Registry(asked).fetch(Registry(asked).resolve("har"), tmp_path / "copies")
    for name in ("model.onnx", "weights.safetensors", "receipt.json", "card.json"):
        assert (got / name).read_bytes() == (folder / "model" / name).read_bytes()
    assert got.is_relative_to(asked.home / "artifacts")
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize("batch", [1, 5])
def test_pyfunc_loads_the_champion_and_predicts_any_batch(asked: Settings, batch: int) -> None:
    import mlflow

    end(begin(asked.home))
    publish(asked, "har-1")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(asked.mlflow_uri)
    try:
        model = mlflow.pyfunc.load_model("models:/har@champion")
    finally:
        mlflow.set_tracking_uri(before)
    rows = np.zeros((batch, FEATURES), np.float32)
    rows[:, 2] = 3.0
    answer = model.predict(rows)
    assert answer["probabilities"].shape == (batch, CLASSES)
    assert list(answer["label"]) == ["run"] * batch
    assert [value.name for value in model.metadata.signature.inputs] == ["features"]


def test_a_run_that_failed_registers_no_model(asked: Settings) -> None:
    end(begin(asked.home), status="failed")
    assert publish(asked, "har-1").version is None
    assert Registry(asked).runs()[0].status == "FAILED"
    assert Registry(asked).models() == []
    assert pending(asked) == []


def test_a_live_run_grows_and_a_torn_line_waits_until_it_is_whole(asked: Settings) -> None:
    folder = begin(asked.home, rounds=3)
    assert publish(asked, "har-1").rounds == 3
    whole = line(4, epsilon=0.4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(whole[:-5])
    assert pending(asked) == []
    assert publish(asked, "har-1").rounds == 3
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(whole[-5:])
    assert pending(asked) == ["har-1"]
    assert publish(asked, "har-1").rounds == 4
    (row,) = Registry(asked).runs()
    assert (row.status, row.ended_ms, row.metrics["epsilon"]) == ("RUNNING", None, 0.4)


def test_a_resumed_run_goes_on_as_the_same_run(asked: Settings) -> None:
    folder = begin(asked.home, rounds=3)
    end(folder, status="failed", model=False)
    publish(asked, "har-1")
    (folder / "result.json").unlink()
    assert pending(asked) == ["har-1"]
    publish(asked, "har-1")
    assert Registry(asked).runs()[0].status == "RUNNING"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(4, epsilon=0.4))
    end(folder)
    assert publish(asked, "har-1").version == 1
    (row,) = Registry(asked).runs()
    assert (row.status, row.metrics["epsilon"]) == ("FINISHED", 0.4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 600), garbage=st.binary(max_size=20))
def test_a_torn_file_gives_its_whole_lines_and_nothing_else(tmp_path: Path, cut: int, garbage: bytes) -> None:
    home = tmp_path / "torn"
    shutil.rmtree(home, ignore_errors=True)
    folder = begin(home, rounds=5)
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(content[:cut] + b"\n" + garbage.replace(b"\n", b"") + b"\n" + content)
    assert [record.round for record in Outbox.read(folder).rounds] == [1, 2, 3, 4, 5]
    (folder / "metrics.jsonl").write_bytes(content[:cut])
    assert len(Outbox.read(folder).rounds) == content[:cut].count(b"\n")


# Once, whatever happens


def test_publishing_again_without_its_own_notes_changes_nothing(asked: Settings) -> None:
    folder = begin(asked.home)
    end(folder)
    first = publish(asked, "har-1")
    held = census(asked)
    for spoiled in (None, b"", b'{"rounds": "many"}'):
        (folder / "published.json").unlink()
        if spoiled is not None:
            (folder / "published.json").write_bytes(spoiled)
        assert publish(asked, "har-1") == first
    assert census(asked) == held


def test_a_run_deleted_in_mlflow_is_published_anew_and_whole(asked: Settings) -> None:
    folder = begin(asked.home, rounds=3)
    with connection(asked) as client:
        client.delete_run(publish(asked, "har-1").mlflow_run_id)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(4, epsilon=0.4))
    published = publish(asked, "har-1")
    with connection(asked) as client:
        assert len(client.get_metric_history(published.mlflow_run_id, "epsilon")) == 4


def die_at(home: Path, step: int) -> None:
    """Publish, and be killed before the `step`-th thing done: a call to MLflow, a file of notes put in place, or an artifact copied."""
    from mlflow import MlflowClient

    left = [step]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            count()
            return method(*args, **kwargs)

        return call

    def audit(event: str, args: tuple[object, ...]) -> None:
        copied = event == "open" and str(args[0]).startswith(str(home / "artifacts")) and isinstance(args[2], int) and args[2] & os.O_WRONLY
        if copied or (event == "os.rename" and str(args[0]).startswith(str(home))):
            count()

    for name in [name for name in dir(MlflowClient) if not name.startswith("_") and callable(getattr(MlflowClient, name))]:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    sys.addaudithook(audit)
    publish(Settings(home=home), "har-1")


def die_at_every_step(root: Path, empty_store: Path) -> None:
    """Publish the same run in `root/0`, `root/1` …, killed before step 0, 1 … until one lives to the end.

    One process that has imported everything forks all of them: a new interpreter for each would take seconds.
    """
    child, status = 0, -signal.SIGKILL
    for step in itertools.count(-1):
        home = ensure_home(root / f"{step}")
        shutil.copy(empty_store / "mlflow.db", home)
        end(begin(home, rounds=120))
        if step < 0:
            publish(Settings(home=home), "har-1")
        elif (child := os.fork()) == 0:
            die_at(home, step)
            os._exit(0)
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            os._exit(status)


@pytest.mark.slow
def test_killed_at_any_step_and_repeated_it_is_published_once(tmp_path: Path, empty_store: Path) -> None:
    parent = multiprocessing.get_context("forkserver").Process(target=die_at_every_step, args=(tmp_path, empty_store))
    parent.start()
    parent.join()
    assert parent.exitcode == 0
    homes = sorted((path for path in tmp_path.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    assert len(homes) > 25
    unfinished = [home for home in homes if pending(Settings(home=home))]
    assert len(unfinished) >= len(homes) - 3
    expected = census(Settings(home=tmp_path / "-1"))
    for home in homes:
        asked = Settings(home=home)
        assert publish(asked, "har-1").version == 1
        assert census(asked) == expected, f"killed before step {home.name}"
        assert len(list((home / "artifacts" / "models").iterdir())) == 1
        files = Registry(asked).fetch(Registry(asked).resolve("har@champion"), tmp_path / "none")
        assert (files / "model.onnx").read_bytes() == (home / "runs/har-1/model/model.onnx").read_bytes()


def publish_all(home: Path, runs: list[str]) -> None:
    for run in runs:
        publish(Settings(home=home), run)


@pytest.mark.slow
def test_processes_that_publish_at_once_into_a_new_home_make_each_run_once(tmp_path: Path) -> None:
    home = ensure_home(tmp_path / "home")
    runs = [f"har-{number}" for number in range(3)]
    for run in runs:
        end(begin(home, run, rounds=5))
    fork = multiprocessing.get_context("forkserver")
    children = [fork.Process(target=publish_all, args=(home, order)) for order in (runs, runs[::-1], runs)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    found = census(Settings(home=home))
    assert set(runs) < set(found)
    assert [version[1] for version in found["versions"]] == [1, 2, 3]  # type: ignore[attr-defined]


# MLflow away


def test_a_tracking_server_that_is_away_is_said_quickly_and_loses_nothing(asked: Settings, closed_port: int) -> None:
    folder = begin(asked.home)
    end(folder)
    before = time.monotonic()
    away = elsewhere(asked, f"http://127.0.0.1:{closed_port}")
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1"):
        publish(away, "har-1")
    with pytest.raises(RegistryUnavailable):
        Registry(away).resolve("har@champion")
    assert time.monotonic() - before < 10
    assert not read_published(folder).done
    assert pending(away) == ["har-1"]
    assert publish(asked, "har-1").done
    assert pending(asked) == []


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_error_never_repeats_the_credentials_of_the_uri(asked: Settings, closed_port: int, scheme: str) -> None:
    away = elsewhere(asked, f"{scheme}://user:s3%2Fcret@127.0.0.1:{closed_port}/db")
    with pytest.raises(RegistryUnavailable) as caught:
        Registry(away).models()
    told = json.dumps(caught.value.as_dict())
    assert "s3" not in told
    assert "127.0.0.1" in told


def test_a_tracking_uri_of_an_unknown_kind_is_refused(asked: Settings) -> None:
    with pytest.raises(InvalidConfig, match="carrier-pigeon"):
        Registry(elsewhere(asked, "carrier-pigeon://roof")).models()


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_training_does_not_wait_for_a_server_that_never_answers(asked: Settings, silent_server: int) -> None:
    begin(asked.home)
    publisher = Publisher(elsewhere(asked, f"http://127.0.0.1:{silent_server}"), "har-1")
    publisher.start()
    before = time.monotonic()
    for _ in range(1000):
        publisher.wake()
    assert time.monotonic() - before < 0.5
    assert not publisher.finish(timeout_s=0.5)
    assert time.monotonic() - before < 5
    assert pending(asked) == ["har-1"]


def test_the_publisher_gives_up_early_when_mlflow_is_away_and_another_one_completes(asked: Settings, closed_port: int) -> None:
    end(begin(asked.home))
    away = Publisher(elsewhere(asked, f"http://127.0.0.1:{closed_port}"), "har-1")
    away.start()
    before = time.monotonic()
    assert not away.finish(timeout_s=60)
    assert time.monotonic() - before < 20
    back = Publisher(asked, "har-1")
    back.start()
    assert back.finish(timeout_s=60)
    assert pending(asked) == []


def test_the_publisher_follows_a_run_from_start_to_end(asked: Settings) -> None:
    folder = begin(asked.home, rounds=1)
    publisher = Publisher(asked, "har-1", interval_s=0.01)
    publisher.start()
    for number in range(2, 40):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(line(number, epsilon=number / 10))
        publisher.wake()
    end(folder)
    assert publisher.finish(timeout_s=60)
    assert read_published(folder).rounds == 39
    assert Registry(asked).runs()[0].status == "FINISHED"
    assert not [thread for thread in threading.enumerate() if thread.name == "publisher-har-1"]


# Aliases and names


def test_the_first_version_is_champion_and_a_later_one_only_when_promoted(asked: Settings) -> None:
    for number, tags in enumerate([{}, {}, {"promote": "champion"}], 1):
        end(begin(asked.home, f"har-{number}", rounds=1), **tags)
        publish(asked, f"har-{number}")
        resolved = {alias: Registry(asked).resolve(f"har@{alias}").version for alias in ("champion", "challenger")}
        assert resolved == {"champion": {1: 1, 2: 1, 3: 3}[number], "challenger": number}
    assert [version.version for version in Registry(asked).models()] == [3, 2, 1]
    assert Registry(asked).resolve("har").version == 3


def test_publishing_an_old_run_again_moves_no_alias_back(asked: Settings) -> None:
    for number in (1, 2):
        end(begin(asked.home, f"har-{number}", rounds=1), promote="champion")
        publish(asked, f"har-{number}")
    (asked.home / "runs/har-1/published.json").unlink()
    publish(asked, "har-1")
    assert Registry(asked).resolve("har@champion").version == 2
    assert Registry(asked).resolve("har@challenger").version == 2


def test_an_alias_can_be_set_back_to_an_older_version(asked: Settings) -> None:
    for number in (1, 2):
        end(begin(asked.home, f"har-{number}", rounds=1), promote="champion")
        publish(asked, f"har-{number}")
    Registry(asked).set_alias("har", "champion", 1)
    assert Registry(asked).resolve("har@champion").version == 1
    assert Registry(asked).resolve("har/2").aliases == ("challenger",)
    with pytest.raises(UnknownModel, match="no version 9; known: 2, 1"):
        Registry(asked).set_alias("har", "champion", 9)
    for word in ("latest", "v2", "", "a b", "-x", "é"):
        with pytest.raises(InvalidRequest, match="cannot be an alias"):
            Registry(asked).set_alias("har", word, 1)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hat", "did you mean 'har'"),
        ("zebra", "known: har"),
        ("har@champoin", "did you mean 'champion'"),
        ("har/7", "no version 7; known: 1"),
        ("har/latest", "accepted: NAME"),
        ("", "accepted: NAME"),
        ("har' or name != '", "accepted: NAME"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(asked: Settings, reference: str, message: str) -> None:
    end(begin(asked.home, rounds=1))
    publish(asked, "har-1")
    with pytest.raises(UnknownModel, match=message):
        Registry(asked).resolve(reference)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(reference=st.text(max_size=30) | st.from_regex(r"har[@/].{1,20}"))
@example(reference=" ")
def test_any_text_is_a_version_or_an_unknown_model(asked: Settings, reference: str) -> None:
    with connection(asked) as client:
        if not client.search_registered_models():
            client.create_registered_model("har")
    with pytest.raises(UnknownModel):
        Registry(asked).resolve(reference)


@given(text=st.text(max_size=300))
def test_every_name_becomes_one_that_mlflow_takes(text: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    refused = []
    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        try:
            validate(_name(text))
        except MlflowException as error:
            refused.append(str(error))
    assert refused == []


@given(text=st.from_regex(r"[a-z_]{1,20}([./][a-z_]{1,20}){0,3}", fullmatch=True))
def test_a_plain_name_stays_as_it_is(text: str) -> None:
    assert _name(text) == text


@pytest.mark.parametrize("run", ["nobody", "../../etc", "", "a'b"])
def test_an_unknown_run_is_its_own_error(asked: Settings, run: str) -> None:
    with pytest.raises(UnknownRun):
        publish(asked, run)


# Altered files


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_a_file_that_does_not_match_its_receipt_is_not_registered(asked: Settings, name: str) -> None:
    folder = begin(asked.home, rounds=1)
    end(folder)
    content = bytearray((folder / "model" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model" / name).write_bytes(content)
    with pytest.raises(ArtifactTampered, match=name):
        publish(asked, "har-1")
    assert Registry(asked).models() == []
    assert pending(asked) == ["har-1"]


@pytest.mark.parametrize(
    "receipt", [b"", b"[]", b'{"id": "x"}', b'{"id": "x", "artifacts": {"../../../keys/secret": "00"}}', b'{"id": "x", "artifacts": 3}']
)
def test_a_receipt_that_names_no_model_registers_nothing(asked: Settings, receipt: bytes) -> None:
    folder = begin(asked.home, rounds=1)
    end(folder)
    (folder / "model" / "receipt.json").write_bytes(receipt)
    with pytest.raises(ArtifactTampered):
        publish(asked, "har-1")
    assert Registry(asked).models() == []


def test_the_receipt_of_another_run_is_not_registered(asked: Settings) -> None:
    folder = begin(asked.home, rounds=1)
    end(folder, **{"qedge.receipt_id": "another"})
    with pytest.raises(ArtifactTampered, match="another"):
        publish(asked, "har-1")


def test_a_version_whose_files_are_gone_says_so(asked: Settings, tmp_path: Path) -> None:
    end(begin(asked.home, rounds=1))
    publish(asked, "har-1")
    version = Registry(asked).resolve("har")
    shutil.rmtree(asked.home / "artifacts")
    with pytest.raises(ArtifactTampered, match="its files are gone"):
        Registry(asked).fetch(version, tmp_path / "x")


def test_a_version_whose_folder_holds_the_receipt_of_another_is_not_fetched(asked: Settings, tmp_path: Path) -> None:
    for number in (1, 2):
        end(begin(asked.home, f"har-{number}", rounds=1))
        publish(asked, f"har-{number}")
    first, second = Registry(asked).resolve("har/1"), Registry(asked).resolve("har/2")
    with pytest.raises(ArtifactTampered, match="receipt-of-har-1, not receipt-of-har-2"):
        Registry(asked).fetch(replace(second, source=first.source), tmp_path)


def test_what_a_registry_says_of_a_version_cannot_lead_out_of_the_cache(asked: Settings, tmp_path: Path, closed_port: int) -> None:
    outside, cache = tmp_path / "outside", tmp_path / "cache"
    cache.mkdir()
    outside.mkdir()
    receipt = "/../../outside"
    (outside / "model.onnx").write_bytes(b"planted")
    (outside / "receipt.json").write_text(json.dumps({"id": receipt}))
    planted = ModelVersion("har", 1, "har-1", (), receipt, None, None, START_MS, "http://127.0.0.1/elsewhere")
    with pytest.raises(ArtifactTampered, match="no place for files"):
        Registry(asked).fetch(planted, cache)
    proxied = f"http://127.0.0.1:{closed_port}/api/2.0/mlflow-artifacts/artifacts/x"
    with pytest.raises(RegistryUnavailable):
        Registry(asked).fetch(replace(planted, source=proxied), cache)
    assert list(cache.iterdir()) == []


# Light, quiet


def fresh(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_an_unused_home_answers_without_mlflow_and_creates_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from qedge.config import Settings
from qedge.registry.publisher import pending
from qedge.registry.registry import Registry
asked = Settings(home=Path("home").absolute())
assert Registry(asked).models() == Registry(asked).runs() == pending(asked) == []
assert not {"mlflow", "onnx", "torch", "pandas"} & set(sys.modules)
"""
    done = fresh(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_publishing_prints_nothing_and_leaves_nothing_where_it_stands(tmp_path: Path) -> None:
    home, here = ensure_home(tmp_path / "home"), tmp_path / "here"
    here.mkdir()
    end(begin(home))
    code = f"""
from pathlib import Path
from qedge.config import Settings
from qedge.registry.publisher import publish
publish(Settings(home=Path({str(home)!r})), "har-1")
"""
    done = fresh(code, here)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(here.iterdir()) == []
    assert [version.version for version in Registry(Settings(home=home)).models()] == [1]


# A real server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path, closed_port: int) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """The URI of an MLflow server, what starts it, and what kills it."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store / "mlflow.db", folder)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        where = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(closed_port), "--workers", "1", *where]
        environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        started.append(
            subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", closed_port)) == 0:
                    return
            threading.Event().wait(0.1)
        raise AssertionError("the MLflow server did not start")

    def stop() -> None:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        started.clear()

    yield f"http://127.0.0.1:{closed_port}", start, stop
    stop()


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_has_the_run_once_and_whole(
    asked: Settings, server: tuple[str, Callable[[], None], Callable[[], None]], tmp_path: Path
) -> None:
    uri, start, stop = server
    remote = elsewhere(asked, uri)
    folder = begin(asked.home, rounds=3)
    start()
    assert publish(remote, "har-1").rounds == 3
    stop()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(4, epsilon=0.4))
    with pytest.raises(RegistryUnavailable):
        publish(remote, "har-1")
    end(folder)
    start()
    assert publish(remote, "har-1").version == 1
    held = census(remote)
    (folder / "published.json").unlink()
    publish(remote, "har-1")
    assert census(remote) == held
    version = Registry(remote).resolve("har@champion")
    got = Registry(remote).fetch(version, tmp_path / "copies")
    assert got.is_relative_to(tmp_path / "copies")
    for name in ("model.onnx", "weights.safetensors", "receipt.json", "card.json"):
        assert (got / name).read_bytes() == (folder / "model" / name).read_bytes()
    stop()
    assert Registry(remote).fetch(version, tmp_path / "copies") == got
