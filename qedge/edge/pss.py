"""What a process takes of memory: its proportional set size, in which a page that several share is counted once among them.

Resident size counts a mapped file in full in each process that maps it: eight sessions of one model would seem to take eight times its
bytes.
Source: proc(5), smaps_rollup.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_ROLLUP = Path("/proc/self/smaps_rollup")


def pss_bytes(pid: int | None = None) -> int:
    """Of this process, or of another of the same user; where the kernel does not tell, what is the process's alone."""
    own = pid is None or pid == os.getpid()
    try:
        lines = (_ROLLUP if own else Path(f"/proc/{pid}/smaps_rollup")).read_text(encoding="ascii").splitlines()
    except OSError:
        taken: int = psutil.Process(pid).memory_full_info().uss
        return taken
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
