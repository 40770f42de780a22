"""Files that survive a crash and are shared by several processes: replaced whole, locked, their errors typed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qedge.errors import Failed, HomeUnusable, StorageFull

LOCK_TIMEOUT_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about `path` into ours.

    Raises:
        StorageFull: no space, over quota, or the disk fails.
        HomeUnusable: anything else: not writable, not a folder, gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"{path} could not be written: {error.strerror}; make room and go on", path=str(path)) from error
        raise HomeUnusable(f"{path} cannot be used: {error.strerror or error}", path=str(path)) from error


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path`: after a crash it holds the old content or the new, never a part.

    Raises:
        StorageFull, HomeUnusable: as `storage_errors`; the old content is untouched.
    """
    temporary = write_beside(path, content, mode=mode)
    with storage_errors(path):
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_beside(path: Path, content: bytes, *, mode: int = 0o600) -> Path:
    """A new file in the folder of `path` with this content, on the disk, for the caller to put in place."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with storage_errors(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[int]:
    """The open file (made 0600 when missing, for appending), while no other process or thread has it.

    The kernel lets go of the lock when its holder dies. Waiting is by short random sleeps: a blocking lock cannot time out.

    Raises:
        Failed: another process kept it longer than `timeout_s`.
        StorageFull, HomeUnusable: it cannot be opened.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise Failed(f"{path} has been locked by another process for {timeout_s:g} s; is one stopped?", path=str(path))
            time.sleep(random.uniform(0.0002, 0.002))  # noqa: S311 - spreads waiters, hides nothing
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
