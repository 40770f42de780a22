"""The commands, on a real registry: a smaller version is a challenger with a parent, and says whose rows it owes to."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from qedge import EdgeEngine, TrainingJob, open_ladder, train
from qedge.audit.receipt import Receipt, artifact_digests, verify
from qedge.cli import main
from qedge.config import Settings
from qedge.data import built_in
from qedge.edge.compression.table import paired
from qedge.edge.hardware import this_machine
from qedge.edge.ladder import COMPRESSING
from qedge.errors import ArtifactTampered, ModelError, PrivacyError, ScopeConflict, UnknownModel
from qedge.network import rebuilt
from qedge.records import derive
from qedge.registry.registry import Registry
from tests.conftest import PRIVATE
from tests.edge.conftest import Home
from tests.edge_ladders import Told

DIGITS = ("--rows", "digits", "--steps", "400")


def call(own_home: Home, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(main, ["edge", *arguments, "--home", str(own_home.settings.home), "--json"])
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def folder(own_home: Home, told: dict[str, object]) -> Path:
    return own_home.settings.home / "runs" / str(told["run"]) / "model"


def runs(own_home: Home) -> set[str]:
    return {path.name for path in (own_home.settings.home / "runs").iterdir()}


@pytest.mark.slow
def test_half_of_the_units_are_gone_from_what_is_registered_as_a_challenger(own_home: Home, tmp_path: Path) -> None:
    told = call(own_home, "compress", "digits@champion", "--prune", "0.5", "--structured", *DIGITS)
    found = rebuilt(folder(own_home, told), "digits", own_home.records.keys.public)
    assert found.model.hidden == (32,)
    registry = Registry(own_home.settings)
    challenger = registry.resolve("digits@challenger")
    assert (challenger.version, challenger.receipt_id) == (told["version"], told["receipt"])
    assert registry.resolve("digits@champion").version == 1
    parent, pruned, last = told["table"]  # type: ignore[misc]
    assert last["parameters"] == 64 * 32 + 32 + 32 * 10 + 10 < parent["parameters"]
    assert last["file_bytes"] < 0.6 * parent["file_bytes"]
    assert last["accuracy"] > pruned["accuracy"] - 0.02
    receipt = Receipt.read(folder(own_home, told) / "receipt.json")
    verify(receipt, own_home.records.keys.public, folder(own_home, told))
    assert receipt.parent == Receipt.read(own_home.model / "receipt.json").id
    assert [use.covered for use in receipt.uses[-3:]] == ["NOT COVERED"] * 3
    assert all(use.what.startswith(COMPRESSING) for use in receipt.uses[-3:])
    rows = built_in.read("digits").features[:50]
    session = onnxruntime.InferenceSession(str(folder(own_home, told) / "model.onnx"))
    answered = session.run(["probabilities"], {"features": rows})[0]
    again = call(own_home, "compress", f"digits/{told['version']}", "--prune", "0.5", "--structured", *DIGITS)
    assert rebuilt(folder(own_home, again), "digits").model.hidden == (16,)
    assert answered.shape == (50, 10)


@pytest.mark.slow
def test_weights_alone_make_a_file_smaller_only_packed(own_home: Home) -> None:
    told = call(own_home, "compress", "digits@champion", "--prune", "0.8", "--public", *DIGITS)
    parent, _, last = told["table"]  # type: ignore[misc]
    assert last["parameters"] < 0.3 * parent["parameters"]
    assert last["file_bytes"] == parent["file_bytes"]
    assert last["packed_bytes"] < 0.6 * parent["packed_bytes"]
    uses = Receipt.read(folder(own_home, told) / "receipt.json").uses
    assert uses[-1].covered == "public by declaration"


@pytest.mark.slow
@pytest.mark.parametrize("public", [False, True], ids=["not covered", "public"])
def test_what_a_version_owes_by_being_compressed_its_rungs_owe_too(own_home: Home, public: bool) -> None:
    """Rungs made of it by public rows alone: an engine that answers by covered rungs only must not take them."""
    declared = ("--public",) if public else ()
    told = call(own_home, "compress", "digits@champion", "--prune", "0.5", *declared, *DIGITS)
    version = f"digits/{told['version']}"
    call(own_home, "build", version, "--calibration", "digits", "--public", "--rungs", "fp32")
    ladder = open_ladder(version, own_home.settings)
    assert set(ladder.uncovered()) == (set() if public else {"fp32"})
    filled = ladder.card.measured({"fp32": Told().cost()}, this_machine())
    with EdgeEngine(1 << 30, covered_only=True) as strict:
        if public:
            assert strict.add("m", ladder, card=filled).choice.rung == "fp32"
        else:
            with pytest.raises(PrivacyError, match="training the pruned network"):
                strict.add("m", ladder, card=filled)


@pytest.mark.slow
def test_a_student_is_what_its_file_says(own_home: Home, tmp_path: Path) -> None:
    (tmp_path / "student.yaml").write_text("kind: cnn\nchannels: [4]\nimage: [1, 8, 8]\n")
    told = call(own_home, "distil", "--teacher", "digits@champion", "--student", str(tmp_path / "student.yaml"), *DIGITS)
    found = rebuilt(folder(own_home, told), "digits")
    assert (found.model.kind, found.model.channels) == ("cnn", (4,))
    table = json.loads((folder(own_home, told).parent / "attached" / "table.json").read_bytes())
    assert [row["name"] for row in table] == ["parent", "student"]
    assert table[1]["accuracy"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("compress", "digits@champion", "--prune", "1", *DIGITS), "edge.refused"),
        (("compress", "digits@champion", "--prune", "0.5", "--rows", "nothing.csv"), "data.not-found"),
        (("compress", "nobody", "--prune", "0.5", *DIGITS), "model.unknown"),
        (("distil", "--teacher", "digits@champion", "--student", "nothing.yaml", *DIGITS), "job.invalid"),
    ],
)
def test_what_cannot_be_compressed_leaves_nothing(own_home: Home, arguments: tuple[str, ...], code: str) -> None:
    before = runs(own_home)
    assert call(own_home, *arguments)["error"]["code"] == code  # type: ignore[index]
    assert runs(own_home) == before


@pytest.mark.parametrize(("text", "match"), [("hidden: [3]", "kind"), ("kind: mlp\nhidden: [0]", "hidden"), ("kind: mlp\nsize: 3", "size")])
def test_a_student_that_is_none_is_refused_by_the_key(own_home: Home, tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "student.yaml").write_text(text)
    told = call(own_home, "distil", "--teacher", "digits@champion", "--student", str(tmp_path / "student.yaml"), *DIGITS)
    assert match in told["error"]["message"]  # type: ignore[index]


@pytest.mark.slow
def test_rows_that_have_a_budget_train_nothing_here(settings: Settings) -> None:
    job = copy.deepcopy(PRIVATE) | {"data": {**PRIVATE["data"], "source": "digits"}, "rounds": 1}
    train(TrainingJob.parse(job), backend="serial", settings=settings)
    before = set((settings.home / "runs").iterdir())
    command = ["edge", "compress", "tiny", "--prune", "0.5", *DIGITS, "--home", str(settings.home), "--json"]
    told = json.loads(CliRunner().invoke(main, command).stdout.splitlines()[-1])
    assert told["error"]["code"] == ScopeConflict.code
    assert set((settings.home / "runs").iterdir()) == before


class TestNetwork:
    """A version's network, from its files."""

    @pytest.fixture
    def copied(self, own_home: Home, tmp_path: Path) -> Path:
        place = tmp_path / "model"
        place.mkdir()
        for path in own_home.model.iterdir():
            (place / path.name).write_bytes(path.read_bytes())
        return place

    def test_it_answers_as_the_graph_does(self, own_home: Home) -> None:
        rows = built_in.read("digits").features[:40]
        network = rebuilt(own_home.model, "digits", own_home.records.keys.public)
        with torch.no_grad():
            mine = torch.softmax(network.module(torch.from_numpy(network.scaled(rows))), 1).numpy()
        session = onnxruntime.InferenceSession(str(own_home.model / "model.onnx"))
        np.testing.assert_allclose(mine, session.run(["probabilities"], {"features": rows})[0], atol=1e-5)

    @pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
    def test_files_that_were_exchanged_are_refused(self, copied: Path, name: str) -> None:
        (copied / name).write_bytes((copied / name).read_bytes()[:-1] + b"x")
        with pytest.raises(ArtifactTampered, match=name):
            rebuilt(copied, "digits")
        (copied / name).unlink()
        with pytest.raises(UnknownModel):
            rebuilt(copied, "digits")

    @pytest.mark.parametrize(("card", "match"), [({"kind": "pkg.mod:make"}, "your own code"), ({"kind": "mlp"}, "train it again")])
    def test_a_card_that_does_not_say_what_the_network_is_is_refused(
        self, own_home: Home, copied: Path, card: dict[str, str], match: str
    ) -> None:
        (copied / "card.json").write_text(json.dumps(card))
        parent = Receipt.read(own_home.model / "receipt.json")
        derive(parent, [], artifact_digests(copied, tuple(parent.artifacts)), own_home.records).write(copied / "receipt.json")
        with pytest.raises(ModelError, match=match):
            rebuilt(copied, "digits", own_home.records.keys.public)


def test_the_paired_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        both = generator.random(300)
        first, second = both < 0.95, (both < 0.90) | (both > 0.98)  # the second is right 0.92 of the time
        _, (low, high) = paired(second, first)
        held += low <= 3 <= high
    assert 0.93 <= held / 2000 <= 0.98
