"""What the tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def reference():
    """Opens a file of tests/reference (see the README there)."""
    return lambda name: np.load(Path(__file__).parent / "reference" / name, allow_pickle=False)
