"""An inference endpoint in this process: the real application behind a real HTTP server, without Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from serve_apps.inference import InferenceServer
from serve_apps.open_inference import build


@contextmanager
def endpoint(server: InferenceServer) -> Iterator[str]:
    """The URL at which `server` answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        web = uvicorn.Server(uvicorn.Config(build(server), log_config=None, lifespan="off"))
        thread = threading.Thread(target=web.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            web.should_exit = True
            thread.join()
