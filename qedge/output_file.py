"""Where a command may write what it answers."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from qedge.errors import InvalidRequest


def refuse_output(path: Path, formats: Collection[str]) -> None:
    """Refuse a file that could not be written, before anything is asked. formats: the endings that are known.

    Raises:
        InvalidRequest: an ending that says no known format, or a place where no file can be made.
    """
    if path.suffix.lower() not in formats:
        raise InvalidRequest(f"--output {path}: '{path.suffix}' is no known format; accepted: {', '.join(formats)}", given=str(path))
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidRequest(f"--output {path}: no file can be written there; give one in a folder that is there", given=str(path))
