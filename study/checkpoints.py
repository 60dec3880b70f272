"""Reading and writing checkpoints so that none is ever lost, half-written or able to run code.

A checkpoint is a dict in `torch.save`'s zip format. Reading verifies every member's checksum and unpickles only
tensors, plain Python values and a few harmless types; writing replaces the old file when the new one is safely on disk.
"""

import io
import math
import os
import pathlib
import zipfile
from pathlib import Path

import numpy as np
import torch

from study.files import FileError, locked, sync_directory, write_bytes

# Harmless types in files of the study's original program: numpy scalars (under numpy 2 their module has a new name) and
# paths. Nothing else beyond tensors and plain values is ever unpickled.
SAFE_TYPES = [
    pathlib.PosixPath,
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
]
BASIC_METRICS = (
    *("train_acc", "val_acc", "test_acc", "train_loss", "val_loss", "test_loss"),
    *("l1_norm", "l2_norm", "nuc_norm", "sparsity"),
)  # the plain numbers among a checkpoint's keys
DIRECTORY = 0x10  # the zip attribute; torch.load leaves the tensor of a member so marked uninitialised, without a word


def read(path, mmap=False):
    """The dict in a checkpoint, tensors on the CPU.

    Args:
        path: the file.
        mmap: map tensors into memory instead of reading them, for tables over many files. Only the structure and plain
            values (the member data.pkl) are then verified: a damaged tensor goes unnoticed, and truncating the file in
            place (nothing here does) would end the program.

    Raises: FileError if the file is missing, truncated, damaged (a member's CRC-32 disagrees), not a checkpoint,
        or holds objects that could run code.
    """
    try:
        if mmap:
            with open(path, "rb") as file:
                return _decode(file, path, only="data.pkl", mmap=True)
        data = io.BytesIO(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
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
        raise FileError(f"{path}: damaged, or not a checkpoint ({_first_line(error)})") from None
    try:
        file.seek(0)
        with torch.serialization.safe_globals(SAFE_TYPES):
            source = path if options else file
            checkpoint = torch.load(source, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # likewise torch.load
        raise FileError(f"{path}: refused: {_reason(error)}") from None
    if not isinstance(checkpoint, dict):
        raise FileError(f"{path}: not a checkpoint: holds a {type(checkpoint).__name__}, expected a dict")
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

    Raises: FileError if the disk is full, the directory read-only…; the old file is then intact.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getbuffer())


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
            sync_directory(link.parent)
    except OSError as error:
        raise FileError(f"cannot write {link}: {error.strerror}") from None


def repair_best(weights_dir):
    """Links a missing or dangling `best.ckpt` to the checkpoint with the lowest val_loss; returns its path.

    Raises: FileError if there is no checkpoint to link to.
    """
    best = Path(weights_dir) / "best.ckpt"
    if not best.exists():
        files = sorted(path for path in best.parent.glob("*.ckpt") if path.name not in ("best.ckpt", "last.ckpt"))
        if not files:
            raise FileError(f"{best}: no such file, nor another checkpoint beside it")
        link_best(weights_dir, min(files, key=lambda path: _val_loss(read(path, mmap=True))))
    return best


def _val_loss(checkpoint):
    """A checkpoint's val_loss: as evaluated, otherwise as its training saw it; infinity if it says neither."""
    callbacks = checkpoint.get("callbacks", {}).values()
    seen = [state["current_score"] for state in callbacks if state.get("monitor") == "val_loss" and "dirpath" in state]
    return float(checkpoint.get("val_loss", seen[0] if seen else math.inf))
