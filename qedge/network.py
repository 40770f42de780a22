"""A version's network, from what its folder's card says of it, with its weights; and what a card has to say for that.

The ONNX file answers; this is for whoever trains on, takes parts out, or runs a layer elsewhere. A network that is a function of the
user's own is code, which no card holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from safetensors.torch import load

from qedge.audit.canonical import decimal
from qedge.audit.receipt import FILE, Receipt, verify
from qedge.data.federation import Schema
from qedge.errors import ArtifactTampered, ModelError, QEdgeError, Tampered, UnknownModel
from qedge.job import Model
from qedge.models import build

if TYPE_CHECKING:
    from torch import nn

CARD, WEIGHTS = "card.json", "weights.safetensors"


@dataclass(frozen=True, eq=False)
class Network:
    """module: with its weights, from scaled rows [batch, F] to logits [batch, classes]; receipt: by which all of it was checked."""

    model: Model
    schema: Schema
    module: nn.Module
    receipt: Receipt

    def scaled(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Rows [n, F] as the module takes them, from rows as callers send them."""
        scaled: npt.NDArray[np.float32] = (rows - self.schema.center) / self.schema.spread
        return scaled


def network_card(model: Model, schema: Schema) -> dict[str, JsonValue]:
    """The part of a version's card that its network can be made from again."""
    told: dict[str, JsonValue] = {
        "kind": model.kind,
        "features": list(schema.features),
        "labels": list(schema.labels),
        "scale": schema.scale,
    }
    if ":" in model.kind:
        return told
    scaling: dict[str, JsonValue] = {name: [decimal(float(value)) for value in getattr(schema, name)] for name in ("center", "spread")}
    return told | scaling | {"network": model.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)}


def rebuilt(folder: Path, name: str, key: bytes | None = None) -> Network:
    """The network of the version in `folder`, each file proven to be what the receipt names, signed by `key` or by whom it says.

    Raises:
        UnknownModel: a file is not there. ReceiptTampered, ArtifactTampered: the signature or a digest does not hold.
        ModelError: the network is a function of the user's own, was exported before cards said what it is, or its files do not fit.
    """
    content, issued = _read(folder, name, key)
    card = json.loads(content[CARD])
    if not isinstance(card, dict) or ":" in str(card.get("kind", ":")):
        accepted = "accepted: linear, mlp, cnn, hybrid"
        raise ModelError(f"{name} is a network of your own code, which its files do not hold; {accepted}", model=name)
    if "network" not in card:
        raise ModelError(f"{name} was exported before its card said what its network is; train it again", model=name)
    try:
        model = Model(kind=card["kind"], **card["network"])
        center, spread = (np.array([float(one) for one in card[part]], dtype=np.float32) for part in ("center", "spread"))
        schema = Schema(tuple(card["features"]), tuple(card["labels"]), card["scale"], center, spread, labels_declared=True)
        module = build(model, len(schema.features), len(schema.labels), 0).eval()
        module.load_state_dict(load(content[WEIGHTS]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: its card and its weights do not fit each other: {error}", model=name) from error
    except QEdgeError as error:
        raise error if isinstance(error, Tampered) else ModelError(f"{name}: {error.message}", model=name) from error
    return Network(model, schema, module, issued)


def _read(folder: Path, name: str, key: bytes | None) -> tuple[Mapping[str, bytes], Receipt]:
    """The bytes of card and weights, and the receipt that they were held against."""
    try:
        content = {part: (folder / part).read_bytes() for part in (CARD, WEIGHTS)}
        signed = (folder / FILE).read_bytes()
    except OSError as error:
        raise UnknownModel(f"{name}: {error.filename} cannot be read: {error.strerror}", model=name) from None
    issued = Receipt.parse(signed, where=str(folder / FILE))
    verify(issued, key)
    for part, found in content.items():
        if issued.artifacts.get(part) != hashlib.sha256(found).hexdigest():
            raise ArtifactTampered(f"{folder / part} does not match its digest on receipt {issued.id[:16]}", model=name)
    return content, issued
