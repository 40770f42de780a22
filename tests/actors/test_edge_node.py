"""Edge nodes on a real Ray: they answer, say how they fare, and are silent when they hang or die."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import psutil
import pytest
import ray
from ray.actor import ActorHandle

from actors.cluster import connect
from actors.edge_node import beats, start_node
from qedge.config import Cluster, ensure_home, load
from qedge.edge.card import Card
from qedge.edge.ladder import Ladder
from qedge.edge.rung import RungName
from qedge.edge.selector import Requirement
from qedge.errors import InvalidConfig, InvalidRequest, NoRungFits
from qedge.security.keys import Keys
from tests.edge_ladders import Told, answer, graph, ladder
from tests.endpoint import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    small = Cluster(cpus=2, object_store_bytes=80 * 2**20)
    with connect(load(environ={}, home=tmp_path_factory.mktemp("home"), address="local", cluster=small), start=True):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ladder, Card]:
    place = tmp_path_factory.mktemp("made")
    rungs: dict[RungName, tuple[onnx.ModelProto, Told]] = {"fp32": (graph(1), Told()), "int8": (graph(2), Told(right=880, p95_ms=0.2))}
    return ladder(place / "ladder", rungs, Keys.open(ensure_home(place / "home")))


@pytest.mark.usefixtures("cluster")
class TestNodes:
    """Each test ends the nodes that it started."""

    @pytest.fixture
    def started(self) -> Iterator[Callable[[str], ActorHandle]]:
        handles: list[ActorHandle] = []

        def start(name: str) -> ActorHandle:
            handles.append(start_node(name, 64 << 20))
            return handles[-1]

        yield start
        for handle in handles:
            ray.kill(handle)

    def test_a_node_answers_as_its_ladder_does_and_says_how_it_fares(
        self, started: Callable[[str], ActorHandle], made: tuple[Ladder, Card]
    ) -> None:
        here, (opened, card) = started("hall"), made
        ray.get(here.add.remote("precise", opened.folder, Requirement(accuracy=0.89), card))
        ray.get(here.add.remote("quick", opened.folder, None, card))
        rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        for name, rung, seed in (("precise", "fp32", 1), ("quick", "int8", 2)):
            said = ray.get(here.infer.remote(name, rows))
            assert said.rung == rung
            np.testing.assert_allclose(said.probabilities, answer(rows, seed), atol=1e-6)
        beat = beats()["hall"]
        assert beat is not None
        assert beat.loaded.keys() == {"precise", "quick"}
        assert 0 < beat.charged_bytes <= beat.budget_bytes == 64 << 20
        assert beat.pss_bytes > beat.charged_bytes
        assert ray.get(here.cards.remote())["quick"] == card
        ray.get(here.remove.remote("quick"))
        assert ray.get(here.cards.remote()).keys() == {"precise"}

    def test_what_a_node_refuses_reaches_the_caller_as_what_it_is(
        self, started: Callable[[str], ActorHandle], made: tuple[Ladder, Card]
    ) -> None:
        here, (opened, card) = started("hall"), made
        with pytest.raises(InvalidConfig, match="already"):
            start_node("hall", 1 << 20)
        with pytest.raises(NoRungFits):
            ray.get(here.add.remote("m", opened.folder, Requirement(accuracy=0.99), card))
        ray.get(here.add.remote("m", opened.folder, None, card))
        with pytest.raises(InvalidRequest):
            ray.get(here.infer.remote("m", np.zeros((1, 3), np.float32)))

    @pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
    def test_a_node_that_hangs_or_died_is_silent_and_the_others_are_not(
        self, started: Callable[[str], ActorHandle], how: signal.Signals
    ) -> None:
        started("porch"), started("hall")
        first = beats()
        assert first.keys() == {"hall", "porch"}
        assert first["hall"] is not None
        hurt = psutil.Process(first["hall"].pid)
        hurt.send_signal(how)
        try:
            assert eventually(lambda: beats(1.0).get("hall") is None)
            assert beats(10.0)["porch"] is not None
        finally:
            if hurt.is_running():
                hurt.kill()
