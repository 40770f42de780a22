"""Errors over HTTP: one table of statuses, RFC 9457 bodies, and a body that is bounded while it is read."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

import qedge.errors
from qedge.errors import BudgetExceeded, Failed, InvalidRequest, Overloaded, QEdgeError, ReceiptTampered, UnknownModel
from qedge.security.keys import Keys
from serve_apps.bodies import SMALL_BYTES
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder
from serve_apps.problems import MEDIA_TYPE, STATUS, problem, status_of
from tests.endpoint import endpoint, eventually
from tests.served_models import FEATURES, graph, write

LIMIT = 4096
TENSOR = {"name": "features", "shape": [1, FEATURES], "datatype": "FP32", "data": [0.0] * FEATURES}
GOOD = json.dumps({"inputs": [TENSOR]}).encode()
JSON = {"content-type": "application/json"}
INFER = "/v2/models/mail/infer"


@pytest.fixture(scope="module")
def refused() -> list[str]:
    return []


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, refused: list[str]) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    folder = write(home / "model", "mail", Keys.open(home), graph(seed=1))

    def record(name: str, value: float, **tags: str) -> None:
        if name == "qedge_requests_refused_total":
            refused.append(tags["code"])

    server = InferenceServer(max_body_bytes=LIMIT, max_batch_rows=8, record=record)
    server.serve([ModelFolder("mail", "3", str(folder))])
    with endpoint(server) as at:
        yield at


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def _every_error() -> list[type[QEdgeError]]:
    kinds = [kind for kind in vars(qedge.errors).values() if isinstance(kind, type) and issubclass(kind, QEdgeError)]
    assert len(kinds) > 20
    return kinds


@pytest.mark.parametrize("kind", _every_error())
def test_every_error_has_a_status_that_agrees_with_its_exit_code(kind: type[QEdgeError]) -> None:
    status = status_of(kind("x"))
    assert 400 <= status < 600
    if issubclass(kind, qedge.errors.Refused):
        assert status < 500, "what the caller did wrong is a 4xx"
    else:
        assert status >= 500


def test_the_table_names_only_real_errors() -> None:
    assert set(STATUS) <= set(_every_error())


def test_a_problem_carries_code_facts_and_the_open_inference_error() -> None:
    response = problem(UnknownModel("no model 'x'", model="x"))
    body = json.loads(bytes(response.body))
    assert response.status_code == body["status"] == 404
    assert response.media_type == MEDIA_TYPE
    assert body["type"] == "urn:qedge:problem:model.unknown"
    assert (body["code"], body["model"]) == ("model.unknown", "x")
    assert body["detail"] == body["error"] == "no model 'x'"


def test_facts_cannot_overwrite_what_a_problem_is() -> None:
    body = json.loads(bytes(problem(InvalidRequest("bad", status=200, code="fine", type="about:blank")).body))
    assert (body["status"], body["code"], body["type"]) == (400, "request.invalid", "urn:qedge:problem:request.invalid")


@pytest.mark.parametrize("error", [ReceiptTampered("/secret/path", path="/secret/path"), Failed("/secret/path"), QEdgeError("/secret")])
def test_what_went_wrong_inside_is_not_shown(error: QEdgeError) -> None:
    response = problem(error)
    assert response.status_code == 500
    assert b"secret" not in bytes(response.body)


def test_a_refused_budget_is_a_conflict_with_what_is_left() -> None:
    body = json.loads(bytes(problem(BudgetExceeded("too much", left="0.5")).body))
    assert (body["status"], body["left"]) == (409, "0.5")


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code"),
    [
        ("POST", INFER, JSON, b"{", 400, "request.invalid"),
        ("POST", INFER, JSON, b"", 400, "request.invalid"),
        ("POST", INFER, JSON, json.dumps({"inputs": [TENSOR | {"shape": [1, 3]}]}).encode(), 400, "request.invalid"),
        ("POST", INFER, JSON, b" " * (LIMIT + 1), 413, "request.too-large"),
        ("POST", INFER, {}, GOOD, 415, "request.media-type"),
        ("POST", INFER, {"content-type": "application/octet-stream"}, GOOD, 415, "request.media-type"),
        ("POST", INFER, {"content-type": "text/plain; application/json"}, GOOD, 415, "request.media-type"),
        ("POST", "/v2/models/other/infer", JSON, GOOD, 404, "model.unknown"),
        ("POST", "/v2/models/mail/versions/2/infer", JSON, GOOD, 404, "model.unknown"),
        ("GET", "/v2/models/other", {}, None, 404, "model.unknown"),
        ("GET", "/v2/models/mail/versions/2/ready", {}, None, 404, "model.unknown"),
        ("GET", "/v2/models/a%2Fb", {}, None, 404, "request.unknown-path"),
        ("GET", "/v3", {}, None, 404, "request.unknown-path"),
        ("GET", "/docs", {}, None, 404, "request.unknown-path"),
        ("GET", INFER, {}, None, 405, "request.method"),
        ("DELETE", "/v2/models/mail", {}, None, 405, "request.method"),
    ],
)
def test_what_is_refused_says_so_and_is_counted(
    http: httpx.Client, refused: list[str], method: str, path: str, headers: dict[str, str], body: bytes | None, status: int, code: str
) -> None:
    refused.clear()
    response = http.request(method, path, headers=headers, content=body)
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    answer = response.json()
    assert (answer["code"], answer["status"]) == (code, status)
    assert answer["error"]
    assert refused == [code]


def test_method_not_allowed_says_which_is(http: httpx.Client) -> None:
    assert http.get(INFER).headers["allow"] == "POST"


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
def test_good_requests_are_answered(http: httpx.Client, content_type: str) -> None:
    for path in (INFER, "/v2/models/mail/versions/3/infer"):
        response = http.post(path, content=GOOD, headers={"content-type": content_type})
        assert response.status_code == 200
        assert response.json()["model_version"] == "3"


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/mail", "/v2/models/mail/versions/3/ready"])
def test_the_protocol_s_questions_are_answered(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


def test_a_body_at_the_limit_is_read_whole(http: httpx.Client) -> None:
    assert http.post(INFER, content=GOOD.ljust(LIMIT), headers=JSON).status_code == 200


def test_an_endless_chunked_body_is_cut_at_the_limit(url: str) -> None:
    """The caller announces no length and never ends: the answer must come while the body is still open."""
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=10) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(LIMIT // 1024 + 1):
            connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(url: str) -> None:
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=10) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {10**12}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_request_that_found_no_room_is_told_when_to_try_again() -> None:
    response = problem(Overloaded("full"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[str]:
    """An endpoint that takes bodies up to twice the size that counts, and gives a caller two seconds to send one."""
    server = InferenceServer(max_body_bytes=2 * SMALL_BYTES, read_timeout_s=2)
    folder = write(tmp_path / "model", "mail", Keys.open(tmp_path), graph(seed=1))
    server.serve([ModelFolder("mail", "3", str(folder))])
    with endpoint(server) as at, httpx.Client(transport=httpx.HTTPTransport(retries=5)) as client:
        assert client.get(at + "/v2/health/live").status_code == 200
        yield at


def _begin(at: str, announced: int, sent: int) -> socket.socket:
    """A connection with a request under way: `sent` bytes of the `announced` ones."""
    url = urlsplit(at)
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {announced}\r\n\r\n"
    connection.sendall(head.encode() + b" " * sent)
    return connection


@pytest.mark.parametrize("sent", [0, 1, SMALL_BYTES + 1])
def test_a_body_that_does_not_come_is_given_up(roomy: str, sent: int) -> None:
    with _begin(roomy, 2 * SMALL_BYTES, sent) as connection:
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.load(answer)["code"]) == (408, "request.timeout")


def test_bodies_under_way_share_a_budget_that_small_ones_need_not_and_that_comes_back(roomy: str) -> None:
    """Callers stop a byte short of the largest body. The ninth finds no room, until the others have run out of time."""
    large = GOOD.ljust(2 * SMALL_BYTES)
    with httpx.Client(base_url=roomy, trust_env=False) as client, ExitStack() as open_ones:
        under_way = [open_ones.enter_context(_begin(roomy, len(large), len(large) - 1)) for _ in range(8)]
        assert eventually(lambda: client.post(INFER, content=large, headers=JSON).status_code == 503, within_s=1.5)
        refusal = client.post(INFER, content=large, headers=JSON)
        assert (refusal.status_code, refusal.json()["code"], refusal.headers["retry-after"]) == (503, Overloaded.code, "1")
        assert client.post(INFER, content=GOOD, headers=JSON).status_code == 200
        assert [one.recv(12) for one in under_way] == [b"HTTP/1.1 408"] * 8
        assert client.post(INFER, content=large, headers=JSON).status_code == 200


def test_what_is_refused_or_hung_up_leaves_nothing_on_the_budget(roomy: str) -> None:
    large = b"{".ljust(2 * SMALL_BYTES)
    with httpx.Client(base_url=roomy, trust_env=False) as client:
        for _ in range(20):
            _begin(roomy, len(large), len(large) - 1).close()
            assert client.post(INFER, content=large, headers=JSON).status_code in (400, 503)
        assert eventually(lambda: client.post(INFER, content=GOOD.ljust(len(large)), headers=JSON).status_code == 200, within_s=5)


def test_a_model_that_does_not_hold_makes_the_server_not_ready(tmp_path: Path) -> None:
    server = InferenceServer()
    server.serve([ModelFolder("gone", "1", str(tmp_path / "gone"))])
    with endpoint(server) as at, httpx.Client(base_url=at, trust_env=False) as client:
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/models/gone/ready").status_code == 404
