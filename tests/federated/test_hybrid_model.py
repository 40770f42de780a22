"""Hybrid models through the very same run, ledger and receipt as any other, under both units of privacy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from qedge import train
from qedge.audit.receipt import FILE, Receipt
from qedge.config import Settings
from qedge.job import TrainingJob
from qedge.records import Records

Make = Callable[..., TrainingJob]
HYBRID = {"kind": "hybrid", "qubits": 3, "layers": 1}
EXAMPLE = {"unit": "example", "epsilon": 8, "delta": 1e-3, "clipping": {"bound": 1.0}, "rate": 0.3, "steps": 3, "max_rows": 10}


@pytest.mark.parametrize(("unit", "kernel"), [("client", "stacked"), ("example", "auto")])
def test_a_hybrid_model_is_trained_charged_and_written_as_onnx(settings: Settings, make_job: Make, unit: str, kernel: str):
    changes: dict[str, object] = {"model": HYBRID, "rounds": 2, "algorithm": {"kernel": kernel, "local_epochs": 1, "batch_size": 32}}
    if unit == "example":
        changes["privacy"] = EXAMPLE
    result = train(make_job(**changes), backend="serial", settings=settings)
    records = Records.open(settings.home)
    scope = records.ledger.scope("wine")
    assert scope.unit == unit
    assert sorted(records.ledger.releases(result.run_id)) == [1, 2]
    folder = settings.home / "runs" / result.run_id
    assert Receipt.read(folder / "model" / FILE).epsilon_at_1e_5 is not None
    assert ("book-keeping" if unit == "example" else "stacked") in (folder / "record.json").read_text()
    session = onnxruntime.InferenceSession((folder / "model" / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    probabilities, _ = session.run(["probabilities", "label"], {"features": np.ones((3, 13), np.float32)})
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
