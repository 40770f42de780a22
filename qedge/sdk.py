"""A typed client of a qedge endpoint: numpy in, labels and probabilities out, the server's errors as the classes they were.

Speaks the Open Inference Protocol, version 2, over REST with JSON tensors, so any other client of it works as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NoReturn, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from qedge.errors import AddressUnreachable, Failed, InvalidConfig, InvalidRequest, QEdgeError, UnknownModel

Labels = NDArray[np.int64] | NDArray[np.str_]

_STEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHUNK_BYTES = 2**20
_BYTES_PER_VALUE = 20
_FEW_ROWS = 256  # that any model takes at once: for more it is asked first


_NAMES: TypeAdapter[list[str]] = TypeAdapter(list[str])


class TensorMetadata(BaseModel):
    """Name, datatype and shape of an input or output; -1 is a size that the caller chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(BaseModel):
    """What the server says of a model; `receipt` is the id of its privacy receipt."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: dict[str, JsonValue] = {}

    @property
    def receipt(self) -> str | None:
        """Id of the privacy receipt, where the server gives one."""
        value = self.parameters.get("receipt")
        return value if isinstance(value, str) else None

    @property
    def max_rows(self) -> int | None:
        """Most rows of one request, where the model takes fewer than the server does."""
        value = self.parameters.get("max_rows")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns of a row, in the model's order; empty where the model does not say."""
        properties = self.parameters.get("properties")
        text = properties.get("features") if isinstance(properties, dict) else None
        return tuple(_NAMES.validate_json(text)) if isinstance(text, str) else ()


@dataclass(frozen=True)
class Prediction:
    """`labels`: [rows] int64 or str; `probabilities`: [rows, classes] float32; who answered.

    backend: where a quantum layer was measured, None for a graph; errors: then one standard deviation of each probability.
    """

    labels: Labels
    probabilities: NDArray[np.float32]
    version: str
    receipt: str
    backend: str | None = None
    errors: NDArray[np.float32] | None = None

    @property
    def probability(self) -> NDArray[np.float32]:
        """[rows] float32: of each row's label, which is the one that the model finds most probable."""
        found: NDArray[np.float32] = self.probabilities.max(axis=1)
        return found


_Model = TypeVar("_Model", bound=BaseModel)


class _Server(BaseModel):
    name: str
    models: tuple[str, ...]


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[object]


class _Answer(BaseModel):
    model_version: str
    parameters: dict[str, JsonValue] = {}
    outputs: tuple[_Tensor, ...]


