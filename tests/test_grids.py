"""The study's grids, the names of runs, and what is on disk for them."""

import json
import shlex

import pytest

from study import grids, jobs, runs

UIDS = {
    "l2": ["l2=0.00001", "l2=0.00003", "l2=0.00010", "l2=0.00032", "l2=0.00100", "l2=0.00316", "l2=0.01000",
           "l2=0.03162", "l2=0.10000"],
    "l1": ["l2=0.00001_l1=0.00001", "l2=0.00001_l1=0.00003", "l2=0.00001_l1=0.00010", "l2=0.00001_l1=0.00032",
           "l2=0.00001_l1=0.00100", "l2=0.00001_l1=0.00316", "l2=0.00001_l1=0.01000"],
    "drop": [f"l2=0.00001_drop=0.{percent:02d}000" for percent in range(5, 75, 5)],
}  # fmt: skip


@pytest.mark.parametrize("part", UIDS)
def test_mnist_base_has_exactly_the_studys_uids(part):
    names = [grids.uid(**spec) for spec in grids.specs("mnist-base", part)]
    expected = [f"mnist_sup_{name}{run}" for name in UIDS[part] for run in ["", *(f"_run={i}" for i in range(1, 9))]]
    assert names == expected


def test_grids_have_the_studys_numbers_of_runs():
    sizes = {e: {part: len(grids.specs(e, part)) for part in grids.PARTS} for e in grids.EXPERIMENTS}
    assert sizes["mnist-base"] == {"l2": 81, "l1": 63, "drop": 126, "dummy": 100}
    assert sizes["mnist-wide"] == sizes["mnist-deep"] == {"l2": 15, "l1": 12, "drop": 18, "dummy": 100}
    assert sizes["cifar10"] == {"l2": 15, "l1": 12, "drop": 15, "dummy": 100}


def test_untrained_networks_are_runs_from_1000_without_regularisation():
    names = [grids.uid(**spec) for spec in grids.specs("mnist-base", "dummy")]
    assert names[0] == "mnist_sup_run=1000" and names[-1] == "mnist_sup_run=1099"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "mnist_sup"),
        ({"l2": 1e-5}, "mnist_sup_l2=0.00001"),
        ({"l2": 9.999999999999999e-06}, "mnist_sup_l2=0.00001"),
        ({"l2": 1e-6}, "mnist_sup_l2=1.00e-06"),
        ({"l2": 1e-5, "drop": 0.3, "run": 1}, "mnist_sup_l2=0.00001_drop=0.30000_run=1"),
        ({"run": 0, "drop": 0.0, "l1": 0.01}, "mnist_sup_l1=0.01000"),
    ],
)
def test_uid_names_what_is_not_zero(values, name):
    assert grids.uid("mnist", "sup", **values) == name


def test_no_two_runs_of_a_grid_share_a_directory():
    for experiment in grids.EXPERIMENTS:
        for part in grids.parts(experiment):
            folders = grids.run_dirs(experiment, part)
            assert len(set(folders)) == len(folders)


def test_every_grid_point_comes_before_its_repetitions():
    lines = jobs.commands("mnist-base", ["l2", "l1", "drop"])
    assert len(lines) == 270
    runs = [int(shlex.split(line)[shlex.split(line).index("--run") + 1]) for line in lines]
    assert runs == sorted(runs)


def test_a_batch_holds_repetitions_of_one_grid_point_and_each_run_is_in_one():
    parts = ["l2", "l1", "drop", "dummy"]
    lines = jobs.commands("mnist-base", parts, batch=4)
    assert len(lines) == 30 * 3 + 1
    train = [shlex.split(line) for line in lines if "dummy" not in line]
    runs = [words[words.index("--run") + 1] for words in train]
    assert runs == ["0-3"] * 30 + ["4-7"] * 30 + ["8"] * 30
    assert len({tuple(words) for words in train}) == 90
    assert jobs.commands("mnist-base", ["dummy"], batch=4) == jobs.commands("mnist-base", ["dummy"])


def test_commands_carry_the_model_arguments():
    words = shlex.split(jobs.commands("mnist-wide", ["l1"])[0])
    assert json.loads(words[words.index("--model-args") + 1]) == {"channels": [256, 256]}


def test_finished_runs_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = grids.run_dirs("demo", "drop")[0]
    first.mkdir(parents=True)
    (first / "run.json").write_text(json.dumps({"hyperparameters": {}, "finished": True}))
    assert len(jobs.commands("demo", ["drop"], unfinished_only=True)) == len(jobs.commands("demo", ["drop"])) - 1
    runs = [line.split(" --run ")[1].split()[0] for line in jobs.commands("demo", ["drop"], True, batch=2)]
    assert runs == ["1", "0-1", "0-1"]


def test_state_tells_done_failed_and_left_apart(tmp_path):
    assert runs.state(tmp_path)[0] == "left"
    (tmp_path / "run.json").write_text(json.dumps({"hyperparameters": {}}))
    assert runs.state(tmp_path)[0] == "failed"
    (tmp_path / "run.json").write_text(json.dumps({"hyperparameters": {}, "error": "the disk is full"}))
    assert runs.state(tmp_path) == ("failed", "the disk is full")
    (tmp_path / "run.json").write_text(json.dumps({"hyperparameters": {}, "finished": True}))
    assert runs.state(tmp_path)[0] == "done"
    (tmp_path / "run.json").write_text("{")
    assert runs.state(tmp_path)[0] == "failed"


def test_evaluations_cover_each_run_once(tmp_path):
    for i in range(7):
        (tmp_path / f"run{i}" / "weights").mkdir(parents=True)
    lines = jobs.evaluations([tmp_path], batch=3)
    assert [len(shlex.split(line)) - 3 for line in lines] == [3, 3, 1]
    with pytest.raises(SystemExit, match="no runs"):
        jobs.evaluations([tmp_path / "run0" / "weights"])
