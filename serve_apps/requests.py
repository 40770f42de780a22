"""The body of an Open Inference `infer` call, as JSON says it.

Source: Open Inference Protocol, REST, version 2 (https://github.com/kserve/open-inference-protocol).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from qedge.errors import InvalidRequest


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
