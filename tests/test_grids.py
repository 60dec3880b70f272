"""The study's grids, typed out once from its specification, and the names of runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from study import grids, jobs

ROOT = Path(__file__).parent.parent
TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
FINE = [1e-5, 3.16228e-5, 1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2, 3.16228e-2, 1e-1]
TWENTIETHS = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]
COARSE = {"l2": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "l1": [1e-5, 1e-4, 1e-3, 1e-2]}
TABLE = {  # data set, model arguments, values, runs, untrained networks, pass mark
    "mnist-base": ("mnist", {}, {"l2": FINE, "l1": FINE[:7], "drop": TWENTIETHS}, 9, 100, 0.8),
    "mnist-wide": ("mnist", {"channels": [256, 256]}, COARSE | {"drop": TENTHS}, 3, 100, 0.8),
    "mnist-deep": ("mnist", {"channels": [64, 64, 64, 64, 64]}, COARSE | {"drop": TENTHS}, 3, 100, 0.8),
    "cifar10": ("cifar10", {}, COARSE | {"drop": TENTHS[:5]}, 3, 100, 0.8),
    "cifar10-quarter": ("cifar10", {"channels": [16, 32, 64, 64]}, COARSE | {"drop": TENTHS[:5]}, 3, 20, 0.5),
    "demo": ("mnist5k", {}, {"l2": [1e-5, 1e-3, 1e-2], "drop": [0.2, 0.4, 0.6]}, 2, 8, 0.8),
}
SIZES = {
    "mnist-base": {"l2": 81, "l1": 63, "drop": 126, "dummy": 100},
    "mnist-wide": {"l2": 15, "l1": 12, "drop": 18, "dummy": 100},
    "mnist-deep": {"l2": 15, "l1": 12, "drop": 18, "dummy": 100},
    "cifar10": {"l2": 15, "l1": 12, "drop": 15, "dummy": 100},
    "cifar10-quarter": {"l2": 15, "l1": 12, "drop": 15, "dummy": 20},
    "demo": {"l2": 6, "drop": 6, "dummy": 8},
}
UIDS = {
    "l2": ["l2=0.00001", "l2=0.00003", "l2=0.00010", "l2=0.00032", "l2=0.00100", "l2=0.00316", "l2=0.01000",
           "l2=0.03162", "l2=0.10000"],
    "l1": ["l2=0.00001_l1=0.00001", "l2=0.00001_l1=0.00003", "l2=0.00001_l1=0.00010", "l2=0.00001_l1=0.00032",
           "l2=0.00001_l1=0.00100", "l2=0.00001_l1=0.00316", "l2=0.00001_l1=0.01000"],
    "drop": [f"l2=0.00001_drop=0.{percent:02d}000" for percent in range(5, 75, 5)],
}  # fmt: skip


def test_the_experiments_are_those_of_the_specification():
    assert {name: tuple(experiment) for name, experiment in grids.EXPERIMENTS.items()} == TABLE


@pytest.mark.parametrize("experiment", SIZES)
def test_every_part_has_its_number_of_runs(experiment):
    assert {part: len(grids.specs(experiment, part)) for part in grids.parts(experiment)} == SIZES[experiment]


@pytest.mark.parametrize("experiment", TABLE)
def test_each_part_varies_its_own_hyperparameter_and_no_other(experiment):
    dataset, _, values, repetitions, untrained, _ = TABLE[experiment]
    fixed = {"dataset": dataset, "task": "sup", "l2": 1e-5, "l1": 0.0, "drop": 0.0}
    for part, strengths in values.items():
        expected = [fixed | {part: value, "run": run} for value in strengths for run in range(repetitions)]
        assert grids.specs(experiment, part) == expected
    without = fixed | {"l2": 0.0}
    assert grids.specs(experiment, "dummy") == [without | {"run": 1000 + i} for i in range(untrained)]


@pytest.mark.parametrize("part", UIDS)
def test_mnist_base_has_exactly_the_studys_directories(part):
    found = [str(path) for path in grids.run_dirs("mnist-base", part)]
    names = [f"mnist_sup_{name}{run}" for name in UIDS[part] for run in ["", *(f"_run={i}" for i in range(1, 9))]]
    assert found == [f"logs-mnist-base-{part}/{name}" for name in names]


def test_untrained_networks_are_runs_from_1000_without_regularization():
    names = [grids.uid(**spec) for spec in grids.specs("mnist-base", "dummy")]
    assert names == [f"mnist_sup_run={run}" for run in range(1000, 1100)]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "mnist_sup"),
        ({"l2": 1e-5}, "mnist_sup_l2=0.00001"),
        ({"l2": 9.999999999999999e-06}, "mnist_sup_l2=0.00001"),
        ({"l2": 1e-6}, "mnist_sup_l2=1.00e-06"),
        ({"l2": 1}, "mnist_sup_l2=1"),
        ({"l2": 1e-5, "drop": 0.3, "run": 1}, "mnist_sup_l2=0.00001_drop=0.30000_run=1"),
        ({"drop": 0.3, "l1": 0.1, "l2": 0.2}, "mnist_sup_l2=0.20000_l1=0.10000_drop=0.30000"),
        ({"run": 0, "drop": 0.0, "l1": 0.01}, "mnist_sup_l1=0.01000"),
        ({"run": np.int64(2), "drop": np.float64(0.3)}, "mnist_sup_drop=0.30000_run=2"),
        ({"run": 1.0, "l2": np.float32(0.25)}, "mnist_sup_l2=0.25000_run=1"),
    ],
)
def test_uid_names_what_is_not_zero(values, name):
    assert grids.uid("mnist", "sup", **values) == name


def test_uid_refuses_what_no_run_is_named_by():
    with pytest.raises(TypeError, match="dropout is no regularizer"):
        grids.uid("mnist", dropout=0.3)
    with pytest.raises(ValueError, match=r"run is 1\.5"):
        grids.uid("mnist", run=1.5)


def test_no_two_runs_of_a_grid_share_a_directory():
    for experiment in grids.EXPERIMENTS:
        for part in grids.parts(experiment):
            folders = grids.run_dirs(experiment, part)
            assert len(set(folders)) == len(folders)


GOOD = {"dataset": "mnist", "task": "sup", "l2": 0.1, "l1": 0, "drop": 0.99, "run": 3, "seed": 0, "batch_size": 1,
        "train_val_split": 0.5, "model_args": {}, "precision": "bf16-mixed"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("l2", "l1", "drop") for value in (float("nan"), float("inf"), -0.1, "1", None)),
        ("drop", 1.0),
        *(("train_val_split", value) for value in (0, 0.0, 1, 1.5, -0.5, float("nan"), "0.9")),
        *(("batch_size", value) for value in (0, -1, 1.5, True, "200", 2**64)),
        *(("run", value) for value in (-1, 0.5, None)),
        *(("seed", value) for value in (-1, 2**64, "x", 1.5)),
        *(("model_args", value) for value in (None, [], "{}")),
        *(("precision", value) for value in ("16", 32, None)),
        ("dataset", None),
        ("task", 1),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(name, value):
    grids.check(GOOD)
    with pytest.raises(ValueError, match=f"^{name} is "):
        grids.check(GOOD | {name: value})


def test_hyperparameters_of_files_written_before_some_existed_are_fine():
    grids.check({"dataset": "mnist", "task": "sup", "l2": 1e-5, "run": 0, "seed": None})


FOURTH = """
import shlex, sys
from pathlib import Path
sys.path.insert(0, "")
from study import grids, jobs, options, runs

