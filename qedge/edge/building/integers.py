"""INT8 by ONNX Runtime's quantiser: weights per channel; activations by ranges that calibration rows show, or found anew for each row.

Weights are quantised to 7 bits where the processor's 8-bit products would overflow (AVX2 without VNNI; ONNX Runtime's `reduce_range`).
Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from qedge.edge.building.graph import around, constant_weights
from qedge.edge.rung import Rows
from qedge.edge.session import INPUT
from qedge.errors import UnfitGraph

_BATCH = 32
Made = tuple[onnx.ModelProto, str]


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: Rows) -> None:
        self._batches = iter([{INPUT: rows[at : at + _BATCH]} for at in range(0, len(rows), _BATCH)])

    def get_next(self) -> dict[str, Rows] | None:
        return next(self._batches, None)


def int8(model: onnx.ModelProto, rows: Rows, *, saturates: bool, only: str | None = None) -> list[Made]:
    """Both ways to INT8 that the graph allows, each with how it was made; which is better only measuring tells.

    rows: [n, F] float32, to see ranges of activations by. only: quantise no other kind of operator.

    Raises:
        UnfitGraph: it has no layer with constant weights.
    """
    if not constant_weights(model, "MatMul", "Conv"):
        raise UnfitGraph("the graph has no MatMul or Conv with constant weights, so there is nothing to quantise")
    bits = "7 bits, as this processor's 8-bit sums overflow" if saturates else "8 bits"
    made = [(_static(model, rows, saturates, only), f"weights per channel to {bits}, activations by the ranges of {len(rows)} rows")]
    if not constant_weights(model, "Conv") and only is None:
        made.append((_dynamic(model, saturates), f"weights per channel to {bits}, activations by each row's own range"))
    return made


def _static(model: onnx.ModelProto, rows: Rows, saturates: bool, only: str | None) -> onnx.ModelProto:
    def quantise(source: Path, target: Path) -> None:
        quantize_static(
            str(source),
            str(target),
            _Calibration(rows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=saturates,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=around(model),
            op_types_to_quantize=None if only is None else [only],
        )

    return _by_file(model, quantise)


def _dynamic(model: onnx.ModelProto, saturates: bool) -> onnx.ModelProto:
    def quantise(source: Path, target: Path) -> None:
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            reduce_range=saturates,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=around(model),
        )

    return _by_file(model, quantise)


def _by_file(model: onnx.ModelProto, quantise: Callable[[Path, Path], None]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as scratch, silent():
        source, target = Path(scratch) / "source.onnx", Path(scratch) / "target.onnx"
        onnx.save(model, str(source))
        quantise(source, target)
        return onnx.load(str(target))


@contextmanager
def silent() -> Iterator[None]:
    """Without the line for each node that ONNX Runtime's quantisers log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
