"""What the tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import save_image

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
MADE = ("data", "figures")  # at the top of the project, as are logs-*: what users' commands make, perhaps meanwhile
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache"}


def files_in(project):
    """What lies in a project: everything at its top, and all files in its folders but for hidden and made ones."""
    found = set(os.listdir(project))
    for folder, inner, files in os.walk(project):
        if Path(folder) == Path(project):
            inner[:] = [name for name in inner if name not in MADE and not name.startswith("logs")]
        inner[:] = [name for name in inner if name not in CACHES and not name.startswith(".")]
        found |= {os.path.relpath(os.path.join(folder, name), project) for name in files}
    return {name for name in found - CACHES if not name.endswith((".pyc", ".nbi", ".nbc"))}


@pytest.fixture(scope="session", autouse=True)
def _checkout_is_left_as_it_was():
    before = files_in(ROOT)
    yield
    new = sorted(files_in(ROOT) - before)
    assert not new, f"tests must write under tmp_path only, but made {', '.join(new)}"


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
