"""Checkpoints are whole, safe to load, and never lost."""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import random
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_injection import corrupted, same, start_server

from study import checkpoints, files
from study.files import FileError

CONTENT = {
    "state_dict": {"w": torch.arange(300.0).reshape(20, 15), "n": torch.tensor(3), "none": torch.zeros(0)},
    "hyper_parameters": {"dataset": "mnist5k", "l2": 1e-5, "model_args": {"channels": [4, 4]}},
    "list": [1, 2.5, "text", None, True],
}


@pytest.fixture
def path(tmp_path):
    """A checkpoint with CONTENT."""
    checkpoints.write(tmp_path / "a.ckpt", CONTENT)
    return tmp_path / "a.ckpt"


@pytest.fixture(scope="module")
def processes():
    return start_server()


def refusal(path, **options):
    """The one line with which a file is refused."""
    with pytest.raises(FileError) as error:
        checkpoints.read(path, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def leftovers(folder):
    return [name for name in os.listdir(folder) if name.startswith(".") and name != ".lock"]


# Reading


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_written_is_read_back(path, mmap):
    assert same(checkpoints.read(path, mmap=mmap), CONTENT)


def test_damage_is_refused_or_harmless(path):
    """1,000 flips, truncations, overwritten blocks and insertions: the very same content, or one line."""
    rng, data, outcomes = random.Random(0), path.read_bytes(), {"equal": 0, "refused": 0}
    for _ in range(1000):
        path.write_bytes(corrupted(data, rng))
        try:
            assert same(checkpoints.read(path), CONTENT)
            outcomes["equal"] += 1
        except FileError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 600, outcomes


def test_a_member_marked_as_a_directory_is_refused(path):
    """torch.load alone leaves its tensor uninitialised."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    while b"/data/0" not in data[entry : entry + 80]:
        entry = data.index(b"PK\x01\x02", entry + 4)
    data[entry + 38] |= 0x10
    path.write_bytes(data)
    assert "directory" in refusal(path)


def test_damaged_values_are_refused_when_tensors_are_mapped(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"mnist5k")] ^= 1
    path.write_bytes(data)
    assert "data.pkl" in refusal(path, mmap=True)
    assert "data.pkl" in refusal(path)


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)

    def __init__(self, mark):
        self.mark = mark


class HostileArray:
    """Code hidden in a numpy array of objects, which the harmless numpy types must not let in."""

    def __reduce__(self):
        return np.array([Hostile("/dev/null")], dtype=object).__reduce__()


@pytest.mark.parametrize("mmap", [False, True])
def test_loading_runs_no_code(tmp_path, mmap):
    for hostile in (Hostile(tmp_path / "mark"), HostileArray(), eval, pathlib.Path.unlink):
        torch.save({"state_dict": {}, "x": hostile}, tmp_path / "a.ckpt")
        assert "refused" in refusal(tmp_path / "a.ckpt", mmap=mmap)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("mmap", [False, True])
def test_other_things_are_refused_in_one_line(path, mmap):
    folder = path.parent
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("no checkpoint\n" * 100)
    torch.save(torch.ones(3), folder / "tensor")
    torch.save(CONTENT, folder / "older", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("a.txt", "text")
    (folder / "truncated").write_bytes(path.read_bytes()[:-100])
    (folder / "folder").mkdir()
    for name in ("empty", "text", "tensor", "older", "zip", "truncated", "folder", "missing"):
        refusal(folder / name, mmap=mmap)
    assert "no such file" in refusal(folder / "missing", mmap=mmap)
    assert "expected a dict" in refusal(folder / "tensor", mmap=mmap)


@contextlib.contextmanager
def little_memory():
    """256 MB more than now: what is wrongly read without end soon fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_no_file_is_refused_at_once(tmp_path, mmap):
    """Opening a named pipe would wait for a writer, reading a device would never end."""
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "device.ckpt").symlink_to("/dev/zero")
    assert "not a file" in refusal(tmp_path / "pipe.ckpt", mmap=mmap)
    with little_memory():
        assert "not a file" in refusal(tmp_path / "device.ckpt", mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_unpacks_to_gigabytes_is_refused(path, mmap, packing):
    """Half a gigabyte here, in half a megabyte."""
    with (
        zipfile.ZipFile(path, "a", packing) as archive,
        archive.open("archive/data/9", "w", force_zip64=True) as member,
    ):
        for _ in range(64):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    assert "unpack" in refusal(path, mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
def test_results_that_are_none_count_as_not_there(tmp_path, mmap):
    stored = {"modules": None, "align": {"a:b": None, "a:a": [{"p": 1.0}]}, "assoc": None, "other": None}
    checkpoints.write(tmp_path / "a.ckpt", stored)
    assert checkpoints.read(tmp_path / "a.ckpt", mmap=mmap) == {"align": {"a:a": [{"p": 1.0}]}, "other": None}


DICTS = ["hyper_parameters", "state_dict", "callbacks", "assoc", "assoc_sign", "assoc_stderr", "assoc_made_with"]
OF_LAYERS = ["modules", "lesions", "align"]


@pytest.mark.parametrize("name", [*DICTS, *OF_LAYERS])
def test_every_dict_may_be_none_and_counts_as_not_there(tmp_path, name):
    checkpoints.write(tmp_path / "a.ckpt", {name: None})
    assert checkpoints.read(tmp_path / "a.ckpt") == {}


@pytest.mark.parametrize(
    "content",
    [
        *({name: wrong} for name in (*DICTS, *OF_LAYERS) for wrong in ([], [1], "x", 1)),
        *({name: {"a:a": wrong}} for name in OF_LAYERS for wrong in ({}, [None], [[]])),
    ],
)
def test_entries_of_another_form_are_refused(tmp_path, content):
    checkpoints.write(tmp_path / "a.ckpt", content)
    assert next(iter(content)) in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "wrapped", [0.5, torch.tensor(0.5), np.float64(0.5), (0.5,), (np.float64(0.5),), (torch.tensor(0.5),)]
)
def test_a_number_is_plain_however_it_is_wrapped(wrapped):
    assert checkpoints.plain(wrapped) == 0.5 and type(checkpoints.plain(wrapped)) is float


def test_what_is_no_number_stays_as_it_is():
    for value in ("text", (1, 2), [1], None, torch.ones(1)):
        assert checkpoints.plain(value) is value


def test_numpy_scalars_and_paths_are_read(tmp_path):
    content = {"lr": np.float64(0.1), "path": pathlib.PosixPath("a/b")}
    torch.save(content, tmp_path / "a.ckpt")
    assert checkpoints.read(tmp_path / "a.ckpt") == content


@contextlib.contextmanager
def unprivileged(folder):
    """Root may do everything: acts as somebody else who owns the folder."""
    if os.geteuid():
        yield
        return
    for parent in [folder, *folder.parents]:
        if parent.name.startswith(("pytest-", "popen-")):  # popen-: each of several workers has a folder of its own
            parent.chmod(0o755)
    for item in [folder, *folder.iterdir()]:
        os.chown(item, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_lost_permissions_give_one_line_and_leave_the_file(path):
    with unprivileged(path.parent):
        path.chmod(0)
        assert "Permission denied" in refusal(path)
        path.chmod(0o644)
        path.parent.chmod(0o555)
        with pytest.raises(FileError, match="Permission denied; the old file, if any, is intact"):
            checkpoints.write(path, {})
        with pytest.raises(FileError, match="Permission denied"), files.locked(path.parent):
            pass
        path.parent.chmod(0o755)
    assert same(checkpoints.read(path), CONTENT) and not leftovers(path.parent)


# Writing


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_file_and_nothing_else(path, monkeypatch, step, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt):
        checkpoints.write(path, {})
    assert same(checkpoints.read(path), CONTENT) and not leftovers(path.parent)


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 100 kB: what a full disk does, on any disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path):
    with full_disk(), pytest.raises(FileError, match="File too large; the old file, if any, is intact"):
        checkpoints.write(path, CONTENT | {"large": torch.zeros(100_000)})
    assert same(checkpoints.read(path), CONTENT) and not leftovers(path.parent)
    with full_disk():
        checkpoints.write(path, {"small": 1})
    assert checkpoints.read(path) == {"small": 1}


@pytest.fixture
def read_only():
    """A folder with a checkpoint that this process may read but not change, not even as root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        checkpoints.write(Path(name) / "a.ckpt", CONTENT)
        os.chmod(name, 0o555)
        if user == 0:
            os.seteuid(65534)  # nobody
        yield Path(name)
        os.seteuid(user)
        os.chmod(name, 0o755)


def test_a_read_only_folder_gives_one_line(read_only):
    path = read_only / "a.ckpt"
    with pytest.raises(FileError, match="Permission denied; the old file, if any, is intact"):
        checkpoints.write(path, {})
    with pytest.raises(FileError, match="Permission denied"), files.locked(read_only):
        pass
    assert same(checkpoints.read(path), CONTENT)


def test_leftovers_of_killed_writers_are_removed(path):
    stale = path.parent / ".a.ckpt.x1.tmp"
    other = path.parent / ".b.ckpt.x1.tmp"
    stale.write_bytes(b"half")
    other.write_bytes(b"another file's")
    checkpoints.write(path, CONTENT)
    assert leftovers(path.parent) == [other.name]


def write_twenty(folder, name):
    for i in range(20):
        with files.locked(folder):
            checkpoints.write(folder / "a.ckpt", checkpoints.read(folder / "a.ckpt") | {f"{name}{i}": i})


def hold(folder, held):
    with files.locked(folder):
        held.set()
        time.sleep(60)


def test_two_writers_lose_nothing(path, processes):
    writers = [processes.Process(target=write_twenty, args=(path.parent, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {f"{name}{i}" for name in "ab" for i in range(20)} <= checkpoints.read(path).keys()


def test_a_lock_ends_with_its_holder(tmp_path, processes):
    """The second holder is told, and gets the lock when the first is killed."""
    held = processes.Event()
    holder = processes.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(60)
    with files.locked(tmp_path, wait=False) as obtained:
        assert not obtained
    holder.kill()
    with files.locked(tmp_path) as obtained:
        assert obtained
    holder.join()


# Links


@pytest.fixture
def weights(tmp_path):
    """Checkpoints of which the second is best: one as evaluated, the others as their training wrote them."""
    state = {"monitor": "val_loss", "dirpath": "x", "current_score": torch.tensor(0.9)}
    state["best_k_models"] = {"x/epoch=1-step=2.ckpt": torch.tensor(0.1), "x/epoch=2-step=4.ckpt": torch.tensor(0.3)}
    stopping = {"monitor": "val_loss", "wait_count": 2}
    checkpoints.write(tmp_path / "epoch=1-step=2.ckpt", {"val_loss": 0.5})
    callbacks = {"EarlyStopping": stopping, "ModelCheckpoint": state}
    checkpoints.write(tmp_path / "epoch=2-step=4.ckpt", {"epoch": 2, "global_step": 4, "callbacks": callbacks})
    checkpoints.write(tmp_path / "epoch=3-step=6.ckpt", {"val_loss": 0.4})
    checkpoints.write(tmp_path / "last.ckpt", {"val_loss": 0.1})
    return tmp_path


@pytest.mark.parametrize("target", ["epoch=9-step=9.ckpt", "/gone/epoch=1-step=2.ckpt", None])
def test_a_dangling_link_is_repaired(weights, target):
    if target:
        (weights / "best.ckpt").symlink_to(target)
    assert checkpoints.repair_best(weights) == weights / "best.ckpt"
    assert os.readlink(weights / "best.ckpt") == "epoch=2-step=4.ckpt"


def test_the_losses_that_are_compared_may_be_missing_or_no_numbers(weights):
    checkpoints.write(weights / "epoch=2-step=4.ckpt", {"val_loss": math.nan})
    checkpoints.write(weights / "epoch=0-step=0.ckpt", {"callbacks": {}})
    assert os.readlink(checkpoints.repair_best(weights)) == "epoch=3-step=6.ckpt"


def test_the_val_loss_in_training_is_that_of_the_checkpoints_own_epoch(weights):
    """The last epoch's file tells of the best ones, whose val_loss is not its own."""
    stored = checkpoints.read(weights / "epoch=2-step=4.ckpt")
    assert checkpoints.trained_val_loss(stored) == pytest.approx(0.3)
    for other in (stored | {"epoch": 3}, stored | {"global_step": 5}, {}, {"callbacks": {"a": {"monitor": None}}}):
        assert math.isnan(checkpoints.trained_val_loss(other))


def test_a_link_is_synced_with_its_folder(weights, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    checkpoints.link_best(weights, "epoch=1-step=2.ckpt")
    assert synced == [str(weights)]


def test_a_link_that_works_is_left_alone(weights):
    checkpoints.link_best(weights, weights / "epoch=1-step=2.ckpt")
    before = os.lstat(weights / "best.ckpt").st_ino
    checkpoints.repair_best(weights)
    checkpoints.link_best(weights, "epoch=1-step=2.ckpt")
    assert os.lstat(weights / "best.ckpt").st_ino == before


def test_a_link_that_a_killed_process_left_half_made_is_in_nobodys_way(weights):
    (weights / ".best.ckpt.link").symlink_to("last.ckpt")
    checkpoints.link_best(weights, "epoch=1-step=2.ckpt")
    assert os.readlink(weights / "best.ckpt") == "epoch=1-step=2.ckpt" and not leftovers(weights)


def test_nothing_to_link_to_is_said(tmp_path):
    with pytest.raises(FileError, match="nor another checkpoint"):
        checkpoints.repair_best(tmp_path)


def test_links_move_with_their_folder_and_survive_writing(weights, tmp_path):
    checkpoints.link_best(weights, weights / "epoch=1-step=2.ckpt")
    checkpoints.link_best(weights, weights / "epoch=3-step=6.ckpt")
    moved = weights.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    checkpoints.write(moved / "best.ckpt", {"new": 1})
    assert (moved / "best.ckpt").is_symlink() and not leftovers(moved)
    assert checkpoints.read(moved / "epoch=3-step=6.ckpt") == {"new": 1}


def test_json_goes_through_the_same_door_and_colleagues_may_read_it(tmp_path):
    files.write_bytes(tmp_path / "run.json", b'{"a": 1}')
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}


def test_what_is_written_or_linked_is_on_disk_before_and_after_it_takes_its_place(path, monkeypatch):
    """The new content before it has the name, and the name before anything follows: else a power cut loses both."""
    done = []

    def recorded(name, function):
        def call(*args):
            done.append((name, os.readlink(f"/dev/fd/{args[0]}") if name == "fsync" else str(args[1])))
            return function(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda file, how: (done.append(("lock", file.name)), lock(file, how)))
    folder = str(path.parent.resolve())
    checkpoints.write(path, {})
    (first, scratch), *others = done
    assert first == "fsync" and scratch.startswith(f"{folder}/.a.ckpt.")
    assert others == [("replace", f"{folder}/a.ckpt"), ("fsync", folder)]
    done.clear()
    checkpoints.link_best(path.parent, path)
    locked = ("lock", f"{path.parent}/.lock")
    assert done == [locked, ("replace", f"{path.parent}/best.ckpt"), ("fsync", folder)]
