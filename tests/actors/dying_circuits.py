"""A gate that ends the process of any quantum worker that decomposes it."""

from __future__ import annotations

import os

import pennylane as qml
import psutil


class Deadly(qml.operation.Operation):
    """Takes a worker with it; anywhere else it does nothing."""

    num_wires = 1

    def decomposition(self) -> list[qml.operation.Operator]:
        """Nothing, for those who live to see it."""
        if "ray::QuantumWorkerActor" in " ".join(psutil.Process().cmdline()):
            os._exit(1)
        return [qml.Identity(self.wires)]
