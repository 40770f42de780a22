"""A quantum kernel machine for a table's rows as they are: fitted on all of them, kept in two files, read back without running anything.

`machine.json` says what it is, `machine.npz` holds its numbers. Its support rows are rows that it was trained on, turned into principal
components, which the matrix in the same file turns back: whoever has the files has those rows.
"""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qedge.data.labelled import Labelled
from qedge.errors import DataNotFound, InvalidValue
from qedge.quantum.qsvm.classifier import QuantumSVC
from qedge.quantum.qsvm.feature_maps import Reals
from qedge.quantum.qsvm.job import QSVM
from qedge.quantum.qsvm.study import components_of, drawn
from qedge.quantum.result import Result
from qedge.storage import write_atomically

FILES = ("machine.json", "machine.npz")
FORMAT = "qedge-quantum-svc-1"
# What zipfile and numpy raise on damaged bytes; numpy parses headers as Python.
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_LEARNT = ("support_rows_", "dual_coef_", "intercept_", "n_support_")


@dataclass(frozen=True, eq=False)
class Fitted:
    """machine: takes rows @ matrix + offset; matrix: [F, qubits]; offset: [qubits]; features: what the F columns are called."""

    machine: QuantumSVC
    matrix: Reals
    offset: Reals
    features: tuple[str, ...]

    def predict(self, rows: Reals) -> list[str] | list[int]:
        """The label of each row [rows, F].

        Raises:
            InvalidValue: rows of another width, or not finite.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.features) or not np.isfinite(rows).all():
            raise InvalidValue(f"rows: finite numbers [rows, {len(self.features)}] are accepted; given: an array {list(rows.shape)}")
        found: list[str] | list[int] = self.machine.predict(rows @ self.matrix + self.offset).tolist()
        return found

    def save(self, folder: Path) -> None:
        """Write both files into a folder that there is."""
        arrays = io.BytesIO()
        np.savez(arrays, matrix=self.matrix, offset=self.offset, **{name: getattr(self.machine, name) for name in _LEARNT})
        content = {
            "format": FORMAT,
            "parameters": self.machine.get_params(),
            "classes": self.machine.classes_.tolist(),
            "features": list(self.features),
            "contains_training_rows": len(self.machine.support_rows_),
        }
        write_atomically(folder / FILES[1], arrays.getvalue())
        write_atomically(folder / FILES[0], json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Fitted:
        """One that `save` wrote; verify its receipt first.

        Raises:
            DataNotFound: the files are not there. InvalidValue: they are no such machine.
        """
        try:
            content = json.loads((folder / FILES[0]).read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            with np.load(folder / FILES[1], allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ("matrix", "offset", *_LEARNT)}
            machine = QuantumSVC(**content["parameters"])
            machine.classes_ = np.array(content["classes"])
            _refuse_unfit(found, len(content["classes"]), len(content["features"]))
        except OSError as error:
            raise DataNotFound(f"no machine can be read at {folder}: {error.strerror}", given=str(folder)) from error
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            SyntaxError,
            tokenize.TokenError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InvalidValue(f"{folder} holds no machine that was saved here: {error}", given=str(folder)) from error
        for name in _LEARNT:
            setattr(machine, name, found[name])
        machine.n_features_in_ = found["matrix"].shape[1]
        return cls(machine, found["matrix"], found["offset"], tuple(content["features"]))


def _refuse_unfit(found: dict[str, Reals], classes: int, features: int) -> None:
    support, qubits = int(found["n_support_"].sum()), len(found["offset"])
    expected = {
        "matrix": (features, qubits),
        "support_rows_": (support, qubits),
        "dual_coef_": (classes - 1, support),
        "intercept_": (classes * (classes - 1) // 2,),
        "n_support_": (classes,),
    }
    for name, shape in expected.items():
        if found[name].shape != shape or not np.isfinite(found[name]).all():
            raise ValueError(f"{name} is {list(found[name].shape)} where finite numbers {list(shape)} fit")


def fit(job: QSVM, table: Labelled, studied: Result) -> Fitted:
    """The machine with the setting that most splits of a study chose, fitted on all rows that the study drew."""
    features, labels = drawn(table, job)
    chosen = studied.details["chosen"]
    assert isinstance(chosen, dict)
    bandwidth, cost = Counter(tuple(one) for one in chosen["quantum"]).most_common(1)[0][0]  # type: ignore[union-attr, arg-type]
    matrix, offset = components_of(features, job)
    machine = QuantumSVC(
        feature_map=job.feature_map.kind,
        repetitions=job.feature_map.repetitions,
        entanglement=job.feature_map.entanglement,
        bandwidth=float(str(bandwidth)),
        kernel=job.kernel.kind,
        gamma=job.kernel.gamma,
        C=float(str(cost)),
    )
    machine.fit(features @ matrix + offset, np.array(table.vocabulary)[labels])
    return Fitted(machine, matrix, offset, table.names)
