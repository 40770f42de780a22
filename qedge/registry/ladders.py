"""The ladder of a registered version, for whoever asks it here."""

from __future__ import annotations

from qedge.config import Settings, load
from qedge.edge.ladder import Ladder
from qedge.records import Records
from qedge.registry.registry import Registry


def open_ladder(reference: str, settings: Settings | None = None) -> Ladder:
    """The ladder of the version that `NAME`, `NAME@alias` or `NAME/3` names, verified under the home's own key.

    settings: default, those of the environment and of the folder one stands in.

    Raises:
        UnknownModel: no such version, or it has no ladder. ReceiptTampered, ArtifactTampered: something of it does not hold.
        RegistryUnavailable: MLflow or its artifact store does not answer.
    """
    settings = settings or load()
    registry = Registry(settings)
    version = registry.resolve(reference)
    folder = registry.fetch_ladder(version, settings.home / "models" / version.name / str(version.version))
    return Ladder.open(folder, Records.open(settings.home).keys.public)
