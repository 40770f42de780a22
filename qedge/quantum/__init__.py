"""Quantum jobs on simulators and hardware, each with its resources, its error bar and its classical baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qedge.quantum.backend import Backend
    from qedge.quantum.circuit_run import run_circuit
    from qedge.quantum.compilation.compiler import compile_circuit
    from qedge.quantum.error_correction.memory import memory_study
    from qedge.quantum.mitigation.job import Mitigation
    from qedge.quantum.mitigation.study import mitigate
    from qedge.quantum.noise import Noise
    from qedge.quantum.qaoa.job import QAOA
    from qedge.quantum.qnn.barren_plateau import gradient_variance
    from qedge.quantum.qnn.job import QNN
    from qedge.quantum.qnn.layer import QuantumLayer
    from qedge.quantum.qsvm.classifier import QuantumSVC
    from qedge.quantum.qsvm.job import QSVM
    from qedge.quantum.result import Result
    from qedge.quantum.vqe.job import VQE

__all__ = [
    "QAOA",
    "QNN",
    "QSVM",
    "VQE",
    "Backend",
    "Mitigation",
    "Noise",
    "QuantumLayer",
    "QuantumSVC",
    "Result",
    "compile_circuit",
    "gradient_variance",
    "memory_study",
    "mitigate",
    "run_circuit",
]

_HOME = {
    "Backend": "backend",
    "Mitigation": "mitigation.job",
    "Noise": "noise",
    "QAOA": "qaoa.job",
    "QNN": "qnn.job",
    "QSVM": "qsvm.job",
    "QuantumLayer": "qnn.layer",
    "QuantumSVC": "qsvm.classifier",
    "Result": "result",
    "VQE": "vqe.job",
    "compile_circuit": "compilation.compiler",
    "gradient_variance": "qnn.barren_plateau",
    "memory_study": "error_correction.memory",
    "mitigate": "mitigation.study",
    "run_circuit": "circuit_run",
}


def __getattr__(name: str) -> object:
    """Import a public name where it lives when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'qedge.quantum' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"qedge.quantum.{_HOME[name]}"), name)
