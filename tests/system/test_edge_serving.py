"""Ladders on a real Ray Serve: the engine of edge nodes answers in the replica."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import ray

from actors.edge_gateway import start_gateway
from actors.edge_node import beats
from qedge.config import Settings
from qedge.edge.ladder import Ladder
from qedge.edge.node import keep_card
from qedge.edge.rung import RungName
from qedge.edge.selector import Requirement
from qedge.errors import EdgeError, InvalidConfig, NoRungFits, OverBudget, RegistryUnavailable, Tampered
from qedge.registry.following import Followed
from qedge.security.keys import Keys
from serve_apps.app import deploy, undeploy
from serve_apps.model_folder import ModelFolder
from tests.edge_ladders import Told, answer, graph, ladder
from tests.endpoint import free_port

pytestmark = pytest.mark.slow
ROWS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def made(cluster: Settings, folder: Path) -> Ladder:
    """A ladder whose two rungs answer differently, its card kept in the cluster's home."""
    rungs: dict[RungName, tuple[onnx.ModelProto, Told]] = {"fp32": (graph(1), Told()), "int8": (graph(2), Told(right=880, p95_ms=0.2))}
    found, card = ladder(folder, rungs, Keys.open(cluster.home))
    keep_card(cluster.home, found.id, card)
    return found


def served(found: Ladder, requirement: Requirement) -> ModelFolder:
    return ModelFolder("m", "1", str(found.folder), edge=requirement)


def ask(url: str, rows: np.ndarray = ROWS) -> httpx.Response:
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return httpx.post(f"{url}/v2/models/m/infer", json={"inputs": [tensor]}, timeout=60, trust_env=False)


def test_the_cheapest_rung_that_meets_the_requirement_answers_over_http(cluster: Settings, tmp_path: Path) -> None:
    found = made(cluster, tmp_path / "ladder")
    for requirement, rung, seed in ((Requirement(accuracy=0.89), "fp32", 1), (Requirement(accuracy=0.8), "int8", 2)):
        url = deploy(cluster, served(found, requirement))
        response = ask(url).json()
        assert response["parameters"]["rung"] == rung
        assert response["parameters"]["receipt"] == found.id
        assert response["parameters"]["rung_receipt"] == found.receipts[rung].id
        got = np.array(response["outputs"][0]["data"]).reshape(5, -1)
        np.testing.assert_allclose(got, answer(ROWS, seed), atol=1e-6)
        assert httpx.get(f"{url}/v2/models/m", trust_env=False).json()["platform"] == "qedge_edge"
    assert ask(url, ROWS[:, :3]).status_code == 400
    undeploy(cluster, "m")
    assert ask(url).status_code == 404


def test_what_no_rung_meets_or_does_not_hold_is_refused_and_what_was_served_still_is(cluster: Settings, tmp_path: Path) -> None:
    found = made(cluster, tmp_path / "ladder")
    url = deploy(cluster, served(found, Requirement()))
    with pytest.raises(NoRungFits, match="fp32"):
        deploy(cluster, served(found, Requirement(accuracy=0.99)))
    small = cluster.model_copy(update={"edge": cluster.edge.model_copy(update={"replica_bytes": 1000})})
    with pytest.raises(OverBudget):
        deploy(small, served(found, Requirement()))
    other = made(cluster, tmp_path / "other")
    with pytest.raises(Tampered, match="m/1"):
        deploy(cluster, ModelFolder("m", "2", str(other.folder), edge=Requirement()))
    (other.folder / "card.json").write_bytes((other.folder / "card.json").read_bytes().replace(b'"m"', b'"n"'))
    with pytest.raises(Tampered):
        deploy(cluster, served(other, Requirement()))
    assert ask(url).json()["parameters"]["receipt"] == found.id
    undeploy(cluster, "m")


def test_a_gateway_on_ray_is_a_node_that_says_what_it_follows(cluster: Settings, tmp_path: Path) -> None:
    away = cluster.model_copy(update={"home": tmp_path / "home", "tracking_uri": f"http://127.0.0.1:{free_port()}"})
    key = Keys.open(cluster.home).public
    with pytest.raises(EdgeError, match="twice"):
        start_gateway("porch", 1 << 20, away, [Followed("m"), Followed("m/1")], key)
    porch = start_gateway("porch", 1 << 20, away, [Followed("m")], key)
    try:
        (said,) = ray.get(porch.look.remote())
        assert said.version is None
        assert isinstance(said.error, RegistryUnavailable)
        assert beats()["porch"] is not None
        with pytest.raises(InvalidConfig, match="already"):
            start_gateway("porch", 1 << 20, away, [Followed("m")], key)
    finally:
        ray.kill(porch)
