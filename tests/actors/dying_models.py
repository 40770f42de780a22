"""Users' models that end the process they are in: as an extension that crashes does, or by asking Python to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import torch
from torch import nn


def linear(features: int, classes: int, dies_in: str) -> nn.Module:
    """A linear model; building it in a process whose command line has `dies_in` ends that process at once."""
    if dies_in in " ".join(psutil.Process().cmdline()):
        os._exit(1)
    return nn.Linear(features, classes)


class Exiting(nn.Linear):
    """A linear model that calls `sys.exit` in a coordinator that evaluates it, while `marker` is there."""

    def __init__(self, features: int, classes: int, marker: str) -> None:
        super().__init__(features, classes)
        self.marker, self.in_coordinator = Path(marker), "ray::CoordinatorActor" in " ".join(psutil.Process().cmdline())

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.in_coordinator and self.marker.exists() and len(rows) > 2:  # more than the batch that every model is tried on
            sys.exit("values of rows")
        return super().forward(rows)
