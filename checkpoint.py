"""Reading and writing checkpoints so that none is ever lost, half-written or able to run code.

A checkpoint is a dict in `torch.save`'s zip format. Reading verifies every byte's checksum and unpickles only tensors,
plain Python values and a few harmless types; writing replaces the old file by rename when the new one is safely on disk.
"""
import contextlib
import fcntl
import io
import os
import pathlib
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from cli import UserError

# Harmless types in files of the study's original program: numpy scalars (under numpy 2 their module has a new name) and
# paths. Nothing else beyond tensors and plain values is ever unpickled.
SAFE_TYPES = [
    pathlib.PosixPath,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
]


class CheckpointError(UserError):
    """A file that is missing, unreadable, damaged, unsafe or cannot be written."""


def read(path, mmap=False):
    """The dict in a checkpoint, tensors on the CPU.

    Args:
        path: the file.
        mmap: map tensors into memory instead of reading them, for tables over many files; then only the structure and
            plain values (the member data.pkl) are verified, not the tensors.

    Raises: CheckpointError if the file is missing, truncated, damaged (a member's CRC-32 disagrees), not a checkpoint, or
        holds objects that could run code.
    """
    try:
        if mmap:
            return _decode(path, verify=_damaged_pickle, mmap=True)
        data = Path(path).read_bytes()
        return _decode(io.BytesIO(data), verify=zipfile.ZipFile.testzip)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _decode(file, verify, **options):
    """The checkpoint in a file; ValueError in one line if there is none that can be trusted."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = verify(archive)
    except OSError:
        raise
    except Exception as error:  # zipfile raises many types on damaged archives; each means the same to us
        raise ValueError(f"not a checkpoint, or a damaged one ({_first_line(error)})") from None
    if damaged:
        raise ValueError(f"damaged: the checksum of {damaged} does not match")
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            if hasattr(file, "seek"):
                file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # likewise torch.load
        raise ValueError(f"refused: {_reason(error)}") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"not a checkpoint: holds a {type(checkpoint).__name__}, expected a dict")
    return checkpoint


def _damaged_pickle(archive):
    """The name of the archive's data.pkl if its checksum does not match, else None."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    for name in names:
        try:
            archive.read(name)
        except zipfile.BadZipFile:
            return name
    return None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def _reason(error):
    """The line of torch's long refusal that names the offending object, or else its first line."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or [_first_line(error)])[0][:200]


def write(path, checkpoint):
    """Replaces a checkpoint: whole and on disk, or not at all. Writes through a link, which stays as it is.

    Raises: CheckpointError if the disk is full, the directory read-only…; the old file is then intact.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getbuffer())


def write_bytes(path, data):
    """Atomic and durable: a temporary file in the same directory, flush, fsync, rename, fsync of the directory.

    Temporary files that a killed process left for the same name are removed; callers hold `locked(directory)`.
    """
    path = Path(os.path.realpath(path))
    scratch = None
    try:
        for stale in path.parent.glob(f".{path.name}.*.tmp"):
            stale.unlink()
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with open(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        _sync_directory(path.parent)
    except BaseException as error:
        if scratch is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write {path}: {error.strerror}; the old file, if any, is intact") from None
        raise


def _sync_directory(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_best(weights_dir, target):
    """Makes `best.ckpt` in a weights directory a relative link to its file `target`, replacing the old link at once."""
    link = Path(weights_dir) / "best.ckpt"
    scratch = link.with_name(".best.ckpt.link")
    try:
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(Path(target).name)
        os.replace(scratch, link)
        _sync_directory(link.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {link}: {error.strerror}") from None


@contextlib.contextmanager
def locked(directory, wait=True):
    """Holds the lock of a directory; the kernel releases it should the process die. Yields whether it was obtained.

    Args:
        wait: wait for a holder to finish; otherwise yield False at once if there is one.
    """
    path = Path(directory) / ".lock"
    try:
        file = open(path, "ab")  # noqa: SIM115 (closed below, which releases the lock)
    except OSError as error:
        raise CheckpointError(f"cannot write in {directory}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
