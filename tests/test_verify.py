"""Verification accepts what repeats, to the bit or within the repetitions' spread, and nothing else."""

import argparse
import json
import shlex
import subprocess

import made_up
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from test_analysis import write

from associations import METHODS
from report import experiments, verify
from study import grids
from study.checkpoints import BASIC_METRICS
from study.cli import UserError

OTHERS = pd.DataFrame({"epochs": [20.0, 22, 24, 26], "test_acc": [0.97, 0.974, 0.975, 0.973]})
OLD = pd.Series({"epochs": 23.0, "test_acc": 0.972})


def test_identical_values_pass_on_any_machine():
    for same in (True, False):
        assert verify.verdict(OLD, OTHERS, OLD.copy(), same) == (True, "all 2 values identical")


def test_other_values_pass_within_the_spread_on_another_machine_only():
    new = pd.Series({"epochs": 21.0, "test_acc": 0.972})
    fine, text = verify.verdict(OLD, OTHERS, new, False)
    assert fine and text == "1 of 2 values identical, 0 beyond the spread of 4 repetitions"
    assert not verify.verdict(OLD, OTHERS, new, True)[0]


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_values_beyond_the_spread_and_missing_ones_fail_by_name(value):
    fine, text = verify.verdict(OLD, OTHERS, pd.Series({"epochs": 23.0, "test_acc": value}), False)
    assert not fine and text.endswith("1 beyond the spread of 4 repetitions (test_acc)")


def test_the_spread_is_the_prediction_interval_of_one_more_repetition():
    values, n = OTHERS["epochs"], len(OTHERS)
    deviation = (sum((x - values.mean()) ** 2 for x in values) / (n - 1)) ** 0.5
    reach = scipy.stats.t.ppf(1 - 1e-4 / 2, n - 1) * deviation * (1 + 1 / n) ** 0.5  # one in ten thousand is outside
    for share, expected in ((0.999, True), (-0.999, True), (1.001, False), (-1.001, False)):
        new = pd.Series({"epochs": values.mean() + share * reach, "test_acc": 0.972})
        assert verify.verdict(OLD, OTHERS, new, False)[0] == expected


@pytest.mark.parametrize(
    ("made_on", "same"),
    [
        (["Maker AVX2"], True),
        (["Maker AVX512"], False),
        (["Other AVX2"], False),
        (["Maker AVX2", "Other AVX2"], False),
    ],
)
@pytest.mark.parametrize(("fine", "status"), [([True, True], 0), ([False, True], 1), ([True, False], 1)])
def test_verification_fails_where_one_network_does_not_repeat(monkeypatch, capsys, made_on, same, fine, status):
    saved, asked = made_up.results("demo"), []
    saved.models["epochs"] = np.arange(len(saved.models)) + 10.0
    saved.models[["processor", "capability"]] = [made_on[i % len(made_on)].split() for i in range(len(saved.models))]
    verdicts = iter(fine)
    monkeypatch.setattr(experiments, "load_results", lambda folder, name: saved)
    monkeypatch.setattr(verify, "provenance", lambda: {"processor": "Maker", "capability": "AVX2"})
    monkeypatch.setattr(verify, "again", lambda experiment, part, spec, folder, data: (part, spec))
    monkeypatch.setattr(verify, "verdict", lambda *words: asked.append(words) or (next(verdicts), "said"))
    with pytest.raises(SystemExit) as end:
        verify.main(argparse.Namespace(experiment="demo", folder="results", data_dir="data"))
    said = f": said (here Maker AVX2; the tables: {', '.join(made_on)})"
    assert int(end.value.code) == status and capsys.readouterr().out.count(said) == 2
    for (old, others, (part, spec), same_machine), chosen in zip(asked, verify.chosen("demo"), strict=True):
        assert (part, spec) == chosen and same_machine == same
        assert spec["run"] == 0 and others.index.tolist() == [1]  # the other repetitions, not the network itself
        assert old["epochs"] + 1 == others.loc[1, "epochs"]


def test_a_network_is_compared_with_its_own_row_of_the_tables():
    found = made_up.results("demo")
    found.models["epochs"] = range(len(found.models))
    (l2, weakest), (drop, middle) = verify.chosen("demo")
    assert (l2, weakest["l2"], weakest["run"]) == ("l2", 1e-5, 0)
    assert (drop, middle["drop"], middle["run"]) == ("drop", 0.4, 0)
    values = verify.values_of(found, drop, middle)
    rows = found.models[(found.models["part"] == "drop") & (found.models["drop"] == 0.4)]
    assert values["epochs"].tolist() == rows["epochs"].tolist() and values.index.tolist() == rows["run"].tolist()
    one = found.modules.query("part == 'drop' and drop == 0.4 and run == 1 and layer == 1 and assoc == 'backward_jac'")
    assert values.loc[1, "Q backward_jac 1"] == one["score"].item()


def test_a_network_made_again_has_the_values_of_its_best_checkpoint(tmp_path, monkeypatch):
    part, spec = verify.chosen("demo")[1]
    run_dir, commands = tmp_path / grids.uid(**spec), []
    content = made_up.evaluated(spec)
    content |= {name: i / 10 for i, name in enumerate(BASIC_METRICS)}
    for i, method in enumerate(METHODS):
        for layer in (0, 1):
            content["modules"][method][layer]["score"] = i + layer / 10

    def run(words, **_):
        commands.append(words[1:])
        write(tmp_path, spec, content, "weights/best.ckpt")
        write(tmp_path, spec, {"test_acc": 0.0})
        (run_dir / "run.json").write_text(json.dumps({"epochs": 17}))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(verify.subprocess, "run", run)
    values = verify.again("demo", part, spec, tmp_path, "images")
    assert values.to_dict() == {
        "epochs": 17,
        **{name: i / 10 for i, name in enumerate(BASIC_METRICS)},
        **{f"Q {method} {layer}": i + layer / 10 for i, method in enumerate(METHODS) for layer in (0, 1)},
    }
    training, evaluation = map(shlex.join, commands)
    assert training.startswith("train.py ") and f"--save-dir {tmp_path} " in training
    assert evaluation.startswith("eval.py ") and f"--run-dir {run_dir} " in evaluation
    assert all("--data-dir images" in words and "--device cpu" in words for words in (training, evaluation))
    failed = subprocess.CompletedProcess([], 1, stderr="Traceback\nno such data\n")
    monkeypatch.setattr(verify.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"train\.py .*: no such data$"):
        verify.again("demo", part, spec, tmp_path, "images")


def test_the_chosen_networks_exist_in_every_experiment():
    for name in grids.EXPERIMENTS:
        assert all(spec in grids.specs(name, part) for part, spec in verify.chosen(name))
