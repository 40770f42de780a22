"""The gateway as a process of its own: a real registry, real HTTP, and a registry that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qedge.config import Settings
from qedge.edge.building.build import build
from qedge.errors import EdgeError, UnknownModel
from qedge.registry.following import Followed, Follower, Standing
from qedge.registry.ladder_cache import Cached, LadderCache
from qedge.registry.registry import Registry
from tests.edge.conftest import Home
from tests.edge_ladders import Told
from tests.endpoint import eventually, free_port

ROWS = np.random.default_rng(0).random((3, 64), np.float32)
MODEL = "digits@champion"


@contextmanager
def gateway(home: Path, *more: str, tracking_uri: str | None = None, models: tuple[str, ...] = (MODEL,)) -> Iterator[tuple[str, int]]:
    """The URL of a gateway that looks at its registry twice a second, and its process id."""
    command = [sys.executable, "-m", "qedge", "edge", "gateway", *models, "--home", str(home), "--port", "0", "--every", "0.5", *more]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("QEDGE_")}
    variables |= {"QEDGE_TRACKING_URI": tracking_uri} if tracking_uri else {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert " answers at http://" in line, line + process.stdout.read()
            yield line.split(" answers at ")[1].split("/v2/")[0], process.pid
        finally:
            process.kill()


def state(url: str) -> dict[str, object]:
    (found,) = httpx.get(f"{url}/gateway", trust_env=False).json()
    return dict(found)


def ask(url: str, rows: np.ndarray = ROWS) -> httpx.Response:
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return httpx.post(f"{url}/v2/models/digits/infer", json={"inputs": [tensor]}, trust_env=False)


def probabilities(url: str) -> np.ndarray:
    response = ask(url)
    assert response.status_code == 200, response.text
    return np.array(response.json()["outputs"][0]["data"]).reshape(len(ROWS), 10)


@pytest.mark.slow
def test_it_answers_follows_the_registry_and_goes_on_while_that_is_away(home: Home, tmp_path: Path) -> None:
    first = home.attached(tmp_path / "first", {"fp32": Told(), "int8": Told()})
    with gateway(home.settings.home) as (url, pid):
        assert eventually(lambda: state(url)["ladder"] == first.id)
        np.testing.assert_allclose(probabilities(url), first.load("fp32").run(ROWS), atol=1e-6)
        told = ask(url).json()["parameters"]
        assert (told["receipt"], told["rung_receipt"]) == (first.id, first.receipts[told["rung"]].id)
        second = home.attached(tmp_path / "second", {"fp32": Told()})
        assert eventually(lambda: state(url)["ladder"] == second.id)
        assert ask(url).json()["parameters"]["receipt"] == second.id
        families = {one.name for one in text_string_to_metric_families(httpx.get(f"{url}/metrics", trust_env=False).text)}
        assert {"qedge_requests", "qedge_edge_budget_bytes", "process_resident_memory_bytes"} <= families
        os.kill(pid, signal.SIGKILL)
    with gateway(home.settings.home, tracking_uri=f"http://127.0.0.1:{free_port()}") as (url, pid):
        assert eventually(lambda: ask(url).status_code == 200)
        assert (state(url)["ladder"], state(url)["fresh"]) == (second.id, False)
        np.testing.assert_allclose(probabilities(url), second.load("fp32").run(ROWS), atol=1e-6)
        os.kill(pid, signal.SIGINT)


@pytest.mark.slow
def test_what_does_not_hold_is_never_served_and_what_was_served_still_is(home: Home, tmp_path: Path) -> None:
    good = home.attached(tmp_path / "good", {"fp32": Told()})
    with gateway(home.settings.home) as (url, _):
        assert eventually(lambda: state(url)["ladder"] == good.id)
        registry = Registry(home.settings)
        bad = build(home.asked("fp32"), home.model, tmp_path / "bad", home.records)
        (tmp_path / "bad" / "fp32.data").write_bytes(b"\0" * 8)
        registry.attach_ladder(registry.resolve("digits"), tmp_path / "bad", bad.id)
        assert eventually(lambda: state(url)["error"] is not None)
        assert state(url)["error"]["code"] == "tampered.artifact"  # type: ignore[index]
        assert ask(url).json()["parameters"]["receipt"] == good.id
        home.attached(tmp_path / "mended", {"fp32": Told()})
        assert eventually(lambda: state(url)["error"] is None)


@pytest.mark.slow
def test_requests_that_do_not_fit_are_problems(home: Home, tmp_path: Path) -> None:
    home.attached(tmp_path / "ladder", {"fp32": Told()})
    with gateway(home.settings.home) as (url, _):
        assert eventually(lambda: ask(url).status_code == 200)
        assert ask(url, np.zeros((1, 3), np.float32)).json()["code"] == "request.invalid"
        assert httpx.get(f"{url}/v2/models/nothing", trust_env=False).status_code == 404


@pytest.mark.parametrize(
    ("models", "more", "code"),
    [
        (("digits@champion", "digits/1"), (), "edge.refused"),
        (("digits:accuracy=2",), (), "edge.refused"),
        (("a@b@c",), (), "model.unknown"),
        ((MODEL,), ("--memory", "much"), "edge.refused"),
        ((MODEL,), ("--key", "00"), "key.invalid"),
    ],
)
def test_a_gateway_that_could_not_serve_is_not_started(tmp_path: Path, models: tuple[str, ...], more: tuple[str, ...], code: str) -> None:
    command = [sys.executable, "-m", "qedge", "edge", "gateway", *models, "--home", str(tmp_path), "--port", "0", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"refused [{code}]" in done.stderr + done.stdout


class TestFollower:
    """By itself: what it hands on, and what it says."""

    def test_a_refusal_to_serve_is_said_and_asked_again(self, home: Home, tmp_path: Path) -> None:
        ladder = home.attached(tmp_path / "ladder", {"fp32": Told()})
        served: list[Cached] = []

        def serve(_: Followed, found: Cached) -> None:
            served.append(found)
            if len(served) == 1:
                raise EdgeError("not now")

        cache = LadderCache(Registry(home.settings), tmp_path / "cache", home.records.keys.public)
        follower = Follower(cache, [Followed(MODEL)], serve)
        (refused,) = follower.look()
        assert (refused.ladder, str(refused.error)) == (None, "not now")
        (taken,) = follower.look()
        assert (taken.ladder, taken.version, taken.fresh, taken.error) == (ladder.id, "1", True, None)
        follower.look()
        assert len(served) == 2  # what is served is not handed on again

    def test_what_will_not_do_neither_takes_the_place_of_what_answers_nor_its_files(self, home: Home, tmp_path: Path) -> None:
        good, folder = home.attached(tmp_path / "good", {"fp32": Told()}), tmp_path / "cache"
        served: list[str] = []

        def serve(_: Followed, found: Cached) -> None:
            if found.ladder.id != good.id:
                raise EdgeError("less accurate than required")
            served.append(found.ladder.id)

        cache = LadderCache(Registry(home.settings), folder, home.records.keys.public)
        Follower(cache, [Followed(MODEL)], serve).look()
        home.attached(tmp_path / "worse", {"fp32": Told()})
        follower = Follower(cache, [Followed(MODEL)], serve)
        follower.begin()
        (said,) = follower.look()
        assert (said.ladder, str(said.error)) == (good.id, "less accurate than required")
        assert good.id in {path.name for path in (folder / "ladders").iterdir()}
        again = Follower(LadderCache(Registry(home.settings), folder, home.records.keys.public), [Followed(MODEL)], serve)
        again.begin()  # as after a restart
        assert served == [good.id] * 3

    def test_an_unknown_model_is_said_and_the_others_are_served(self, settings: Settings, home: Home, tmp_path: Path) -> None:
        home.attached(tmp_path / "ladder", {"fp32": Told()})
        cache = LadderCache(Registry(home.settings), tmp_path / "cache", home.records.keys.public)
        names: list[str] = []
        follower = Follower(cache, [Followed("nobody"), Followed(MODEL)], lambda one, _: names.append(one.name))
        unknown, known = follower.look()
        assert isinstance(unknown.error, UnknownModel)
        assert (names, known.error) == (["digits"], None)

    def test_a_reference_is_one_model_with_what_it_must_meet(self) -> None:
        one = Followed.parse("digits@champion:accuracy=0.9,p95_ms=5")
        assert (one.reference, one.name, one.requirement.given()) == (MODEL, "digits", {"accuracy": 0.9, "p95_ms": 5.0})
        with pytest.raises(UnknownModel):
            Followed.parse("")
        with pytest.raises(EdgeError, match="no model"):
            Follower.refuse([])
        assert Standing(MODEL, None, None, False, 0.0).error is None
