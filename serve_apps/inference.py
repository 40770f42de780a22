"""Answers Open Inference requests with ONNX Runtime: tensors by name in, tensors by name out.

Plain classes: no Ray, no HTTP. A model is a folder with `model.onnx` and the `receipt.json` that names its digest. The bytes
that were hashed are the bytes that are loaded, so nothing can be swapped between the check and the load, and a graph cannot
pull weights from a file that the receipt does not cover.

Source: Open Inference Protocol, REST, version 2 (https://github.com/kserve/open-inference-protocol).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from qedge.audit.receipt import Receipt, verify
from qedge.errors import ArtifactTampered, Failed, InvalidRequest, ModelError, QEdgeError, ReceiptTampered, UnknownModel, nearest
from qedge.monitoring.metrics import ignore
from qedge.quantum.backend import Backend
from qedge.security.keys import public_key
from serve_apps.tensors import TensorSpec, read_tensor, write_tensor

GRAPH = "model.onnx"
RECEIPT = "receipt.json"
if TYPE_CHECKING:
    from serve_apps.line import Line
    from serve_apps.quantum import MakeExecutor

PLATFORM = "onnx_onnxruntime"
_NOWHERE = f"{os.devnull}/"  # else a graph given as bytes looks for external weights in the working directory
_ENVELOPE = 1024  # parts that a request may have beside its data: names, outputs, parameters
_PROVIDERS = ["CPUExecutionProvider"]
_ORT_ERRORS: tuple[type[Exception], ...] = (
    runtime.EPFail,
    runtime.EngineError,
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.InvalidProtobuf,
    runtime.NoSuchFile,
    runtime.NotImplemented,
    runtime.RuntimeException,
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RequestInput(_Part):
    """One input tensor; `data` flat or nested."""

    name: str
    shape: list[int] = Field(min_length=1, max_length=16)
    datatype: str
    data: object
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class RequestOutput(_Part):
    """One output asked for."""

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class InferenceRequest(_Part):
    """The body of an `infer` call. Without `outputs`, every output is returned."""

    id: str | None = Field(None, max_length=256)
    inputs: list[RequestInput] = Field(min_length=1)
    outputs: list[RequestOutput] | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes | bytearray) -> InferenceRequest:
        """A request from JSON.

        Raises:
            InvalidRequest: what is wrong first, and where.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"]) or "body"
            raise InvalidRequest(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}", place=where) from None


@dataclass(frozen=True)
class OnBackend:
    """What a quantum layer runs on, and by how many workers."""

    backend: Backend
    workers: int = 1


@dataclass(frozen=True)
class ModelFolder:
    """Where a version of a model lies, and the public key (hex) its receipt must be signed with; None: the receipt's own.

    quantum: where its quantum layer is to run; None: inside the graph.
    """

    name: str
    version: str
    folder: str
    key: str | None = None
    quantum: OnBackend | None = None


class Record(Protocol):
    """Takes a value of the metrics table (`qedge.monitoring.metrics`)."""

    def __call__(self, name: str, value: float, **tags: str) -> None: ...


