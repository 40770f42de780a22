"""A user's model that ends the process it is built in, as an extension that crashes does."""

from __future__ import annotations

import os

import psutil
from torch import nn


def linear(features: int, classes: int, dies_in: str) -> nn.Module:
    """A linear model; building it in a process whose command line has `dies_in` ends that process at once."""
    if dies_in in " ".join(psutil.Process().cmdline()):
        os._exit(1)
    return nn.Linear(features, classes)