_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class Client:
    """A connection to one endpoint. Use it as a context manager, or `close` it. Safe to share between threads."""

    def __init__(self, url: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None) -> None:
        """`url`: of the endpoint, e.g. http://127.0.0.1:8000; `transport`: another way there, e.g. an application in process.

        Raises:
            InvalidConfig: something that is no http or https URL.
        """
        self.url = _endpoint(url)
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, transport=transport, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def live(self) -> bool:
        """Whether the server answers at all."""
        try:
            return self._get("/v2/health/live").is_success
        except AddressUnreachable:
            return False

    def models(self) -> tuple[str, ...]:
        """Names of the models that are served.

        Raises:
            AddressUnreachable: nothing answers.
            Failed: the answer is not one of a qedge server.
        """
        response = self._get("/v2")
        if not response.is_success:
            _raise(response)
        return _parsed(_Server, response).models

    def ready(self, name: str, version: str | None = None) -> bool:
        """Whether a model (of that version) can be asked now. False as well when nothing answers."""
        try:
            return self._get(_path(name, version) + "/ready").is_success
        except (AddressUnreachable, UnknownModel):
            return False

    def model(self, name: str, version: str | None = None) -> ModelMetadata:
        """What the server says of a model.

        Raises:
            UnknownModel: it is not served.
            AddressUnreachable: nothing answers.
            Failed: the answer is not one of an inference server.
        """
        response = self._get(_path(name, version))
        if not response.is_success:
            _raise(response)
        return _parsed(ModelMetadata, response)

    def infer(self, name: str, rows: NDArray[np.floating], version: str | None = None) -> Prediction:
        """Labels and probabilities for `rows` [n, features], n ≥ 1, sent in pieces of about a megabyte.

        Every piece is answered by one version, on one backend: when the model was replaced between two, all are asked again.

        Raises:
            InvalidRequest: rows of another shape or with values that are not finite.
            UnknownModel: it is not served.
            AddressUnreachable: nothing answers, or too late.
            Failed: the server could not answer.
        """
        with np.errstate(over="ignore"):
            rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or not len(rows):
            raise InvalidRequest(f"rows have the shape {list(rows.shape)}; expected [n, features] with n ≥ 1", given=list(rows.shape))
        if not np.isfinite(rows).all():
            raise InvalidRequest("rows hold NaN or an infinity; expected finite values")
        answers = self._pieces(name, version, rows)
        if len({(answer.version, answer.backend) for answer in answers}) > 1:
            answers = self._pieces(name, answers[-1].version, rows)
        return _joined(answers)

    def _pieces(self, name: str, version: str | None, rows: NDArray[np.float32]) -> list[Prediction]:
        most = self.model(name, version).max_rows if len(rows) > _FEW_ROWS else None
        return [self._infer(name, version, chunk) for chunk in _chunks(rows, most)]

    def _infer(self, name: str, version: str | None, rows: NDArray[np.float32]) -> Prediction:
        tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        response = self._send("POST", _path(name, version) + "/infer", to_json({"inputs": [tensor]}))
        if not response.is_success:
            _raise(response)
        answer = _parsed(_Answer, response)
        outputs = {output.name: output for output in answer.outputs}
        if not {"label", "probabilities"} <= set(outputs):
            raise Failed(f"'{name}' answers with {sorted(outputs)}; expected label and probabilities")
        receipt = str(answer.parameters.get("receipt", ""))
        backend, errors = answer.parameters.get("backend"), outputs.get("error")
        return Prediction(
            _labels(outputs["label"]),
            _floats(outputs["probabilities"]),
            answer.model_version,
            receipt,
            backend if isinstance(backend, str) else None,
            None if errors is None else _floats(errors),
        )

    def _get(self, path: str) -> httpx.Response:
        return self._send("GET", path)

    def _send(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            return self._http.request(method, path, content=body, headers=headers)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise AddressUnreachable(f"{self.url} does not answer: {reason}", address=self.url) from None


def _endpoint(url: str) -> str:
    try:
        parts = httpx.URL(url)
        accepted = parts.scheme in ("http", "https") and parts.host and (parts.port is None or 0 < parts.port < 65536)
    except (httpx.InvalidURL, ValueError):
        accepted = False
    if not accepted:
        raise InvalidConfig(f"'{url}' is no endpoint; accepted: http://HOST:PORT or https://HOST:PORT, as http://127.0.0.1:8000", given=url)
    return url.rstrip("/")


def _path(name: str, version: str | None) -> str:
    """The path of a model. A name is one step of it: servers read an escaped slash as a slash, which would lead elsewhere."""
    for step in (name, version):
        if step is not None and not _STEP.fullmatch(step):
            raise UnknownModel(f"no model can be called '{step}'; accepted: letters, digits, '.', '_' and '-'", model=name)
    return f"/v2/models/{name}" if version is None else f"/v2/models/{name}/versions/{version}"


def _joined(answers: Sequence[Prediction]) -> Prediction:
    """All pieces as one; the first says who answered."""
    first, errors = answers[0], [answer.errors for answer in answers if answer.errors is not None]
    return replace(
        first,
        labels=np.concatenate([answer.labels for answer in answers]),
        probabilities=np.concatenate([answer.probabilities for answer in answers]),
        errors=np.concatenate(errors) if len(errors) == len(answers) else None,
    )


def _chunks(rows: NDArray[np.float32], most: int | None) -> Iterator[NDArray[np.float32]]:
    size = max(1, min(_CHUNK_BYTES // (_BYTES_PER_VALUE * max(rows.shape[1], 1)), most or 1024))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _labels(tensor: _Tensor) -> Labels:
    with _fitting(tensor):
        if tensor.datatype == "BYTES":
            return np.array(tensor.data, dtype=np.str_).reshape(tensor.shape)
        return np.array(tensor.data, dtype=np.int64).reshape(tensor.shape)


def _floats(tensor: _Tensor) -> NDArray[np.float32]:
    with _fitting(tensor):
        return np.array(tensor.data, dtype=np.float32).reshape(tensor.shape)


@contextmanager
def _fitting(tensor: _Tensor) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError):
        raise Failed(f"the server's output '{tensor.name}' does not fit its shape {list(tensor.shape)}") from None


def _parsed(kind: type[_Model], response: httpx.Response) -> _Model:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise Failed(f"{response.url} answered {response.status_code} with something that is no {kind.__name__}") from None


def _raise(response: httpx.Response) -> NoReturn:
    """Raise the problem in a response as the error class its code names; an unknown code by its status."""
    try:
        problem = _OBJECT.validate_python(from_json(response.content))
    except (ValueError, ValidationError):
        problem = {}
    without = "; is a model served there? (`qedge deploy`)" if response.status_code == 404 else ""
    detail = str(problem.get("detail") or problem.get("error") or f"{response.url} answered {response.status_code}{without}")
    by_status = UnknownModel if response.status_code == 404 else InvalidRequest if response.status_code < 500 else Failed
    kind = _classes().get(str(problem.get("code")), by_status)
    facts = {key: value for key, value in problem.items() if key not in _PROBLEM_KEYS}
    raise kind(detail, **facts)


_PROBLEM_KEYS = {"type", "title", "status", "detail", "instance", "code", "error", "message"}


def _classes() -> dict[str, type[QEdgeError]]:
    found: dict[str, type[QEdgeError]] = {}
    waiting: list[type[QEdgeError]] = [QEdgeError]
    while waiting:
        kind = waiting.pop()
        found[kind.code] = kind
        waiting.extend(kind.__subclasses__())
    return found
