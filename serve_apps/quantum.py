"""A hybrid model whose quantum layer runs on a named backend, by an executor of circuits, instead of inside its graph.

The graph still says what goes in and out, and its receipt is what is checked; weights, scaling and the layer's shape come from the other
files of the folder, each against its digest. A request's shots have a seed of their own, which the answer names: the same request with
`parameters: {"stream": …}` is answered the same again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from safetensors.torch import load as load_tensors
from torch import nn

from qedge.audit.receipt import Receipt, verify
from qedge.errors import ArtifactTampered, Failed, InvalidRequest, ModelError, QEdgeError, QuantumError, Refused, Tampered, UnknownModel
from qedge.job.model import Model
from qedge.models import build
from qedge.quantum.backend import HARDWARE, Backend, device, seed_argument
from qedge.quantum.execution import Executor
from qedge.quantum.qnn.layer import hybrid_parts
from qedge.quantum.qnn.on_backend import Measured, measure
from qedge.security.keys import public_key
from serve_apps.line import Line
from serve_apps.model_folder import RECEIPT, ModelFolder
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
    """A `ServedModel` that is answered by circuits. center, spread: of features, [F]; executor: of one request at a time."""

    graph: OnnxModel
    module: nn.Module
    center: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
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
        module, center, spread = _network(source, graph.receipt)
        parts = hybrid_parts(module)
        assert parts is not None
        device(source.quantum.backend, parts.layer.qubits, source.quantum.backend.seed)
        executor = make(source.quantum.workers)
        outputs = graph.outputs | {ERROR: TensorSpec(ERROR, "FP32", graph.outputs["probabilities"].shape)}
        return cls(source, graph.receipt, graph.inputs, outputs, graph, module, center, spread, executor, Line(source.name))

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
        stream, rows = self._stream(request), feed["features"]
        try:
            found = measure(self.module, (rows - self.center) / self.spread, self._on, self.executor, stream=stream or 0)
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
        measure(model.module, np.zeros((1, len(model.center)), dtype=np.float32), on)
    except QuantumError as error:
        raise ModelError(f"{source.name}: '{on.name}' cannot run its quantum layer: {error.message}", model=source.name) from error


def _network(source: ModelFolder, issued: str) -> tuple[nn.Module, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The network with its weights, and how features are scaled before it: center and spread, [F].

    Raises:
        ModelError: it has no quantum layer, or its files do not fit each other. ArtifactTampered, UnknownModel: as `_read`.
    """
    card = json.loads(_read(source, "card.json", issued))
    if not isinstance(card, dict) or card.get("kind") != "hybrid":
        raise ModelError(f"{source.name} has no quantum layer to run on a backend; accepted: a model of 'kind: hybrid'", model=source.name)
    try:
        network = Model(kind="hybrid", **card["network"])
        center, spread = (np.array([float(one) for one in card[name]], dtype=np.float32) for name in ("center", "spread"))
        module = build(network, len(card["features"]), len(card["labels"]), 0).eval()
        module.load_state_dict(load_tensors(_read(source, "weights.safetensors", issued)))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{source.name} was exported without what its quantum layer takes, or does not fit it: {error}") from error
    except QEdgeError as error:
        raise error if isinstance(error, Tampered | UnknownModel) else ModelError(f"{source.name}: {error.message}") from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module, center, spread


def _read(source: ModelFolder, name: str, issued: str) -> bytes:
    """The bytes of a file, proven to be what the signed receipt with the id `issued` names, by which the graph was loaded.

    Raises:
        UnknownModel: it is not there. ReceiptTampered, ArtifactTampered: the signature or the digest does not hold.
    """
    path = Path(source.folder) / name
    try:
        content, receipt = path.read_bytes(), Receipt.read(path.with_name(RECEIPT))
    except OSError as error:
        raise UnknownModel(f"{source.name}: {path} cannot be read: {error.strerror}", model=source.name) from None
    verify(receipt, public_key(source.key) if source.key else None)  # anew: the file may have been put in place since the graph was read
    if receipt.id != issued or receipt.artifacts.get(name) != hashlib.sha256(content).hexdigest():
        raise ArtifactTampered(f"{path} does not match its digest on receipt {receipt.id[:16]}", model=source.name)
    return content
