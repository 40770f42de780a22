"""A model that answers Open Inference requests: tensors by name in, tensors by name out.

What a request may hold, and how an answer is put, is the same for all of them; what answers is not. Plain classes: no Ray, no HTTP.

Source: Open Inference Protocol, REST, version 2 (https://github.com/kserve/open-inference-protocol).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from pydantic import JsonValue

from qedge.errors import InvalidRequest, nearest
from serve_apps.model_folder import ModelFolder
from serve_apps.requests import InferenceRequest
from serve_apps.tensors import Tensor, TensorSpec, read_tensor, write_tensor

if TYPE_CHECKING:
    from serve_apps.line import Line

_ENVELOPE = 1024  # parts that a request may have beside its data: names, outputs, parameters


class Answered(NamedTuple):
    """tensors: of the outputs that were asked for, by name; parameters: of this answer, beside those of all."""

    tensors: Mapping[str, Tensor]
    parameters: Mapping[str, JsonValue]


@dataclass(frozen=True)
class ServedModel(ABC):
    """A verified model, loaded. receipt: the id of the one that covers it; inputs, outputs: as it declares them, by name."""

    source: ModelFolder
    receipt: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    platform: ClassVar[str]

    @property
    def line(self) -> Line | None:
        """Where requests wait for a model that takes long; None where none does."""
        return None

    @property
    def at_once(self) -> bool:
        """Whether a small request is answered in less time than it takes to hand it to another thread."""
        return True

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Let go of what it holds beside itself, once it has answered."""

    def metadata(self) -> dict[str, JsonValue]:
        """Name, version, platform and tensors; model card facts under `parameters`."""
        return {
            "name": self.source.name,
            "versions": [self.source.version],
            "platform": self.platform,
            "inputs": [spec.plain() for spec in self.inputs.values()],
            "outputs": [spec.plain() for spec in self.outputs.values()],
            "parameters": {"receipt": self.receipt, **self.facts()},
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
            Failed: the model could not be run.
        """
        feed = self._feed(request, max_rows)
        wanted = self._wanted(request)
        tensors, parameters = self._answer(feed, [spec.name for spec in wanted], request)
        response: dict[str, JsonValue] = {"model_name": self.source.name, "model_version": self.source.version}
        if request.id is not None:
            response["id"] = request.id
        response["parameters"] = {"model_version": self.source.version, "receipt": self.receipt, **parameters}
        response["outputs"] = [write_tensor(spec, np.asarray(tensors[spec.name])) for spec in wanted]
        return response

    @abstractmethod
    def _answer(self, feed: dict[str, Tensor], wanted: list[str], request: InferenceRequest) -> Answered:
        """What the model says to inputs that were found fit."""

    @abstractmethod
    def facts(self) -> dict[str, JsonValue]:
        """What the metadata say beside the receipt."""

    def _feed(self, request: InferenceRequest, max_rows: int) -> dict[str, Tensor]:
        given = [tensor.name for tensor in request.inputs]
        if sorted(given) != sorted(self.inputs):
            expected = [spec.plain() for spec in self.inputs.values()]
            listed = ", ".join(f"{spec['name']} ({spec['datatype']} {spec['shape']})" for spec in expected)
            raise InvalidRequest(f"inputs are {given}; expected one of each of: {listed}", given=given, expected=expected)
        feed: dict[str, Tensor] = {}
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
