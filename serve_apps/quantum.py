"""A hybrid model whose quantum layer runs on a named backend, by an executor of circuits, instead of inside its graph.

The graph still says what goes in and out, and its receipt is what is checked; weights, scaling and the layer's shape come from the other
files of the folder, each against its digest. A request's shots have a seed of their own, which the answer names: the same request with
`parameters: {"stream": …}` is answered the same again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import JsonValue

from qedge.errors import ArtifactTampered, Failed, InvalidRequest, ModelError, QuantumError, Refused
from qedge.network import Network, rebuilt
from qedge.quantum.backend import HARDWARE, Backend, device, seed_argument
from qedge.quantum.execution import Executor
from qedge.quantum.qnn.layer import hybrid_parts
from qedge.quantum.qnn.on_backend import Measured, measure
from qedge.security.keys import public_key
from serve_apps.line import Line
from serve_apps.model_folder import ModelFolder
from serve_apps.onnx_model import OnnxModel
from serve_apps.requests import InferenceRequest
from serve_apps.served_model import Answered, ServedModel
from serve_apps.tensors import Tensor, TensorSpec

MOST_ROWS = 256  # a circuit each; at a second a circuit on one worker that is four minutes
STREAMS = 2**31
ERROR = "error"
MakeExecutor = Callable[[int], Executor]


@dataclass(frozen=True)
class QuantumModel(ServedModel):
    """A `ServedModel` that is answered by circuits. executor: of one request at a time."""

    graph: OnnxModel
    network: Network
    executor: Executor
    own_line: Line

    platform: ClassVar[str] = "qedge_quantum"

    @classmethod
    def on_backend(cls, source: ModelFolder, make: MakeExecutor) -> QuantumModel:
        """Verify the folder, build the network and try the backend's device.

        Raises:
            As `OnnxModel.load`, and ModelError: it has no quantum layer, or was exported without what that takes.
            UnknownBackend, BackendUnavailable, TooManyQubits: as `device` does.
        """
        assert source.quantum is not None
        graph = OnnxModel.load(source)
        network = _network(source, graph.receipt)
        parts = hybrid_parts(network.module)
        assert parts is not None
        device(source.quantum.backend, parts.layer.qubits, source.quantum.backend.seed)
        executor = make(source.quantum.workers)
        outputs = graph.outputs | {ERROR: TensorSpec(ERROR, "FP32", graph.outputs["probabilities"].shape)}
        return cls(source, graph.receipt, graph.inputs, outputs, graph, network, executor, Line(source.name))

    @property
    def line(self) -> Line:
        """See `ServedModel.line`."""
        return self.own_line

    def infer(self, request: InferenceRequest, max_rows: int) -> dict[str, JsonValue]:
        """The response: labels and probabilities as the backend measured them, and one standard deviation of each probability.

        Raises:
            InvalidRequest: as `ServedModel.infer`, over 256 rows, or a stream that is none or that the backend cannot be told.
            Failed: the backend could not run the circuits.
        """
        return super().infer(request, min(max_rows, MOST_ROWS))

    def _answer(self, feed: dict[str, Tensor], wanted: list[str], request: InferenceRequest) -> Answered:
        stream, rows = self._stream(request), self.network.scaled(np.asarray(feed["features"]))
        try:
            found = measure(self.network.module, rows, self._on, self.executor, stream=stream or 0)
        except Refused as error:  # what was asked is sane: it is the backend that fails
            raise Failed(
                f"{self.source.name}: backend '{self._on.name}' could not answer: {error.message}", model=self.source.name
            ) from error
        return Answered(self._tensors(found), self._backend | {"stream": stream, "circuits": found.resources.circuits})

    def facts(self) -> dict[str, JsonValue]:
        return self.graph.facts() | self._backend | {"max_rows": MOST_ROWS}

    def close(self) -> None:
        """End its workers, once those in its line are answered."""
        self.own_line.close(getattr(self.executor, "close", lambda: None))

    def _stream(self, request: InferenceRequest) -> int | None:
        """What the seeds of a request's shots are drawn from: given or new; None where nothing is drawn by a seed."""
        seeded = self._on.shots is not None and seed_argument(self._on.name) is not None
        given = request.parameters.get("stream")
        if given is None:
            return secrets.randbelow(STREAMS) if seeded else None
        if not seeded:
            raise InvalidRequest(f"parameters.stream: '{self._on.name}' draws nothing by a seed here; leave it out", given=repr(given))
        if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < STREAMS:
            raise InvalidRequest(f"parameters.stream is {given!r}; accepted: a whole number from 0, below 2^31", given=repr(given))
        return given

    @property
    def _on(self) -> Backend:
        assert self.source.quantum is not None
        return self.source.quantum.backend

    @property
    def _backend(self) -> dict[str, JsonValue]:
        noise = None if self._on.noise is None else self._on.noise.model_dump(mode="json")
        return {"backend": self._on.name, "shots": self._on.shots, "noise": noise, "seed": self._on.seed}

    def _tensors(self, found: Measured) -> dict[str, Tensor]:
        labels = json.loads(self.graph.session.get_modelmeta().custom_metadata_map["labels"])
        places = found.probabilities.argmax(axis=1)
        kind = object if isinstance(labels[0], str) else np.int64
        return {
            "probabilities": found.probabilities.astype(np.float32),
            ERROR: found.spread.astype(np.float32),
            "label": np.array([labels[place] for place in places], dtype=kind),
        }


def refuse_backend(source: ModelFolder) -> None:
    """Refuse a model that could not be answered by circuits, before anything is started for it.

    Raises:
        As `QuantumModel.on_backend`; ModelError as well where one row, tried on a simulator, fails.
    """
    from qedge.quantum.execution import LocalExecutor

    assert source.quantum is not None
    on, model = source.quantum.backend, QuantumModel.on_backend(source, lambda _: LocalExecutor())
    model.close()
    if on.name in HARDWARE:
        return  # a trial costs money there
    try:
        measure(model.network.module, np.zeros((1, len(model.network.schema.features)), dtype=np.float32), on)
    except QuantumError as error:
        raise ModelError(f"{source.name}: '{on.name}' cannot run its quantum layer: {error.message}", model=source.name) from error


def _network(source: ModelFolder, issued: str) -> Network:
    """The network of the version whose graph was loaded by the receipt with the id `issued`.

    Raises:
        ModelError: it has no quantum layer, or its files do not fit each other. ArtifactTampered, UnknownModel: as `rebuilt`.
    """
    found = rebuilt(Path(source.folder), source.name, public_key(source.key) if source.key else None)
    if found.receipt.id != issued:
        raise ArtifactTampered(f"{source.folder} was exchanged while it was read", model=source.name)
    if found.model.kind != "hybrid":
        raise ModelError(f"{source.name} has no quantum layer to run on a backend; accepted: a model of 'kind: hybrid'", model=source.name)
    for parameter in found.module.parameters():
        parameter.requires_grad_(False)
    return found
