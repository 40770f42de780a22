"""Other runtimes' side of the benchmark edge_peers, run by the Python of their own environment: a model's files in, times of calls out.

Lines of standard input are JSON. {"open": FILE.onnx, "rows": N} reads it and torch-N.pt2 beside it, and makes what every runtime makes
of them; {"ask": RUNTIME, "calls": M}, about rows.npy [N, F] beside it, is answered with what the calls took and the last answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

Call = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Answer line by line."""
    made, given = dict[str, Call](), np.zeros((0, 0), np.float32)
    for line in sys.stdin:
        asked = json.loads(line)
        if "open" in asked:
            made, given = opened(Path(asked["open"]), asked["rows"]), np.load(Path(asked["open"]).with_name("rows.npy"))
            answer: object = list(made)
        else:
            answer = timed(made[asked["ask"]], given, asked["calls"])
        print(json.dumps(answer), flush=True)


def opened(path: Path, rows: int) -> dict[str, Call]:
    """Every runtime with its defaults, and made for just so many rows where that helps it; a call takes rows [n, F], gives [n, K]."""
    session = onnxruntime.InferenceSession(path)
    read = openvino.Core().read_model(path)
    read.reshape([rows, read.input(0).get_partial_shape()[1]])
    compiled = openvino.compile_model(read, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
    probabilities = compiled.output("probabilities")
    traced = torch.export.load(path.with_name(f"torch-{rows}.pt2"))
    eager = traced.module(check_guards=False)
    inductor = torch.compile(eager)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.with_name(f"torch-{rows}.pte").write_bytes(bytes(lowered.buffer))
    method = Runtime.get().load_program(path.with_name(f"torch-{rows}.pte")).load_method("forward")
    return {
        "ONNX Runtime": lambda given: session.run(["probabilities"], {"features": given})[0],
        "OpenVINO": lambda given: compiled(given)[probabilities],
        "torch, eager": lambda given: _torch(eager, given),
        "torch, compiled": lambda given: _torch(inductor, given),
        "ExecuTorch": lambda given: method.execute([torch.from_numpy(given)])[0].numpy(),
    }


def timed(call: Call, rows: np.ndarray, calls: int) -> dict[str, object]:
    """Seconds of each call, after ten that are not counted, CPU seconds of one in the mean, and what the last answered."""
    for _ in range(10):
        answer = call(rows)
    taken, used = [], time.process_time()
    for _ in range(calls):
        began = time.perf_counter()
        answer = call(rows)
        taken.append(time.perf_counter() - began)
    return {"seconds": taken, "cpu_s": (time.process_time() - used) / calls, "answer": np.asarray(answer).tolist()}


def _torch(module: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(rows)).numpy()


if __name__ == "__main__":
    main()
