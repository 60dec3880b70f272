"""What the tests share."""

import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import save_image

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
MADE = ("data", "figures")  # at the top of the project, as are logs-*: what users' commands make, perhaps meanwhile
SLOW = ("test_notebook.py", "test_results_page.py", "test_resume.py", "test_readme.py", "test_plots.py")
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache"}


def pytest_collection_modifyitems(items):
    """The files that take longest begin, so that two workers end at about the same time."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


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
def program(monkeypatch, capsys):
    """Runs a script as its command line does, but in this process: (exit status, stdout, stderr).

    A process of its own would take seconds to import torch.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def run(script, *words, cwd=ROOT):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            status, said = 0, ""
        except SystemExit as end:  # with a status, or with what Python would print
            status, said = (end.code, "") if isinstance(end.code, int) else (1, f"{end.code}\n")
        return status, *(text + more for text, more in zip(capsys.readouterr(), ("", said), strict=True))

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def folder(tmp_path):
    """An image-folder tree named cifar10, with 6 training and 4 test images of two classes."""
    for part, n in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(n):
                save_image(tmp_path / "cifar10" / part / name / f"{i}.png", 10 * n + i)
    return tmp_path
