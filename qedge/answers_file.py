"""The answers of a query as a file: all of it as JSON, or its numbers as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

from qedge.errors import InvalidRequest
from qedge.runs.query import Line, QueryResult
from qedge.storage import write_atomically

FORMATS = (".json", ".csv")


def refuse_answers_file(path: Path) -> None:
    """Refuse a file that could not be written, before anything is asked.

    Raises:
        InvalidRequest: an ending that says no known format, or a place where no file can be made.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidRequest(f"--output {path}: '{path.suffix}' is no known format; accepted: {', '.join(FORMATS)}", given=str(path))
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidRequest(f"--output {path}: no file can be written there; give one in a folder that is there", given=str(path))


def write_answers_file(path: Path, result: QueryResult) -> None:
    """Write what a query came to as the ending of `path` says: all of it, or nothing.

    Raises:
        InvalidRequest: as `refuse_answers_file`. StorageFull, HomeUnusable: it cannot be written; an older file is as it was.
    """
    refuse_answers_file(path)
    if path.suffix.lower() == ".json":
        content = json.dumps(result.plain(), indent=1)
    else:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Line._fields, *result.lines()])
        content = text.getvalue()
    write_atomically(path, content.encode())
