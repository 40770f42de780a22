"""Weights trained for the few levels that a rung has: straight through the rounding, by the FP32 model's answers and the labels.

Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", NeurIPS 2014 workshop (the model as teacher); the
roundings are those of `chain`.
"""

from __future__ import annotations

import onnx
import torch

from qedge.edge.building.chain import Chain
from qedge.edge.calibration import Labelled
from qedge.edge.compression.training import Course, train

COURSE = Course(steps=1200, learning_rate=5e-4, temperature=2.0, mix=0.8)
_SEED = 0


def fine_tuned(whole: onnx.ModelProto, rung: onnx.ModelProto, rows: Labelled) -> onnx.ModelProto | None:
    """The FP32 graph with weights that lose little when they are rounded as in `rung`; None where that is no chain, or training diverges.

    whole: as `cleaned_graph` leaves it; rung: made from it; rows: to train by.
    """
    student, teacher = Chain.of(rung, whole), Chain.of(whole, whole)
    if student is None or teacher is None:
        return None
    learnt = train(student, torch.from_numpy(rows.rows), torch.from_numpy(rows.labels), COURSE, _SEED, teacher=teacher)
    assert isinstance(learnt, Chain)
    return learnt.put_into(whole) if all(bool(value.isfinite().all()) for value in learnt.values) else None
