"""qedge: private federated learning, hybrid quantum models and edge inference as one Ray application."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Read by MKL when torch first multiplies. Without it, on processors of other makers than MKL's, a client's last bits depend on who else
# is in a product with it, and a guarantee for single clients rests on their not doing so.
# Source: "Developer Guide for Intel oneAPI Math Kernel Library", Obtaining Numerically Reproducible Results.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from qedge.edge.engine import EdgeEngine
    from qedge.edge.selector import Requirement
    from qedge.job import Query, TrainingJob
    from qedge.registry.ladders import open_ladder
    from qedge.runs.quantum import QuantumRun, solve
    from qedge.runs.query import QueryResult, query
    from qedge.runs.training import TrainingResult, train

__all__ = [
    "EdgeEngine",
    "QuantumRun",
    "Query",
    "QueryResult",
    "Requirement",
    "TrainingJob",
    "TrainingResult",
    "open_ladder",
    "query",
    "solve",
    "train",
]
__version__ = "0.1.0"

_HOME = {
    "EdgeEngine": "qedge.edge.engine",
    "QuantumRun": "qedge.runs.quantum",
    "Query": "qedge.job",
    "QueryResult": "qedge.runs.query",
    "Requirement": "qedge.edge.selector",
    "TrainingJob": "qedge.job",
    "TrainingResult": "qedge.runs.training",
    "open_ladder": "qedge.registry.ladders",
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
