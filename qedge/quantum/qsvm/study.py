"""A quantum kernel on a table beside an RBF SVM and logistic regression: the same splits, as many candidates each, nested cross-validation.

In every split each model tries all of its candidates on folds of the training rows, takes the best, is fitted anew on all of them, and is
asked once about the rows held out. Rows are standardised by the training rows of the split; a quantum kernel sees as many of their
principal components as there are qubits, the classical models all features.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from qedge.data import labelled
from qedge.data.labelled import Labelled
from qedge.errors import LabelMismatch
from qedge.quantum.backend import device
from qedge.quantum.execution import Executor
from qedge.quantum.progress import OnStep, Step, untold
from qedge.quantum.qsvm.alignment import alignment, concentration
from qedge.quantum.qsvm.feature_maps import Reals, circuit, refuse_too_many
from qedge.quantum.qsvm.job import QSVM, FeatureMap
from qedge.quantum.qsvm.kernels import encode, measured_gram
from qedge.quantum.resources import Resources, count
from qedge.quantum.result import Baseline, Result
from qedge.quantum.verdict import compare_splits

Labels = NDArray[np.int64]
_MAP_ROWS = 60  # of the matrix that is kept to be drawn
_QUBITS = 8


@dataclass(frozen=True, eq=False)
class Split:
    """One division of the rows: standardised features [rows, F], the principal components of them [rows, qubits], and labels."""

    features: tuple[Reals, Reals]
    components: tuple[Reals, Reals]
    labels: tuple[Labels, Labels]


@dataclass(frozen=True)
class Tried:
    """What a model came to on one split. setting: its best candidate; score: accuracy on the rows held out."""

    score: float
    setting: tuple[float, ...]


def run(job: QSVM, *, table: Labelled | None = None, executor: Executor | None = None, on_step: OnStep = untold) -> Result:
    """The study: mean accuracy over the splits, its error, and the verdict against the better of both classical models.

    table: what `read` gave, where it was read before; executor: runs the circuits of `job.backend`.

    Raises:
        UnknownKey, DataNotFound, DataError, InvalidValue: the table cannot be read or does not fit. LabelMismatch: one class only, or
            a class with too few rows to be split. TooManyQubits, UnknownBackend, BackendUnavailable: before anything is computed.
    """
    begun = time.perf_counter()
    table = table or read(job)
    features, labels = drawn(table, job)
    qubits = min(job.qubits or _QUBITS, features.shape[1])
    refuse_too_many(len(labels), qubits)
    if job.backend is not None:
        device(job.backend, qubits, job.backend.seed)
    models = {"quantum": _quantum, "RBF SVM": _rbf, "logistic regression": _logistic}
    found: dict[str, list[Tried]] = {name: [] for name in models}
    first: Split | None = None
    for number, split in enumerate(_splits(features, labels, job)):
        first = first or split
        for name, model in models.items():
            found[name].append(model(job, split, number))
        on_step(Step("split", number + 1, job.splits, found["quantum"][-1].score))
    assert first is not None
    scores = {name: [one.score for one in tried] for name, tried in found.items()}
    best = max(("RBF SVM", "logistic regression"), key=lambda name: fmean(scores[name]))
    candidates = len(job.bandwidths) * len(job.costs)
    how = f"{candidates} candidates on {job.folds} folds of each split"
    how += ", as the quantum kernel had" if job.chosen_by != "alignment" else "; the quantum kernel's bandwidth was chosen by alignment"
    baselines = {name: Baseline(name, *_mean(scores[name], job.test), how) for name in scores if name != "quantum"}
    details, used = _looked_at(job, first, found["quantum"], executor)
    details |= {
        "scores": {name: list(values) for name, values in scores.items()},
        "chosen": {name: [list(one.setting) for one in tried] for name, tried in found.items()},
        "rows": len(labels),
        "features": features.shape[1],
        "classes": len(table.vocabulary),
        "contains_training_rows": True,
    }
    value, error = _mean(scores["quantum"], job.test)
    return Result(
        kind="qsvm",
        title=f"{Path(job.data).name}: {job.kernel.kind} kernel, {job.feature_map.kind} map, {qubits} qubits",
        quantity="accuracy on held-out rows",
        value=value,
        error=error,
        baseline=baselines[best],
        compared=compare_splits(scores["quantum"], scores[best], test_share=job.test, tested=len(first.labels[1])),
        resources=used.spent(seconds=time.perf_counter() - begun),
        others=tuple(one for name, one in baselines.items() if name != best),
        details=details,
    )


def read(job: QSVM) -> Labelled:
    """The table that a job names.

    Raises:
        As `run`.
    """
    table = labelled.read(job.data, job.label, job.drop)
    rarest = int(np.bincount(table.labels).min())
    needed = max(4, math.ceil(job.folds / (1 - job.test)) + 1)
    if rarest < needed:
        raise LabelMismatch(f"a class has {rarest} rows; accepted: at least {needed} of each, to be split and folded")
    return table


def drawn(table: Labelled, job: QSVM) -> tuple[Reals, Labels]:
    """At most `most_rows` rows with the table's shares of classes."""
    features, labels = table.features.astype(np.float64), table.labels
    if len(labels) <= job.most_rows:
        return features, labels
    kept, _ = train_test_split(np.arange(len(labels)), train_size=job.most_rows, stratify=labels, random_state=job.seed)
    return features[kept], labels[kept]


