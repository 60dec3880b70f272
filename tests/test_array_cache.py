"""The arrays kept beside the files of a data set: made once, and again when anything has changed or is damaged."""

import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import data_set_arrays, data_set_row, save_image
from PIL import Image

from study import array_cache, datasets, files
from study.array_cache import ARRAYS


def caches(root):
    return sorted(path.name for path in root.iterdir() if "arrays" in path.name)


def test_images_are_decoded_once_and_mapped_after(folder, monkeypatch):
    images, labels, test_images, _ = datasets.load("cifar10", folder)
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.uint8 and labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.asarray(Image.open(folder / "cifar10" / "test" / "dog" / "1.png"))
    assert np.array_equal(test_images[3].permute(1, 2, 0).numpy(), pixels)
    monkeypatch.setattr(datasets, "_checked", None)
    again, fingerprint = datasets._opened("cifar10", folder)
    assert all(isinstance(array, np.memmap) for array in again) and np.array_equal(again[0], images)
    assert fingerprint == datasets.fingerprint("cifar10", folder) == array_cache.contents_hash(again)


def test_fingerprint_tells_the_contents_and_nothing_else(folder, tmp_path):
    first = datasets.fingerprint("cifar10", folder)
    shutil.copytree(folder / "cifar10", tmp_path / "copy" / "cifar10", ignore=shutil.ignore_patterns("arrays-*"))
    assert datasets.fingerprint("cifar10", tmp_path / "copy") == first
    (folder / "cifar10" / "test" / "cat" / "1.png").rename(folder / "cifar10" / "test" / "dog" / "7.png")
    assert datasets.fingerprint("cifar10", folder) != first


def test_fingerprint_stays_what_it_is():
    """Runs on disk name it: with another one they would be of other data."""
    assert array_cache.contents_hash(data_set_arrays()) == "100bf61c53dce7af7a39af4c4f7ff0ca"


@pytest.mark.parametrize("change", range(5))
def test_fingerprint_changes_with_each_array_and_shape(change):
    arrays = data_set_arrays()
    before = array_cache.contents_hash(arrays)
    if change < 4:
        arrays[change] = arrays[change].copy()
        arrays[change].flat[-1] += 1
    else:
        arrays[0] = arrays[0].reshape(8, 1, 5, 3)
    assert array_cache.contents_hash(arrays) != before


def overwritten(root):
    path = root / "train" / "cat" / "1.png"
    before = path.stat()
    save_image(path, 99)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(root):
    path = root / "train" / "cat" / "1.png"
    save_image(root / "new.png", 99)
    os.utime(root / "new.png", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (root / "new.png").replace(path)


def linked_elsewhere(root):
    (root / "train" / "cat" / "1.png").unlink()
    (root / "train" / "cat" / "1.png").symlink_to(root / "outside" / "b.png")


def target_changed(root):
    save_image(root / "outside" / "a.png", 99)


def exchanged(root):
    a, b = (root / "train" / name / "2.png" for name in ("cat", "dog"))
    a.rename(root / "x.png")
    b.rename(a)
    (root / "x.png").rename(b)


CHANGES = {
    "a new file": lambda root: save_image(root / "train" / "cat" / "new.png", 99),
    "one less": lambda root: (root / "train" / "cat" / "1.png").unlink(),
    "overwritten, with its old time": overwritten,
    "replaced, with its old time": replaced,
    "in a nested folder": lambda root: save_image(root / "train" / "dog" / "deep" / "er" / "0.png", 99),
    "a link to another file": linked_elsewhere,
    "the file that a link leads to": target_changed,
    "moved to another class": lambda root: (root / "test/cat/1.png").rename(root / "test/dog/2.png"),
    "exchanged": exchanged,
}


@pytest.mark.parametrize("cheap", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_noticed_and_the_old_arrays_removed(folder, monkeypatch, change, cheap):
    if not cheap:
        monkeypatch.setattr(datasets, "CHEAP_FILES", 0)
    root = folder / "cifar10"
    save_image(root / "train" / "dog" / "deep" / "er" / "0.png", 50)
    save_image(root / "outside" / "a.png", 51)
    save_image(root / "outside" / "b.png", 52)
    save_image(root / "train" / "dog" / "2.png", 53)
    (root / "train" / "cat" / "link.png").symlink_to(root / "outside" / "a.png")
    first = datasets.fingerprint("cifar10", folder)
    assert datasets.fingerprint("cifar10", folder) == first and len(caches(root)) == 1
    CHANGES[change](root)
    assert datasets.fingerprint("cifar10", folder) != first
    assert len(caches(root)) == 1


def test_a_file_moved_to_the_next_class_is_noticed(tmp_path):
    for name in ("train/a/1", "train/a/2", "train/b/3", "test/a/4", "test/b/5"):
        save_image(tmp_path / "moved" / f"{name}.png", int(name[-1]))
    assert datasets.load("moved", tmp_path)[1].tolist() == [0, 0, 1]
    (tmp_path / "moved" / "train" / "a" / "2.png").rename(tmp_path / "moved" / "train" / "b" / "2.png")
    assert datasets.load("moved", tmp_path)[1].tolist() == [0, 1, 1]


def test_a_copy_of_small_data_needs_no_new_arrays(folder, tmp_path, monkeypatch):
    datasets.load("cifar10", folder)
    shutil.copytree(folder / "cifar10", tmp_path / "copy" / "cifar10")
    monkeypatch.setattr(datasets, "_checked", None)
    datasets.load("cifar10", tmp_path / "copy")


def test_another_reader_or_row_makes_new_arrays(tmp_path, monkeypatch):
    names = []
    for changes in ({}, {"version": 2}, {"classes": 5}):
        monkeypatch.setitem(datasets.DATASETS, "blobs", data_set_row(**changes))
        datasets.load("blobs", tmp_path)
        names += caches(tmp_path / "blobs")
    assert len(set(names)) == len(names) == 3


def test_what_is_not_a_cache_is_left_alone(folder):
    root = folder / "cifar10"
    (root / "arrays-of-mine").mkdir()
    (root / "arrays-of-mine" / "thesis.txt").write_text("")
    (root / "arrays-torchvision").mkdir()  # as earlier versions called it
    for key in ARRAYS:
        np.save(root / "arrays-torchvision" / key, np.zeros(3))
    (root / ".arrays-killed").mkdir()
    datasets.load("cifar10", folder)
    assert len(caches(root)) == 2 and caches(root)[-1] == "arrays-of-mine"


def test_arrays_are_on_disk_before_they_take_their_place(folder, monkeypatch):
    """A power cut would leave files of the right sizes and times, and nothing in them."""
    done, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(os.readlink(f"/dev/fd/{fd}")).stem), fsync(fd)))
    monkeypatch.setattr(Path, "rename", lambda path, target: (done.append("rename"), rename(path, target))[1])
    datasets.load("cifar10", folder)
    assert done == [*ARRAYS, "rename"]


