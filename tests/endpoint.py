"""Endpoints for the tests: the real application behind a real HTTP server in this process, free ports, and patience."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from qedge.ports import free_ports
from serve_apps.inference import InferenceServer
from serve_apps.open_inference import build


@contextmanager
def endpoint(server: InferenceServer) -> Iterator[str]:
    """The URL at which `server` answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # whoever connects before the server is up waits instead of being refused
        web = uvicorn.Server(uvicorn.Config(build(server), log_config=None, lifespan="off"))
        thread = threading.Thread(target=web.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            web.should_exit = True
            thread.join()


def free_port() -> int:
    """A port that nobody listened on a moment ago, and that no connection is given."""
    (port,) = free_ports(1)
    return port


def eventually(holds: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Whether `holds` comes true before the time is up; returns as soon as it does."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
