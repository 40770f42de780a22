"""A version of a model on disk: where it lies, how it is to be answered, and the proof that it is what its receipt names.

The bytes that were hashed are the bytes that are loaded, so nothing can be swapped between the check and the load, and a graph cannot
pull weights from a file that the receipt does not cover.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from qedge.audit.receipt import Receipt, verify
from qedge.edge.selector import Requirement
from qedge.errors import ArtifactTampered, ReceiptTampered, UnknownModel
from qedge.quantum.backend import Backend
from qedge.security.keys import public_key

GRAPH = "model.onnx"
RECEIPT = "receipt.json"


@dataclass(frozen=True)
class OnBackend:
    """What a quantum layer runs on, and by how many workers."""

    backend: Backend
    workers: int = 1


@dataclass(frozen=True)
class ModelFolder:
    """Where a version of a model lies, and the public key (hex) its receipt must be signed with; None: the receipt's own.

    quantum: where its quantum layer is to run; None: inside the graph.
    edge: what the rung that answers must meet; the folder is then that of a ladder. None: the graph answers.
    """

    name: str
    version: str
    folder: str
    key: str | None = None
    quantum: OnBackend | None = None
    edge: Requirement | None = None


def verified_graph(source: ModelFolder) -> tuple[bytes, str]:
    """The bytes of `model.onnx`, proven to be what the folder's signed receipt names, and the receipt's id.

    Raises:
        UnknownModel: no such folder, or no model or receipt in it.
        ArtifactTampered: the signature or the digest does not hold.
    """
    folder = Path(source.folder)
    try:
        graph = (folder / GRAPH).read_bytes()
        signed = (folder / RECEIPT).read_bytes()
    except OSError as error:
        raise UnknownModel(f"{source.name}: {error.filename} cannot be read: {error.strerror}", model=source.name) from None
    receipt = Receipt.parse(signed, where=str(folder / RECEIPT))
    verify(receipt, public_key(source.key) if source.key else None)
    if receipt.model != source.name:
        raise ReceiptTampered(f"{folder / RECEIPT} is of the model '{receipt.model}', not of '{source.name}'", model=source.name)
    if receipt.artifacts.get(GRAPH) != hashlib.sha256(graph).hexdigest():
        raise ArtifactTampered(f"{folder / GRAPH} does not match its digest on receipt {receipt.id[:16]}", model=source.name)
    return graph, receipt.id
