"""A driver that stops in the middle of its run, all its locks held, and goes on when it is told to: `… HOME RUN ROUND`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qedge import train
from qedge.config import load
from qedge.errors import QEdgeError
from qedge.federated.events import Event, RoundFinished


def main() -> None:
    """Go on with the run; wait at the round; print how it ended."""
    home, run, wait_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def pause(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == wait_at:
            print("waiting", flush=True)
            sys.stdin.readline()

    try:
        ended = {"rounds": train(resume=run, backend="serial", settings=load(environ={}, home=home), on_event=pause).rounds}
    except QEdgeError as error:
        ended = {"error": error.code}
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
