"""Data sets as trees of image files, NAME/{train,test}/<class>/…/*.png|jpg.

Classes are numbered in the order of their names, and the images of a class come folder by folder, as in torchvision's
ImageFolder. Hidden files and folders, and those that systems leave behind, are no images and no classes.

An image is turned as its EXIF data says. 16 bits are scaled to 8, as Pillow does for colours: the high byte. Palettes
are looked up, transparent pixels lie on black, and of an animation the first picture counts.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from study.cli import UserError

VERSION = 1  # of the reader: raise it when the same files come to give other arrays
PARTS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
SYSTEM_NAMES = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found")
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")


def is_image_tree(root: Path) -> bool:
    """Whether a folder holds (part of) such a tree."""
    return any((root / part).is_dir() for part in PARTS)


def image_files(root: Path) -> list[str]:
    """The path of every image file of a tree."""
    return [path for part in PARTS for files in _images_by_class(root / part).values() for path in files]


def read_image_tree(root: Path, shape: tuple | None = None) -> list[np.ndarray]:
    """Train images (N, C, H, W) uint8 and labels (N,) int64, then those of the test images.

    Args:
        root: the folder with train/ and test/.
        shape: (C, H, W). With one channel images are converted to grey, with three to RGB. None: whatever the images
            have, one channel if none of them has colours.

    Raises: UserError, naming the file, unless all images can be read and have one size, and both parts one set of
        classes.
    """
    parts = [_images_by_class(root / part) for part in PARTS]
    train, test = (set(part) for part in parts)
    if train != test:
        only = ", ".join(sorted(train ^ test)[:5])
        raise UserError(f"{root}: train and test must hold the same classes, but only one of them has {only}")
    colour = shape[0] == 3 if shape else any(_has_colours(path) for path in image_files(root))
    arrays = []
    for part in parts:
        files = [(path, label) for label, name in enumerate(sorted(part)) for path in part[name]]
        arrays += [_decoded([path for path, _ in files], colour), np.array([label for _, label in files], np.int64)]
    _say_what_is_left_out(root)
    return arrays


def _images_by_class(part):
    """{class: its image files} of train/ or test/."""
    if not part.is_dir():
        raise UserError(f"{part}: no such folder; image folders are needed for both train and test")
    classes = {path.name: path for path in sorted(part.iterdir()) if path.is_dir() and not _ignored(path.name)}
    if len(classes) < 2:
        raise UserError(f"{part}: holds {len(classes)} folders of images, expected one for each class")
    images = {name: [file for file in _files(folder) if _is_image(file)] for name, folder in classes.items()}
    empty = [str(part / name) for name, files in images.items() if not files]
    if empty:
        raise UserError(f"{empty[0]}: holds no image ({', '.join(SUFFIXES)}); remove the folder, or fill it")
    return images


def _files(folder):
    """Paths of all files in a folder and in the folders below it, following links, in torchvision's order.

    As strings: of 60,000 files, Path objects would take seconds at every start.
    """

    def refuse(error):
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place) + os.sep
        inside = [name for name in folders if not real.startswith(os.path.realpath(os.path.join(place, name)) + os.sep)]
        folders[:] = [name for name in inside if not _ignored(name)]  # neither those, nor links to where we come from
        found += [(place, name) for name in files if not _ignored(name)]
    return [os.path.join(place, name) for place, name in sorted(found)]


def _ignored(name):
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _suffix(path):
    return os.path.splitext(path)[1].lower()


def _is_image(path):
    return _suffix(path) in SUFFIXES


def _say_what_is_left_out(root):
    files = [file for part in PARTS for file in _files(root / part)]
    counts = Counter(_suffix(file) or os.path.basename(file) for file in files if not _is_image(file))
    loose = sum(_is_image(file) and Path(file).parent.parent == root for file in files)
    left_out = [f"{n} {suffix}" for suffix, n in counts.most_common(5)]
    if loose:
        left_out.append(f"{loose} outside of class folders")
    if left_out:
        said = f"{root}: files left out: {', '.join(left_out)} (images are {', '.join(SUFFIXES)} in class folders)"
        print(said, file=sys.stderr)


def _has_colours(path):
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode != "P":
                return image.mode not in GREY_MODES
            return any(len(set(colour)) > 1 for _, colour in image.convert("RGB").getcolors(256))
    except Exception as error:
        raise _unreadable(path, error) from None


def _decoded(files, colour):
    """Images of one size as one array (N, C, H, W) uint8."""
    images = None
    for i, path in enumerate(files):
        try:
            pixels = _pixels(path, colour)  # (C, H, W)
        except Exception as error:
            raise _unreadable(path, error) from None
        if images is None:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            sizes = [f"{width} × {height}" for _, height, width in (pixels.shape, images.shape[1:])]
            raise UserError(f"{path}: images must be same-sized: it has {sizes[0]} pixels, {files[0]} {sizes[1]}")
        images[i] = pixels
    return images


def _unreadable(path, error):  # Pillow raises many types on damaged files; each means the same to us
    reason = " ".join(str(error).split())[:150] or type(error).__name__
    return UserError(f"{path}: cannot be read as an image ({reason})")


def _pixels(path, colour):
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):  # grey of 16 bits, or what no image of a photograph is
            values = np.asarray(image)
            if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                raise ValueError("it has more than 16 bits a pixel: scale its values to 8 or 16 bits")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        pixels = np.asarray(image.convert("RGB" if colour else "L"))
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
