"""The state of a run between rounds, on disk: written whole or not at all, and noticed when altered.

A checkpoint is one safetensors file (weights, momentum, average, round) followed by an HMAC-SHA256 that also covers the run's id. It is
written beside the old one, flushed, and renamed over it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from qedge.errors import CheckpointTampered
from qedge.federated.fedavg import ServerState
from qedge.storage import write_atomically

_MAC_BYTES = 32


def write_checkpoint(path: Path, state: ServerState, run: str, mac: Callable[[bytes], bytes]) -> None:
    """Replace the checkpoint.

    Raises:
        StorageFull: the disk is full; the old checkpoint stays.
    """
    tensors = {"weights": state.weights, "momentum": state.momentum, "average": state.average, "round": np.array([state.round])}
    content = save(tensors)
    write_atomically(path, content + mac(_sealed(run, content)))


def read_checkpoint(path: Path, run: str, mac: Callable[[bytes], bytes]) -> ServerState | None:
    """The state last written, or None when there is none yet.

    Raises:
        CheckpointTampered: the file was altered or belongs to another run.
    """
    if not path.exists():
        return None
    whole = path.read_bytes()
    content, tag = whole[:-_MAC_BYTES], whole[-_MAC_BYTES:]
    if not hmac.compare_digest(mac(_sealed(run, content)), tag):
        raise CheckpointTampered(f"{path}: the checkpoint was altered, or belongs to another run", path=str(path))
    tensors = load(content)
    return ServerState(int(tensors["round"][0]), tensors["weights"], tensors["momentum"], tensors["average"])


def _sealed(run: str, content: bytes) -> bytes:
    return b"run " + run.encode() + b"\0" + content
