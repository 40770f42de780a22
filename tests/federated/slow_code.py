"""Training loops of a user's own that are slow over one client, or end their process over it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn

from tests.federated.own_code import plain


def slow(model: nn.Module, features: torch.Tensor, labels: torch.Tensor, rows: int | None, seconds: float) -> None:
    """Keeps a processor busy for so long over the client of so many rows, or over each."""
    end = time.monotonic() + (seconds if rows is None or len(labels) == rows else 0.0)
    while time.monotonic() < end:
        pass
    plain(model, features, labels, 0.1, 2)


def slow_until_replaced(model: nn.Module, features: torch.Tensor, labels: torch.Tensor, folder: str, seconds: float) -> None:
    """Slow over each client until a process has trained that was not there when one of those in the file `hurt` was.

    The folder gets a file of each process that trained, and `replaced`.
    """
    place, me = Path(folder), str(os.getpid())
    (place / me).touch()
    hurt, replaced = place / "hurt", place / "replaced"
    if hurt.exists() and me not in hurt.read_text().split():
        replaced.touch()
    slow(model, features, labels, None, 0.0 if replaced.exists() else seconds)


def deadly(model: nn.Module, features: torch.Tensor, labels: torch.Tensor, rows: int) -> None:
    """Ends the process over the client of so many rows."""
    if len(labels) == rows:
        os._exit(1)
    plain(model, features, labels, 0.1, 2)
