"""What the tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import save_image

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def reference():
    """Opens a file of tests/reference (see the README there)."""
    return lambda name: np.load(Path(__file__).parent / "reference" / name, allow_pickle=False)


@pytest.fixture
def folder(tmp_path):
    """An image-folder tree named cifar10, with 6 training and 4 test images of two classes."""
    for part, n in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(n):
                save_image(tmp_path / "cifar10" / part / name / f"{i}.png", 10 * n + i)
    return tmp_path
