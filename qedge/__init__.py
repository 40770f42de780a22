"""qedge: private federated learning, hybrid quantum models and edge inference as one Ray application."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qedge.job import Query, TrainingJob
    from qedge.runs.quantum import QuantumRun, solve
    from qedge.runs.query import QueryResult, query
    from qedge.runs.training import TrainingResult, train

__all__ = ["QuantumRun", "Query", "QueryResult", "TrainingJob", "TrainingResult", "query", "solve", "train"]
__version__ = "0.1.0"

_HOME = {
    "QuantumRun": "qedge.runs.quantum",
    "Query": "qedge.job",
    "QueryResult": "qedge.runs.query",
    "TrainingJob": "qedge.job",
    "TrainingResult": "qedge.runs.training",
    "query": "qedge.runs.query",
    "solve": "qedge.runs.quantum",
    "train": "qedge.runs.training",
}


def __getattr__(name: str) -> object:
    """Import a public name where it lives when it is first asked for, so that `import qedge` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'qedge' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
