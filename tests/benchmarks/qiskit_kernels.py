"""Qiskit Machine Learning's side of the kernel benchmark, run by the Python of its own environment: rows in, Gram matrix and time out."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from qiskit.circuit.library import zz_feature_map
from qiskit_machine_learning.kernels import FidelityStatevectorKernel


def main() -> None:
    """Answer each line of rows with a line: the matrix and the seconds it took, after one small kernel to warm up."""
    FidelityStatevectorKernel(feature_map=zz_feature_map(8, reps=2)).evaluate(np.zeros((2, 8)))
    for line in sys.stdin:
        rows = np.array(json.loads(line))
        kernel = FidelityStatevectorKernel(feature_map=zz_feature_map(rows.shape[1], reps=2))
        begun = time.perf_counter()
        gram = kernel.evaluate(rows)
        print(json.dumps({"seconds": time.perf_counter() - begun, "gram": gram.tolist()}), flush=True)


if __name__ == "__main__":
    main()
