"""train.py as a user runs it: what it leaves, what it goes on from, what it refuses, mistakes told in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_injection import differences, same
from PIL import Image

import models
import train
from study import checkpoints, cli, datasets, grids, runs
from study.cli import UserError

ROOT = Path(__file__).parent.parent
UID = "mnist_sup_l2=0.00001_drop=0.10000"
NETWORK = ["--dataset", "mnist", "--drop", "0.1", "--batch-size", "50", "--model-args", '{"channels": [12, 10]}']


def script(*words):
    """Runs one of the scripts in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def run_train(*words):
    train.main(train.parser().parse_args(["--device", "cpu", "--no-progress", *map(str, words)]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny image-folder tree under the name mnist (28×28, grey): noise around a class pattern."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, n in (("train", 20), ("test", 6)):
        for label, pattern in enumerate(np.random.default_rng(1).integers(0, 256, (10, 28, 28))):
            place = folder / "mnist" / part / str(label)
            place.mkdir(parents=True)
            for i in range(n):
                noisy = np.clip(pattern + rng.normal(0, 60, (28, 28)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def other_data(data, tmp_path_factory):
    """The same but for one image."""
    folder = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("arrays-*"))
    Image.new("L", (28, 28)).save(folder / "mnist" / "train" / "0" / "0.png")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run directory: two epochs of a small dense network, through the command line."""
    folder = tmp_path_factory.mktemp("logs")
    words = [*NETWORK, "--max-epochs", "2", "--data-dir", data, "--save-dir", folder, "--device", "cpu"]
    result = script("train.py", *map(str, words))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{folder / UID}: finished after 2 epochs in ")
    return folder / UID


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of that run, whose words are those of `again`."""
    shutil.copytree(trained, tmp_path / "logs" / UID, symlinks=True)
    return tmp_path / "logs" / UID


@pytest.fixture
def again(copy, data):
    """Trains the copy again with further words."""

    def command(*words):
        run_train(*NETWORK, "--max-epochs", "2", "--data-dir", data, "--save-dir", copy.parent, *words)

    return command


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def unfinished(run_dir):
    """Makes a run look as if it had been killed after its last checkpoint."""
    record = json.loads((run_dir / "run.json").read_text())
    kept = {name: record[name] for name in ("hyperparameters", "data")}
    (run_dir / "run.json").write_text(json.dumps(kept | {"seconds": 100.0, "started": time.time()}))
    return record


# What it leaves


def test_training_leaves_the_specified_files(trained, data):
    files = {path.name for path in (trained / "weights").glob("*.ckpt")}
    assert files == {"epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt", "best.ckpt"}
    assert not os.path.isabs(os.readlink(trained / "weights" / "best.ckpt"))
    assert list(trained.glob("events.out.tfevents.*"))
    for name in files:
        stored = checkpoints.read(trained / "weights" / name)
        assert {key.split(".")[0] for key in stored["state_dict"]} == {"model"}
        assert stored["hyper_parameters"] == {
            "dataset": "mnist", "task": "sup", "l2": 1e-5, "l1": 0.0, "drop": 0.1, "run": 0, "seed": 286436723,
            "train_val_split": 0.9, "batch_size": 50, "model_args": {"channels": [12, 10]}, "precision": "32",
        }  # fmt: skip
        assert stored["data"] == datasets.fingerprint("mnist", data)


def test_the_record_says_what_was_trained_how_long_and_by_what(trained, data):
    record = runs.read_record(trained)
    stored = checkpoints.read(trained / "weights" / "last.ckpt")
    assert record["hyperparameters"] == stored["hyper_parameters"] | {"untrained": False}
    assert record["data"] == datasets.fingerprint("mnist", data)
    assert (record["finished"], record["epochs"], record["early_stopped"]) == (True, 2, False)
    assert 0 < record["seconds"] < 600 and record["device"] == "cpu" and record["versions"]["torch"]
    assert "started" not in record and "error" not in record


def test_logged_scalars_are_those_of_the_specification(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    expected = {"train_loss", "train_acc", "val_loss", "val_acc", "l1_norm", "l2_norm", "learning_rate"}
    assert expected <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("val_loss")] == [3, 7]


def test_runs_trained_by_one_process_are_those_of_processes_of_their_own(trained, data, tmp_path):
    words = [*NETWORK, "--max-epochs", "2", "--data-dir", data, "--save-dir", tmp_path]
    run_train(*words, "--seed", grids.BASE_SEED, "--run", "1")
    run_train(*words, "--run", "0")
    ours, alone = (checkpoints.read(d / UID / "weights" / "last.ckpt") for d in (tmp_path, trained.parent))
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in alone["state_dict"].items())


def test_a_range_of_untrained_networks_is_written_at_once(data, tmp_path):
    words = ["--dataset", "mnist", "--l2", "0", "--max-epochs", "0", "--data-dir", data, "--save-dir", tmp_path]
    run_train(*words, "--run", "1000-1002")
    for run in (1000, 1001, 1002):
        run_dir = tmp_path / f"mnist_sup_run={run}"
        stored = checkpoints.read(run_dir / "dummy.ckpt")
        with torch.random.fork_rng():
            torch.manual_seed(286436723 + run)
            expected = models.build("mnist").state_dict()
        assert all(torch.equal(stored["state_dict"][f"model.{name}"], value) for name, value in expected.items())
        assert stored["data"] == runs.read_record(run_dir)["data"] == datasets.fingerprint("mnist", data)
        assert runs.state(run_dir)[0] == "done"
    before = contents(tmp_path)
    run_train(*words, "--run", "1001-1002")
    assert contents(tmp_path) == before


# What it goes on from


def test_a_finished_run_is_not_trained_again(copy, again, capsys):
    before = contents(copy)
    again()
    assert "finished before; nothing to do" in capsys.readouterr().out
    assert contents(copy) == before


def test_a_short_trial_goes_on_as_if_it_had_been_no_trial(copy, again, data, tmp_path):
    straight = tmp_path / "straight"
    run_train(*NETWORK, "--max-epochs", "4", "--data-dir", data, "--save-dir", straight)
    time.sleep(1.1 - time.time() % 1)  # TensorBoard orders files by the second in which they were begun
    before = runs.read_record(copy)["seconds"]
    again("--max-epochs", "4")
    assert not differences(copy, straight / UID)
    assert runs.read_record(copy)["seconds"] > before


def test_seconds_add_up_over_resumptions(copy, again):
    unfinished(copy)
    again()
    assert 100 < runs.read_record(copy)["seconds"] < 200


@pytest.mark.parametrize("left", [None, "[]", "null", "{", '{"hyperparameters": {}}'])
def test_a_lost_record_is_made_again_from_the_checkpoint(copy, again, left):
    record, before = runs.read_record(copy), contents(copy / "weights")
    (copy / "run.json").unlink()
    if left is not None:
        (copy / "run.json").write_text(left)
    for other in (["--seed", "1"], ["--train-val-split", "0.5"], ["--max-epochs", "1"]):
        with pytest.raises(UserError, match=r"last\.ckpt belongs to another run"):
            again(*other)
    assert ((copy / "run.json").read_text() if (copy / "run.json").exists() else None) == left
    again()
    made = runs.read_record(copy)
    assert {name: made[name] for name in made if name != "device"} == {
        name: record[name] for name in record if name not in ("seconds", "device")
    }
    assert contents(copy / "weights") == before  # nothing was trained


def test_checkpoints_that_nothing_tells_apart_are_left_alone(copy, again):
    (copy / "run.json").unlink()
    (copy / "weights" / "last.ckpt").unlink()
    before = contents(copy)
    with pytest.raises(UserError, match=r"holds checkpoints, but neither run\.json nor last\.ckpt"):
        again()
    assert contents(copy) == before


def test_the_lost_record_of_an_untrained_network_leaves_its_evaluation(data, tmp_path):
    words = ["--dataset", "mnist", "--l2", "0", "--max-epochs", "0", "--data-dir", data, "--save-dir", tmp_path]
    run_train(*words)
    path = tmp_path / "mnist_sup" / "dummy.ckpt"
    checkpoints.write(path, checkpoints.read(path) | {"test_acc": 0.25})
    (path.parent / "run.json").unlink()
    run_train(*words)
    assert checkpoints.read(path)["test_acc"] == 0.25 and runs.state(path.parent)[0] == "done"


def test_a_checkpoint_of_another_run_is_not_gone_on_from(copy, again):
    record, last = unfinished(copy), copy / "weights" / "last.ckpt"
    stored = checkpoints.read(last)
    for change in ({"drop": 0.2}, {"seed": 1}, {"model_args": {}}, {"l1": 0.1}, {"batch_size": 51}, {"run": 1},
                   {"model_args": None}):  # fmt: skip
        checkpoints.write(last, stored | {"hyper_parameters": stored["hyper_parameters"] | change})
        with pytest.raises(UserError, match=rf"last\.ckpt belongs to another run \({min(change)} "):
            again()
    for change in ({"hyper_parameters": []}, {"epoch": "1"}, {"callbacks": None}, {"loops": 1.5}):
        checkpoints.write(last, stored | change)
        with pytest.raises(UserError, match=rf"last\.ckpt.* {min(change)}"):
            again()
    for lacking in ("optimizer_states", "loops", "epoch", "hyper_parameters", "callbacks"):
        checkpoints.write(last, {key: value for key, value in stored.items() if key != lacking})
        with pytest.raises(UserError, match=f"it lacks {lacking}"):
            again()
    checkpoints.write(last, stored)
    again()
    assert runs.read_record(copy)["epochs"] == record["epochs"]


def test_fewer_epochs_than_done_are_refused_and_as_many_are_no_more_work(copy, again):
    unfinished(copy)
    before = contents(copy / "weights")
    with pytest.raises(UserError, match="2 epochs, not 1 at most"):
        again("--max-epochs", "1")
    again("--max-epochs", "2")
    assert runs.read_record(copy)["epochs"] == 2 and contents(copy / "weights") == before


def test_a_run_goes_on_with_its_own_data_wherever_that_lies_and_with_no_other(copy, again, data, other_data, tmp_path):
    shutil.copytree(data, tmp_path / "moved", ignore=shutil.ignore_patterns("arrays-*"))
    for state in ("finished", "interrupted", "lost"):
        if state == "interrupted":
            unfinished(copy)
        elif state == "lost":
            (copy / "run.json").unlink()
        with pytest.raises(UserError, match="trained on other data"):
            again("--data-dir", other_data, "--max-epochs", "3")
    again("--data-dir", tmp_path / "moved")
    assert runs.read_record(copy)["finished"]


def test_runs_made_before_data_was_recorded_go_on(copy, again):
    record, last = unfinished(copy), copy / "weights" / "last.ckpt"
    del record["data"], record["finished"]
    (copy / "run.json").write_text(json.dumps(record))
    checkpoints.write(last, {key: value for key, value in checkpoints.read(last).items() if key != "data"})
    again("--max-epochs", "3")
    assert runs.read_record(copy)["epochs"] == 3 and checkpoints.read(last)["data"] == runs.read_record(copy)["data"]


def test_a_record_without_checkpoints_does_not_stand_in_the_way(copy, again):
    record = json.loads((copy / "run.json").read_text())
    for seed, text in enumerate((json.dumps(record), json.dumps({"hyperparameters": {"seed": 5}}), "[]")):
        shutil.rmtree(copy / "weights")
        (copy / "run.json").write_text(text)
        again("--seed", seed, "--max-epochs", "1")
        assert runs.read_record(copy)["hyperparameters"]["seed"] == seed


# What it refuses


@pytest.mark.parametrize("other", ["--seed 1", "--batch-size 51", "--model-args {}", "--max-epochs 0",
                                   "--train-val-split 0.8", "--precision bf16-mixed", "--max-epochs 1"])  # fmt: skip
def test_a_directory_with_another_run_is_refused_and_left_alone(copy, again, other):
    before = contents(copy)
    with pytest.raises(UserError, match="holds another run"):
        again(*other.split())
    assert contents(copy) == before


MEANINGLESS = [
    *(f"--{name} {value}" for name in ("l2", "l1", "drop") for value in ("nan", "-0.1", "inf")),
    *("--drop 1.0", "--train-val-split 0", "--train-val-split 1", "--train-val-split nan", "--train-val-split 0.999"),
    *("--batch-size 0", "--batch-size -5", "--batch-size 2.5", "--max-epochs -2", "--max-epochs x", "--run 3-1"),
    *("--run -1", "--seed -1", "--seed 99999999999999999999999", "--precision 16", "--model-args []", "--model-args {"),
    *("--model-args {\"channels\":[]}", "--model-args {\"channels\":[0]}", "--model-args {\"chanels\":[8]}"),
    *("--model-args {\"channels\":8}", "--model-args {\"channels\":[-8]}", "--model-args {\"channels\":[\"8\"]}"),
    *(f'--model-args {{"channels":[{wide}]}}' for wide in ("999999999999", f"{2**40},{2**40}", "9" * 30)),
    *("--run 0-99999999999", f"--batch-size {2**64}", "--device cuda:²"),
    *("--device cuda:99", "--device gpu", "--dataset imagenet", "--dataset ../mnist", "--task unsup", "--drp 0.1"),
]  # fmt: skip


@pytest.mark.parametrize("words", MEANINGLESS)
def test_what_means_nothing_is_told_in_one_line_before_anything_is_written(words, data, tmp_path, capsys):
    with pytest.raises((UserError, SystemExit)) as error:
        run_train(*NETWORK, "--data-dir", data, "--save-dir", tmp_path / "logs", "--max-epochs", "1", *words.split(" "))
    told = str(error.value) if isinstance(error.value, UserError) else capsys.readouterr().err.rstrip("\n")
    assert told and "\n" not in told and words.split()[0].strip("-").replace("-", "_") in told.replace("-", "_")
    assert not (tmp_path / "logs").exists()


def test_an_error_is_recorded_in_one_line_and_the_next_try_forgets_it(copy, again, monkeypatch):
    unfinished(copy)

    def broken(*args):
        raise RuntimeError("it broke\nhere")

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", broken)
        with pytest.raises(RuntimeError):
            again()
    assert runs.state(copy) == ("failed", "it broke here")
    again()
    assert runs.state(copy) == ("done", "") and "error" not in runs.read_record(copy)


def test_a_run_that_another_process_trains_is_left_to_it(copy, again, capsys):
    unfinished(copy)
    with runs.run_lock(copy):
        again()
    assert "another process works on it" in capsys.readouterr().out
    assert runs.state(copy)[0] == "failed"


def test_ctrl_c_ends_a_training_with_status_130_and_it_goes_on(copy, again, monkeypatch):
    from models import LitWrapper

    unfinished(copy)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    with monkeypatch.context() as patch:
        patch.setattr(LitWrapper, "on_validation_epoch_start", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as ended, cli.one_line_errors("train.py"):
            again("--max-epochs", "3")
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert ended.value.code == 130 and runs.state(copy)[0] == "failed"
    again("--max-epochs", "3")
    assert runs.read_record(copy)["epochs"] == 3


class Made(Exception):
    """Raised in the place of a trainer, with what it was to be made with."""


def test_the_trainer_is_on_the_device_asked_for_and_no_cluster_decides(data, tmp_path, monkeypatch):
    """Under Slurm, Lightning would count the job's tasks, and requeue it on its own."""
    from pytorch_lightning.plugins.environments import LightningEnvironment

    def trainer(**options):
        raise Made(options)

    monkeypatch.setattr("pytorch_lightning.Trainer", trainer)
    words = [*NETWORK, "--max-epochs", "7", "--precision", "bf16-mixed", "--data-dir", data, "--save-dir", tmp_path]
    args = train.parser().parse_args(map(str, words))
    for device, devices in (("cuda:1", [1]), ("cuda", [0]), ("cpu", 1)):
        with pytest.raises(Made) as made:
            train.train(*runs.asked(args), args, torch.device(device), None)
        options = made.value.args[0]
        assert (options["accelerator"], options["devices"]) == (device.partition(":")[0], devices)
        assert (options["max_epochs"], options["precision"]) == (7, "bf16-mixed")
        assert any(isinstance(plugin, LightningEnvironment) for plugin in options["plugins"])


def test_a_training_on_the_cpu_looks_for_no_gpu(again, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    again()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_sigterm_is_not_left_to_others(program, name):
    before = signal.getsignal(signal.SIGTERM)
    assert program(name, "--help")[0] == 0
    assert signal.getsignal(signal.SIGTERM) not in (before, signal.SIG_DFL)


def test_a_mistake_on_the_command_line_ends_with_one_line(program):
    told = "train.py: drop is 1.0: expected a number from 0 to below 1\n"
    assert program("train.py", "--dataset", "mnist", "--drop", "1") == (1, "", told)


def test_names_with_line_ends_do_not_make_two_lines_of_an_error():
    with pytest.raises(SystemExit) as ended, cli.one_line_errors("train.py"):
        raise UserError("a\nb: no such folder")
    assert ended.value.code == "train.py: a b: no such folder"


@pytest.mark.parametrize(("text", "n"), [("4", 4), ("4,2", 4), (" 3 ", 3), ("", None), ("many", None), ("0", None)])
def test_threads_are_those_of_the_outermost_level(monkeypatch, text, n):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cli.threads() == (n or os.cpu_count())


# Precision


def test_a_training_in_bfloat16_resumes_exactly(data, tmp_path):
    words = [*NETWORK, "--precision", "bf16-mixed", "--data-dir", data]
    run_train(*words, "--max-epochs", "2", "--save-dir", tmp_path / "straight")
    run_train(*words, "--max-epochs", "1", "--save-dir", tmp_path / "resumed")
    time.sleep(1.1 - time.time() % 1)  # TensorBoard orders files by the second in which they were begun
    run_train(*words, "--max-epochs", "2", "--save-dir", tmp_path / "resumed")
    assert not differences(tmp_path / "resumed" / UID, tmp_path / "straight" / UID)
    assert runs.read_record(tmp_path / "resumed" / UID)["hyperparameters"]["precision"] == "bf16-mixed"


def test_the_precisions_differ_in_training_and_validation_is_in_full(data, trained, tmp_path):
    run_train(*NETWORK, "--precision", "bf16-mixed", "--data-dir", data, "--max-epochs", "1", "--save-dir", tmp_path)
    ours, theirs = (checkpoints.read(run / "weights" / "epoch=0-step=4.ckpt") for run in (tmp_path / UID, trained))
    assert not same(ours["state_dict"], theirs["state_dict"])
    assert all(value.dtype == torch.float32 for value in ours["state_dict"].values())
    model = models.build("mnist", 0.0, {"channels": [12, 10]}).eval()
    model.load_state_dict({name.removeprefix("model."): value for name, value in ours["state_dict"].items()})
    x, y = next(datasets.splits("mnist", data, grids.BASE_SEED)[1].batches(1000))
    loss = torch.nn.functional.cross_entropy(model(x)[1], y).item()
    assert runs.read_record(tmp_path / UID)["best_val_loss"] == pytest.approx(loss, rel=1e-5)
