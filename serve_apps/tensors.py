"""Tensors of the Open Inference Protocol: JSON on the wire, numpy inside, and every way they can disagree.

Data come row-major, flat or nested as the shape says. Nothing is converted that could change a value: a boolean is no
number, text is no number, and an integer that the datatype cannot hold, NaN and the infinities are refused.

Source: Open Inference Protocol, version 2, section "Tensor Data" and "Tensor Data Types".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from qedge.errors import InvalidRequest, ModelError

Tensor = npt.NDArray[np.generic]
_ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_NUMPY = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "object"}
_ACCEPTED: dict[str, set[type]] = {"b": {bool}, "f": {int, float}, "O": {str}}
_JSON_NAME: dict[type, str] = {
    bool: "booleans",
    int: "integers",
    float: "decimal numbers",
    str: "strings",
    list: "lists",
    dict: "objects",
    type(None): "null",
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the model declares it: a dimension is a size, or the name of one the caller chooses."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, name: str, onnx_type: str, shape: Sequence[int | str | None]) -> TensorSpec:
        """From what ONNX Runtime says about an input or output.

        Raises:
            ModelError: a type the protocol cannot carry (sequence, map, bfloat16).
        """
        if onnx_type not in _ONNX:
            raise ModelError(f"'{name}' is a {onnx_type}, which the Open Inference Protocol cannot carry; accepted: plain tensors")
        return cls(name, _ONNX[onnx_type], tuple(f"?{at}" if size is None else size for at, size in enumerate(shape)))

    def plain(self) -> dict[str, JsonValue]:
        """As model metadata shows it: -1 for a size that the caller chooses."""
        return {"name": self.name, "datatype": self.datatype, "shape": [size if isinstance(size, int) else -1 for size in self.shape]}

    def check(self, shape: Sequence[int], chosen: dict[str, int]) -> None:
        """Refuse a shape that the model does not take; note the sizes chosen, which must agree between inputs.

        Raises:
            InvalidRequest: another rank, another size, no rows, or inputs that disagree.
        """
        fits = len(shape) == len(self.shape) and all(
            given == (size if isinstance(size, int) else chosen.get(size, given)) and given > 0
            for given, size in zip(shape, self.shape, strict=True)
        )
        if not fits:
            raise InvalidRequest(
                f"input '{self.name}' has the shape {list(shape)}; expected {self.plain()['shape']}, where -1 is any size from 1"
                + (f" and sizes agree between inputs ({chosen})" if chosen else ""),
                tensor=self.name,
                given=list(shape),
                expected=self.plain()["shape"],
            )
        chosen.update({size: given for given, size in zip(shape, self.shape, strict=True) if isinstance(size, str)})

    def most_lists(self, max_rows: int, body_bytes: int) -> int:
        """The most lists that nested data can have: `max_rows` rows, or as many as fit in the body at two bytes a number."""
        inner = [max(size, 1) if isinstance(size, int) else 1 for size in self.shape[1:]]
        if any(isinstance(size, str) for size in self.shape[1:-1]):
            return body_bytes
        rows = min(max_rows, body_bytes // (2 * math.prod(inner)) + 1)
        return 1 + sum(rows * math.prod(inner[:depth]) for depth in range(len(inner)))

    def most_values(self, max_rows: int, body_bytes: int) -> int:
        """The most values in `max_rows` rows; where the caller chooses how long a row is, as many as the body has bytes."""
        inner = [size for size in self.shape[1:] if isinstance(size, int)]
        return max_rows * math.prod(inner) if len(inner) == len(self.shape) - 1 else body_bytes


def read_tensor(spec: TensorSpec, shape: Sequence[int], data: object) -> Tensor:
    """The array that JSON `data` stands for; `shape` has been checked against `spec`.

    Raises:
        InvalidRequest: data that are not a list, are ragged, have another number of elements, or hold a value that the
            datatype does not.
    """
    flat = _flatten(spec.name, shape, data)
    return _array(spec, flat).reshape(shape)


def write_tensor(spec: TensorSpec, array: Tensor) -> dict[str, JsonValue]:
    """An output as JSON values, its data flat and row-major.

    Raises:
        InvalidRequest: the model overflowed on this input: its output is not finite, and JSON has no word for that.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequest(f"output '{spec.name}' is not finite: the input is too large for this model", tensor=spec.name)
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


def _flatten(name: str, shape: Sequence[int], data: object) -> list[object]:
    if not isinstance(data, list):
        raise InvalidRequest(f"input '{name}': data must be a list, flat or nested as {list(shape)}", tensor=name)
    level: list[object] = data
    depth = 1
    while level and isinstance(level[0], list):
        uneven = depth >= len(shape) or not all(isinstance(part, list) and len(part) == shape[depth] for part in level)
        if uneven or len(level) != math.prod(shape[:depth]):
            raise InvalidRequest(f"input '{name}': nested data do not have the shape {list(shape)}", tensor=name, expected=list(shape))
        level = list(chain.from_iterable(level))  # type: ignore[arg-type]
        depth += 1
    count = math.prod(shape)
    if depth not in (1, len(shape)) or len(level) != count:
        raise InvalidRequest(
            f"input '{name}': data have {len(level)} elements; the shape {list(shape)} needs {count}, flat or nested",
            tensor=name,
            given=len(level),
            expected=count,
        )
    return level


def _array(spec: TensorSpec, flat: list[object]) -> Tensor:
    dtype = np.dtype(_NUMPY.get(spec.datatype, spec.datatype.lower()))
    foreign = set(map(type, flat)) - _ACCEPTED.get(dtype.kind, {int})
    if foreign:
        raise _unfit(spec, f"holds {', '.join(sorted(_JSON_NAME[kind] for kind in foreign))}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        raise _unfit(spec, "holds an integer out of range") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _unfit(spec, "holds NaN, an infinity or a number out of range")
    return array


def _unfit(spec: TensorSpec, what: str) -> InvalidRequest:
    return InvalidRequest(f"input '{spec.name}' {what}; expected finite {spec.datatype} values", tensor=spec.name, expected=spec.datatype)
