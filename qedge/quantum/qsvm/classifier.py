"""`QuantumSVC`: a support vector machine on a quantum kernel, as scikit-learn has its estimators.

The dual is solved by scikit-learn's SVC on the Gram matrix; decisions are taken from its support rows alone, the only training rows that
a fitted model keeps. With more than two classes one is chosen against each other (one-vs-one), ties broken by the summed decisions.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC
from sklearn.utils.multiclass import _ovr_decision_function, check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from qedge.quantum.qsvm.feature_maps import MOST_QUBITS, Reals
from qedge.quantum.qsvm.job import FeatureMap, Kernel
from qedge.quantum.qsvm.kernels import Encoded, encode


class QuantumSVC(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A support vector classifier on a quantum kernel, simulated exactly; one qubit for each feature, 16 at most.

    Features are angles: scale them first (`StandardScaler` in a `Pipeline`), and tune `bandwidth` with `C`.

    feature_map, repetitions, entanglement, bandwidth: of `FeatureMap`; kernel, gamma: of `Kernel`; C, class_weight: of SVC.

    Fitted: classes_; support_rows_ [support, features]; dual_coef_, intercept_, n_support_ as SVC's; n_features_in_.

    Raises, when fitted or asked: ValueError for rows or labels that scikit-learn does not take, one class only, more features than 16, or a
    parameter out of range.
    """

    def __init__(
        self,
        feature_map: Literal["zz", "iqp", "angle"] = "zz",
        repetitions: int = 2,
        entanglement: Literal["full", "linear"] = "full",
        bandwidth: float = 0.3,
        kernel: Literal["fidelity", "projected"] = "fidelity",
        gamma: float = 1.0,
        C: float = 1.0,
        class_weight: dict[object, float] | Literal["balanced"] | None = None,
    ) -> None:
        self.feature_map = feature_map
        self.repetitions = repetitions
        self.entanglement = entanglement
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.gamma = gamma
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Find the support rows; X: [rows, features], y: [rows]."""
        rows, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, places = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"one class only: {self.classes_[0]!r}; accepted: two or more classes")
        machine = SVC(C=self.C, kernel="precomputed", class_weight=self._weights())
        machine.fit(self._encoded(rows).gram(), places)
        self.support_rows_ = rows[machine.support_]
        self.dual_coef_, self.intercept_, self.n_support_ = machine.dual_coef_, machine.intercept_, machine.n_support_
        return self

    def decision_function(self, X: ArrayLike) -> Reals:
        """[rows] of two classes, positive for the second; else [rows, classes], the largest being that which is predicted."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        gram = self._encoded(rows).gram(self._encoded(self.support_rows_))
        if len(self.classes_) == 2:
            return np.asarray((gram @ self.dual_coef_.T).ravel() + self.intercept_[0])
        ends = np.cumsum([0, *self.n_support_])
        of = [slice(start, stop) for start, stop in pairwise(ends)]
        pairs = [
            gram[:, of[one]] @ self.dual_coef_[other - 1, of[one]] + gram[:, of[other]] @ self.dual_coef_[one, of[other]]
            for one, other in combinations(range(len(self.classes_)), 2)
        ]
        duels = np.stack(pairs, axis=1) + self.intercept_
        return np.asarray(_ovr_decision_function(duels < 0, -duels, len(self.classes_)))

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """The class of each row, [rows]."""
        found = self.decision_function(X)
        return np.asarray(self.classes_[(found > 0).astype(np.int64) if found.ndim == 1 else found.argmax(axis=1)])

    def _weights(self) -> dict[int, float] | str | None:
        """Class weights by the places of classes."""
        if not isinstance(self.class_weight, dict):
            return self.class_weight
        if unknown := [name for name in self.class_weight if name not in self.classes_.tolist()]:
            raise ValueError(f"class_weight: {unknown[0]!r} is no class of y; accepted: {self.classes_.tolist()}")
        return {place: self.class_weight.get(name, 1.0) for place, name in enumerate(self.classes_.tolist())}

    def _encoded(self, rows: Reals) -> Encoded:
        if rows.shape[1] > MOST_QUBITS:
            raise ValueError(f"{rows.shape[1]} features take as many qubits; accepted: at most {MOST_QUBITS}, for example after PCA")
        map_ = FeatureMap(kind=self.feature_map, repetitions=self.repetitions, entanglement=self.entanglement, bandwidth=self.bandwidth)
        return encode(map_, Kernel(kind=self.kernel, gamma=self.gamma), rows)
