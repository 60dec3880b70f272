"""Image folders: what is an image, what becomes of it, and what is refused."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from study import datasets, image_folders
from study.cli import UserError


def pixels(seed, height=3, width=5, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """A grey data set `shapes` in folders, images of 3 rows of 5 pixels, all different."""
    seed = 0
    for part, n in (("train", 3), ("test", 2)):
        for name in ("disc", "ring"):
            for i in range(n):
                save(tmp_path / "shapes" / part / name / f"{i}.png", pixels(seed := seed + 1))
    return tmp_path / "shapes"


def loaded(tree):
    return [array.numpy() for array in datasets.load(tree.name, tree.parent)]


def test_shape_classes_and_distinct_parts_are_read_from_the_images(tree):
    images, labels, test_images, test_labels = loaded(tree)
    assert images.shape == (6, 1, 3, 5) and images.dtype == np.uint8
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and test_labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(images[:, 0], [pixels(i) for i in range(1, 7)])
    assert np.array_equal(test_images[:, 0], [pixels(i) for i in range(7, 11)])
    row = datasets.describe("shapes", tree.parent)
    assert (row.shape, row.classes, row.network) == ((1, 3, 5), 2, "MnistSupervised")


def test_images_come_in_torchvisions_order_from_nested_folders_and_links(tree):
    for i, name in enumerate(("b/x.png", "a/deep/er/y.PNG", "a/z.jpeg", "a.png", "B.png")):
        save(tree / "train" / "disc" / name, pixels(50 + i))
    (tree / "elsewhere").mkdir()
    save(tree / "elsewhere" / "far.png", pixels(60))
    (tree / "train" / "ring" / "linked").symlink_to(tree / "elsewhere")
    (tree / "test" / "ring" / "a link.png").symlink_to(tree / "elsewhere" / "far.png")
    images, labels, test_images, _ = loaded(tree)
    for part, ours in (("train", images), ("test", test_images)):
        theirs = torchvision.datasets.ImageFolder(tree / part)
        assert np.array_equal(ours[:, 0], [np.asarray(image.convert("L")) for image, _ in theirs])
    assert labels.tolist() == [0] * 8 + [1] * 4


def test_colours_are_kept_where_any_image_has_them(tree):
    save(tree / "test" / "ring" / "9.png", pixels(9, channels=3))
    images, _, test_images, _ = loaded(tree)
    assert images.shape == (6, 3, 3, 5) and (images[:, 0] == images[:, 2]).all()
    assert np.array_equal(test_images[-1].transpose(1, 2, 0), pixels(9, channels=3))
    assert datasets.describe("shapes", tree.parent).network == "Cifar10Fast"


def test_hidden_and_system_files_and_folders_are_neither_images_nor_classes(tree, capsys):
    before = loaded(tree)
    for name in (
        ".ipynb_checkpoints/0.png",
        "__MACOSX/disc/0.png",
        ".hidden.png",
        "disc/._0.png",
        "disc/.x/0.png",
        "ring/@eaDir/0.png",
    ):
        save(tree / "train" / name, pixels(80))
    for name in (".DS_Store", "disc/.DS_Store", "disc/Thumbs.db", "ring/desktop.ini"):
        (tree / "test" / name).write_bytes(b"\0")
    for ours, theirs in zip(loaded(tree), before, strict=True):
        assert np.array_equal(ours, theirs)
    assert capsys.readouterr().err == ""


def test_files_left_out_are_counted_aloud(tree, capsys):
    for name in ("disc/1.bmp", "disc/2.bmp", "ring/a/1.gif", "ring/1.webp"):
        save(tree / "train" / name, pixels(80))
    (tree / "test" / "notes.txt").write_text("x")
    save(tree / "test" / "lost.png", pixels(81))
    assert len(loaded(tree)[0]) == 6
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tree) in said
    assert all(part in said for part in ("2 .bmp", "1 .gif", "1 .webp", "1 .txt", "1 outside of class folders"))


def png(path, width, height, depth, kind, rows, *chunks):
    """Writes a PNG file bit by bit (Pillow cannot write all kinds)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = [
        chunk(b"IHDR", header),
        *(chunk(*c) for c in chunks),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def only_image(tree, path_or_image, suffix="png", **options):
    """What becomes of one image, as (C, H, W): it replaces all others of a data set."""
    for path in map(Path, image_folders.image_files(tree)):
        path.unlink()
        if callable(path_or_image):
            path_or_image(path)
        else:
            path_or_image.save(path.with_suffix(f".{suffix}"), **options)
    images = loaded(tree)[0]
    assert all(np.array_equal(image, images[0]) for image in images)
    return images[0]


def test_sixteen_bits_are_scaled_to_eight(tree):
    values = np.array([0, 300, 255, 32968, 65535])
    row = b"\0" + values.astype(">u2").tobytes()
    expected = [[[0, 1, 0, 128, 255]]]
    assert only_image(tree, lambda path: png(path, 5, 1, 16, 0, row)).tolist() == expected
    colours = b"\0" + np.repeat(values, 3).astype(">u2").tobytes()
    assert only_image(tree, lambda path: png(path, 5, 1, 16, 2, colours)).tolist() == expected * 3


def test_few_bits_span_the_whole_range(tree):
    assert only_image(tree, lambda path: png(path, 4, 1, 4, 0, b"\0\x0f\x37")).tolist() == [[[0, 255, 51, 119]]]
    assert only_image(tree, Image.fromarray(np.array([[True, False, True]]))).tolist() == [[[255, 0, 255]]]


@pytest.mark.parametrize(("palette", "grey"), [([10, 20, 30, 200, 100, 0], False), ([7, 7, 7, 250, 250, 250], True)])
def test_palettes_are_looked_up(tree, palette, grey):
    image = Image.fromarray(np.array([[0, 1, 1]], dtype=np.uint8), mode="L").convert("P")
    image.putpalette(palette)
    expected = np.array(palette).reshape(2, 3)[[0, 1, 1]].T[: 1 if grey else 3, None]
    assert np.array_equal(only_image(tree, image), expected)


def test_transparent_pixels_lie_on_black(tree):
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], dtype=np.uint8)
    assert only_image(tree, Image.fromarray(rgba)).transpose(1, 2, 0).tolist() == [
        [[200, 100, 50], [0, 0, 0], [40, 20, 10]]
    ]
    grey = np.array([[[200, 255], [200, 0], [100, 51]]], dtype=np.uint8)
    assert only_image(tree, Image.fromarray(grey)).tolist() == [[[200, 0, 20]]]
    one_colour = Image.fromarray(np.array([[9, 200]], dtype=np.uint8))
    assert only_image(tree, one_colour, transparency=9).tolist() == [[[0, 200]]]


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_as_exif_says(tree, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    a = pixels(5, 2, 3)
    upright = {
        1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1],
        5: a.T, 6: np.rot90(a, -1), 7: np.rot90(a, 2).T, 8: np.rot90(a),
    }  # fmt: skip
    assert np.array_equal(only_image(tree, Image.fromarray(a), exif=exif)[0], upright[turn])


