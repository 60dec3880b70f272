"""Reading and writing checkpoints so that none is ever lost, half-written or able to run code.

A checkpoint is a dict in `torch.save`'s zip format. Reading verifies every member's checksum and unpickles only
tensors, plain Python values and a few harmless types; writing replaces the old file when the new one is safely on disk.
"""

import io
import math
import os
import pathlib
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

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
BY_NAME = (
    "hyper_parameters",
    "state_dict",
    "callbacks",
    "assoc",
    "assoc_sign",
    "assoc_stderr",
    "assoc_made_with",
    "modules",
    "lesions",
    "align",
)  # its dicts
IN_LAYERS = ("modules", "lesions", "align")  # those that hold, for each name, a list over layers of dicts
DIRECTORY = 0x10  # the zip attribute; torch.load leaves the tensor of a member so marked uninitialised, without a word


def read(path: str | Path, mmap: bool = False) -> dict:
    """The dict in a checkpoint, tensors on the CPU. Results that are None, as if they were not there, are left out.

    Args:
        path: the file.
        mmap: map tensors into memory instead of reading them, for tables over many files. Only the structure and plain
            values (the member data.pkl) are then verified: a damaged tensor goes unnoticed, and truncating the file in
            place (nothing here does) would end the program.

    Raises: FileError if the file is missing, truncated, damaged (a member's CRC-32 disagrees), not a checkpoint,
        or holds objects that could run code.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            raise FileError(f"{path}: not a file")
        with open(path, "rb") as file:
            if mmap:
                _verify(file, path, only="data.pkl")
                return _unpickled(str(path), path, mmap=True)
            data = io.BytesIO(file.read())
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    _verify(data, path)
    return _unpickled(data, path)


def _verify(file: BinaryIO, path: str | Path, only: str = "") -> None:
    """Raises FileError unless an open file is a whole archive; members whose name ends with `only` are read for that.

    torch compresses nothing: an archive that unpacks to more than the file itself was made to fill the memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
                raise ValueError("it would unpack to more than itself")
            for member in members:
                if member.external_attr & DIRECTORY:
                    raise ValueError(f"{member.filename} is marked as a directory")
                if member.filename.endswith(only):
                    archive.read(member)  # raises if its CRC-32 does not match
    except Exception as error:  # zipfile raises many types on damaged archives; each means the same to us
        raise FileError(f"{path}: damaged, or not a checkpoint ({_first_line(error)})") from None
    file.seek(0)


def _unpickled(source: BinaryIO | str, path: str | Path, mmap: bool = False) -> dict:
    """The checkpoint in a verified file, open or (to be mapped) by its name."""
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch.load, too, raises many types
        raise FileError(f"{path}: refused: {_reason(error)}") from None
    if not isinstance(checkpoint, dict):
        raise FileError(f"{path}: not a checkpoint: holds a {type(checkpoint).__name__}, expected a dict")
    for kind in BY_NAME:
        entries = checkpoint.get(kind)
        if entries is None:
            checkpoint.pop(kind, None)
        elif not isinstance(entries, dict):
            raise FileError(f"{path}: its {kind} is a {type(entries).__name__}, expected a dict")
        elif kind in IN_LAYERS:
            checkpoint[kind] = {name: layers for name, layers in entries.items() if layers is not None}
            for name, layers in checkpoint[kind].items():
                if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
                    raise FileError(f"{path}: its {kind} of {name} are not a list of dicts, one a layer")
    return checkpoint


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def _reason(error: Exception) -> str:
    """The line of torch's long refusal that names the offending object, or else its first line."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or [_first_line(error)])[0][:200]


def plain(value: Any) -> Any:
    """A number that is wrapped in a tensor, a numpy scalar or a tuple of one, by itself; anything else as it is.

    >>> plain((torch.tensor(0.5),)), plain("mnist")
    (0.5, 'mnist')
    """
    if isinstance(value, tuple) and len(value) == 1:
        return plain(value[0])
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        return value.item()
    return value


def write(path: str | Path, checkpoint: dict) -> None:
    """Replaces a checkpoint: whole and on disk, or not at all. Writes through a link, which stays as it is.

    Raises: FileError if the disk is full, the directory read-only…; the old file is then intact.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getbuffer())


def link_best(weights_dir: str | Path, target: str | Path) -> None:
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


def repair_best(weights_dir: str | Path) -> Path:
    """Links a missing or dangling `best.ckpt` to the checkpoint with the lowest val_loss; returns its path.

    Raises: FileError if there is no checkpoint to link to.
    """
    best = Path(weights_dir) / "best.ckpt"
    if not best.exists():
        files = sorted(path for path in best.parent.glob("*.ckpt") if path.name not in ("best.ckpt", "last.ckpt"))
        if not files:
            raise FileError(f"{best}: no such file, nor another checkpoint beside it")
        link_best(weights_dir, min(files, key=lambda path: rank(_val_loss(read(path, mmap=True)))))
    return best


def rank(val_loss: float) -> float:
    """What to sort checkpoints by, best first: losses that are not numbers come last."""
    return math.inf if math.isnan(val_loss) else val_loss


def _val_loss(checkpoint: dict) -> float:
    """A checkpoint's val_loss: as evaluated, otherwise as its training saw it; NaN if it says neither."""
    loss = checkpoint.get("val_loss")
    return trained_val_loss(checkpoint) if loss is None else float(plain(loss))


def trained_val_loss(checkpoint: dict) -> float:
    """The val_loss that the training saw in the epoch after which it wrote a checkpoint; NaN if it does not say.

    Lightning keeps it for the best epochs only: a last.ckpt of another epoch knows nothing of its own.
    """
    own = f"epoch={checkpoint.get('epoch')}-step={checkpoint.get('global_step')}.ckpt"
    for state in checkpoint.get("callbacks", {}).values():
        if state.get("monitor") == "val_loss":
            for path, loss in state.get("best_k_models", {}).items():
                if Path(path).name == own:
                    return float(loss)
    return math.nan
