"""A table of features and one label, read as a whole: for jobs that train in one place and know no clients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qedge.data import built_in, fingerprint, table_fingerprint, tables
from qedge.errors import DataError, UnknownKey, nearest
from qedge.job.data import BUILT_IN


@dataclass(frozen=True, eq=False)
class Labelled:
    """features: [rows, F] float32, unscaled, named `names`; labels: [rows] places in `vocabulary`, two or more.

    identity: what a ledger knows the rows by, to be keyed first (`qedge.data.fingerprint`); it shares messages with any federation that
    `qedge.data.federation` makes of the same rows.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    vocabulary: tables.Labels
    identity: tuple[bytes, ...]


def read(source: str, label: str, drop: Collection[str] = ()) -> Labelled:
    """A built-in data set, or a parquet, CSV or npz file: its column `label`, and as features all others but those in `drop`.

    Raises:
        UnknownKey: neither a built-in data set nor a file. DataNotFound: no such file or column. LabelMismatch: one label only.
        DataError, InvalidValue: the file is no table, or a feature is not a finite number.
    """
    if source in BUILT_IN:
        if drop:
            raise DataError(f"data: '{source}' has no columns to drop; given: {', '.join(drop)}", given=list(drop))
        known = built_in.read(source)
        features, labels, names, vocabulary = known.features, known.labels, tuple(known.ranges), known.vocabulary
        identity: tuple[bytes, ...] = ()
    elif not Path(source).suffix:
        raise UnknownKey(f"data: unknown '{source}'; {nearest(source, BUILT_IN)}, or a file", given=source)
    else:
        table = tables.read(Path(source))
        for name in drop:
            tables.column(table, name, "drop")
        labels, vocabulary = tables.labels(table, label, None)
        names = tables.feature_names(table, {label, *drop})
        features = tables.features(table, names)
        identity = table_fingerprint.table_messages(table, None) + table_fingerprint.owner_messages(Path(source), table)
    rows = fingerprint.rows_messages(features, labels, np.array([0, len(labels)]), names, vocabulary)
    return Labelled(features, labels, names, vocabulary, rows + identity)
