"""A part of a table with a privacy budget, read by who knows no clients: known by the ids that are still in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from qedge import TrainingJob
from qedge.config import Settings
from qedge.data.labelled import read
from qedge.edge.calibration import Taken, read_rows
from qedge.errors import ScopeConflict
from qedge.records import Records
from qedge.runs.preparation import prepare

FEATURES = ("a", "b", "c")


def table(ids: list[object]) -> pa.Table:
    generator = np.random.default_rng(0)
    columns = {name: generator.normal(size=len(ids)) for name in FEATURES}
    return pa.table({"patient": ids, **columns, "sick": generator.integers(0, 2, len(ids))})


def written(folder: Path, kind: str, name: str, rows: pa.Table) -> str:
    path = folder / f"{name}.{kind}"
    pq.write_table(rows, path) if kind == "parquet" else pyarrow.csv.write_csv(rows, path)
    return str(path)


IDS = {"text": [f"p{k % 40}" for k in range(240)], "zeros": [f"{k % 40:03}" for k in range(240)], "numbers": [k % 40 for k in range(240)]}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("ids", IDS)
def test_less_a_row_or_with_half_of_its_clients_it_is_still_refused(settings: Settings, tmp_path: Path, ids: str, kind: str) -> None:
    whole = table(IDS[ids])
    source = written(tmp_path, kind, "whole", whole)
    job = {
        "name": "tiny",
        "data": {"source": source, "client": "patient", "label": "sick", "labels": [0, 1]},
        "model": {"kind": "linear"},
        "algorithm": {"kernel": "sequential"},
        "cohort": {"sampling": "poisson", "rate": 0.5},
        "privacy": {"unit": "client", "epsilon": 6, "delta": 0.001, "clipping": {"bound": 0.5}},
        "rounds": 1,
    }
    prepare(TrainingJob.parse(job), settings)
    records = Records.open(settings.home)

    def refuse(messages: tuple[bytes, ...]) -> None:
        records.ledger.refuse_without_privacy(frozenset(records.keys.mac("fingerprint", message).hex() for message in messages))

    parts = {
        "less one": whole.slice(1),
        "half": whole.filter(pa.array([k % 40 < 20 for k in range(240)])),
        "every other": whole.take(pa.array(range(0, 240, 2))),
    }
    for name, part in parts.items():
        place = written(tmp_path, kind, name.replace(" ", "_"), part)
        with pytest.raises(ScopeConflict):
            refuse(read(place, "sick", ("patient",)).identity)
        with pytest.raises(ScopeConflict):
            refuse(read_rows(place, "sick", Taken(FEATURES, (0, 1), False))[1])
    others = whole.set_column(0, "patient", pa.array([f"other-{k % 40}" for k in range(240)])).slice(1)
    refuse(read(written(tmp_path, kind, "others", others), "sick", ("patient",)).identity)
