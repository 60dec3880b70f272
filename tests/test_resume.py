"""A training or an evaluation that is ended at any moment and started again leaves what an undisturbed one leaves."""

import functools
import json
import os
import random
import signal

import pytest
from fault_injection import SIGNALS, Trial, differences, make_data, scalars, start_server

from study import checkpoints, runs


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """The undisturbed training and evaluation of a dense or a convolutional network, by name."""
    context = start_server()

    @functools.cache
    def trial_of(model):
        folder = tmp_path_factory.mktemp(model)
        make_data(folder / "data")
        return Trial(context, folder, model)

    return trial_of


@pytest.fixture(params=["dense", "conv"])
def trial(request, trials):
    return trials(request.param)


@pytest.fixture
def dense(trials):
    return trials("dense")


def test_the_undisturbed_training_has_all_that_resuming_must_get_right(trial):
    """Learning-rate drops, epochs without improvement, early stopping, fewer checkpoints kept than epochs."""
    logged = scalars(trial.trained)
    val_loss, rates = ([value for _, value in logged[name]] for name in ("val_loss", "learning_rate"))
    assert len(set(rates)) >= 2
    assert min(val_loss) not in val_loss[-6:]
    assert json.loads((trial.trained / "run.json").read_text())["early_stopped"]
    assert len(list((trial.trained / "weights").glob("epoch=*.ckpt"))) == 3 < len(val_loss)


def test_the_comparison_sees_a_difference(trial):
    """The evaluated run differs from the trained one in all of its checkpoints."""
    assert any("last.ckpt: test_loss" in difference for difference in differences(trial.evaluated, trial.trained))
    assert not differences(trial.trained, trial.trained)


@pytest.mark.parametrize("program", ["train", "eval"])
def test_ended_anywhere_and_started_again_it_leaves_the_same(trial, program):
    injected, found = trial.disturbed(program, SIGNALS[:2] * 2, random.Random(1))
    assert sum(injected.values()) > 0 and not found


def test_killed_between_the_two_saves_of_an_epoch(trial):
    """When there is a checkpoint of the second epoch and last.ckpt is still the first one's.

    Each write takes three operations; run.json is written first, then two checkpoints an epoch.
    """
    place = trial.place("train")
    job = trial.job("train", place)
    assert job.run(fatal_operation=13) == -signal.SIGKILL
    weights = trial.run_dir(place) / "weights"
    assert list(weights.glob("epoch=1-*.ckpt")) and checkpoints.read(weights / "last.ckpt")["epoch"] == 0
    assert job.run() == 0
    assert not differences(trial.run_dir(place), trial.trained)


def test_killed_after_early_stopping(dense):
    """The last operations only link the best checkpoint and write run.json: nothing is trained again."""
    place = dense.place("train")
    job = dense.job("train", place)
    assert job.run(fatal_operation=dense.operations["train"] - 1) == -signal.SIGKILL
    run_dir = dense.run_dir(place)
    assert runs.state(run_dir)[0] == "failed"
    before = (run_dir / "weights" / "last.ckpt").stat().st_mtime_ns
    assert job.run() == 0
    assert (run_dir / "weights" / "last.ckpt").stat().st_mtime_ns == before
    assert not differences(run_dir, dense.trained)


def test_sigterm_ends_a_training_with_an_error_and_it_goes_on(dense):
    place = dense.place("train")
    job = dense.job("train", place)
    status = job.run(fatal_operation=dense.operations["train"] // 2, sign=signal.SIGTERM)
    assert status > 0 and runs.state(dense.run_dir(place))[0] == "failed"
    assert job.run() == 0
    assert not differences(dense.run_dir(place), dense.trained)


def test_a_moved_run_goes_on_the_same(dense, tmp_path):
    """Lightning forgets which checkpoints are best when the folder has another name."""
    place = dense.place("train")
    assert dense.job("train", place).run(fatal_operation=dense.operations["train"] // 2) == -signal.SIGKILL
    os.rename(place, tmp_path / "moved")
    assert dense.job("train", tmp_path / "moved").run() == 0
    assert not differences(dense.run_dir(tmp_path / "moved"), dense.trained)


def test_a_convolutional_training_in_bfloat16_goes_on_the_same(trials):
    trial = trials("bf16")
    place = trial.place("train")
    assert trial.job("train", place).run(fatal_operation=trial.operations["train"] // 2) == -signal.SIGKILL
    assert trial.job("train", place).run() == 0
    assert not differences(trial.run_dir(place), trial.trained)


@pytest.mark.parametrize("program", ["train", "eval"])
def test_two_processes_at_once_leave_the_same(dense, program):
    assert not dense.two_at_once(program)


@pytest.mark.parametrize("program", ["train", "eval"])
def test_a_full_disk_loses_nothing(dense, program):
    assert not dense.full_disk(program)


def test_a_finished_run_is_not_touched(dense):
    before = {path: path.stat().st_mtime_ns for path in dense.trained.rglob("*")}
    assert dense.job("train", dense.trained.parent).run() == 0
    assert {path: path.stat().st_mtime_ns for path in dense.trained.rglob("*")} == before
