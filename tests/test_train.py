"""train.py as a user runs it: one-batch runs, what they leave, mistakes told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
import train
from study import checkpoints, grids
from study.cli import UserError

ROOT = Path(__file__).parent.parent


def script(*words):
    """Runs one of the scripts in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def train_args(*words):
    return train.parser().parse_args(["--device", "cpu", *words])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Tiny image-folder trees under the names mnist (28×28, grey) and cifar10 (32×32): noise around a class pattern."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        patterns = rng.integers(0, 256, (10, *shape))
        for part, n in (("train", 20), ("test", 6)):
            for label, pattern in enumerate(patterns):
                place = folder / name / part / str(label)
                place.mkdir(parents=True)
                for i in range(n):
                    noisy = np.clip(pattern + rng.normal(0, 60, shape), 0, 255).astype(np.uint8)
                    Image.fromarray(noisy).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run directory: two epochs of a small dense network, through the command line."""
    folder = tmp_path_factory.mktemp("logs")
    words = ["--dataset", "mnist", "--drop", "0.1", "--max-epochs", "2", "--batch-size", "50", "--data-dir", data]
    words += ["--save-dir", folder, "--device", "cpu", "--model-args", '{"channels": [12, 10]}']
    result = script("train.py", *map(str, words))
    assert result.returncode == 0, result.stderr
    return folder / "mnist_sup_l2=0.00001_drop=0.10000"


def test_training_leaves_the_specified_files(trained):
    files = {path.name for path in (trained / "weights").glob("*.ckpt")}
    assert files == {"epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt", "best.ckpt"}
    assert not os.path.isabs(os.readlink(trained / "weights" / "best.ckpt"))
    stored = checkpoints.read(trained / "weights" / "best.ckpt")
    assert {key.split(".")[0] for key in stored["state_dict"]} == {"model"}
    assert stored["hyper_parameters"].items() >= {"drop": 0.1, "l2": 1e-5, "seed": grids.BASE_SEED, "run": 0}.items()
    assert list(trained.glob("events.out.tfevents.*"))


def test_logged_scalars_are_those_of_the_specification(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    expected = {"train_loss", "train_acc", "val_loss", "val_acc", "l1_norm", "l2_norm", "learning_rate"}
    assert expected <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("val_loss")] == [3, 7]


def test_a_finished_run_is_not_trained_again(trained, data, capsys):
    before = (trained / "weights" / "last.ckpt").stat().st_mtime_ns
    words = ["--dataset", "mnist", "--drop", "0.1", "--max-epochs", "2", "--batch-size", "50", "--data-dir", str(data)]
    train.main(train_args(*words, "--save-dir", str(trained.parent), "--model-args", '{"channels": [12, 10]}'))
    assert "nothing to do" in capsys.readouterr().out
    assert (trained / "weights" / "last.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize("other", ["--seed 1", "--batch-size 51", "--model-args {}", "--max-epochs 0"])
def test_a_directory_with_other_hyperparameters_is_refused(trained, data, other):
    words = ["--dataset", "mnist", "--drop", "0.1", "--max-epochs", "2", "--batch-size", "50", "--data-dir", str(data)]
    words += ["--save-dir", str(trained.parent), "--model-args", '{"channels": [12, 10]}', *other.split()]
    with pytest.raises(UserError, match="holds another run"):
        train.main(train_args(*words))


def test_runs_trained_by_one_process_are_those_of_processes_of_their_own(trained, data, tmp_path):
    words = ["--dataset", "mnist", "--drop", "0.1", "--max-epochs", "2", "--batch-size", "50", "--data-dir", str(data)]
    words += ["--save-dir", str(tmp_path), "--model-args", '{"channels": [12, 10]}', "--no-progress"]
    train.main(train_args(*words, "--seed", str(grids.BASE_SEED), "--run", "1"))
    train.main(train_args(*words, "--run", "0"))
    ours, alone = (checkpoints.read(d / trained.name / "weights" / "last.ckpt") for d in (tmp_path, trained.parent))
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in alone["state_dict"].items())


def test_a_range_of_untrained_networks_is_written_at_once(data, tmp_path):
    words = ["--dataset", "mnist", "--l2", "0", "--run", "1000-1002", "--max-epochs", "0", "--data-dir", str(data)]
    train.main(train_args(*words, "--save-dir", str(tmp_path)))
    for run in (1000, 1001, 1002):
        stored = checkpoints.read(tmp_path / f"mnist_sup_run={run}" / "dummy.ckpt")
        with torch.random.fork_rng():
            torch.manual_seed(grids.BASE_SEED + run)
            expected = models.build("mnist").state_dict()
        assert all(torch.equal(stored["state_dict"][f"model.{name}"], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.py", "--dataset", "imagenet"], "unknown dataset 'imagenet'"),
        (["train.py", "--dataset", "mnist5k", "--model-args", "{"], "--model-args"),
    ],
)
def test_mistakes_get_one_clear_line(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((UserError, SystemExit)) as error:
        train.main(train.parser().parse_args(words[1:]))
    told = str(error.value) if isinstance(error.value, UserError) else capsys.readouterr().err.splitlines()[-1]
    assert message in told and "\n" not in told
