"""Rows that rungs are calibrated by, and others that they are validated by: of a table with the model's columns and its labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from qedge.data import built_in, fingerprint, table_fingerprint, tables
from qedge.data.federation import standardised
from qedge.edge.rung import Rows
from qedge.errors import InvalidCalibration, LabelMismatch, UnfitGraph
from qedge.job.data import BUILT_IN

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Taken:
    """What a model takes and names, by its graph: columns, labels, and whether callers standardise (`scale: local`)."""

    features: tuple[str, ...]
    labels: tuple[str | int, ...]
    standardised: bool

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Taken:
        """By the graph's own metadata.

        Raises:
            UnfitGraph: it has none; it was not exported by qedge.
        """
        told = {entry.key: entry.value for entry in model.metadata_props}
        if not {"features", "labels", "scale"} <= told.keys():
            raise UnfitGraph("the graph does not name its features and labels; accepted: one that qedge exported")
        return cls(tuple(json.loads(told["features"])), tuple(json.loads(told["labels"])), told["scale"] == "local")


@dataclass(frozen=True, eq=False)
class Labelled:
    """rows: [n, F] float32 as the model takes them; labels: [n] places among the model's labels."""

    rows: Rows
    labels: Places

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, places: npt.NDArray[np.int64]) -> Labelled:
        """These rows alone."""
        return Labelled(self.rows[places], self.labels[places])


@dataclass(frozen=True, eq=False)
class Calibration:
    """fitting: what rungs may be made by; held: rows that no rung has seen, by which each is validated.

    identity: what a ledger knows all of them by, to be keyed first (`qedge.data.fingerprint`).
    """

    fitting: Labelled
    held: Labelled
    identity: tuple[bytes, ...]


def read(source: str, label: str, taken: Taken, held: str | None = None, *, seed: int = 0) -> Calibration:
    """The rows of a table (or of a built-in data set) with a column for each feature and one for the label.

    held: a second table to validate by; without it half of each label's rows are kept for that, drawn by `seed`.

    Raises:
        InvalidCalibration: fewer rows than labels, or a label without rows to validate by.
        LabelMismatch: a label that the model does not know. DataNotFound, InvalidValue, DataError: as `tables.read`.
    """
    rows, identity = read_rows(source, label, taken)
    if held is not None:
        kept, more = read_rows(held, label, taken)
        if set(more) & set(identity):
            raise InvalidCalibration(f"{held} is {source}: what rungs are made by cannot validate them", given=held)
        found = Calibration(rows, kept, identity + more)
    else:
        found = Calibration(*_halves(rows, seed), identity)
    for part, what in ((found.fitting, "calibrate"), (found.held, "validate")):
        if len(part) < len(taken.labels):
            raise InvalidCalibration(
                f"{len(part)} rows to {what} rungs by; accepted: as many as the model has labels, {len(taken.labels)}, or more",
                given=len(part),
                expected=len(taken.labels),
            )
    return found


def read_rows(source: str, label: str, taken: Taken) -> tuple[Labelled, tuple[bytes, ...]]:
    """The rows of a table, or of a built-in data set, as the model takes them, and what a ledger knows them by.

    Raises:
        InvalidCalibration, LabelMismatch, DataNotFound, InvalidValue, DataError: as `read`.
    """
    if source in BUILT_IN:
        known = built_in.read(source)
        names, features, labels, vocabulary = tuple(known.ranges), known.features, known.labels, known.vocabulary
        if names != taken.features:
            raise InvalidCalibration(f"'{source}' has other features than the model: {len(names)} and {len(taken.features)}", given=source)
        identity: tuple[bytes, ...] = ()
    else:
        table = tables.read(Path(source))
        features, names = tables.features(table, taken.features), taken.features
        labels, vocabulary = tables.labels(table, label, None)
        identity = table_fingerprint.table_messages(table, None) + table_fingerprint.owner_messages(Path(source), table)
    unknown = [one for one in vocabulary if one not in taken.labels]
    if unknown:
        listed = ", ".join(map(str, taken.labels))
        raise LabelMismatch(f"{source}: the model has no label {unknown[0]!r}; it has {listed}", given=str(unknown[0]))
    identity += fingerprint.rows_messages(features, labels, np.array([0, len(labels)]), names, vocabulary)
    if taken.standardised:
        features = standardised(features, np.zeros(len(features), np.int64))
    places = np.array([taken.labels.index(one) for one in vocabulary], dtype=np.int64)
    return Labelled(features, places[labels]), identity


def _halves(rows: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Two halves, each with every label's share."""
    order = np.random.default_rng(seed).permutation(len(rows))
    by_label = order[np.argsort(rows.labels[order], kind="stable")]
    return rows.part(np.sort(by_label[::2])), rows.part(np.sort(by_label[1::2]))
