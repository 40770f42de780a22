"""The estimator as scikit-learn's own checks, pipelines and searches see it."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_wine, make_moons
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from qedge.quantum import QuantumSVC
from qedge.quantum.qsvm.job import FeatureMap, Kernel
from qedge.quantum.qsvm.kernels import encode


def test_scikit_learn_finds_nothing_wrong_with_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks that need packages which are not there
        results = check_estimator(QuantumSVC(), on_fail=None)
    assert {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"} == {}
    assert sum(one["status"] == "passed" for one in results) > 50


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kernel", ["fidelity", "projected"])
def test_it_decides_as_an_svm_on_the_same_gram_matrix(classes: int, kernel: str) -> None:
    features, labels = load_wine(return_X_y=True)
    rows = StandardScaler().fit_transform(features[labels < classes])[:, :5]
    labels = labels[labels < classes]
    machine = QuantumSVC(bandwidth=0.2, C=3.0, kernel=kernel).fit(rows, labels)
    gram = encode(FeatureMap(bandwidth=0.2), Kernel(kind=kernel), rows).gram()
    expected = SVC(C=3.0, kernel="precomputed").fit(gram, labels)
    np.testing.assert_allclose(machine.decision_function(rows), expected.decision_function(gram), atol=1e-8)
    np.testing.assert_array_equal(machine.predict(rows), expected.predict(gram))
    assert len(machine.support_rows_) == expected.n_support_.sum() < len(rows)


def test_it_works_in_a_pipeline_a_search_and_a_pickle() -> None:
    rows, labels = make_moons(120, noise=0.15, random_state=0)
    names = np.array(["one", "other"])[labels]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), QuantumSVC()),
        {"quantumsvc__bandwidth": [0.1, 0.5], "quantumsvc__C": [1.0, 10.0], "quantumsvc__feature_map": ["zz", "iqp"]},
        cv=3,
    ).fit(rows, names)
    assert search.best_score_ > 0.85
    read = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(read.predict(rows), search.predict(rows))
    assert cross_val_score(QuantumSVC(bandwidth=0.5, kernel="projected"), rows, names, cv=3).mean() > 0.8


def test_class_weights_are_by_the_names_of_classes() -> None:
    rows, labels = make_moons(80, noise=0.3, random_state=1)
    names = np.array(["one", "other"])[labels]
    machines = [QuantumSVC(C=0.1, class_weight=weight).fit(rows, names) for weight in ({"other": 20}, {"one": 20})]
    counts = [int((machine.predict(rows) == "one").sum()) for machine in machines]
    assert counts[0] < counts[1]
    with pytest.raises(ValueError, match="'neither' is no class"):
        QuantumSVC(class_weight={"neither": 2}).fit(rows, names)


@pytest.mark.parametrize(
    ("parameters", "width", "said"),
    [
        ({}, 17, "at most 16"),
        ({"feature_map": "cosine"}, 2, "'zz', 'iqp' or 'angle'"),
        ({"bandwidth": -1.0}, 2, "greater than 0"),
        ({"kernel": "linear"}, 2, "'fidelity' or 'projected'"),
        ({"repetitions": 0}, 2, "greater than or equal to 1"),
    ],
)
def test_what_it_does_not_take_is_a_value_error(parameters: dict[str, object], width: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QuantumSVC(**parameters).fit(np.eye(width)[:, :width] + np.arange(width)[:, np.newaxis], np.arange(width) % 2)


def test_one_class_only_is_refused() -> None:
    with pytest.raises(ValueError, match="one class only"):
        QuantumSVC().fit(np.zeros((4, 2)), ["a"] * 4)


def test_rows_of_another_width_are_refused() -> None:
    machine = QuantumSVC().fit(np.arange(8.0).reshape(4, 2), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="3 features"):
        machine.predict(np.zeros((1, 3)))