def components_of(features: Reals, job: QSVM) -> tuple[Reals, Reals]:
    """What takes rows to the principal components that are encoded, as a matrix [F, qubits] and an offset [qubits].

    Rows are standardised first; components are divided by one number for all, so that how they compare is kept.
    """
    scaler = StandardScaler().fit(features)
    analysis = PCA(min(job.qubits or _QUBITS, features.shape[1]), svd_solver="full").fit(scaler.transform(features))
    spread = math.sqrt(max(float(analysis.explained_variance_.mean()), 1e-12))
    matrix = np.asarray(analysis.components_.T / scaler.scale_[:, np.newaxis] / spread)
    return matrix, np.asarray(-(scaler.mean_ @ matrix) - analysis.mean_ @ analysis.components_.T / spread)


def _splits(features: Reals, labels: Labels, job: QSVM) -> Sequence[Split]:
    shuffled = StratifiedShuffleSplit(n_splits=job.splits, test_size=job.test, random_state=job.seed)
    return [_split(features, labels, train, test, job) for train, test in shuffled.split(features, labels)]


def _split(features: Reals, labels: Labels, train: Labels, test: Labels, job: QSVM) -> Split:
    scaler = StandardScaler().fit(features[train])
    matrix, offset = components_of(features[train], job)
    scaled = scaler.transform(features[train]), scaler.transform(features[test])
    seen = features[train] @ matrix + offset, features[test] @ matrix + offset
    return Split(scaled, seen, (labels[train], labels[test]))


def _quantum(job: QSVM, split: Split, number: int) -> Tried:
    grams, across = {}, {}
    for bandwidth in job.bandwidths:
        train, test = (encode(_map(job, bandwidth), job.kernel, rows) for rows in split.components)
        grams[bandwidth], across[bandwidth] = train.gram(), test.gram(train)
    tried = grams
    if job.chosen_by == "alignment":
        best = max(grams, key=lambda bandwidth: alignment(grams[bandwidth], split.labels[0]))
        tried = {best: grams[best]}
    return _machine(job, tried, across, split, number)


def _rbf(job: QSVM, split: Split, number: int) -> Tried:
    """Its gamma is that of standardised features, 1/F, times powers of 4 around 1: as many as there are bandwidths."""
    train, test = split.features
    middle = (len(job.bandwidths) - 1) // 2
    gammas = [4.0 ** (place - middle) / train.shape[1] for place in range(len(job.bandwidths))]
    return _machine(
        job,
        {gamma: rbf_kernel(train, gamma=gamma) for gamma in gammas},
        {gamma: rbf_kernel(test, train, gamma=gamma) for gamma in gammas},
        split,
        number,
    )


