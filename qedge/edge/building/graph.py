"""The FP32 graph that all rungs are made from: read, refused where it does not fit, cleaned up, and written with its weights beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from qedge.edge.session import INPUT, ORT_ERRORS, OUTPUT
from qedge.errors import ArtifactTampered, UnfitGraph
from qedge.storage import storage_errors

_DOMAINS = {"", "ai.onnx"}
_SMALL = 1024  # bytes of a constant that stays in the graph
_KEPT_WHOLE = "qedge_"  # names of what the export appends: the label's place and word


def read(path: Path) -> onnx.ModelProto:
    """The graph at `path`: one input `features` [batch, F], an output `probabilities` [batch, classes].

    Raises:
        UnfitGraph: operators that are not ONNX's own, a dynamic rank or a second dynamic dimension, several inputs.
        ArtifactTampered: the file cannot be read as ONNX.
    """
    try:
        model = onnx.load(str(path))
        _refuse(model, path.name)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OSError, ValueError) as error:
        raise ArtifactTampered(f"{path} cannot be read as an ONNX model: {str(error).splitlines()[0]}", path=str(path)) from None
    return model


def _refuse(model: onnx.ModelProto, name: str) -> None:
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in _DOMAINS})
    if foreign or model.functions:
        raise UnfitGraph(
            f"{name} has operators of its own: {', '.join(foreign) or 'functions'}; accepted: those of ONNX", operators=foreign
        )
    constants = {one.name for one in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if [value.name for value in inputs] != [INPUT] or OUTPUT not in [value.name for value in model.graph.output]:
        found = ", ".join(value.name for value in inputs)
        raise UnfitGraph(f"{name} takes {found}; accepted: one input '{INPUT}' [batch, F], and an output '{OUTPUT}' [batch, classes]")
    for value in (*inputs, *(value for value in model.graph.output if value.name == OUTPUT)):
        kind = value.type.tensor_type
        steps = [step.dim_value for step in kind.shape.dim] if kind.HasField("shape") else []
        if len(steps) != 2 or steps[0] != 0 or steps[1] < 1 or kind.elem_type != onnx.TensorProto.FLOAT:
            raise UnfitGraph(f"{name}: '{value.name}' has the shape {steps or 'unknown'}; accepted: float32 [batch, a fixed number]")


def width_of(model: onnx.ModelProto) -> tuple[int, int]:
    """Features and classes."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)}
    return dims[INPUT][1].dim_value, dims[OUTPUT][1].dim_value


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with constants folded and what does nothing taken out, by ONNX Runtime's own basic passes.

    Raises:
        UnfitGraph: ONNX Runtime cannot load it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options, target = onnxruntime.SessionOptions(), Path(scratch) / "cleaned.onnx"
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise UnfitGraph(f"ONNX Runtime cannot load the graph: {error}") from None
        folded = onnx.load(str(target))
    helper.set_model_props(folded, {entry.key: entry.value for entry in model.metadata_props})
    return folded


def with_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each Gemm with a constant weight is MatMul and Add, as quantisers of weights want it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights = {one.name: one for one in changed.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        nodes += _as_matmul(node, weights) if node.op_type == "Gemm" and node.input[1] in weights else [node]
    del changed.graph.node[:], changed.graph.initializer[:]
    changed.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    changed.graph.initializer.extend(one for one in weights.values() if one.name in used)
    return changed


def _as_matmul(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if given.get("transA", 0) or (len(node.input) > 2 and given.get("beta", 1.0) != 1.0):
        return [node]
    kernel = numpy_helper.to_array(weights[node.input[1]]) * np.float32(given.get("alpha", 1.0))
    kernel = np.ascontiguousarray(kernel.T if given.get("transB", 0) else kernel)
    name, product = f"{node.input[1]}_by_columns", f"{node.output[0]}_product"
    weights[name] = numpy_helper.from_array(kernel, name)
    if len(node.input) == 2:
        return [helper.make_node("MatMul", [node.input[0], name], list(node.output), name=f"{node.name}_matmul")]
    return [
        helper.make_node("MatMul", [node.input[0], name], [product], name=f"{node.name}_matmul"),
        helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_add"),
    ]


def constant_weights(model: onnx.ModelProto, *kinds: str) -> dict[str, int]:
    """Nodes of these kinds whose second input is constant: values in that weight, by the node's name."""
    sizes = {one.name: int(np.prod(one.dims)) for one in model.graph.initializer}
    return {node.name: sizes[node.input[1]] for node in model.graph.node if node.op_type in kinds and node.input[1] in sizes}


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a name for each node: quantisers leave out and report by name."""
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    return model


def around(model: onnx.ModelProto) -> list[str]:
    """Nodes that stay in float32 in every rung: the scaling before the network, and softmax and the label after it."""
    scaled, kept = {INPUT}, []
    for node in model.graph.node:
        before = node.op_type in ("Sub", "Div") and node.input[0] in scaled
        if before:
            scaled.update(node.output)
        after = OUTPUT in (*node.input, *node.output) or any(name.startswith(_KEPT_WHOLE) for name in (*node.input, *node.output))
        if before or after:
            kept.append(node.name)
    return kept


def write(model: onnx.ModelProto, folder: Path, rung: str) -> tuple[str, ...]:
    """Write a rung as `RUNG.onnx`, its weights in `RUNG.data` beside it, to be mapped; the files' names.

    Raises:
        StorageFull, HomeUnusable: it cannot be written.
    """
    graph, data = f"{rung}.onnx", f"{rung}.data"
    written = onnx.ModelProto()
    written.CopyFrom(model)  # the writer takes the weights out of what it is given
    with storage_errors(folder / graph):
        (folder / data).unlink(missing_ok=True)  # it would be appended to
        onnx.save_model(
            written, str(folder / graph), save_as_external_data=True, all_tensors_to_one_file=True, location=data, size_threshold=_SMALL
        )
    return tuple(name for name in (graph, data) if (folder / name).exists())


def kinds(model: onnx.ModelProto) -> set[str]:
    """Operators in the graph."""
    return {node.op_type for node in model.graph.node}


def total_bytes(folder: Path, names: Iterable[str]) -> int:
    """Of these files."""
    return sum((folder / name).stat().st_size for name in names)
