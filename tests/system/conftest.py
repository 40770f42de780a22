"""A real Ray with a real Serve, one for all tests of a module that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors.cluster import connect, start_head, stop_head
from qedge.config import Settings, load
from tests.endpoint import free_port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a home whose cluster runs, this process connected to it."""
    settings = load(
        environ={},
        home=tmp_path_factory.mktemp("home"),
        serve={"port": free_port(), "max_body_bytes": 65536, "max_batch_rows": 512},
        cluster={"cpus": 2, "object_store_bytes": 100 * 2**20},
    )
    start_head(settings, serve=True)
    try:
        with connect(settings, start=False):
            yield settings
    finally:
        stop_head(settings)
