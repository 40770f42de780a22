"""A trained hybrid model on a real Ray Serve over real HTTP: from its graph with no quantum package, and on a backend through workers."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from actors.cluster import head
from actors.environment import processes_of
from qedge import train
from qedge.config import Settings, load
from qedge.errors import ArtifactTampered, BackendUnavailable, Failed, InvalidJob, ModelError, UnknownBackend
from qedge.job import TrainingJob
from qedge.job.model import Model
from qedge.models import build
from qedge.quantum.backend import Backend
from qedge.quantum.execution import LocalExecutor
from qedge.quantum.noise import Noise
from qedge.sdk import Client
from serve_apps.app import deploy, running, undeploy
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder, OnBackend
from serve_apps.problems import status_of
from serve_apps.quantum import MOST_ROWS
from tests.conftest import PRIVATE
from tests.endpoint import eventually

pytestmark = pytest.mark.slow
ROWS = np.random.default_rng(0).normal(size=(40, 13)).astype(np.float32) + 5


@pytest.fixture(scope="module")
def trained(cluster: Settings) -> ModelFolder:
    """A hybrid model that was trained privately in the cluster's home."""
    job = copy.deepcopy(PRIVATE) | {"model": {"kind": "hybrid", "qubits": 3, "layers": 2}, "rounds": 2}
    job["algorithm"] = {"local_epochs": 1, "batch_size": 4, "learning_rate": 0.3}
    result = train(TrainingJob.parse(job), backend="serial", settings=cluster)
    return ModelFolder("tiny", "1", str(cluster.home / "runs" / result.run_id / "model"))


def on(trained: ModelFolder, workers: int = 1, **backend: object) -> ModelFolder:
    return ModelFolder(trained.name, trained.version, trained.folder, quantum=OnBackend(Backend(**backend), workers))


def ask(url: str, rows: np.ndarray = ROWS, **more: object) -> httpx.Response:
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return httpx.post(f"{url}/v2/models/tiny/infer", json={"inputs": [tensor], **more}, timeout=120)


def outputs(response: httpx.Response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in response.json()["outputs"]}


def in_torch(folder: str) -> np.ndarray:
    """What the weights answer in torch, scaled by wine's declared ranges: another way than the graph, and than circuits."""
    card = json.loads((Path(folder) / "card.json").read_bytes())
    module = build(Model(kind="hybrid", qubits=3, layers=2), 13, 3, 0)
    module.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    center, spread = (np.array([float(one) for one in card[name]], dtype=np.float32) for name in ("center", "spread"))
    with torch.no_grad():
        return torch.softmax(module(torch.from_numpy((ROWS - center) / spread)), dim=1).numpy()


def test_the_graph_answers_as_at_training_time_with_no_quantum_package_in_the_replica(cluster: Settings, trained: ModelFolder) -> None:
    url = deploy(cluster, trained)
    np.testing.assert_allclose(outputs(ask(url))["probabilities"], in_torch(trained.folder), atol=1e-5)
    (loaded,) = loaded_by_replicas()
    assert "onnxruntime" in loaded
    assert not {"pennylane", "pennylane_lightning", "torch"} & loaded
    assert not processes(cluster, "QuantumWorkerActor")


def loaded_by_replicas() -> list[set[str]]:
    """The packages that each replica has imported, asked of the replica's own process."""
    named = [one for one in ray.util.list_named_actors(all_namespaces=True) if "InferenceDeployment" in one["name"]]
    actors = [ray.get_actor(one["name"], namespace=one["namespace"]) for one in named]
    return [set(ray.get(actor.__ray_call__.remote(lambda _: sorted({name.split(".")[0] for name in sys.modules})))) for actor in actors]


def processes(settings: Settings, kind: str) -> list[psutil.Process]:
    """Of the cluster's actors of this kind."""
    record = head(settings)
    assert record is not None
    return [one for one in processes_of(record.folder) if kind in " ".join(one.cmdline())]


def test_on_an_exact_backend_circuits_answer_as_the_graph_does(cluster: Settings, trained: ModelFolder) -> None:
    url = deploy(cluster, on(trained, name="default.qubit"))
    response = ask(url)
    found = outputs(response)
    np.testing.assert_allclose(found["probabilities"], in_torch(trained.folder), atol=1e-5)
    assert not found["error"].any()
    told = response.json()["parameters"]
    assert (told["backend"], told["shots"], told["circuits"], told["stream"]) == ("default.qubit", None, 40, None)
    assert ask(url, parameters={"stream": 1}).json()["code"] == "request.invalid"  # nothing is drawn, so nothing could be drawn again
    with Client(url) as client:
        assert client.model("tiny").platform == "qedge_quantum"
        many = client.infer("tiny", np.repeat(ROWS, 8, axis=0))  # more than are taken at once
    assert many.backend == "default.qubit"
    assert many.errors is not None
    assert many.errors.shape == many.probabilities.shape == (320, 3)
    np.testing.assert_allclose(many.probabilities[::8], found["probabilities"], atol=1e-6)
    assert any({"pennylane"} & loaded for loaded in loaded_by_replicas())  # that one can be seen to have it


