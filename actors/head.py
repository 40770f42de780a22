"""The process behind `qedge start`: it owns a Ray and starts Serve on it, until it is told to stop.

Run as `python -m actors.head FOLDER serve|train` in the environment of `actors.environment`, the settings as JSON on its
standard input: they may hold a password, and everybody on the machine can read a command line.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from pathlib import Path

from actors import session
from actors.cluster import drop_endpoint, serve_starting
from actors.serving import start_serve
from qedge.config import Settings
from qedge.errors import QEdgeError
from qedge.storage import write_atomically


def main() -> None:
    """Start, say where in FOLDER/address, then wait for the signal to end."""
    settings, folder = Settings.model_validate_json(sys.stdin.buffer.read()), Path(sys.argv[1])
    stopping = threading.Event()
    with serve_starting(settings):
        address = session.start(settings, folder)
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        write_atomically(folder / "address", address.encode())
        if sys.argv[2] == "serve":
            _serve(settings)
    stopping.wait()


def _serve(settings: Settings) -> None:
    """Start Serve. Where its port was taken since `qedge start` looked, Ray goes on without, and whoever deploys is told of the port."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        start_serve(settings)
    except (QEdgeError, RayError, RuntimeError, ValueError, TimeoutError):
        traceback.print_exc()  # into the home's cluster.log
        serve.shutdown()
        drop_endpoint(settings)


if __name__ == "__main__":
    main()
