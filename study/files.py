"""Files that are replaced whole or not at all, and locks on directories."""

import contextlib
import fcntl
import glob
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from study.cli import UserError

ATTEMPTS, PAUSE = 20, 0.01  # at a lock that somebody may only be looking at; seconds


class FileError(UserError):
    """A file that is missing, unreadable, damaged, unsafe or cannot be written."""


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Atomic and durable: a temporary file in the same directory, flush, fsync, rename, fsync of the directory.

    Temporary files that a killed process left for the same name are removed; callers hold `locked(directory)`.
    """
    path = Path(os.path.realpath(path))
    scratch = None
    try:
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            stale.unlink()
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with open(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        sync_directory(path.parent)
    except BaseException as error:
        if scratch is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
        if isinstance(error, OSError):
            raise FileError(f"cannot write {path}: {error.strerror}; the old file, if any, is intact") from None
        raise


def sync_directory(directory: str | Path) -> None:
    """Makes what was renamed or linked in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(directory: str | Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a directory; the kernel releases it should the process die. Yields whether it was obtained.

    Args:
        wait: wait for a holder to finish; otherwise yield False if there is one. Who only looks whether it is held
            (`runs.is_locked`) holds it for some microseconds, and is outlasted.
    """
    path = Path(directory) / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
            obtained = _lock(file, wait)
        except OSError as error:
            raise FileError(f"cannot write or lock {path}: {error.strerror}") from None
        yield obtained


def _lock(file, wait):
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            time.sleep(PAUSE)
    return False
