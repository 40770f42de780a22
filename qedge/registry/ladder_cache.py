"""Ladders that a node has fetched, by digest: what it serves while the registry is away, and how a new champion gets there.

    ladders/<ladder id>/     a whole, verified ladder; made under another name and renamed, so that a folder that exists is whole
    <model>.json             which of them answers for a model

A ladder is verified under the pinned key before it is put in place, every file of it, and again when it is loaded.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qedge.edge.ladder import Ladder
from qedge.errors import ArtifactTampered, RegistryUnavailable, UnknownModel
from qedge.registry.registry import ModelVersion, Registry, split_reference
from qedge.storage import locked, storage_errors, write_atomically

FOLDER = "edge/gateway"  # of a home


@dataclass(frozen=True)
class Cached:
    """What a node has of a model. fresh: whether the registry said so just now, rather than some time ago."""

    ladder: Ladder
    version: str
    fresh: bool


class LadderCache:
    """A folder of ladders. Several processes may share it."""

    def __init__(self, registry: Registry, folder: Path, key: bytes) -> None:
        """key: public, of whoever signs receipts; nothing else is ever put in place."""
        self._registry, self._folder, self._key = registry, folder, key

    def get(self, reference: str, *, keep: bool = True) -> Cached:
        """The ladder of the version that `NAME`, `NAME@alias` or `NAME/3` means now, or what was kept for it when the registry is away.

        keep: from now on this is what is kept; else whoever asks says so by `keep`, when it has turned out to answer.

        Raises:
            UnknownModel: there is no such version, or it has no ladder. RegistryUnavailable: it is away, and nothing is cached.
            Tampered: what the registry has does not hold; what was cached before still answers for who asks `cached`.
        """
        try:
            version = self._registry.resolve(reference)
            place = self._place(version.ladder_id or "")
            with self._locked():
                there = version.ladder_id is not None and place.is_dir()
            if not there:
                self._fetch(version)
        except RegistryUnavailable:
            found = self.cached(reference)
            if found is None:
                raise
            return found
        found = Cached(Ladder.open(place, self._key), str(version.version), fresh=True)
        if keep:
            self.keep(reference, found)
        return found

    def keep(self, reference: str, found: Cached) -> None:
        """Let this be what answers for the reference while the registry is away.

        Raises:
            StorageFull, HomeUnusable: it cannot be written.
        """
        content = json.dumps({"ladder": found.ladder.id, "model": found.ladder.card.model, "version": found.version}).encode()
        pointer = self._pointer(reference)
        with self._locked():
            if not pointer.is_file() or pointer.read_bytes() != content:
                write_atomically(pointer, content)

    def cached(self, reference: str) -> Cached | None:
        """What answered for this reference last; None where nothing did, or what there is does not hold any more."""
        try:
            told = json.loads(self._pointer(reference).read_bytes())
            return Cached(Ladder.open(self._place(str(told["ladder"])), self._key), str(told["version"]), fresh=False)
        except (OSError, ValueError, LookupError, TypeError, UnknownModel, ArtifactTampered):
            return None

    def prune(self, idle_s: float = 0.0) -> int:
        """Remove ladders that are kept for no reference and were put in place so long ago; how many.

        Those that are loaded go on answering from what is mapped.
        """
        with self._locked():
            meant, now = {_named_by(path) for path in self._folder.glob("*.json")}, time.time()
            old = [path for path in (self._folder / "ladders").glob("*") if now - path.stat().st_ctime >= idle_s]
            unused = [path for path in old if path.name not in meant]
            for path in unused:
                shutil.rmtree(path, ignore_errors=True)
            return len(unused)

    def _fetch(self, version: ModelVersion) -> None:
        """Put the version's ladder in place, once every file of it holds."""
        making = self._folder / f".{secrets.token_hex(8)}"
        with storage_errors(making):
            making.mkdir(mode=0o700)
        try:
            found = self._registry.fetch_ladder(version, making / "fetched")
            with storage_errors(making):
                shutil.copytree(found, making / "ladder")
            ladder = Ladder.open(making / "ladder", self._key)
            if ladder.id != version.ladder_id:
                raise ArtifactTampered(f"the registry names ladder {version.ladder_id} and has {ladder.id}", path=str(found))
            for one in ladder.card.rungs:
                ladder.check(one)
            place = self._place(ladder.id)
            with self._locked(), storage_errors(place):
                if not place.exists():
                    (making / "ladder").rename(place)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with storage_errors(self._folder):
            (self._folder / "ladders").mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._folder / ".lock"):
            yield

    def _pointer(self, reference: str) -> Path:
        name, alias, version = split_reference(reference)
        return self._folder / (f"{name}@{alias}.json" if alias else f"{name}@@{version}.json" if version else f"{name}.json")

    def _place(self, ladder_id: str) -> Path:
        return self._folder / "ladders" / ladder_id


def _named_by(pointer: Path) -> str | None:
    """The ladder that a pointer names."""
    try:
        return str(json.loads(pointer.read_bytes())["ladder"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
