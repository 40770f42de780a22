"""The cache of a node: champions while the registry is there and while it is away, and nothing that does not hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from qedge.config import Settings, load
from qedge.edge.building.build import build
from qedge.edge.ladder import Ladder
from qedge.edge.rung import RungName
from qedge.errors import ArtifactTampered, ReceiptTampered, RegistryUnavailable, UnknownModel
from qedge.registry.ladder_cache import LadderCache
from qedge.registry.registry import Registry
from qedge.security.keys import Keys
from tests.edge.conftest import Home
from tests.endpoint import free_port


def attached(home: Home, folder: Path, *rungs: RungName) -> Ladder:
    """A new ladder of the version, kept with it."""
    ladder = build(home.asked(*rungs), home.model, folder, home.records)
    registry = Registry(home.settings)
    registry.attach_ladder(registry.resolve("digits"), folder, ladder.id)
    return ladder


def away() -> Registry:
    """A registry that nobody answers for."""
    return Registry(load(environ={}, tracking_uri=f"http://127.0.0.1:{free_port()}"))


@pytest.mark.slow
def test_a_node_serves_the_champion_while_the_registry_is_away_and_picks_up_a_new_one_when_it_returns(home: Home, tmp_path: Path) -> None:
    key, folder = home.records.keys.public, tmp_path / "cache"
    first = attached(home, tmp_path / "first", "fp32", "int8")
    here, offline = LadderCache(Registry(home.settings), folder, key), LadderCache(away(), folder, key)
    with pytest.raises(RegistryUnavailable):
        offline.get("digits@champion")
    got = here.get("digits@champion")
    assert (got.ladder.id, got.version, got.fresh) == (first.id, "1", True)
    rows = home.calibration.held.rows[:5]
    expected = got.ladder.load("int8").run(rows).copy()
    kept = offline.get("digits@champion")
    assert (kept.ladder.id, kept.fresh) == (first.id, False)
    np.testing.assert_array_equal(kept.ladder.load("int8").run(rows), expected)
    with pytest.raises(RegistryUnavailable):
        offline.get("digits/1")  # another reference, of which nothing was ever asked
    second = attached(home, tmp_path / "second", "fp32")
    running = kept.ladder.load("int8")
    assert here.get("digits@champion").ladder.id == second.id
    assert here.prune() == 1
    assert [path.name for path in (folder / "ladders").iterdir()] == [second.id]
    np.testing.assert_array_equal(running.run(rows), expected)  # from what is mapped
    assert not list(folder.glob(".[0-9a-f]*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32.data", "card.json", "receipt.json", "fp32.receipt.json"])
def test_a_ladder_that_was_altered_in_the_registry_is_never_put_in_place(home: Home, tmp_path: Path, name: str) -> None:
    good = attached(home, tmp_path / "good", "fp32")
    cache = LadderCache(Registry(home.settings), tmp_path / "cache", home.records.keys.public)
    assert cache.get("digits").ladder.id == good.id
    attached(home, tmp_path / "bad", "fp32")
    registry = Registry(home.settings)
    stored = registry.fetch_ladder(registry.resolve("digits"), tmp_path / "none") / name
    content = stored.read_bytes()
    for wrong in (content[: len(content) // 2], content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]):
        stored.write_bytes(wrong)
        with pytest.raises((ArtifactTampered, ReceiptTampered)):
            cache.get("digits")
        assert [path.name for path in (tmp_path / "cache" / "ladders").iterdir()] == [good.id]
        found = cache.cached("digits")
        assert found is not None
        assert found.ladder.id == good.id


@pytest.mark.slow
def test_what_another_key_signed_is_not_taken_and_what_has_no_ladder_is_named(home: Home, tmp_path: Path, settings: Settings) -> None:
    attached(home, tmp_path / "ladder", "fp32")
    stranger = LadderCache(Registry(home.settings), tmp_path / "cache", Keys.open(settings.home).public)
    with pytest.raises(ReceiptTampered, match="not with the pinned"):
        stranger.get("digits")
    assert list((tmp_path / "cache" / "ladders").iterdir()) == []
    with pytest.raises(UnknownModel):
        stranger.get("nobody")


@pytest.mark.slow
def test_what_is_cached_and_was_altered_since_is_fetched_anew_or_not_served(home: Home, tmp_path: Path) -> None:
    ladder = attached(home, tmp_path / "ladder", "fp32")
    cache = LadderCache(Registry(home.settings), tmp_path / "cache", home.records.keys.public)
    cache.get("digits")
    place = tmp_path / "cache" / "ladders" / ladder.id
    (place / "card.json").write_bytes(b"{}")
    offline = LadderCache(away(), tmp_path / "cache", home.records.keys.public)
    with pytest.raises(RegistryUnavailable):
        offline.get("digits")
    shutil.rmtree(place)
    assert cache.get("digits").ladder.id == ladder.id
