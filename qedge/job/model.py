"""Which network a job trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from qedge.errors import InvalidJob
from qedge.job.part import Part, function_path, known


class Model(Part):
    """The network: linear | mlp | cnn | hybrid, or `package.module:function` called as function(features, classes, **options)."""

    kind: str
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), description="mlp: units of each hidden layer")
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(8, 16), description="cnn: channels of each convolution")
    kernel_size: Literal[1, 3, 5, 7] = Field(default=3, description="cnn: rows and columns of each convolution")
    image: tuple[int, int, int] | None = Field(default=None, description="cnn: channels, height, width of a row")
    qubits: int = Field(default=6, ge=1, le=12, description="hybrid: wires of the quantum layer")
    layers: int = Field(default=3, ge=1, le=100, description="hybrid: layers of rotations and CNOT ring")
    embedding: Literal["ry", "rx"] = Field(default="ry", description="hybrid: the rotation that takes a number to its wire")
    reupload: bool = Field(default=False, description="hybrid: embed the numbers before every layer, not only the first")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="arguments for your own function")

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        return function_path("model.kind", value) if ":" in value else known("model.kind", value)

    @model_validator(mode="after")
    def _fits(self) -> Model:
        takes = _TAKES.get(self.kind, ("options",))
        for key in ("hidden", "channels", "kernel_size", "image", *_HYBRID, "options"):
            if key not in takes and getattr(self, key) != Model.model_fields[key].get_default(call_default_factory=True):
                raise InvalidJob(f"model: '{self.kind}' takes no '{key}'; accepted: {', '.join(takes) or 'kind alone'}")
        if self.kind == "mlp" and not self.hidden:
            raise InvalidJob("model: 'mlp' takes 'hidden', the units of each hidden layer, such as [64]; without any it is 'linear'")
        return self


_HYBRID = ("qubits", "layers", "embedding", "reupload")
_TAKES: dict[str, tuple[str, ...]] = {"linear": (), "mlp": ("hidden",), "cnn": ("channels", "kernel_size", "image"), "hybrid": _HYBRID}