def _machine(job: QSVM, grams: dict[float, Reals], across: dict[float, Reals], split: Split, number: int) -> Tried:
    """An SVM with the best of the kernels and costs."""
    train, test = split.labels
    folds = list(_folds(job, number).split(train, train))
    best, chosen = -1.0, (math.nan, math.nan)
    for width, gram in grams.items():
        for cost in job.costs:
            machines = [_fitted(gram[np.ix_(fit, fit)], train[fit], cost) for fit, _ in folds]
            right = [one.predict(gram[np.ix_(ask, fit)]) == train[ask] for one, (fit, ask) in zip(machines, folds, strict=True)]
            score = fmean(float(one.mean()) for one in right)
            if score > best:
                best, chosen = score, (width, cost)
    machine = _fitted(grams[chosen[0]], train, chosen[1])
    return Tried(float((machine.predict(across[chosen[0]]) == test).mean()), chosen)


def _logistic(job: QSVM, split: Split, number: int) -> Tried:
    """Its C spans the same range as the SVMs', in as many steps as they have candidates."""
    (train, test), (labels, asked) = split.features, split.labels
    costs = np.geomspace(min(job.costs) / 10, max(job.costs), len(job.costs) * len(job.bandwidths))
    folds = list(_folds(job, number).split(train, labels))

    def fitted(rows: Reals, theirs: Labels, cost: float) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=cost, max_iter=500).fit(rows, theirs)

    scores = [fmean(float(fitted(train[fit], labels[fit], cost).score(train[ask], labels[ask])) for fit, ask in folds) for cost in costs]
    cost = float(costs[int(np.argmax(scores))])
    return Tried(float(fitted(train, labels, cost).score(test, asked)), (cost,))


def _fitted(gram: Reals, labels: Labels, cost: float) -> SVC:
    return SVC(C=cost, kernel="precomputed").fit(gram, labels)


def _folds(job: QSVM, number: int) -> StratifiedKFold:
    return StratifiedKFold(job.folds, shuffle=True, random_state=(job.seed + number) % 2**32)


def _map(job: QSVM, bandwidth: float) -> FeatureMap:
    return job.feature_map.model_copy(update={"bandwidth": bandwidth})


def _mean(scores: list[float], share: float) -> tuple[float, float]:
    """The mean of overlapping splits and its standard deviation (Nadeau, Bengio 2003, as in `verdict`)."""
    return fmean(scores), float(np.std(scores, ddof=1)) * math.sqrt(1 / len(scores) + share / (1 - share))


def _looked_at(job: QSVM, split: Split, tried: list[Tried], executor: Executor | None) -> tuple[dict[str, JsonValue], Resources]:
    """The kernel with the bandwidth that was chosen most, on the first split's training rows; what one of its circuits takes."""
    bandwidth = Counter(one.setting[0] for one in tried).most_common(1)[0][0]
    chosen, rows, labels = _map(job, bandwidth), split.components[0], split.labels[0]
    gram = encode(chosen, job.kernel, rows).gram()
    concentrated = concentration(gram)
    order = np.argsort(labels[:_MAP_ROWS], kind="stable")
    one = count(circuit(chosen, rows[0]))
    used = Resources(one.qubits, one.gates, one.cx, one.depth)
    details: dict[str, JsonValue] = {
        "bandwidth": bandwidth,
        "alignment": alignment(gram, labels),
        "alignments": {f"{width:g}": alignment(encode(_map(job, width), job.kernel, rows).gram(), labels) for width in job.bandwidths},
        "concentration": concentrated.plain(),
        "gram": gram[np.ix_(order, order)].round(6).tolist(),
        "gram_labels": labels[order].tolist(),
        "support_rows": int(_fitted(gram, labels, tried[0].setting[1]).n_support_.sum()),
        "warnings": [concentrated.warning] if concentrated.warning else [],
    }
    if job.backend is not None:
        few = rows[: job.backend_rows]
        found = measured_gram(chosen, job.kernel, few, job.backend, executor)
        off = np.triu_indices(len(few), 1)
        details["backend"] = {
            "name": job.backend.name,
            "shots": job.backend.shots,
            "rows": len(few),
            "mean_difference": float(np.abs(found.values - gram[: len(few), : len(few)])[off].mean()),
            "mean_error": float(found.errors[off].mean()),
        }
        used = used.spent(shots=found.shots, circuits=found.circuits)
    return details, used
