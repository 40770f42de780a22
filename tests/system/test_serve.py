"""Serving on a real Ray Serve, over real HTTP: deploy, replace, refuse, move; nothing that was answered is lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
from ray import serve

from actors.cluster import head, status
from actors.environment import processes_of
from qedge.config import Settings
from qedge.errors import ArtifactTampered, InvalidRequest, PortInUse, ReceiptTampered, RequestTooLarge, UnknownModel
from qedge.sdk import Client
from qedge.security.keys import Keys, public_text
from serve_apps import app
from serve_apps.app import deploy, running, undeploy
from serve_apps.model_folder import ModelFolder
from tests.endpoint import eventually, free_port
from tests.served_models import FEATURES, answer, graph, write

pytestmark = pytest.mark.slow
ROWS = np.random.default_rng(0).normal(size=(5, FEATURES)).astype(np.float32)
BODY = json.dumps({"inputs": [{"name": "features", "shape": [5, FEATURES], "datatype": "FP32", "data": ROWS.ravel().tolist()}]})
JSON = {"content-type": "application/json"}


def made(settings: Settings, name: str, seed: int) -> ModelFolder:
    """Version `seed` of a model, signed by the home."""
    folder = write(settings.home / "models" / name / str(seed), name, Keys.open(settings.home), graph(seed))
    return ModelFolder(name, str(seed), str(folder))


def replica(settings: Settings) -> psutil.Process:
    (process,) = _replicas(settings)
    return process


def _replicas(settings: Settings) -> list[psutil.Process]:
    record = head(settings)
    assert record is not None
    return [one for one in processes_of(record.folder) if "ServeReplica" in one.cmdline()[0]]


def assert_answers(url: str, name: str, seed: int) -> None:
    with Client(url) as client:
        prediction = client.infer(name, ROWS)
    np.testing.assert_array_equal(prediction.labels, answer(ROWS, seed)[0])
    np.testing.assert_allclose(prediction.probabilities, answer(ROWS, seed)[1], atol=1e-5)
    assert prediction.version == str(seed)


@pytest.fixture
def url(cluster: Settings) -> str:
    """The endpoint, serving version 1 of `mail`."""
    return deploy(cluster, made(cluster, "mail", 1))


def test_a_deployed_model_answers_as_numpy_does(cluster: Settings, url: str) -> None:
    assert_answers(url, "mail", 1)
    shown = status(cluster)
    assert (shown["endpoint"], shown["models"]) == (url, ["mail"])


def test_two_models_are_served_and_one_can_be_taken_away(cluster: Settings, url: str) -> None:
    assert deploy(cluster, made(cluster, "bank", 2)) == url
    assert_answers(url, "mail", 1)
    assert_answers(url, "bank", 2)
    undeploy(cluster, "bank")
    with Client(url) as client:
        assert client.models() == ("mail",)
        with pytest.raises(UnknownModel):
            client.model("bank")
    with pytest.raises(UnknownModel, match="did you mean 'mail'"):
        undeploy(cluster, "maill")


def test_a_new_version_takes_over_without_a_lost_request_or_a_new_process(cluster: Settings, url: str) -> None:
    before = replica(cluster)
    statuses: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            while not stop.is_set():
                response = http.post("/v2/models/mail/infer", content=BODY, headers=JSON)
                statuses.append((response.status_code, response.json().get("model_version", "")))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        assert eventually(lambda: len(statuses) > 20)
        for version in (2, 1, 2):
            deploy(cluster, made(cluster, "mail", version))
        seen = len(statuses)
        assert eventually(lambda: len(statuses) > seen + 20)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert set(statuses) == {(200, "1"), (200, "2")}
    assert {version for _, version in statuses[seen + 4 :]} == {"2"}
    assert replica(cluster) == before


@pytest.mark.parametrize(("file", "kind"), [("model.onnx", ArtifactTampered), ("receipt.json", ReceiptTampered)])
def test_a_tampered_model_is_refused_and_the_old_one_goes_on(cluster: Settings, url: str, file: str, kind: type[Exception]) -> None:
    model = made(cluster, "mail", 3)
    path = Path(model.folder) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = running()
    with pytest.raises(kind):
        deploy(cluster, model)
    assert running() == before
    assert_answers(url, "mail", 1)


def test_a_model_signed_by_somebody_else_is_refused(cluster: Settings, url: str, tmp_path: Path) -> None:
    stranger = Keys.open(tmp_path / "stranger")
    model = ModelFolder("mail", "3", str(write(tmp_path / "model", "mail", stranger, graph(seed=3))))
    with pytest.raises(ReceiptTampered, match="pinned"):
        deploy(cluster, model)
    assert_answers(url, "mail", 1)
    assert deploy(cluster, replace(model, key=public_text(stranger.public))) == url
    assert_answers(url, "mail", 3)


def test_a_model_altered_after_the_check_is_refused_by_the_replica_itself(cluster: Settings, url: str) -> None:
    model = made(cluster, "mail", 3)
    (Path(model.folder) / "model.onnx").write_bytes(graph(seed=4).SerializeToString())
    plan = running()
    assert plan is not None
    bad = plan.model_copy(update={"generation": "altered", "models": {"mail": model}})
    app._follow(bad, cluster)
    assert isinstance(app._await_plan(bad, cluster)["mail"], ArtifactTampered)
    assert_answers(url, "mail", 1)
    with Client(url) as client:
        assert client.live()
        assert not client.ready("mail", "3")


def test_two_replicas_have_both_taken_a_version_up_when_it_is_deployed(cluster: Settings, url: str) -> None:
    """Each request has a connection of its own, so that both are asked; all of 40 ask the same one with a chance of 2e-12."""
    two = cluster.model_copy(update={"serve": cluster.serve.model_copy(update={"replicas": 2})})
    deploy(two, made(cluster, "mail", 2))
    states = serve.get_app_handle(app.APPLICATION).broadcast("state").results(timeout_s=30)
    assert [state.plan.models["mail"].version for state in states] == ["2", "2"]
    versions = [httpx.post(f"{url}/v2/models/mail/infer", content=BODY, headers=JSON).json()["model_version"] for _ in range(40)]
    assert versions == ["2"] * 40
    deploy(cluster, made(cluster, "mail", 1))
    assert eventually(lambda: len(_replicas(cluster)) == 1)


def test_a_killed_replica_comes_back_with_its_models(cluster: Settings, url: str) -> None:
    before = replica(cluster)
    before.kill()
    assert eventually(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)
    with Client(url, timeout_s=5) as client:
        assert eventually(lambda: client.ready("mail", "1"))
    assert_answers(url, "mail", 1)


def test_what_the_endpoint_refuses_it_refuses_with_a_type(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(InvalidRequest, match=r"expected \[-1, 4\]"):
            client.infer("mail", np.zeros((1, FEATURES + 1)))
        with pytest.raises(UnknownModel):
            client.infer("other", ROWS)
    with httpx.Client(base_url=url, trust_env=False) as http:
        assert http.get("/v2/models/mail/infer").status_code == 405
        assert http.post("/v2/models/mail/infer", content=BODY).status_code == 415
        assert http.post("/v2/models/mail/infer", content=b"{", headers=JSON).json()["code"] == "request.invalid"
        rows = json.dumps({"inputs": [{"name": "features", "shape": [513, 4], "datatype": "FP32", "data": [0] * 2052}]})
        assert "at most 512" in http.post("/v2/models/mail/infer", content=rows, headers=JSON).json()["detail"]


def test_a_body_over_the_limit_is_413_announced_or_chunked(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        too_much = b" " * 65537
        assert http.post("/v2/models/mail/infer", content=too_much, headers=JSON).json()["code"] == RequestTooLarge.code
        chunked = http.post("/v2/models/mail/infer", content=iter([too_much[:30000], too_much[:30000], too_much[:30000]]), headers=JSON)
        assert chunked.request.headers["transfer-encoding"] == "chunked"
        assert chunked.status_code == 413
        assert http.post("/v2/models/mail/infer", content=BODY.encode().ljust(65536), headers=JSON).status_code == 200


def test_an_endless_body_is_answered_while_it_is_still_open(url: str) -> None:
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        start = "POST /v2/models/mail/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(start.encode())
        for _ in range(70):
            connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_nothing_of_serve_listens_beyond_this_machine(cluster: Settings, url: str) -> None:
    """Neither the ingress nor the replica behind it, whose own port would go around the ingress."""
    ports = {connection.laddr.port for connection in replica(cluster).net_connections() if connection.status == psutil.CONN_LISTEN}
    addresses = {connection.laddr.ip for connection in replica(cluster).net_connections() if connection.status == psutil.CONN_LISTEN}
    http_ports = {port for port in ports if port < 30000} | {int(url.rpartition(":")[2])}
    assert len(http_ports) == 2, (ports, addresses)
    beyond = ray.util.get_node_ip_address()
    assert beyond != "127.0.0.1"
    for port in http_ports:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((beyond, port), timeout=5)


def test_requests_show_on_ray_s_prometheus_endpoint(url: str) -> None:
    assert_answers(url, "mail", 1)
    node = ray.nodes()[0]
    at = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    assert eventually(lambda: "ray_qedge_requests_total{" in httpx.get(at, trust_env=False).text)


def test_a_replica_imports_neither_torch_nor_mlflow() -> None:
    """They would cost seconds of every start."""
    heavy = "{'torch', 'mlflow', 'onnx', 'sklearn', 'pandas'} & set(sys.modules)"
    code = f"import sys; from serve_apps.app import Inference; from serve_apps import open_inference; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_endpoint_that_serves_nothing_moves_to_the_port_asked_for_unless_it_is_taken(cluster: Settings, url: str) -> None:
    undeploy(cluster, "mail")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = cluster.model_copy(update={"serve": cluster.serve.model_copy(update={"port": taken.getsockname()[1]})})
        with pytest.raises(PortInUse):
            deploy(busy, made(cluster, "mail", 1))
        with Client(url) as client:
            assert client.live()
    elsewhere = cluster.model_copy(update={"serve": cluster.serve.model_copy(update={"port": free_port()})})
    moved = deploy(elsewhere, made(cluster, "mail", 1))
    assert moved == f"http://127.0.0.1:{elsewhere.serve.port}"
    assert_answers(moved, "mail", 1)
    assert status(cluster)["endpoint"] == moved
    assert deploy(cluster, made(cluster, "bank", 2)) == moved, "an endpoint in use stays where it is"
