"""Reading and writing checkpoints so that none is ever lost, half-written or able to run code.

A checkpoint is a dict in `torch.save`'s zip format. Reading verifies every member's checksum and unpickles only
tensors, plain Python values and a few harmless types; writing replaces the old file when the new one is safely on disk.
"""
import contextlib
import fcntl
import glob
import io
import math
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
DIRECTORY = 0x10  # the zip attribute; torch.load leaves the tensor of a member so marked uninitialised, without a word


class CheckpointError(UserError):
    """A file that is missing, unreadable, damaged, unsafe or cannot be written."""


def read(path, mmap=False):
    """The dict in a checkpoint, tensors on the CPU.

    Args:
        path: the file.
        mmap: map tensors into memory instead of reading them, for tables over many files. Only the structure and plain
            values (the member data.pkl) are then verified: a damaged tensor goes unnoticed, and truncating the file in
            place (nothing here does) would end the program.

    Raises: CheckpointError if the file is missing, truncated, damaged (a member's CRC-32 disagrees), not a checkpoint,
        or holds objects that could run code.
    """
    try:
        if mmap:
            with open(path, "rb") as file:
                return _decode(file, path, only="data.pkl", mmap=True)
        data = io.BytesIO(Path(path).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    return _decode(data, path)


def _decode(file, path, only="", **options):
    """The checkpoint in an open file; of its members, those whose name ends with `only` are verified."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.external_attr & DIRECTORY:
                    raise ValueError(f"{member.filename} is marked as a directory")
                if member.filename.endswith(only):
                    archive.read(member)  # raises if its CRC-32 does not match
    except Exception as error:  # zipfile raises many types on damaged archives; each means the same to us
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({_first_line(error)})") from None
    try:
        file.seek(0)
        with torch.serialization.safe_globals(SAFE_TYPES):
            source = path if options else file
            checkpoint = torch.load(source, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # likewise torch.load
        raise CheckpointError(f"{path}: refused: {_reason(error)}") from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: not a checkpoint: holds a {type(checkpoint).__name__}, expected a dict")
    return checkpoint


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
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
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
    link, target = Path(weights_dir) / "best.ckpt", Path(target).name
    if link.is_symlink() and os.readlink(link) == target:
        return
    scratch = link.with_name(".best.ckpt.link")
    try:
        with locked(weights_dir):
            scratch.unlink(missing_ok=True)
            scratch.symlink_to(target)
            os.replace(scratch, link)
            _sync_directory(link.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {link}: {error.strerror}") from None


def repair_best(weights_dir):
    """Links a missing or dangling `best.ckpt` to the checkpoint with the lowest val_loss; returns its path.

    Raises: CheckpointError if there is no checkpoint to link to.
    """
    best = Path(weights_dir) / "best.ckpt"
    if not best.exists():
        files = sorted(path for path in best.parent.glob("*.ckpt") if path.name not in ("best.ckpt", "last.ckpt"))
        if not files:
            raise CheckpointError(f"{best}: no such file, nor another checkpoint beside it")
        link_best(weights_dir, min(files, key=lambda path: _val_loss(read(path, mmap=True))))
    return best


def _val_loss(checkpoint):
    """A checkpoint's val_loss: as evaluated, otherwise as its training saw it; infinity if it says neither."""
    callbacks = checkpoint.get("callbacks", {}).values()
    seen = [state["current_score"] for state in callbacks if state.get("monitor") == "val_loss" and "dirpath" in state]
    return float(checkpoint.get("val_loss", seen[0] if seen else math.inf))


@contextlib.contextmanager
def locked(directory, wait=True):
    """Holds the lock of a directory; the kernel releases it should the process die. Yields whether it was obtained.

    Args:
        wait: wait for a holder to finish; otherwise yield False at once if there is one.
    """
    path = Path(directory) / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            obtained = True
        except BlockingIOError:
            obtained = False
        except OSError as error:
            raise CheckpointError(f"cannot write or lock {path}: {error.strerror}") from None
        yield obtained
