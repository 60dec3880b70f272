"""What is on disk for a run, told by one predicate, and the lists of jobs that follow from it."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from study import datasets, files, grids, jobs, options, runs
from study.cli import UserError

WORDS = ["--dataset", "mnist", "--drop", "0.3", "--model-args", '{"channels": [8]}']


def ask(place, *words, data=None):
    (found,) = runs.asked(options.parser().parse_args([*WORDS, "--save-dir", str(place), *words]), data)
    return found


def hold(asked, **outcome):
    """Makes a run's directory with a checkpoint and a record."""
    path = asked.run_dir / ("weights/last.ckpt" if asked.max_epochs else "dummy.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    runs.write_record(asked, **outcome)


DONE = {"finished": True, "epochs": 40, "early_stopped": True}
UNTRAINED = {"finished": True, "epochs": 0, "early_stopped": False}
SHORT = {"finished": True, "epochs": 2, "early_stopped": False}


def test_a_run_is_done_when_its_record_says_so_and_a_checkpoint_is_there(tmp_path):
    asked = ask(tmp_path)
    assert runs.state(asked.run_dir, asked) == ("left", "")
    asked.run_dir.mkdir()
    runs.write_record(asked, **DONE)
    assert runs.state(asked.run_dir, asked) == runs.state(asked.run_dir) == ("left", "")  # its weights were removed
    hold(asked, **DONE)
    assert runs.state(asked.run_dir, asked) == runs.state(asked.run_dir) == ("done", "")
    hold(asked)
    assert runs.state(asked.run_dir, asked)[0] == "failed" and "interrupted" in runs.state(asked.run_dir)[1]
    hold(asked, error="the disk is full")
    assert runs.state(asked.run_dir, asked) == ("failed", "the disk is full")


def test_an_untrained_run_is_done_with_its_only_checkpoint(tmp_path):
    asked = ask(tmp_path, "--max-epochs", "0")
    asked.run_dir.mkdir()
    (asked.run_dir / "dummy.ckpt").touch()
    runs.write_record(asked, finished=True, epochs=0, early_stopped=False)
    assert runs.state(asked.run_dir, asked)[0] == "done"
    assert runs.state(asked.run_dir, ask(tmp_path)) == ("other", "untrained True, not False")


def test_a_short_trial_is_not_what_more_epochs_ask_for(tmp_path):
    hold(ask(tmp_path), **SHORT)
    run_dir = ask(tmp_path).run_dir
    assert runs.state(run_dir, ask(tmp_path, "--max-epochs", "2"))[0] == "done"
    assert runs.state(run_dir, ask(tmp_path, "--max-epochs", "3"))[0] == "left"
    assert runs.state(run_dir, ask(tmp_path))[0] == "left"
    assert runs.state(run_dir) == ("done", "")  # it is what was asked for when it was trained
    assert runs.state(run_dir, ask(tmp_path, "--max-epochs", "1")) == ("other", "2 epochs, not 1 at most")


OTHER = [
    ("--l2 1e-6", "l2"), ("--l1 1e-9", "l1"), ("--seed 1", "seed"), ("--train-val-split 0.8", "train_val_split"),
    ("--batch-size 100", "batch_size"), ("--model-args {}", "model_args"), ("--precision bf16-mixed", "precision"),
    ("--max-epochs 0", "untrained"), ("--run 1", "run"), ("--dataset mnist5k", "dataset"), ("--drop 0.4", "drop"),
]  # fmt: skip


@pytest.mark.parametrize("outcome", [DONE, SHORT, {}, {"error": "it broke"}], ids=["done", "short", "cut", "failed"])
@pytest.mark.parametrize(("words", "name"), OTHER)
def test_each_option_that_makes_another_run_is_told(tmp_path, outcome, words, name):
    hold(ask(tmp_path), **outcome)
    other = ask(tmp_path, *words.split())
    state, why = runs.state(ask(tmp_path).run_dir, other)
    assert state == "other" and name in why


def test_every_hyperparameter_is_part_of_a_runs_identity():
    tried = {name for _, name in OTHER}
    assert tried | {"task"} == {*grids.HYPERPARAMETERS, "untrained"} == ask("x").identity.keys() | {"task"}


def test_a_link_to_nothing_is_no_checkpoint(tmp_path):
    asked = ask(tmp_path)
    hold(asked, **DONE)
    (asked.run_dir / "weights" / "last.ckpt").unlink()
    (asked.run_dir / "weights" / "best.ckpt").symlink_to("gone.ckpt")
    assert runs.state(asked.run_dir, asked) == ("left", "")


@pytest.mark.parametrize(
    ("given", "state"), [({}, "done"), ({"num_classes": 3}, "done"), ({"num_classes": 4}, "other")]
)
def test_what_the_data_says_of_the_network_need_not_be_asked_for(tmp_path, given, state):
    """But what is asked for must be there."""
    full = {"channels": [8], "input_shape": [1, 9, 12], "num_classes": 3}
    hold(ask(tmp_path, "--model-args", json.dumps(full)), **DONE)
    asked = ask(tmp_path, "--model-args", json.dumps({"channels": [8]} | given))
    assert runs.state(asked.run_dir, asked)[0] == state


def test_a_record_without_a_checkpoint_stands_in_nobodys_way(tmp_path):
    wrong, right = ask(tmp_path, "--batch-size", "7"), ask(tmp_path)
    for text in (json.dumps({"hyperparameters": wrong.identity, "error": "no"}), "[]", "null", "{", ""):
        wrong.run_dir.mkdir(exist_ok=True)
        (wrong.run_dir / "run.json").write_text(text)
        assert runs.state(right.run_dir, right) == ("left", "")
    assert not runs.is_lost(right.run_dir)


def test_a_run_on_other_data_is_another_run_and_one_that_does_not_say_is_fine(tmp_path):
    hold(ask(tmp_path, data="a" * 32), **DONE)
    run_dir = ask(tmp_path).run_dir
    assert runs.state(run_dir, ask(tmp_path, data="a" * 32))[0] == "done"
    assert runs.state(run_dir, ask(tmp_path))[0] == "done"  # nobody looked
    state, why = runs.state(run_dir, ask(tmp_path, data="b" * 32))
    assert state == "other" and "other data" in why
    hold(ask(tmp_path), **DONE)
    assert runs.state(run_dir, ask(tmp_path, data="b" * 32))[0] == "done"


def test_a_record_written_before_precision_was_recorded_is_of_the_default(tmp_path):
    asked = ask(tmp_path)
    hold(asked, **DONE)
    record = json.loads((asked.run_dir / "run.json").read_text())
    del record["hyperparameters"]["precision"]
    (asked.run_dir / "run.json").write_text(json.dumps(record))
    assert runs.state(asked.run_dir, asked)[0] == "done"
    assert runs.state(asked.run_dir, ask(tmp_path, "--precision", "bf16-mixed"))[0] == "other"


# run.json


def damaged(record):
    """Records of another shape, each with what is wrong with it."""
    h = record["hyperparameters"]
    yield from (([], "no hyper"), (None, "no hyper"), (3, "no hyper"), ({}, "no hyper"), ({"hyperparameters": 1}, "no"))
    yield record | {"hyperparameters": {k: v for k, v in h.items() if k != "seed"}}, "lacks seed"
    yield record | {"hyperparameters": h | {"drop": 2}}, "drop is 2"
    yield record | {"hyperparameters": h | {"train_val_split": None}}, "train_val_split is None"
    yield {k: v for k, v in record.items() if k != "epochs"}, "epochs is None"
    for name, value in (("epochs", "7"), ("epochs", True), ("early_stopped", 1), ("finished", "yes"), ("error", 5),
                        ("data", 1), ("seconds", "9"), ("started", None)):  # fmt: skip
        yield record | {name: value}, f"{name} is "


def test_a_record_of_another_shape_is_told_in_one_line_and_named(tmp_path):
    asked = ask(tmp_path)
    hold(asked, **DONE)
    path = asked.run_dir / "run.json"
    record = json.loads(path.read_text())
    assert runs.read_record(asked.run_dir) == record
    for bad, message in damaged(record):
        path.write_text(json.dumps(bad))
        with pytest.raises(files.FileError, match=message) as error:
            runs.read_record(asked.run_dir)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        state, why = runs.state(asked.run_dir, asked)
        assert state == "failed" and message in why and runs.is_lost(asked.run_dir)
    for text in (b"{", b"", b"\xff", b"[" * 100_000):
        path.write_bytes(text)
        assert runs.state(asked.run_dir, asked)[0] == "failed"
    path.unlink()
    assert runs.state(asked.run_dir, asked)[0] == "failed" and "is lost" in runs.state(asked.run_dir)[1]


def test_a_folder_that_may_not_be_read_is_no_traceback(tmp_path, monkeypatch):
    asked = ask(tmp_path)
    hold(asked, **DONE)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    state, why = runs.state(asked.run_dir, asked)
    assert state == "failed" and why.endswith("cannot be read: Permission denied")


def test_seconds_add_up_over_resumptions_as_far_as_checkpoints_go(tmp_path):
    asked = ask(tmp_path)
    assert runs.seconds_before(asked.run_dir) == 0
    hold(asked, seconds=100.0, started=5000.0)
    os.utime(asked.run_dir / "weights" / "last.ckpt", (5030.0, 5030.0))
    assert runs.seconds_before(asked.run_dir) == 130
    hold(asked, seconds=130.0, started=6000.0)  # killed again, before it wrote another checkpoint
    os.utime(asked.run_dir / "weights" / "last.ckpt", (5030.0, 5030.0))
    assert runs.seconds_before(asked.run_dir) == 130
    hold(asked, seconds=140.0, **SHORT)
    assert runs.seconds_before(asked.run_dir) == 140
    (asked.run_dir / "run.json").write_text("[]")
    assert runs.seconds_before(asked.run_dir) is None


# Locks


def test_looking_at_a_run_keeps_nobody_from_working_on_it(tmp_path):
    """A lock that is only looked at is obtained all the same; that of a holder is not."""
    asked = ask(tmp_path)
    with runs.run_lock(asked.run_dir) as obtained:
        assert obtained and runs.is_locked(asked.run_dir) and runs.state(asked.run_dir)[0] == "running"
        with runs.run_lock(asked.run_dir) as again:
            assert not again
    assert not runs.is_locked(asked.run_dir)
    with open(asked.run_dir / ".lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as one who looks, but for a thousand times as long
        threading.Timer(0.05, file.close).start()
        with runs.run_lock(asked.run_dir) as obtained:
            assert obtained


def test_several_may_look_at_once(tmp_path):
    asked = ask(tmp_path)
    with runs.run_lock(asked.run_dir):
        pass
    with open(asked.run_dir / ".lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not runs.is_locked(asked.run_dir)


# Lists of jobs


def finish(experiment, parts, words=(), **outcome):
    for part in parts:
        for asked in jobs.asked(experiment, part, words):
            hold(asked, **(DONE if asked.max_epochs else UNTRAINED) | outcome)


def test_every_grid_point_comes_before_its_repetitions():
    lines = jobs.commands("mnist-base", ["l2", "l1", "drop"])
    assert len(lines) == 270
    found = [int(shlex.split(line)[shlex.split(line).index("--run") + 1]) for line in lines]
    assert found == sorted(found)


def test_a_batch_holds_repetitions_of_one_grid_point_and_each_run_is_in_one():
    lines = jobs.commands("mnist-base", ["l2", "l1", "drop", "dummy"], batch=4)
    *trained, untrained = map(shlex.split, lines)
    found = [words[words.index("--run") + 1] for words in trained]
    assert found == ["0-3"] * 30 + ["4-7"] * 30 + ["8"] * 30
    assert len({tuple(words) for words in trained}) == 90
    assert untrained[untrained.index("--run") + 1] == "1000-1099" and untrained[-2:] == ["--max-epochs", "0"]
    assert jobs.commands("mnist-base", ["dummy"], batch=4) == jobs.commands("mnist-base", ["dummy"])


@pytest.mark.parametrize("experiment", grids.EXPERIMENTS)
def test_a_command_asks_for_the_grids_own_runs(experiment):
    for part in grids.parts(experiment):
        specs, asked = grids.specs(experiment, part), jobs.asked(experiment, part)
        assert [one.run_dir for one in asked] == grids.run_dirs(experiment, part)
        for spec, one in zip(specs, asked, strict=True):
            assert one.identity.items() >= spec.items()
            assert one.identity["model_args"] == grids.EXPERIMENTS[experiment].model_args
            assert one.max_epochs == (0 if part == "dummy" else 500)


def test_only_what_is_not_done_is_left_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *_ = jobs.asked("demo", "drop")
    hold(first, **DONE)
    assert len(jobs.commands("demo", ["drop"], unfinished_only=True)) == 5
    lines = jobs.commands("demo", ["drop"], unfinished_only=True, batch=2)
    assert [line.split(" --run ")[1].split()[0] for line in lines] == ["1", "0-1", "0-1"]
    finish("demo", ["drop", "dummy"])
    assert jobs.commands("demo", ["drop", "dummy"], unfinished_only=True) == []


def test_untrained_networks_that_are_missing_are_made_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish("demo", ["dummy"])
    for run in (2, 4):
        (jobs.asked("demo", "dummy")[run].run_dir / "run.json").unlink()
    (line,) = jobs.commands("demo", ["dummy"], unfinished_only=True)
    assert "--run 1002-1004" in line


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--max-epochs 2", None),
        ("--batch-size 50", "batch_size 50, not 200"),
        ("--train-val-split 0.5", "train_val_split 0.5, not 0.9"),
        ("--seed 3", "seed 3, not 286436723"),
        ("--precision bf16-mixed", "precision 'bf16-mixed', not '32'"),
        ("--model-args '{\"channels\": [8]}'", "model_args {'channels': [8]}, not {}"),
    ],
)
def test_a_grid_made_with_other_options_is_not_mixed_with_this_ones(tmp_path, monkeypatch, words, why):
    """A trial with fewer epochs is trained on; other options are refused, though one repetition could be trained."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(words)
    finish("demo", ["l2"], words, epochs=2, early_stopped=why is not None)
    assert jobs.commands("demo", ["l2"], True, words) == []
    if why is None:
        assert len(jobs.commands("demo", ["l2"], unfinished_only=True)) == 6
        assert "in all: 0 done, 0 running, 0 failed, 6 left" in jobs.progress("demo", ["l2"])[-1]
        return
    (jobs.asked("demo", "l2")[1].run_dir / "weights" / "last.ckpt").unlink()
    with pytest.raises(UserError, match=r"holds another run .* and so do 4 more; .*logs-demo-l2") as error:
        jobs.commands("demo", ["l2"], unfinished_only=True)
    assert why in str(error.value) and "\n" not in str(error.value)
    assert "0 done, 0 running, 5 failed, 1 left" in jobs.progress("demo", ["l2"])[0]
    assert why in jobs.progress("demo", ["l2"])[1]


def test_replaced_data_is_noticed_by_the_job_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for asked in jobs.asked("demo", "l2"):
        hold(asked._replace(data="a" * 32), **DONE)
    there = {("mnist5k", "data"): "a" * 32, ("mnist5k", "other"): "b" * 32}
    monkeypatch.setattr(jobs, "data_at_hand", lambda *where: there[where])
    assert jobs.commands("demo", ["l2"], unfinished_only=True) == []
    with pytest.raises(UserError, match="trained on other data"):
        jobs.commands("demo", ["l2"], unfinished_only=True, words=["--data-dir", "other"])
    monkeypatch.setattr(jobs, "data_at_hand", lambda dataset, data_dir: None)
    assert jobs.commands("demo", ["l2"], unfinished_only=True) == []
    monkeypatch.setattr(jobs, "data_at_hand", lambda dataset, data_dir: "b" * 32)
    with pytest.raises(UserError, match="trained on other data"):
        jobs.commands("demo", ["l2"], unfinished_only=True)


def test_looking_at_data_downloads_nothing(tmp_path, monkeypatch):
    for name in ("mnist", "cifar10", "unknown"):
        row = datasets.DATASETS.get(name)
        if row:
            monkeypatch.setitem(datasets.DATASETS, name, row._replace(download=lambda root: pytest.fail("a download")))
        (tmp_path / name).mkdir()
        assert jobs.data_at_hand(name, tmp_path) is None
        assert list((tmp_path / name).iterdir()) == []


def test_the_job_list_never_waits_for_torch(tmp_path):
    """Not even where it looks at the data that runs were trained on: torch takes seconds to import."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from study import jobs; "
        "print(jobs.data_at_hand('mnist5k', sys.argv[2])); print(*jobs.lines('status', ['demo'], [], 1)); "
        "sys.exit('torch' in sys.modules)"
    )
    (tmp_path / "mnist5k").mkdir()
    words = [sys.executable, "-c", code, str(Path(__file__).parent.parent), str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fingerprint, *_ = done.stdout.splitlines()
    assert fingerprint == datasets.fingerprint("mnist5k", tmp_path)


def test_options_that_the_grid_sets_or_that_mean_nothing_are_refused(capsys):
    for words in (
        "--drop 0.1",
        "--drop=0.1",
        "--l2 0",
        "--l1=3",
        "--run 4",
        "--save-dir x",
        "--dataset x",
        "--task=sup",
    ):
        for what in ("list", "todo", "status"):
            with pytest.raises(UserError, match="is set by the grid"):
                jobs.lines(what, ["demo"], words.split(), 1)
    with pytest.raises(UserError, match="batch_size is 0"):
        jobs.lines("list", ["demo"], ["--batch-size", "0"], 1)
    for words in ("--max-epochs -2", "--max-epochs", "--nonsense", "--model-args {", "--dro 0.1", "--seed x", "l2"):
        with pytest.raises(SystemExit) as ended:
            jobs.lines("list", ["demo"], words.split(), 1)
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.count("\n") == 1 and told.startswith("train.py: ")


def test_a_part_that_is_named_twice_is_done_once():
    assert jobs.lines("list", ["demo", "drop", "l2", "drop"], [], 1) == jobs.lines(
        "list", ["demo", "drop", "l2"], [], 1
    )


def test_wrong_names_are_refused():
    with pytest.raises(UserError, match="unknown experiment 'dmeo': expected one of mnist-base"):
        jobs.lines("list", ["dmeo"], [], 1)
    with pytest.raises(UserError, match="demo has no part 'l1': expected some of l2, drop, dummy"):
        jobs.lines("status", ["demo", "l1"], [], 1)


def test_evaluation_gets_the_options_that_both_programs_have():
    words = ["--device", "cpu", "--max-epochs", "2", "--data-dir", "/some where"]
    assert jobs.lines("shared", ["demo"], words, 1) == ["--data-dir", "/some where", "--device", "cpu"]
    assert jobs.lines("shared", ["demo"], ["--batch-size", "7"], 1) == []


def test_evaluations_cover_each_run_once_trained_or_untrained(tmp_path):
    for i in range(6):
        (tmp_path / f"run{i}" / "weights").mkdir(parents=True)
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "dummy.ckpt").touch()
    (tmp_path / "jobs" / "20260101-000000-abc").mkdir(parents=True)  # what an interrupted list leaves
    (tmp_path / "a file").touch()
    lines = jobs.evaluations([tmp_path, tmp_path / "run1"], batch=3, words=["--seed", "1"])
    words = [shlex.split(line) for line in lines]
    assert [line[:3] + line[-2:] for line in words] == [["python", "eval.py", "--run-dir", "--seed", "1"]] * 3
    evaluated = [Path(path).name for line in words for path in line[3:-2]]
    assert evaluated == ["run0", "run1", "run2", "run3", "run4", "run5", "untrained"]
    with pytest.raises(UserError, match="no runs in it"):
        jobs.evaluations([tmp_path / "run0" / "weights"])