assert grids.PARTS == ("l2", "l1", "drop", "noise", "dummy")
grids.EXPERIMENTS["demo"].values["noise"] = [0.25, 0.5]
assert grids.parts("demo") == ["l2", "drop", "noise", "dummy"]
specs = grids.specs("demo", "noise")
assert [(spec["noise"], spec["l2"], spec["drop"]) for spec in specs[::2]] == [(0.25, 1e-5, 0.0), (0.5, 1e-5, 0.0)]
assert all(spec["noise"] == 0.0 for spec in grids.specs("demo", "drop") + grids.specs("demo", "dummy"))
assert [path.name for path in grids.run_dirs("demo", "noise")][1] == "mnist5k_sup_l2=0.00001_noise=0.25000_run=1"

words = shlex.split(jobs.commands("demo", ["noise"], batch=2)[1])
assert words[words.index("--noise") + 1] == "0.5"
(first, second) = runs.asked(options.parser().parse_args(words[2:]))
assert first.identity["noise"] == 0.5 and str(first.run_dir) == words[-1] + "/mnist5k_sup_l2=0.00001_noise=0.50000"
other = {"hyperparameters": first.identity | {"noise": 0.25}}
assert runs.differences(other, first) == ["noise 0.25, not 0.5"]
earlier = {name: value for name, value in first.identity.items() if name != "noise"}
assert runs.differences({"hyperparameters": earlier}, first) == ["noise 0.0, not 0.5"]
assert not runs.differences({"hyperparameters": earlier}, first._replace(identity=first.identity | {"noise": 0.0}))

import train
from models import LitWrapper
data, logs = sys.argv[1:]
train.main(train.parser().parse_args(["--dataset", "mnist5k", "--noise", "0.5", "--max-epochs", "0", "--device", "cpu",
    "--data-dir", data, "--save-dir", logs]))
from study import checkpoints
stored = checkpoints.read(Path(logs) / "mnist5k_sup_l2=0.00001_noise=0.50000" / "dummy.ckpt")
assert stored["hyper_parameters"]["noise"] == 0.5
module = LitWrapper("mnist5k", noise=0.5)
assert module.hparams["noise"] == 0.5 and module.get_uid() == "mnist5k_sup_noise=0.50000"

import analysis
table = analysis.load_checkpoints([Path(logs) / "mnist5k_sup_l2=0.00001_noise=0.50000" / "dummy.ckpt"], ["test_acc"])
assert table["noise"].tolist() == [0.5]
"""


def test_a_fourth_regularizer_is_found_everywhere(tmp_path):
    """One line in the table of regularizers is all that parts, names, commands, options and identities need."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns(".*", "logs*", "data", "figures", "tests", "results", "__pycache__", "notebooks")
    shutil.copytree(ROOT, folder, ignore=ignored)
    table = (folder / "study" / "grids.py").read_text()
    row = '    "drop": Regularizer('
    assert table.count(row) == 1
    end = table.index("\n", table.index(row)) + 1
    added = '    "noise": Regularizer("input noise", 0.0, "linear", "#CC79A7", "o"),\n'
    (folder / "study" / "grids.py").write_text(table[:end] + added + table[end:])
    words = [sys.executable, "-c", FOURTH, str(tmp_path / "data"), str(tmp_path / "logs")]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_have_one_word_for_each_regularizer():
    words = jobs.commands("demo", ["drop"])[0].split()
    assert [word for word in words if word.strip("-") in grids.REGULARIZERS] == ["--l2", "--l1", "--drop"]
