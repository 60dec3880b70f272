"""Made-up data sets: arrays, a row of the table, image files."""

import numpy as np
from PIL import Image

from study import datasets


def save_image(path, value, shape=(32, 32, 3)):
    """Writes an image of random pixels, another for each value, as a file whose size depends on the shape alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


def data_set_arrays():
    """Images of 3 rows of 5 pixels, distinct ones for training and testing, in four classes."""
    rng = np.random.default_rng(0)
    train_images, test_images = (rng.integers(0, 256, (n, 1, 3, 5), dtype=np.uint8) for n in (8, 6))
    return [train_images, np.arange(8) % 4, test_images, np.arange(6) % 3]


def data_set_row(**changes):
    """The row of a data set that holds these arrays."""
    row = datasets.Dataset((1, 3, 5), 4, "MnistSupervised", lambda root: data_set_arrays(), lambda root: [])
    return row._replace(**changes)
