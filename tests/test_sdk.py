"""The client against the real application over real HTTP: numpy in, numpy out, the server's errors as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qedge.errors import AddressUnreachable, Failed, InvalidConfig, InvalidRequest, RequestTooLarge, UnknownModel
from qedge.sdk import Client
from qedge.security.keys import Keys
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder
from tests.endpoint import endpoint
from tests.served_models import FEATURES, answer, graph, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    home = tmp_path_factory.mktemp("home")
    keys = Keys.open(home)
    made = {
        "mail/1": ModelFolder("mail", "1", str(write(home / "1", "mail", keys, graph(seed=1)))),
        "mail/2": ModelFolder("mail", "2", str(write(home / "2", "mail", keys, graph(seed=2)))),
        "digits/7": ModelFolder("digits", "7", str(write(home / "7", "digits", keys, graph(seed=7, labels=(10, 20, 30))))),
    }
    return made


@pytest.fixture(scope="module")
def server(folders: dict[str, ModelFolder]) -> InferenceServer:
    server = InferenceServer(max_batch_rows=4096)
    server.serve([folders["mail/1"], folders["digits/7"]])
    return server


@pytest.fixture(scope="module")
def client(server: InferenceServer) -> Iterator[Client]:
    with endpoint(server) as url, Client(url) as client:
        yield client


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3000))
def test_predictions_equal_numpy_however_many_rows(client: Client, seed: int, count: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)
    prediction = client.infer("mail", rows)
    labels, probabilities = answer(rows, seed=1)
    np.testing.assert_allclose(prediction.probabilities, probabilities, atol=1e-5)
    clear = np.sort(probabilities, axis=1)
    clear_rows = clear[:, -1] - clear[:, -2] > 1e-5
    np.testing.assert_array_equal(prediction.labels[clear_rows], labels[clear_rows])
    assert prediction.version == "1"
    assert len(prediction.receipt) == 64


def test_integer_labels_come_back_as_integers(client: Client) -> None:
    prediction = client.infer("digits", np.zeros((2, FEATURES)))
    assert prediction.labels.dtype == np.int64
    assert set(prediction.labels.tolist()) <= {10, 20, 30}


def test_metadata_is_typed_and_names_the_features(client: Client) -> None:
    described = client.model("mail")
    assert described.features == ("f0", "f1", "f2", "f3")
    assert described.versions == ("1",)
    assert described.inputs[0].shape == (-1, FEATURES)
    assert described.receipt == client.infer("mail", np.zeros((1, FEATURES))).receipt
    assert client.models() == ("digits", "mail")


def test_live_and_ready_say_what_is_there(client: Client) -> None:
    assert client.live()
    assert client.ready("mail")
    assert client.ready("mail", "1")
    assert not client.ready("mail", "2")
    assert not client.ready("other")


@pytest.mark.parametrize(
    "rows", [np.zeros((0, FEATURES)), np.zeros(FEATURES), np.full((1, FEATURES), np.nan), np.full((1, FEATURES), 1e39)]
)
def test_rows_that_cannot_be_sent_are_refused_here(client: Client, rows: np.ndarray) -> None:
    with pytest.raises(InvalidRequest):
        client.infer("mail", rows)


def test_the_server_s_refusal_comes_back_as_its_class_with_its_facts(client: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"expected \[-1, 4\]") as refused:
        client.infer("mail", np.zeros((1, FEATURES + 1)))
    assert refused.value.facts["expected"] == [-1, FEATURES]
    assert type(refused.value) is InvalidRequest
    with pytest.raises(UnknownModel, match="did you mean 'mail'"):
        client.infer("mial", np.zeros((1, FEATURES)))
    with pytest.raises(UnknownModel):
        client.model("mail", "9")


def test_a_body_over_the_limit_is_its_own_error(folders: dict[str, ModelFolder]) -> None:
    server = InferenceServer(max_body_bytes=1024)
    server.serve([folders["mail/1"]])
    with endpoint(server) as url, Client(url) as client, pytest.raises(RequestTooLarge):
        client.infer("mail", np.full((500, FEATURES), 1 / 3))


def test_a_name_with_a_slash_cannot_reach_another_path(client: Client) -> None:
    for name in ("../health/live", "mail/ready", "mail%2Fready", "", "mail?x", "mail#"):
        assert not client.ready(name)
        with pytest.raises(UnknownModel):
            client.model(name)


def test_all_rows_are_answered_by_one_version_though_the_model_is_replaced(folders: dict[str, ModelFolder]) -> None:
    """The model is replaced after the third of eight pieces: no answer may mix the two."""
    requests = 0

    def replace_at_the_third(name: str, value: float, **tags: str) -> None:
        nonlocal requests
        requests += name == "qedge_requests_total"
        if name == "qedge_requests_total" and requests == 3:
            server.serve([folders["mail/2"]])

    server = InferenceServer(record=replace_at_the_third)
    server.serve([folders["mail/1"]])
    rows = np.random.default_rng(0).normal(size=(8000, FEATURES)).astype(np.float32)
    with endpoint(server) as url, Client(url) as client:
        prediction = client.infer("mail", rows)
    assert requests == 16
    assert prediction.version == "2"
    np.testing.assert_allclose(prediction.probabilities, answer(rows, seed=2)[1], atol=1e-5)


def test_nothing_there_is_unreachable(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9") as client:
        assert not client.live()
        assert not client.ready("mail")
        with pytest.raises(AddressUnreachable, match=r"127\.0\.0\.1:9"):
            client.infer("mail", np.zeros((1, FEATURES)))


@pytest.mark.parametrize("url", ["", "foo", "127.0.0.1:8000", "ftp://host", "http://", "http://[::1", "http://host:99999", "http://host:x"])
def test_a_url_that_is_none_is_refused_with_what_was_given_and_what_would_be_accepted(url: str) -> None:
    with pytest.raises(InvalidConfig, match=r"accepted: http://HOST:PORT") as refused:
        Client(url)
    assert refused.value.facts["given"] == url


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>", Failed),
        (200, b"{}", Failed),
        (502, b"bad gateway", Failed),
        (403, b"[]", InvalidRequest),
        (404, b"no such path", UnknownModel),
        (500, b"\xff", Failed),
    ],
)
def test_an_answer_that_is_no_inference_server_s_is_a_typed_error(status: int, body: bytes, kind: type[Exception]) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    other = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=other.serve_forever, daemon=True)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{other.server_port}") as client, pytest.raises(kind):
            client.model("mail")
    finally:
        other.shutdown()
        other.server_close()
        thread.join()
