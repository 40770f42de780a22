"""The process behind `qedge start`: it owns a Ray and starts Serve on it, until it is told to stop.

Run as `python -m actors.head FOLDER serve|train` in the environment of `actors.environment`, the settings as JSON on its
standard input: they may hold a password, and everybody on the machine can read a command line.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from actors import session
from actors.cluster import serve_starting
from actors.serving import start_serve
from qedge.config import Settings
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
            start_serve(settings)
    stopping.wait()


if __name__ == "__main__":
    main()
