"""A model whose whole graph answers, by ONNX Runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

import onnxruntime
from pydantic import JsonValue

from qedge.edge.session import CPU, ORT_ERRORS
from qedge.errors import Failed, ModelError
from serve_apps.model_folder import ModelFolder, verified_graph
from serve_apps.requests import InferenceRequest
from serve_apps.served_model import Answered, ServedModel
from serve_apps.tensors import Tensor, TensorSpec

_NOWHERE = f"{os.devnull}/"  # else a graph given as bytes looks for external weights in the working directory


@dataclass(frozen=True)
class OnnxModel(ServedModel):
    """A `ServedModel` of one graph, loaded from the bytes that its receipt names."""

    session: onnxruntime.InferenceSession

    platform: ClassVar[str] = "onnx_onnxruntime"

    @classmethod
    def load(cls, source: ModelFolder) -> OnnxModel:
        """Verify the folder against its receipt and load the graph.

        Raises:
            UnknownModel: no such folder, or no model or receipt in it.
            ArtifactTampered: the signature or the digest does not hold.
            ModelError: ONNX Runtime cannot load the graph, or it has an input that the protocol cannot carry.
        """
        graph, receipt = verified_graph(source)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=[CPU])
        except ORT_ERRORS as error:
            raise ModelError(f"{source.name}: ONNX Runtime cannot load the model: {error}", model=source.name) from None
        inputs = [TensorSpec.of(node.name, node.type, node.shape) for node in session.get_inputs()]
        outputs = [TensorSpec.of(node.name, node.type, node.shape) for node in session.get_outputs()]
        return cls(source, receipt, {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}, session)

    def _answer(self, feed: dict[str, Tensor], wanted: list[str], request: InferenceRequest) -> Answered:
        try:
            arrays = self.session.run(wanted, feed)
        except ORT_ERRORS as error:
            raise Failed(f"{self.source.name}: ONNX Runtime could not run the model: {error}", model=self.source.name) from None
        return Answered(dict(zip(wanted, arrays, strict=True)), {})

    def facts(self) -> dict[str, JsonValue]:
        return {"properties": dict(self.session.get_modelmeta().custom_metadata_map)}
