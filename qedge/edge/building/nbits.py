"""INT4 and INT2: weights of MatMul in blocks, each block with its own scale and zero (ONNX Runtime's MatMulNBits).

Convolutions have no such kernel and stay at INT8, which the rung's card says.
"""

from __future__ import annotations

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from qedge.edge.building.graph import around, constant_weights
from qedge.edge.building.integers import Made, int8, silent
from qedge.edge.rung import Rows
from qedge.errors import UnfitGraph

_BLOCKS = (128, 32)  # values that share a scale: fewer are more exact, and take more bytes and time
_INT8_ACTIVATIONS = 4  # accuracy_level: activations are taken to 8 bits on the way, as no other kernel is fast


def nbits(model: onnx.ModelProto, bits: int, rows: Rows, *, saturates: bool) -> list[Made]:
    """Ways to `bits` (4 or 2) bits, by the size of blocks, each with how it was made.

    Raises:
        UnfitGraph: there is no MatMul with constant weights.
    """
    dense = constant_weights(model, "MatMul")
    if not dense:
        raise UnfitGraph(f"the graph has no MatMul with constant weights, so nothing can be taken to {bits} bits; accepted: int8")
    convolutions = constant_weights(model, "Conv")
    made = []
    for block in _BLOCKS:
        how = f"weights of MatMul to {bits} bits in blocks of {block}"
        made.append((_quantised(model, bits, block), how + (f"; {len(convolutions)} convolutions in float32" if convolutions else "")))
    if convolutions:
        (mixed, _), *_ = int8(model, rows, saturates=saturates, only="Conv")
        made.append((_quantised(mixed, bits, _BLOCKS[0]), f"weights of MatMul to {bits} bits, {len(convolutions)} convolutions to 8 bits"))
    return made


def _quantised(model: onnx.ModelProto, bits: int, block: int) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    with silent():
        quantiser = MatMulNBitsQuantizer(
            changed, bits=bits, block_size=block, is_symmetric=False, accuracy_level=_INT8_ACTIVATIONS, nodes_to_exclude=around(model)
        )
        quantiser.process()
    found: onnx.ModelProto = quantiser.model.model
    return found
