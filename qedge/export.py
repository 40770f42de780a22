"""A trained model as files that need no torch: ONNX to be served, safetensors to be trained further.

The graph takes a caller's own numbers and gives a caller's own words: the scaling of the job (unless it is `local`), the
network, softmax, and the label by name are all inside. The file is written only when ONNX Runtime answers as torch does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save
from torch import nn

from qedge import __version__
from qedge.data.federation import Schema
from qedge.errors import LabelMismatch, ModelError
from qedge.layer_graph import chain_graph
from qedge.models import parameters_vector, set_parameters
from qedge.storage import write_atomically

OPSET = 20
TOLERANCE = 1e-5
LARGEST_BATCH = 2**31 - 1
_TRIED = (1, 2, 7)


class Served(nn.Module):
    """Raw rows [batch, F] to probabilities [batch, classes]."""

    center: torch.Tensor
    spread: torch.Tensor

    def __init__(self, module: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.module = module
        self.scales = schema.scale == "given"
        self.register_buffer("center", torch.tensor(schema.center))
        self.register_buffer("spread", torch.tensor(schema.spread))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scaled = (features - self.center) / self.spread if self.scales else features
        return torch.softmax(self.module(scaled), dim=1)


def to_onnx(module: nn.Module, schema: Schema, path: Path) -> None:
    """Write `module` as one ONNX file that answers any batch.

    Input `features`: float32 [batch, F], unscaled (standardised by the caller under `scale: local`). Outputs `probabilities`:
    float32 [batch, classes]; `label`: string or int64 [batch]. Metadata: `features`, `labels` (JSON lists), `scale`, `qedge` (version).

    Raises:
        ModelError: the model cannot be exported, or ONNX Runtime's answers differ from torch's by more than 1e-5.
        LabelMismatch: its output is not one logit for each label.
        StorageFull, HomeUnusable: the file cannot be written; an older one is untouched.
    """
    training = module.training
    served = Served(module, schema).eval()
    try:
        scaling = (schema.center, schema.spread) if served.scales else None
        graph = chain_graph(module, len(schema.features), scaling, OPSET) or _traced(served, len(schema.features))
        _append_label(graph, schema)
        content = _checked(graph)
        _compare(served, content, schema)
    finally:
        module.train(training)
    write_atomically(path, content)


def save_weights(vector: npt.NDArray[np.float32], module: nn.Module, path: Path) -> None:
    """Write the weights `vector` [params] as safetensors under the names of `module`'s state, which keeps its own weights.

    Raises:
        ModelError: the vector is not of the module's length. StorageFull, HomeUnusable: the file cannot be written.
    """
    kept = parameters_vector(module)
    try:
        set_parameters(module, vector)
        tensors = {name: np.array(tensor.numpy()) for name, tensor in module.state_dict().items()}
    finally:
        set_parameters(module, kept)
    write_atomically(path, save(tensors))


def _traced(served: Served, features: int) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with _quiet():
        try:
            program = torch.onnx.export(
                served,
                (torch.zeros(2, features),),  # a batch of 1 would be baked in
                dynamo=True,
                opset_version=OPSET,
                input_names=["features"],
                output_names=["probabilities"],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except Exception as error:  # the exporter raises what it meets in the user's forward
            raise ModelError(f"the model cannot be exported to ONNX: {error}") from error
    if program is None:
        raise ModelError("the model cannot be exported to ONNX")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _checked(graph: onnx.ModelProto) -> bytes:
    try:
        content: bytes = graph.SerializeToString()
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"the exported graph is not valid ONNX: {error}") from error
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not installed and on torch's own deprecations."""
    chatter = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(level)


def _append_label(model: onnx.ModelProto, schema: Schema) -> None:
    """Add the output `label` and the metadata, and take out the exporter's notes, which quote paths of this machine."""
    graph = model.graph
    del graph.metadata_props[:]
    for node in (*graph.node, *(inner for function in model.functions for inner in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    words = [str(label).encode() for label in schema.labels] if isinstance(schema.labels[0], str) else list(schema.labels)
    kind = TensorProto.STRING if isinstance(schema.labels[0], str) else TensorProto.INT64
    graph.initializer.append(helper.make_tensor("qedge_labels", kind, [len(words)], words))
    graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["qedge_place"], axis=1, keepdims=0))
    graph.node.append(helper.make_node("Gather", ["qedge_labels", "qedge_place"], ["label"], axis=0))
    graph.output.append(helper.make_tensor_value_info("label", kind, ["batch"]))
    known = {"features": json.dumps(schema.features), "labels": json.dumps(schema.labels), "scale": schema.scale, "qedge": __version__}
    helper.set_model_props(model, known)


def _compare(served: Served, content: bytes, schema: Schema) -> None:
    """ONNX Runtime's probabilities equal torch's, and its labels are those of its probabilities, for several batch sizes."""
    generator = np.random.default_rng(0)
    batches = [schema.center + schema.spread * generator.random((rows, len(schema.features)), np.float32) for rows in _TRIED]
    with torch.no_grad():
        wanted = [served(torch.from_numpy(features)).numpy() for features in batches]
    if wanted[0].shape != (1, len(schema.labels)):  # before running: the label's place could lie outside the list
        raise LabelMismatch(
            f"the model answers {list(wanted[0].shape)} for one row; accepted: a logit for each of {len(schema.labels)} labels"
        )
    for rows, expected, (probabilities, label) in zip(_TRIED, wanted, _answers(content, batches), strict=True):
        if probabilities.shape != expected.shape or not np.allclose(probabilities, expected, rtol=0, atol=TOLERANCE):
            raise ModelError(f"the exported model does not answer as torch does on {rows} rows, or its answers are not numbers")
        if list(label) != [schema.labels[place] for place in probabilities.argmax(1)]:
            raise ModelError(f"the exported model names other labels than its probabilities say, on {rows} rows")


def _answers(content: bytes, batches: list[npt.NDArray[np.float32]]) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.generic]]]:
    """What ONNX Runtime answers to each batch: (probabilities, label)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised below
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return [tuple(session.run(["probabilities", "label"], {"features": features})) for features in batches]
    except Exception as error:  # ONNX Runtime has a dozen unrelated kinds
        raise ModelError(f"ONNX Runtime cannot run the exported model: {error}") from error
