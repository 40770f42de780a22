"""The models that a process serves, and what they answer. Plain classes: no Ray, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from qedge.errors import ModelError, QEdgeError, UnknownModel, nearest
from qedge.monitoring.metrics import ignore
from serve_apps.model_folder import ModelFolder
from serve_apps.onnx_model import OnnxModel
from serve_apps.requests import InferenceRequest
from serve_apps.served_model import ServedModel

if TYPE_CHECKING:
    from qedge.edge.engine import EdgeEngine
    from serve_apps.quantum import MakeExecutor


class Record(Protocol):
    """Takes a value of the metrics table (`qedge.monitoring.metrics`)."""

    def __call__(self, name: str, value: float, **tags: str) -> None: ...


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
        make_engine: Callable[[], EdgeEngine] | None = None,
    ) -> None:
        """make_executor: of circuits, for models on a quantum backend; make_engine: asked once, for all models that are ladders."""
        self.max_body_bytes = max_body_bytes
        self.read_timeout_s = read_timeout_s
        self.max_batch_rows = max_batch_rows
        self.failures: dict[str, QEdgeError] = {}
        self._models: dict[str, ServedModel] = {}
        self._record = record
        self._make_executor, self._make_engine = make_executor, make_engine
        self._engine: EdgeEngine | None = None

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
        if source.edge is not None:
            return self._on_engine(source)
        if source.quantum is None:
            return OnnxModel.load(source)
        from serve_apps.quantum import QuantumModel  # PennyLane, which no other model needs

        if self._make_executor is None:
            raise ModelError(f"{source.name}: this server runs no circuits", model=source.name)
        return QuantumModel.on_backend(source, self._make_executor)

    def _on_engine(self, source: ModelFolder) -> ServedModel:
        from serve_apps.edge_model import EdgeModel  # what no other model needs

        if self._engine is None:
            if self._make_engine is None:
                raise ModelError(f"{source.name}: this server has no memory set aside for ladders", model=source.name)
            self._engine = self._make_engine()
        return EdgeModel.load(source, self._engine)

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
