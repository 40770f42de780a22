"""Ladders: what each rung answers, what its receipt says, what is refused, and that nothing is left half built."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from onnx import TensorProto, helper

from qedge import TrainingJob, train
from qedge.audit import receipt
from qedge.config import Settings
from qedge.data import built_in
from qedge.edge.building import graph, integers, nbits
from qedge.edge.building.build import MODEL, Asked, build
from qedge.edge.building.choice import agreement, answers
from qedge.edge.calibration import Taken
from qedge.edge.calibration import read as read_rows
from qedge.edge.ladder import Ladder, receipt_name
from qedge.edge.session import OnnxRunner
from qedge.errors import (
    ArtifactTampered,
    DataNotFound,
    HomeUnusable,
    InvalidCalibration,
    InvalidValue,
    LabelMismatch,
    ModelError,
    ScopeConflict,
    UnfitGraph,
)
from tests.conftest import PRIVATE
from tests.edge.conftest import JOB, ONNX_RUNGS, Home

MNIST_LIKE = built_in.read("digits")


def reference(home: Home, rows: np.ndarray) -> np.ndarray:
    """The registered graph itself, in a session as anybody makes one."""
    session = onnxruntime.InferenceSession(str(home.model / MODEL), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["probabilities"], {"features": rows})[0]
    return found


class TestRungs:
    """What was built."""

    def test_fp32_answers_as_the_model_does_and_the_others_nearly(self, home: Home, built: Ladder) -> None:
        rows = home.calibration.held.rows
        expected = reference(home, rows)
        np.testing.assert_allclose(answers(built.load("fp32"), rows), expected, atol=1e-5)
        for rung, least in {"fp16": 0.995, "int8": 0.98, "int4": 0.95, "int2": 0.8}.items():
            ways = [agreement(answers(built.load(rung, prepacked=prepacked), rows), expected) for prepacked in (False, True)]
            assert built.card[rung].accuracy.agreement in ways
            assert min(ways) >= least, rung

    def test_accuracies_are_those_on_the_rows_that_were_held_apart(self, home: Home, built: Ladder) -> None:
        held = home.calibration.held
        for one in built.card.rungs:
            ways = [answers(built.load(one.rung, prepacked=prepacked), held.rows) for prepacked in (False, True)]
            right = min(int((found.argmax(axis=1) == held.labels).sum()) for found in ways)  # kernels of few bits round more when prepacked
            assert (one.accuracy.value, one.accuracy.rows) == (right / len(held), len(held))

    def test_weights_lie_beside_the_graph_and_take_fewer_bytes_rung_by_rung(self, built: Ladder) -> None:
        assert {one.rung for one in built.card.rungs} == set(ONNX_RUNGS)
        bytes_of = {one.rung: one.file_bytes for one in built.card.rungs}
        assert bytes_of["fp32"] > bytes_of["fp16"] > bytes_of["int8"] > bytes_of["int4"] > bytes_of["int2"]
        proto = onnx.load(str(built.folder / "fp32.onnx"), load_external_data=False)
        large = [one for one in proto.graph.initializer if np.prod(one.dims) > 1000]
        assert large
        assert all(one.data_location == TensorProto.EXTERNAL for one in large)

    @pytest.mark.parametrize("batch", [1, 7])
    def test_a_loaded_rung_answers_any_batch_without_touching_what_it_was_given(self, built: Ladder, batch: int) -> None:
        rows = np.random.default_rng(0).random((batch, 64), np.float32)
        before, runner = rows.copy(), built.load("int8")
        first = runner.run(rows).copy()
        np.testing.assert_array_equal(runner.run(rows), first)
        np.testing.assert_array_equal(rows, before)
        assert first.shape == (batch, 10)

    def test_convolutions_go_to_int8_and_the_card_says_what_became_of_them(self, home: Home, tmp_path: Path) -> None:
        job = copy.deepcopy(JOB) | {"name": "pictures", "model": {"kind": "cnn", "channels": [4]}, "rounds": 2}
        result = train(TrainingJob.parse(job), backend="serial", settings=home.settings)
        model = home.settings.home / "runs" / result.run_id / "model"
        ladder = build(Asked("pictures", "1", ("fp32", "int8", "int4"), home.calibration, True), model, tmp_path / "ladder", home.records)
        kinds = graph.kinds(onnx.load(str(ladder.folder / "int8.onnx")))
        assert "QuantizeLinear" in kinds or "QLinearConv" in kinds
        assert "convolutions" in ladder.card["int4"].how
        assert ladder.card["int8"].accuracy.agreement > 0.95


class TestReceipts:
    """What is signed."""

    def test_every_rung_has_a_receipt_that_names_its_files_its_parent_and_which_rows_it_owes_to(self, home: Home, built: Ladder) -> None:
        parent = receipt.Receipt.read(home.model / receipt.FILE)
        for one in built.card.rungs:
            issued = built.receipts[one.rung]
            receipt.verify(issued, home.records.keys.public)
            assert (issued.parent, issued.artifacts) == (parent.id, one.files)
            assert issued.uses[: len(parent.uses)] == parent.uses
            more = [(use.what, use.covered) for use in issued.uses[len(parent.uses) :]]
            assert more[-1] == ("validating the rung", "public by declaration")
            assert len(more) == (1 if one.rung in ("fp32", "fp16") else 2)
            assert any("training weights" in what for what, _ in more) == ("trained for it on" in one.how or "training for it" in one.how)
        assert "trained for it on" in built.card["int2"].how  # an MLP of 64 units loses by 2 bits

    def test_rows_that_nobody_declared_public_are_not_covered(self, home: Home, tmp_path: Path) -> None:
        ladder = build(home.asked("fp32", public=False), home.model, tmp_path / "ladder", home.records)
        assert ladder.receipts["fp32"].uses[-1].covered == "NOT COVERED"

    def test_rows_with_a_budget_make_no_rung(self, settings: Settings, tmp_path: Path) -> None:
        job = copy.deepcopy(PRIVATE) | {"data": {**PRIVATE["data"], "source": "digits"}, "rounds": 1}
        result = train(TrainingJob.parse(job), backend="serial", settings=settings)
        model = settings.home / "runs" / result.run_id / "model"
        rows = read_rows("digits", "label", Taken.of(graph.read(model / MODEL)))
        owner = Home(settings, model, rows)
        with pytest.raises(ScopeConflict):
            build(Asked("tiny", "1", ("fp32",), rows, True), model, tmp_path / "ladder", owner.records)
        assert not list(tmp_path.glob("*ladder*"))

    @pytest.mark.parametrize("name", ["fp32.data", "int4.onnx"])
    def test_a_rung_that_was_altered_or_cut_short_is_not_loaded_and_the_others_are(self, ladder: Ladder, name: str) -> None:
        path, rung = ladder.folder / name, name.split(".")[0]
        content = path.read_bytes()
        for wrong in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
            path.write_bytes(wrong)
            with pytest.raises(ArtifactTampered, match="does not match its digest"):
                ladder.load(rung)
        path.unlink()
        with pytest.raises(ArtifactTampered, match="cannot be read"):
            ladder.load(rung)
        ladder.load("int8")

    @pytest.mark.parametrize("change", [lambda text: text.replace(b'"value":0.', b'"value":0.0'), lambda text: text[:-20]])
    def test_a_card_that_was_altered_is_not_believed(self, ladder: Ladder, change: Callable[[bytes], bytes]) -> None:
        path = ladder.folder / "card.json"
        content = path.read_bytes()
        path.write_bytes(change(content.replace(b'"value": ', b'"value":')))
        with pytest.raises(ArtifactTampered):
            Ladder.open(ladder.folder)

    def test_a_receipt_of_another_rung_does_not_pass_for_this_one(self, ladder: Ladder) -> None:
        (ladder.folder / receipt_name("int8")).write_bytes((ladder.folder / receipt_name("int4")).read_bytes())
        with pytest.raises(ArtifactTampered):
            Ladder.open(ladder.folder)


def frame(**changes: object) -> pd.DataFrame:
    columns = {name: MNIST_LIKE.features[:, place] for place, name in enumerate(MNIST_LIKE.ranges)}
    return pd.DataFrame(columns | {"label": MNIST_LIKE.labels} | changes)


class TestBadRows:
    """Calibration rows that are none."""

    @pytest.fixture
    def taken(self, home: Home) -> Taken:
        return Taken.of(graph.read(home.model / MODEL))

    def test_halves_are_apart_and_have_every_label(self, home: Home) -> None:
        fitting, held = home.calibration.fitting, home.calibration.held
        assert set(fitting.labels.tolist()) == set(held.labels.tolist()) == set(range(10))
        assert abs(len(fitting) - len(held)) <= 10
        assert len(fitting) + len(held) == len(MNIST_LIKE.labels)

    @pytest.mark.parametrize(
        ("rows", "error", "match"),
        [
            (frame().iloc[:15], InvalidCalibration, "as many as the model has labels, 10"),
            (frame().drop(columns=next(iter(MNIST_LIKE.ranges))), DataNotFound, "is not a column"),
            (frame(**{next(iter(MNIST_LIKE.ranges)): np.nan}), InvalidValue, "finite|NaN|missing"),
            (frame(label=MNIST_LIKE.labels + 1), LabelMismatch, "the model has no label 10"),
        ],
        ids=["few", "narrow", "NaN", "label"],
    )
    def test_rows_that_do_not_fit_are_refused(
        self, taken: Taken, tmp_path: Path, rows: pd.DataFrame, error: type[Exception], match: str
    ) -> None:
        rows.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(error, match=match):
            read_rows(str(tmp_path / "rows.parquet"), "label", taken)

    def test_what_rungs_are_made_by_does_not_validate_them(self, taken: Taken, tmp_path: Path) -> None:
        for name in ("a.parquet", "b.parquet"):
            frame().to_parquet(tmp_path / name)
        with pytest.raises(InvalidCalibration, match="cannot validate"):
            read_rows(str(tmp_path / "a.parquet"), "label", taken, str(tmp_path / "b.parquet"))


def graph_of(nodes: list[onnx.NodeProto], inputs: dict[str, list[str | int] | None], domain: str = "") -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(helper.make_graph(nodes, "g", values, [out]), opset_imports=opsets, ir_version=10)


class TestBadGraphs:
    """Graphs that no ladder is made of."""

    @pytest.mark.parametrize(
        ("model", "match"),
        [
            (
                graph_of([helper.make_node("Odd", ["features"], ["probabilities"], domain="mine")], {"features": ["batch", 4]}, "mine"),
                "mine.Odd",
            ),
            (graph_of([helper.make_node("Softmax", ["features"], ["probabilities"])], {"features": None}), "unknown"),
            (graph_of([helper.make_node("Softmax", ["features"], ["probabilities"])], {"features": ["batch", "wide"]}), "fixed number"),
            (
                graph_of([helper.make_node("Add", ["features", "more"], ["probabilities"])], {"features": ["batch", 4], "more": [4]}),
                "takes features, more",
            ),
        ],
        ids=["custom", "rank", "width", "inputs"],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path: Path, model: onnx.ModelProto, match: str) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UnfitGraph, match=match):
            graph.read(path)

    def test_what_is_no_onnx_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        for content in (b"", b"not onnx", bytes(range(256)) * 10):
            path.write_bytes(content)
            with pytest.raises((ArtifactTampered, UnfitGraph)):
                graph.read(path)

    def test_a_graph_with_nothing_to_quantise_is_refused(self) -> None:
        empty = graph_of([helper.make_node("Softmax", ["features"], ["probabilities"])], {"features": ["batch", 4]})
        rows = np.ones((1, 4), np.float32)
        for make in (integers.int8, functools.partial(nbits.nbits, bits=4)):
            with pytest.raises(UnfitGraph, match="constant weights"):
                make(empty, rows=rows, saturates=False)

    def test_a_folder_that_is_there_is_not_overwritten(self, home: Home, tmp_path: Path) -> None:
        (tmp_path / "ladder").mkdir()
        with pytest.raises(HomeUnusable, match="there already"):
            build(home.asked("fp32"), home.model, tmp_path / "ladder", home.records)


def test_gemm_becomes_matmul_and_add_that_answer_alike(home: Home) -> None:
    clean = graph.cleaned(graph.read(home.model / MODEL))
    changed = graph.with_matmul(clean)
    assert "Gemm" in graph.kinds(clean)
    assert "Gemm" not in graph.kinds(changed)
    rows = home.calibration.held.rows[:50]
    sessions = [onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]) for one in (clean, changed)]
    first, second = (session.run(["probabilities"], {"features": rows})[0] for session in sessions)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_session_of_another_form_is_refused(tmp_path: Path) -> None:
    model = graph_of([helper.make_node("Add", ["features", "more"], ["probabilities"])], {"features": ["batch", 4], "more": [4]})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="one input features"):
        OnnxRunner.load(tmp_path / "m.onnx")
