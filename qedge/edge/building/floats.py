"""FP32, as it is, and FP16: weights of half the bytes, for providers that compute in half precision; most processors widen them again."""

from __future__ import annotations

import onnx

from qedge.edge.building.graph import around


def fp32(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The graph itself, and how it came to be."""
    return model, "the model's own weights"


def fp16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A copy that computes in float16 between float32 inputs and outputs, and how it was made."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = onnx.ModelProto()
    half.CopyFrom(model)
    return convert_float_to_float16(
        half, keep_io_types=True, node_block_list=around(model)
    ), "cast to float16; scaling and softmax in float32"
