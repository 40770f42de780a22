"""The study: equal effort, what is told of the kernel, and a machine that is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t
from sklearn.datasets import make_circles
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from qedge.audit.receipt import Receipt, verify
from qedge.config import Settings
from qedge.data import labelled
from qedge.errors import (
    ArtifactTampered,
    BackendUnavailable,
    InvalidConfig,
    InvalidJob,
    InvalidValue,
    LabelMismatch,
    UnknownBackend,
)
from qedge.quantum import QSVM, VQE
from qedge.quantum.progress import Step
from qedge.quantum.qsvm.alignment import alignment
from qedge.quantum.qsvm.fitted import Fitted
from qedge.quantum.qsvm.job import FeatureMap
from qedge.quantum.qsvm.kernels import encode
from qedge.quantum.qsvm.study import Split, Tried, _folds, _logistic, _quantum, _rbf, _split, _splits, drawn, run
from qedge.quantum.result import Result
from qedge.records import Records
from qedge.runs.quantum import solve

FAST = {"splits": 3, "bandwidths": (0.03, 0.1), "costs": (1.0, 10.0), "qubits": 3}


def test_all_models_are_tuned_alike_and_the_result_says_so(tmp_path: Path) -> None:
    steps: list[Step] = []
    result = run(QSVM(**FAST, backend={"name": "default.qubit", "shots": 100}, backend_rows=4), on_step=steps.append)
    assert [step.number for step in steps] == [1, 2, 3]
    assert result.value > 0.8
    assert {result.baseline.name, *(one.name for one in result.others)} == {"RBF SVM", "logistic regression"}
    assert all("4 candidates on 3 folds" in one.how for one in (result.baseline, *result.others))
    assert result.baseline.value == max(one.value for one in (result.baseline, *result.others))
    assert {len(scores) for scores in result.details["scores"].values()} == {3}
    assert result.details["contains_training_rows"] is True
    assert (result.details["backend"]["rows"], result.resources.circuits, result.resources.shots) == (4, 6, 600)
    assert 0 < result.details["backend"]["mean_difference"] < 0.2
    gram, labels = np.array(result.details["gram"]), result.details["gram_labels"]
    assert gram.shape == (len(labels), len(labels))
    assert labels == sorted(labels)
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json").plain() == result.plain()


def test_the_same_job_gives_the_same_scores_and_alignment_may_choose() -> None:
    first, second, aligned = (run(QSVM(**FAST, **more)) for more in ({}, {}, {"chosen_by": "alignment"}))
    assert first.details["scores"] == second.details["scores"]
    widths = {one[0] for one in aligned.details["chosen"]["quantum"]}
    assert widths <= {0.03, 0.1}
    alignments = aligned.details["alignments"]
    assert max(alignments, key=alignments.__getitem__) in {f"{width:g}" for width in widths}


def test_no_more_rows_than_asked_are_drawn_and_classes_keep_their_shares() -> None:
    table = labelled.read("digits", "label")
    features, labels = drawn(table, QSVM(data="digits", most_rows=100))
    assert features.shape == (100, 64)
    shares = np.bincount(table.labels) / len(table.labels)
    assert np.abs(np.bincount(labels) / 100 - shares).max() < 0.011


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data": "wien"}, InvalidJob, "did you mean 'wine'"),
        ({"qubits": 17}, InvalidJob, "less than or equal to 16"),
        ({"bandwidths": (0.1, 0.1)}, InvalidJob, "each once"),
        ({"costs": ()}, InvalidJob, "at least 1 item"),
        ({"feature_map": {"kind": "cosine"}}, InvalidJob, "'zz', 'iqp' or 'angle'"),
        ({"backend": {"name": "lightning.cubit"}}, UnknownBackend, "lightning.qubit"),
        ({"backend": {"name": "qiskit.remote"}}, BackendUnavailable, "qiskit"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error if error is not InvalidJob else Exception, match=said) as caught:
        run(QSVM(**{**FAST, **changes}))
    if error is InvalidJob:
        assert caught.value.code.startswith("job.")


def test_one_class_or_too_few_rows_of_one_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 2))
    np.savez(tmp_path / "few.npz", x=rows, label=np.array([0] * 28 + [1] * 2))
    with pytest.raises(LabelMismatch, match="a class has 2 rows"):
        run(QSVM(data=str(tmp_path / "few.npz"), **FAST))
    np.savez(tmp_path / "one.npz", x=rows, label=np.zeros(30, int))
    with pytest.raises(LabelMismatch, match="fewer than two labels"):
        run(QSVM(data=str(tmp_path / "one.npz"), **FAST))


def test_a_machine_is_kept_with_a_receipt_that_says_what_it_contains(settings: Settings, tmp_path: Path) -> None:
    done = solve(QSVM(**FAST), settings=settings, save=tmp_path / "machine")
    read = Receipt.read(tmp_path / "machine" / "receipt.json")
    verify(read, Records.open(settings.home).keys.public, tmp_path / "machine")
    contained = next(use for use in read.uses if use.what == "contains training rows")
    fitted = Fitted.load(tmp_path / "machine")
    assert (contained.covered, read.run) == ("NOT COVERED", done.run_id)
    assert contained.note.startswith(f"{len(fitted.machine.support_rows_)} of 178 rows")
    table = labelled.read("wine", "label")
    right = np.array(fitted.predict(table.features.astype(np.float64))) == np.array(table.vocabulary)[table.labels]
    assert right.mean() > 0.9
    with pytest.raises(InvalidConfig, match="a new folder"):
        solve(QSVM(**FAST), settings=settings, save=tmp_path / "machine")
    with pytest.raises(InvalidJob, match="leaves no model"):
        solve(VQE(), settings=settings, save=tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "machine"]
    with pytest.raises(InvalidValue, match=r"rows: finite numbers \[rows, 13\]"):
        fitted.predict(np.zeros((1, 12)))
    (tmp_path / "machine" / "machine.json").write_text((tmp_path / "machine" / "machine.json").read_text() + " ")
    with pytest.raises(ArtifactTampered):
        verify(read, None, tmp_path / "machine")


def test_the_rows_it_contains_are_training_rows(settings: Settings, tmp_path: Path) -> None:
    """With all 13 components the matrix is turned back: what the receipt warns of is so."""
    solve(QSVM(**{**FAST, "qubits": 13, "splits": 2}), settings=settings, save=tmp_path / "machine")
    fitted, table = Fitted.load(tmp_path / "machine"), labelled.read("wine", "label")
    back = (fitted.machine.support_rows_ - fitted.offset) @ np.linalg.inv(fitted.matrix)
    nearest = np.abs(back[:, np.newaxis] - table.features).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-3


@pytest.mark.parametrize("change", ["format", "features", "classes", "pickle"])
def test_a_file_that_is_no_machine_is_refused(settings: Settings, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "machine"
    solve(QSVM(**{**FAST, "splits": 2}), settings=settings, save=folder)
    content = json.loads((folder / "machine.json").read_text())
    if change == "pickle":
        np.savez(folder / "machine.npz", matrix=np.array([object()]))
    else:
        content[change] = "other" if change == "format" else content[change][:-1]
        (folder / "machine.json").write_text(json.dumps(content))
    with pytest.raises(InvalidValue, match="holds no machine"):
        Fitted.load(folder)


class TestNothingIsLearntFromTestRows:
    """Whatever stands in the rows that a split tests on, what is fitted and chosen is the same."""

    @pytest.fixture(params=range(3))
    def split(self, request: pytest.FixtureRequest) -> tuple[QSVM, Split]:
        job = QSVM(**FAST | {"bandwidths": (0.003, 0.03, 0.3, 1.0, 3.0), "costs": (0.01, 1.0, 100.0)})
        return job, _splits(*drawn(labelled.read("wine", "label"), job), job)[request.param]

    @pytest.mark.parametrize("model", [_quantum, _rbf, _logistic])
    def test_candidates_are_chosen_without_them(self, split: tuple[QSVM, Split], model: Callable[[QSVM, Split, int], Tried]) -> None:
        job, true = split
        settings = set()
        for seed in range(4):
            labels = np.random.default_rng(seed).permutation(true.labels[1])
            settings.add(model(job, replace(true, labels=(true.labels[0], labels)), 0).setting)
        assert settings == {model(job, true, 0).setting}

    def test_scaling_and_components_are_those_of_training_rows(self) -> None:
        job = QSVM(**FAST)
        features, labels = drawn(labelled.read("wine", "label"), job)
        train, test = np.arange(0, len(labels), 2), np.arange(1, len(labels), 2)
        strange = features.copy()
        strange[test] = 1e3 * strange[test] + 7
        one, other = (_split(rows, labels, train, test, job) for rows in (features, strange))
        np.testing.assert_array_equal(one.features[0], other.features[0])
        np.testing.assert_array_equal(one.components[0], other.components[0])

    def test_alignment_chooses_without_them(self, split: tuple[QSVM, Split]) -> None:
        job, true = split
        strange = replace(true, components=(true.components[0], 5 * true.components[1]), labels=(true.labels[0], true.labels[1][::-1]))
        bandwidths = {_quantum(job.model_copy(update={"chosen_by": "alignment"}), one, 0).setting[0] for one in (true, strange)}
        grams = {width: encode(FeatureMap(bandwidth=width), job.kernel, true.components[0]).gram() for width in job.bandwidths}
        assert bandwidths == {max(grams, key=lambda width: alignment(grams[width], true.labels[0]))}

    def test_the_rbf_baseline_is_what_scikit_learn_would_choose_from_gammas_about_one_over_the_features(
        self, split: tuple[QSVM, Split]
    ) -> None:
        job, one = split
        grid = [{"gamma": [gamma / 13], "C": job.costs} for gamma in (1 / 16, 1 / 4, 1, 4, 16)]
        theirs = GridSearchCV(SVC(), grid, cv=_folds(job, 0)).fit(one.features[0], one.labels[0])
        found = _rbf(job, one, 0)
        assert found.setting == pytest.approx((theirs.best_params_["gamma"], theirs.best_params_["C"]))
        assert found.score == theirs.score(one.features[1], one.labels[1])

    def test_the_logistic_baseline_is_what_scikit_learn_would_choose_from_a_sensible_range(self, split: tuple[QSVM, Split]) -> None:
        job, one = split
        grid = np.geomspace(0.001, 100, 15)
        theirs = GridSearchCV(LogisticRegression(max_iter=500), {"C": grid}, cv=_folds(job, 0)).fit(one.features[0], one.labels[0])
        found = _logistic(job, one, 0)
        assert found.setting == pytest.approx((theirs.best_params_["C"],))
        assert found.score == theirs.score(one.features[1], one.labels[1])


def test_error_bars_and_verdict_reckon_with_splits_that_overlap_and_the_better_baseline_counts(tmp_path: Path) -> None:
    """Circles, which no line tells apart; the interval is Student's, by scipy, with Nadeau and Bengio's variance."""
    rows, labels = make_circles(120, noise=0.2, factor=0.5, random_state=0)
    np.savez(tmp_path / "circles.npz", x=rows, label=labels)
    result = run(QSVM(data=str(tmp_path / "circles.npz"), bandwidths=(0.1, 0.3), costs=(1.0, 10.0), splits=6, test=0.4))
    scores = {name: np.array(values) for name, values in result.details["scores"].items()}
    assert result.baseline.name == "RBF SVM"
    assert scores["RBF SVM"].mean() > scores["logistic regression"].mean() + 0.1
    widening = math.sqrt(1 / 6 + 0.4 / 0.6)
    assert result.error == pytest.approx(scores["quantum"].std(ddof=1) * widening)
    assert result.baseline.error == pytest.approx(scores["RBF SVM"].std(ddof=1) * widening)
    apart = scores["quantum"] - scores["RBF SVM"]
    interval = t.interval(0.95, 5, apart.mean(), max(apart.std(ddof=1), 1 / 48) * widening)
    assert (result.compared.low, result.compared.high) == pytest.approx(interval)
