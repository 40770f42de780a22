"""Signed model folders for the tests: a linear classifier as the exporter makes them, its receipt under a home's key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qedge.audit.receipt import Body, Data, HeadOf, Use, artifact_digests, issue
from qedge.security.keys import Keys

FEATURES = 4
LABELS = ("ham", "spam", "eggs")


def weights(seed: int) -> np.ndarray:
    """[FEATURES, classes] float32."""
    return np.random.default_rng(seed).normal(size=(FEATURES, len(LABELS))).astype(np.float32)


def answer(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities computed without ONNX Runtime."""
    scores = rows @ weights(seed)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.array(LABELS)[scores.argmax(axis=1)], exponentials / exponentials.sum(axis=1, keepdims=True)


def graph(seed: int, labels: tuple[str, ...] | tuple[int, ...] = LABELS) -> ModelProto:
    """`features` float32 [batch, F] → `probabilities` float32 [batch, classes], `label` string | int64 [batch]."""
    kind = TensorProto.STRING if isinstance(labels[0], str) else TensorProto.INT64
    words = [label.encode() if isinstance(label, str) else label for label in labels]
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["place"], axis=1, keepdims=0),
        helper.make_node("Gather", ["words", "place"], ["label"], axis=0),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "classifier",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
            [
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(labels)]),
                helper.make_tensor_value_info("label", kind, ["batch"]),
            ],
            [numpy_helper.from_array(weights(seed), "weights"), helper.make_tensor("words", kind, [len(words)], words)],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    helper.set_model_props(model, {"features": json.dumps([f"f{index}" for index in range(FEATURES)])})
    return model


def write(folder: Path, name: str, keys: Keys, model: ModelProto) -> Path:
    """The folder, with `model` and a receipt signed with `keys`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    empty = hashlib.sha256(b"").hexdigest()
    body = Body(
        model=name,
        run="run-1",
        created="2026-01-01T00:00:00Z",
        code_version="0",
        job=empty,
        artifacts=artifact_digests(folder, ("model.onnx",)),
        data=Data(source="test", unit="client", relation="zero-out", clients=2, fingerprint=empty, labels="declared"),
        privacy="no privacy guarantee",
        uses=(Use(what="training", covered="public by declaration"),),
        trust_model="a test",
        ledger=HeadOf(seq=0, hash=empty),
        log=HeadOf(seq=0, hash=empty),
    )
    issue(body, keys).write(folder / "receipt.json")
    return folder