def test_what_is_done_to_the_arrays_does_not_reach_their_file(folder):
    images = datasets.load("cifar10", folder)[0]
    (path,) = (folder / "cifar10").glob("arrays-*/train_images.npy")
    before = path.read_bytes()
    images.fill_(7)
    assert path.read_bytes() == before


def damage_middle(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda cache: (cache / "train_images.npy").write_bytes((cache / "train_images.npy").read_bytes()[:-9]),
    "empty": lambda cache: (cache / "test_labels.npy").write_bytes(b""),
    "missing": lambda cache: (cache / "train_labels.npy").unlink(),
    "one byte": lambda cache: damage_middle(cache / "test_images.npy"),
    "other arrays": lambda cache: np.save(cache / "test_images.npy", np.zeros((4, 3, 32, 32), np.uint8)),
    "no note": lambda cache: (cache / "contents.json").unlink(),
    "note damaged": lambda cache: (cache / "contents.json").write_text('{"conte'),
    "note of another kind": lambda cache: (cache / "contents.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_arrays_are_made_again(folder, damage):
    before = [tensor.clone() for tensor in datasets.load("cifar10", folder)]
    fingerprint = datasets.fingerprint("cifar10", folder)
    (name,) = caches(folder / "cifar10")
    DAMAGES[damage](folder / "cifar10" / name)
    assert all(torch.equal(a, b) for a, b in zip(datasets.load("cifar10", folder), before, strict=True))
    assert datasets.fingerprint("cifar10", folder) == fingerprint
    again, _ = datasets._opened("cifar10", folder)
    assert isinstance(again[0], np.memmap)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_folders_and_files_have_the_modes_that_the_umask_gives(folder, umask, mode):
    before = os.umask(umask)
    try:
        datasets.load("cifar10", folder)
    finally:
        os.umask(before)
    (name,) = caches(folder / "cifar10")
    cache = folder / "cifar10" / name
    assert cache.stat().st_mode & 0o777 == mode
    assert all(path.stat().st_mode & 0o777 == mode & 0o666 for path in cache.iterdir())


@pytest.fixture
def read_only(monkeypatch):
    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which the second array finds no room."""
    save_array = np.save

    def limited(file, array):
        if array.ndim == 1:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_array(file, array)

    monkeypatch.setattr(np, "save", limited)


@pytest.mark.parametrize("disk", ["read_only", "full_disk"])
def test_where_nothing_can_be_written_arrays_stay_in_memory(folder, request, monkeypatch, disk):
    request.getfixturevalue(disk)
    images, labels, _, _ = datasets.load("cifar10", folder)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and images.shape == (6, 3, 32, 32)
    assert caches(folder / "cifar10") == []
    pixels = np.asarray(Image.open(folder / "cifar10" / "train" / "dog" / "0.png"))
    assert np.array_equal(images[3].permute(1, 2, 0).numpy(), pixels)
    monkeypatch.setattr(datasets, "_checked", None)  # neither read again
    assert torch.equal(datasets.load("cifar10", folder)[0], images)
    assert datasets.fingerprint("cifar10", folder)


def test_jobs_side_by_side_read_the_files_once(folder, monkeypatch):
    count, checked = [], datasets._checked
    monkeypatch.setattr(datasets, "_checked", lambda *args: count.append(1) or checked(*args))
    jobs = [threading.Thread(target=datasets.load, args=("cifar10", folder)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(count) == 1
