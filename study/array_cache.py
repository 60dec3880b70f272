"""The arrays of a data set, kept beside its files: made once, mapped into memory by every later process."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from study.files import FileError, locked

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
NOTE = "contents.json"  # in a cache: the hash of what its arrays hold, and the size and time of each of their files

_in_memory = {}  # the arrays last read whose folder cannot be written, under the path that their cache would have


def opened(cache: Path, read: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], str]:
    """The arrays in a cache and a hash of their contents; `read()` makes the arrays where there is no whole cache.

    Jobs that start side by side wait for the first of them to make it. Caches of earlier states of the files, which lie
    beside it, are then removed. Where nothing can be written (read-only, full) the arrays stay in memory.

    Args:
        cache: the cache's folder, `arrays-KEY`. The key stands for the state of the files that the arrays come from.
        read: returns the four ARRAYS.
    """
    return _mapped(cache) or _in_memory.get(cache) or _made(cache, read)


def _made(cache, read):
    with contextlib.ExitStack() as stack:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache.parent))
            writable = True
        except (OSError, FileError):
            writable = False
        if found := _mapped(cache):
            return found
        arrays = read()
        contents = contents_hash(arrays)
        if writable and _write(cache, arrays, contents) and (found := _mapped(cache)):
            return found
    _in_memory.clear()
    _in_memory[cache] = arrays, contents
    return arrays, contents


def contents_hash(arrays: list[np.ndarray]) -> str:
    """A hash of four arrays: their types, shapes and values."""
    digest = hashlib.sha256()
    for key, array in zip(ARRAYS, arrays, strict=True):
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


def _mapped(cache):
    """The arrays of a cache, mapped copy-on-write, and their hash; None unless every file is as it was written."""
    try:
        note = json.loads((cache / NOTE).read_text())
        if note["files"] == _stamps(cache):
            return [np.load(cache / f"{key}.npy", mmap_mode="c") for key in ARRAYS], note["contents"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: it is made again
    return None


def _stamps(cache):
    files = [(cache / f"{key}.npy").stat() for key in ARRAYS]
    return [[file.st_size, file.st_mtime_ns] for file in files]


def _write(cache, arrays, contents):
    """Writes a cache, all or nothing, and removes older ones; False if it cannot. The caller holds the lock."""
    scratch = cache.with_name(f".{cache.name}.tmp")
    try:
        for stale in cache.parent.glob(".arrays-*"):  # a killed process left it
            shutil.rmtree(stale)
        scratch.mkdir()
        for key, array in zip(ARRAYS, arrays, strict=True):
            with open(scratch / f"{key}.npy", "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        (scratch / NOTE).write_text(json.dumps({"contents": contents, "files": _stamps(scratch)}))
        if cache.exists():
            shutil.rmtree(cache)
        scratch.rename(cache)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        return False
    for old in cache.parent.glob("arrays-*"):
        if old != cache and _is_cache(old):
            shutil.rmtree(old, ignore_errors=True)
    return True


def _is_cache(folder):
    """Whether a folder holds what a cache holds and nothing of anybody's own."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(names) and names <= {f"{key}.npy" for key in ARRAYS} | {NOTE, "fingerprint"}
