"""The answers of a query as a file: all of it as JSON, or its numbers as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from qedge.output_file import refuse_output
from qedge.runs.query import Line, QueryResult
from qedge.storage import write_atomically

FORMATS = (".json", ".csv")


def write_answers_file(path: Path, result: QueryResult) -> None:
    """Write what a query came to as the ending of `path` says: all of it, or nothing.

    Raises:
        InvalidRequest: as `refuse_output`. StorageFull, HomeUnusable: it cannot be written; an older file is as it was.
    """
    refuse_output(path, FORMATS)
    if path.suffix.lower() == ".json":
        content = json.dumps(result.plain(), indent=1)
    else:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Line._fields, *result.lines()])
        content = text.getvalue()
    write_atomically(path, content.encode())