@dataclass(frozen=True)
class ServedModel:
    """A verified model, loaded: `inputs` and `outputs` as the graph declares them."""

    source: ModelFolder
    receipt: str
    session: onnxruntime.InferenceSession
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @property
    def line(self) -> Line | None:
        """Where requests wait for a model that takes long; None where none does."""
        return None

    @classmethod
    def load(cls, source: ModelFolder) -> ServedModel:
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
            session = onnxruntime.InferenceSession(graph, options, providers=_PROVIDERS)
        except _ORT_ERRORS as error:
            raise ModelError(f"{source.name}: ONNX Runtime cannot load the model: {error}", model=source.name) from None
        inputs = [TensorSpec.of(node.name, node.type, node.shape) for node in session.get_inputs()]
        outputs = [TensorSpec.of(node.name, node.type, node.shape) for node in session.get_outputs()]
        return cls(source, receipt, session, {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs})

    def close(self) -> None:
        """Let go of what it holds beside itself, once it has answered: nothing."""

    def metadata(self) -> dict[str, JsonValue]:
        """Name, version, platform and tensors; model card facts under `parameters`."""
        return {
            "name": self.source.name,
            "versions": [self.source.version],
            "platform": PLATFORM,
            "inputs": [spec.plain() for spec in self.inputs.values()],
            "outputs": [spec.plain() for spec in self.outputs.values()],
            "parameters": {"receipt": self.receipt, "properties": dict(self.session.get_modelmeta().custom_metadata_map)},
        }

    def check_amount(self, body: bytes | bytearray, max_rows: int) -> None:
        """Refuse, before it is parsed, a body with more values, lists or objects than any request to this model can have.

        Parsed JSON takes many times its bytes: `[],[],…` 34 times, `0,0,…` 20 times. Counting brackets and commas costs
        nothing. Models that take text are let be: what stands in a string is no list.

        Raises:
            InvalidRequest: there are too many.
        """
        inputs = self.inputs.values()
        if any(spec.datatype == "BYTES" for spec in inputs):
            return
        lists = sum(spec.most_lists(max_rows, len(body)) for spec in inputs)
        values = sum(spec.most_values(max_rows, len(body)) for spec in inputs)
        for what, given, most in (
            ("lists and objects", body.count(b"[") + body.count(b"{"), lists + _ENVELOPE),
            ("values", body.count(b",") + 1, values + _ENVELOPE),
        ):
            if given > most:
                raise InvalidRequest(
                    f"the body holds {given} {what}; {max_rows} rows of this model's have at most {most}", given=given, expected=most
                )

    def infer(self, request: InferenceRequest, max_rows: int) -> dict[str, JsonValue]:
        """The response to a request, as JSON values.

        Raises:
            InvalidRequest: a tensor of the wrong name, type, shape or value, or more than `max_rows` rows.
            Failed: ONNX Runtime could not run the graph.
        """
        feed = self._feed(request, max_rows)
        wanted = self._wanted(request)
        try:
            arrays = self.session.run([spec.name for spec in wanted], feed)
        except _ORT_ERRORS as error:
            raise Failed(f"{self.source.name}: ONNX Runtime could not run the model: {error}", model=self.source.name) from None
        response: dict[str, JsonValue] = {"model_name": self.source.name, "model_version": self.source.version}
        if request.id is not None:
            response["id"] = request.id
        response["parameters"] = {"model_version": self.source.version, "receipt": self.receipt}
        response["outputs"] = [write_tensor(spec, np.asarray(array)) for spec, array in zip(wanted, arrays, strict=True)]
        return response

    def _feed(self, request: InferenceRequest, max_rows: int) -> dict[str, np.ndarray]:
        given = [tensor.name for tensor in request.inputs]
        if sorted(given) != sorted(self.inputs):
            expected = [spec.plain() for spec in self.inputs.values()]
            listed = ", ".join(f"{spec['name']} ({spec['datatype']} {spec['shape']})" for spec in expected)
            raise InvalidRequest(f"inputs are {given}; expected one of each of: {listed}", given=given, expected=expected)
        feed: dict[str, np.ndarray] = {}
        chosen: dict[str, int] = {}
        for tensor in request.inputs:
            spec = self.inputs[tensor.name]
            if tensor.datatype != spec.datatype:
                raise InvalidRequest(
                    f"input '{spec.name}' has the datatype {tensor.datatype!r}; expected {spec.datatype}",
                    tensor=spec.name,
                    given=tensor.datatype,
                    expected=spec.datatype,
                )
            spec.check(tensor.shape, chosen)
            if tensor.shape[0] > max_rows:
                raise InvalidRequest(
                    f"input '{spec.name}' has {tensor.shape[0]} rows; at most {max_rows} in one request",
                    tensor=spec.name,
                    given=tensor.shape[0],
                    expected=max_rows,
                )
            feed[spec.name] = read_tensor(spec, tensor.shape, tensor.data)
        return feed

    def _wanted(self, request: InferenceRequest) -> list[TensorSpec]:
        if not request.outputs:
            return list(self.outputs.values())
        unknown = [output.name for output in request.outputs if output.name not in self.outputs]
        if unknown:
            raise InvalidRequest(
                f"unknown output '{unknown[0]}'; {nearest(unknown[0], self.outputs)}", given=unknown[0], expected=list(self.outputs)
            )
        return [self.outputs[name] for name in dict.fromkeys(output.name for output in request.outputs)]