def test_the_first_picture_of_an_animation_counts(tree):
    first, second = (Image.fromarray(pixels(i)) for i in (1, 2))
    assert np.array_equal(only_image(tree, first, save_all=True, append_images=[second])[0], pixels(1))


def test_printers_colours_become_screen_colours(tree):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert abs(only_image(tree, image, "jpg").astype(int)[:, 4, 4] - [0, 255, 255]).max() < 5


# What is refused


def save_deep(path, values):
    """An image of other numbers than whole ones from 0 to 65535: TIFF, by whatever name."""
    Image.fromarray(values).save(path, format="TIFF")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def all_of_test(tree, height, width):
    for path in image_folders.image_files(tree)[6:]:
        save(Path(path), pixels(0, height, width))


def one_class(tree):
    for part in ("train", "test"):
        (tree / part / "ring").rename(tree / f"{part}-ring")


REFUSED = {
    "another size": (lambda t: save(t / "train/disc/9.png", pixels(0, 5, 3)), "9.png.*same-sized.*3 × 5.*0.png 5 × 3"),
    "another size in test": (lambda t: all_of_test(t, 4, 4), r"shapes: test images are \(1, 4, 4\)"),
    "height and width exchanged": (lambda t: all_of_test(t, 5, 3), r"shapes: test images are \(1, 5, 3\)"),
    "not an image": (lambda t: write(t / "train/disc/9.png", b"text"), "disc.9.png: cannot be read as an image"),
    "nothing": (lambda t: write(t / "train/disc/9.png", b""), "disc.9.png: cannot be read as an image"),
    "truncated": (lambda t: truncate(t / "test/ring/1.png"), "test.ring.1.png: cannot be read as an image"),
    "dangling link": (lambda t: (t / "train/disc/9.png").symlink_to("nowhere.png"), "disc.9.png: No such file"),
    "floats": (lambda t: save_deep(t / "train/disc/0.png", pixels(0) / np.float32(255)), "0.png.*more than 16 bits"),
    "32 bits": (lambda t: save_deep(t / "test/ring/1.png", pixels(0).astype(np.int32) << 16), "1.png.*more than 16"),
    "below 0": (lambda t: save_deep(t / "test/ring/1.png", -1 - pixels(0).astype(np.int32)), "1.png.*more than 16"),
    "pipe": (lambda t: os.mkfifo(t / "train/disc/9.png"), "disc.9.png: not a file"),
    "empty class": (lambda t: (t / "train" / "disk").mkdir(), "train.disk: holds no image"),
    "empty in test": (lambda t: empty(t / "test" / "ring"), "test.ring: holds no image"),
    "only in train": (lambda t: save(t / "train/square/9.png", pixels(0)), "same classes, but only one .* has square"),
    "only in test": (lambda t: save(t / "test/square/9.png", pixels(0)), "same classes, but only one .* has square"),
    "no test": (lambda t: (t / "test").rename(t / "valid"), "shapes.test: no such folder"),
    "no train": (lambda t: (t / "train").rename(t / "valid"), "shapes.train: no such folder"),
    "one class": (one_class, "train: holds 1 folders"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_refused_in_one_line(tree, case):
    spoil, said = REFUSED[case]
    spoil(tree)
    with pytest.raises(UserError, match=said) as error:
        loaded(tree)
    assert "\n" not in str(error.value)
    assert not list(tree.rglob("*.npy"))


def test_a_folder_with_the_name_of_an_image_is_a_folder(tree):
    save(tree / "train" / "disc" / "9.png" / "a.png", pixels(9))
    assert len(loaded(tree)[0]) == 7


def test_links_in_a_circle_are_followed_once(tree):
    (tree / "train" / "disc" / "up").symlink_to("..")
    (tree / "train" / "disc" / "self").symlink_to(".")
    assert len(loaded(tree)[0]) == 6


@pytest.mark.parametrize("place", ["train", "train/ring", "train/ring/deep", "train/ring/0.png"])
def test_an_unreadable_folder_or_file_is_named(tree, monkeypatch, place):
    save(tree / "train" / "ring" / "deep" / "7.png", pixels(7))
    unreadable = str(tree / place)

    def refuse(function):
        def guarded(path, *args, **kwargs):
            if str(path) == unreadable:
                raise PermissionError(13, "Permission denied", unreadable)
            return function(path, *args, **kwargs)

        return guarded

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    monkeypatch.setattr("builtins.open", refuse(open))
    with pytest.raises(UserError, match=f"{place}: Permission denied"):
        loaded(tree)
