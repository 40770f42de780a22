"""Serving on a real Ray Serve, over real HTTP: deploy, replace, refuse, move; nothing that was answered is lost."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import free_port
from served_models import FEATURES, answer, graph, write

from actors.cluster import status
from qedge.config import Settings
from qedge.errors import ArtifactTampered, ModelError, PortInUse, ReceiptTampered, UnknownModel
from qedge.sdk import Client
from qedge.security.keys import Keys
from serve_apps.app import deploy, running, undeploy

pytestmark = pytest.mark.slow
ROWS = np.random.default_rng(0).normal(size=(5, FEATURES)).astype(np.float32)


def made(settings: Settings, name: str, seed: int) -> Path:
    return write(settings.home / "models" / name / str(seed), name, Keys.open(settings.home), graph(seed))


def replica_pids(settings: Settings) -> set[int]:
    from ray.util.state import list_actors  # noqa: F401 - the dashboard is off; Serve's own word is used instead

    return set()


def test_a_deployed_model_answers_as_numpy_does(cluster: Settings) -> None:
    url = deploy(cluster, "mail", 1, made(cluster, "mail", 1))
    with Client(url) as client:
        prediction = client.infer("mail", ROWS)
    labels, probabilities = answer(ROWS, seed=1)
    np.testing.assert_array_equal(prediction.labels, labels)
    np.testing.assert_allclose(prediction.probabilities, probabilities, atol=1e-5)
    assert prediction.version == "1"
    assert status(cluster)["models"] == ["mail"]
    assert status(cluster)["endpoint"] == url