class InferenceServer:
    """The models a replica serves. A model is replaced whole: a request that has begun ends on the version it began with."""

    def __init__(
        self,
        *,
        max_body_bytes: int = 4 * 2**20,
        max_batch_rows: int = 4096,
        read_timeout_s: float = 30.0,
        record: Record = ignore,
        make_executor: MakeExecutor | None = None,
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.read_timeout_s = read_timeout_s
        self.max_batch_rows = max_batch_rows
        self.failures: dict[str, QEdgeError] = {}
        self._models: dict[str, ServedModel] = {}
        self._record = record
        self._make_executor = make_executor

    def serve(self, sources: Iterable[ModelFolder]) -> None:
        """Serve exactly these. One that does not hold is left out and noted in `failures`; its predecessor stays served."""
        models: dict[str, ServedModel] = {}
        failures: dict[str, QEdgeError] = {}
        for source in sources:
            served = self._models.get(source.name)
            if served is not None and served.source == source:
                models[source.name] = served
                continue
            began = time.perf_counter()
            try:
                models[source.name] = self._load(source)
            except QEdgeError as error:
                failures[source.name] = error
                if served is not None:
                    models[source.name] = served
                self._record("qedge_models_refused_total", 1, model=source.name, code=error.code)
            else:
                self._record("qedge_model_load_seconds", time.perf_counter() - began, model=source.name)
        replaced = [model for name, model in self._models.items() if models.get(name) is not model]
        self._models, self.failures = models, failures
        for model in replaced:
            model.close()
        self._record("qedge_models_served", len(models))

    def _load(self, source: ModelFolder) -> ServedModel:
        if source.quantum is None:
            return ServedModel.load(source)
        from serve_apps.quantum import QuantumServedModel  # PennyLane, which no other model needs

        if self._make_executor is None:
            raise ModelError(f"{source.name}: this server runs no circuits", model=source.name)
        return QuantumServedModel.on_backend(source, self._make_executor)

    @property
    def served(self) -> dict[str, ModelFolder]:
        """What is loaded, by name."""
        return {name: model.source for name, model in self._models.items()}

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model of that name.

        Raises:
            UnknownModel: none is served, or another version.
        """
        model = self._models.get(name)
        if model is None:
            hint = nearest(name, self._models) if self._models else "no model is served"
            raise UnknownModel(f"no model '{name}' is served; {hint}", model=name)
        if version is not None and version != model.source.version:
            raise UnknownModel(
                f"version {version} of '{name}' is not served; version {model.source.version} is", model=name, version=version
            )
        return model

    def infer(self, name: str, version: str | None, body: bytes | bytearray) -> dict[str, JsonValue]:
        """The response to the JSON `body` of an infer call.

        Raises:
            UnknownModel, InvalidRequest, Failed: as `find`, `InferenceRequest.parse` and the methods of `ServedModel`.
        """
        return self.answer(self.find(name, version), body)

    def answer(self, model: ServedModel, body: bytes | bytearray) -> dict[str, JsonValue]:
        """As `infer`, by a model that was found."""
        began = time.perf_counter()
        model.check_amount(body, self.max_batch_rows)
        request = InferenceRequest.parse(body)
        response = model.infer(request, self.max_batch_rows)
        tags = {"model": model.source.name, "version": model.source.version}
        self._record("qedge_requests_total", 1, **tags)
        self._record("qedge_request_rows_total", request.inputs[0].shape[0], **tags)
        self._record("qedge_request_seconds", time.perf_counter() - began, **tags)
        return response

    def refused(self, error: QEdgeError) -> None:
        """Count a request that was answered with this error."""
        self._record("qedge_requests_refused_total", 1, code=error.code)


def verified_graph(source: ModelFolder) -> tuple[bytes, str]:
    """The bytes of `model.onnx`, proven to be what the folder's signed receipt names, and the receipt's id.

    Raises:
        UnknownModel: no such folder, or no model or receipt in it.
        ArtifactTampered: the signature or the digest does not hold.
    """
    folder = Path(source.folder)
    try:
        graph = (folder / GRAPH).read_bytes()
        signed = (folder / RECEIPT).read_bytes()
    except OSError as error:
        raise UnknownModel(f"{source.name}: {error.filename} cannot be read: {error.strerror}", model=source.name) from None
    receipt = Receipt.parse(signed, where=str(folder / RECEIPT))
    verify(receipt, public_key(source.key) if source.key else None)
    if receipt.model != source.name:
        raise ReceiptTampered(f"{folder / RECEIPT} is of the model '{receipt.model}', not of '{source.name}'", model=source.name)
    if receipt.artifacts.get(GRAPH) != hashlib.sha256(graph).hexdigest():
        raise ArtifactTampered(f"{folder / GRAPH} does not match its digest on receipt {receipt.id[:16]}", model=source.name)
    return graph, receipt.id
