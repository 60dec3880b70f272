"""Files of the study's original program: ours reads them, evaluates them, and writes what they hold, in their form."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from analysis import load_data_as_table
from study import checkpoints

SHARED = Path(__file__).parent.parent.parent / "shared" / "reference" / "checkpoints"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs the original program's checkpoints in ../shared")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty images under the name mnist."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            place = folder / "mnist" / part / str(label)
            place.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


def evaluated(source, data, target):
    """A copy of one of their files after our evaluation."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o644)
    words = ["--ckpt-file", target, "--data-dir", data, "--device", "cpu", "--null-draws", "1"]
    evaluation.main(evaluation.parser().parse_args(list(map(str, words))))
    return checkpoints.read(target)


def shape(value):
    """Nested keys, lengths and tensor shapes, numbers of whatever kind as "number"."""
    if isinstance(value, dict):
        return {key: shape(x) for key, x in value.items()}
    if isinstance(value, list):
        return [shape(x) for x in value]
    while isinstance(value, tuple):
        (value,) = value
    return tuple(value.shape) if torch.is_tensor(value) and value.ndim else "number"


def holds(ours, theirs, path=""):
    """The places where ours lacks what theirs has, or has it in another shape."""
    if isinstance(theirs, dict):
        lacking = [f"{path}/{key}" for key in theirs if key not in ours]
        return lacking or [m for key in theirs for m in holds(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(theirs, list):
        return [m for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for m in holds(a, b, f"{path}/{i}")]
    return [] if ours == theirs or path.endswith("/clusters") else [f"{path}: {ours}, not {theirs}"]


@pytest.mark.parametrize("name", ["best", "dummy"])
def test_ours_writes_what_theirs_holds(name, data, tmp_path):
    ours = evaluated(SHARED / "pristine" / f"{name}.ckpt", data, tmp_path / f"{name}.ckpt")
    theirs = checkpoints.read(SHARED / "evaluated" / "best.ckpt")
    results = ("assoc", "modules", "align", *evaluation.BASIC_METRICS)
    assert holds(shape({key: ours[key] for key in results}), shape({key: theirs[key] for key in results})) == []


def test_only_their_modules_and_alignments_are_stale(data, tmp_path):
    before = checkpoints.read(SHARED / "evaluated" / "best.ckpt")
    after = evaluated(SHARED / "evaluated" / "best.ckpt", data, tmp_path / "best.ckpt")
    assert all(after[name] == before[name] for name in evaluation.BASIC_METRICS)
    for method, layers in before["assoc"].items():
        assert all(torch.equal(a, b) for a, b in zip(after["assoc"][method], layers, strict=True))
        for ours, theirs in zip(after["modules"][method], before["modules"][method], strict=True):
            assert ours["version"] == evaluation.MODULES_VERSION
            assert ours["score"] >= float(theirs["score"]) - 1e-6


def test_theirs_and_ours_make_the_same_table(data, tmp_path):
    ours, theirs = (tmp_path / who / "mnist_sup_l2=0.00001" / "weights" / "best.ckpt" for who in ("ours", "theirs"))
    evaluated(SHARED / "pristine" / "best.ckpt", data, ours)
    theirs.parent.mkdir(parents=True)
    shutil.copy(SHARED / "evaluated" / "best.ckpt", theirs)
    metrics = ["test_acc", "modules.forward_cov.0.score", "align.backward_jac:forward_cov.1.element_sim"]
    spec = {"dataset": "mnist", "l2": 1e-5, "run": 0, "checkpoint": "best"}
    tables = [load_data_as_table([spec], metrics, tmp_path / who) for who in ("ours", "theirs")]
    assert tables[0].dtypes.equals(tables[1].dtypes)
    for table in tables:
        assert table["score"].notna().sum() == table["element_sim"].notna().sum() == 1
    assert tables[1]["test_acc"].iloc[0] == pytest.approx(0.977)