def test_on_a_noisy_backend_the_answer_says_backend_shots_and_error_bar_and_a_killed_worker_is_not_noticed(
    cluster: Settings, trained: ModelFolder
) -> None:
    earlier = set(processes(cluster, "QuantumWorkerActor"))  # of what was served before, which are ending
    url = deploy(cluster, on(trained, 2, name="default.mixed", shots=500, noise=Noise(depolarizing=0.01)))
    first = ask(url)
    told, found = first.json()["parameters"], outputs(first)
    assert (told["backend"], told["shots"], told["noise"]["depolarizing"]) == ("default.mixed", 500, 0.01)
    assert 0 < found["error"].min() <= found["error"].max() < 0.2
    assert (np.abs(found["probabilities"].sum(axis=1) - 1) < 1e-5).all()
    assert eventually(lambda: len(set(processes(cluster, "QuantumWorkerActor")) - earlier) == 2)
    next(one for one in processes(cluster, "QuantumWorkerActor") if one not in earlier).kill()
    again = ask(url, parameters={"stream": told["stream"]})
    for name, values in outputs(again).items():
        np.testing.assert_array_equal(values, found[name])
    assert ask(url).json()["parameters"]["stream"] != told["stream"]
    assert [one["name"] for one in httpx.get(f"{url}/v2/models/tiny").json()["outputs"]] == ["probabilities", "label", "error"]


@pytest.mark.parametrize(
    "more", [{"parameters": {"stream": -1}}, {"parameters": {"stream": "x"}}, {"rows": np.zeros((MOST_ROWS + 1, 13), np.float32)}]
)
def test_requests_that_circuits_cannot_answer_are_refused(cluster: Settings, trained: ModelFolder, more: dict[str, object]) -> None:
    url = deploy(cluster, on(trained, name="default.qubit", shots=10))
    refused = ask(url, **more)  # type: ignore[arg-type]
    assert refused.status_code == 400
    assert refused.json()["code"] == "request.invalid"


def test_what_cannot_be_served_so_is_refused_and_what_was_served_still_is(cluster: Settings, trained: ModelFolder, tmp_path: Path) -> None:
    url = deploy(cluster, trained)
    plan = running()
    with pytest.raises(UnknownBackend, match=r"lightning\.qubit"):
        deploy(cluster, on(trained, name="lightning.cubit"))
    with pytest.raises(BackendUnavailable):
        deploy(cluster, on(trained, name="qiskit.remote"))
    for shots in (0, 1_000_001):
        with pytest.raises(InvalidJob):
            on(trained, name="default.qubit", shots=shots)
    with pytest.raises(ModelError, match=r"'default\.clifford' cannot run its quantum layer"):
        deploy(cluster, on(trained, name="default.clifford", shots=10))
    job = copy.deepcopy(PRIVATE) | {"name": "tiny", "rounds": 1}
    home = load(home=tmp_path / "home", environ={})
    linear = train(TrainingJob.parse(job), backend="serial", settings=home)
    with pytest.raises(ModelError, match="no quantum layer"):
        deploy(home, on(ModelFolder("tiny", "1", str(home.home / "runs" / linear.run_id / "model")), name="default.qubit"))
    weights = Path(trained.folder) / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(ArtifactTampered):
            deploy(cluster, on(trained, name="default.qubit"))
    finally:
        weights.write_bytes(content)
    assert running() == plan
    assert outputs(ask(url))["probabilities"].shape == (40, 3)


def test_a_backend_that_fails_later_is_no_fault_of_the_caller(trained: ModelFolder) -> None:
    server = InferenceServer(make_executor=lambda _: LocalExecutor())
    server.serve([on(trained, name="default.clifford", shots=10)])  # as after a change of the backend: nothing is tried here
    tensor = {"name": "features", "shape": [1, 13], "datatype": "FP32", "data": [1.0] * 13}
    with pytest.raises(Failed, match="could not answer") as failed:
        server.infer("tiny", None, json.dumps({"inputs": [tensor]}).encode())
    assert status_of(failed.value) == 500


def test_workers_end_with_the_model_that_they_served(cluster: Settings, trained: ModelFolder) -> None:
    deploy(cluster, on(trained, 2, name="default.qubit"))
    undeploy(cluster, "tiny")
    assert eventually(lambda: not processes(cluster, "QuantumWorkerActor"))
