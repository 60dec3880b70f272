"""Tables from checkpoints: which rows, which values, what happens to what is missing or broken."""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys

import evaluated
import made_up
import numpy as np
import pandas as pd
import pytest
import torch

import analysis
from analysis import align_metrics, generate_model_specs, load_data_as_table, module_metrics
from associations import METHODS, PAIRS
from report import experiments, summary, tables
from study import grids, jobs, runs
from study.cli import UserError
from study.files import FileError

SPEC = {"dataset": "mnist", "task": "sup", "l2": 1e-5, "l1": 0.0, "drop": 0.3, "run": 1}


@pytest.fixture
def logs(tmp_path):
    write(tmp_path, SPEC, made_up.evaluated(SPEC))
    return tmp_path


def write(log_dir, spec, content, name="weights/last.ckpt"):
    path = log_dir / grids.uid(**spec) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


# ---- specs and metrics ----------------------------------------------------------------------------------------------


def test_specs_are_every_combination_once():
    found = generate_model_specs(
        {"dataset": "mnist", "drop": [0.1, 0.2], "run": range(3), "model_args": {"channels": [4]}}
    )
    assert len(found) == 6 and len({(s["drop"], s["run"]) for s in found}) == 6
    assert all(s["dataset"] == "mnist" and s["model_args"] == {"channels": [4]} for s in found)


def test_pairs_are_all_unordered_pairs_in_alphabetical_order():
    assert len(PAIRS) == 36 and all(a <= b for a, b in (pair.split(":") for pair in PAIRS))


@pytest.mark.parametrize(
    "metric",
    [
        "modules.forward_cov.score",
        "align.forward_cov.0.score",
        "modules.a:b.0.score",
        "a.b",
        "",
        "modules.forward_cov.x.score",
    ],
)
def test_a_metric_of_another_form_is_refused(metric, logs):
    with pytest.raises(UserError, match="expected a basic key"):
        load_data_as_table([SPEC], [metric], logs)


def test_a_spec_without_dataset_is_refused(logs):
    with pytest.raises(UserError, match="dataset"):
        load_data_as_table([{"run": 1}], ["test_acc"], logs)


# ---- rows and values ------------------------------------------------------------------------------------------------


def test_basic_metrics_alone_give_a_row_per_network(logs):
    table = load_data_as_table([SPEC], ["test_acc", "l1_norm"], logs)
    assert list(table.columns) == [*SPEC, "test_acc", "l1_norm"]
    assert len(table) == 1 and table["test_acc"].item() == 0.5


def test_modules_give_a_row_per_network_method_and_layer(logs):
    write(logs, SPEC | {"run": 2}, made_up.evaluated(SPEC | {"run": 2}))
    specs = [SPEC, SPEC | {"run": 2}]
    table = load_data_as_table(specs, ["test_acc", *module_metrics(("score", "num_clusters"))], logs)
    keys = set(table[["run", "assoc", "layer"]].itertuples(index=False, name=None))
    assert len(table) == 32 and keys == set(itertools.product((1, 2), METHODS, (0, 1)))
    assert (table["score"] == 0.25).all() and (table["num_clusters"] == 2).all() and (table["test_acc"] == 0.5).all()


def test_alignments_give_a_row_per_network_pair_and_layer(logs):
    table = load_data_as_table([SPEC], align_metrics(), logs)
    assert len(table) == 72 and set(table["assoc_a"].astype(str) + ":" + table["assoc_b"].astype(str)) == set(PAIRS)


def test_modules_and_alignments_together_give_rows_of_both_kinds(logs):
    table = load_data_as_table([SPEC], ["modules.forward_cov.0.score", "align.backward_jac:forward_cov.1.score"], logs)
    assert table["assoc"].astype(object).tolist()[0] == "forward_cov" and table["assoc"].isna().tolist() == [
        False,
        True,
    ]
    assert table["score"].tolist() == [0.25, 0.5] and table["layer"].tolist() == [0, 1]


def test_columns_have_tidy_types(logs):
    table = load_data_as_table([SPEC], module_metrics(("score", "version")), logs)
    assert isinstance(table["assoc"].dtype, pd.CategoricalDtype) and table["assoc"].cat.ordered
    assert table["score"].dtype == table["version"].dtype == float and table["layer"].dtype == int


def test_a_pair_in_the_other_order_has_its_transfers_swapped(logs):
    fields = ("transfer_AaPb", "transfer_AbPa", "score")
    pairs = ("backward_jac:forward_cov", "forward_cov:backward_jac")
    table = load_data_as_table([SPEC], align_metrics(fields, pairs, layers=(0,)), logs)
    assert table["transfer_AaPb"].tolist() == [0.1, 0.2] and table["transfer_AbPa"].tolist() == [0.2, 0.1]
    assert table["assoc_a"].tolist() == ["backward_jac", "forward_cov"] and table["score"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "wrapped",
    [
        0.75,
        np.float64(0.75),
        torch.tensor(0.75),
        (0.75,),
        (np.float64(0.75),),
        (torch.tensor(0.75),),
        torch.tensor(0.75, dtype=torch.float64),
    ],
)
def test_numbers_are_floats_however_the_file_wraps_them(logs, wrapped):
    content = made_up.evaluated(SPEC)
    content["test_acc"] = content["modules"]["forward_cov"][0]["score"] = wrapped
    write(logs, SPEC, content)
    table = load_data_as_table([SPEC], ["test_acc", "modules.forward_cov.0.score"], logs)
    assert table["score"].dtype == float and table["score"].item() == table["test_acc"].item() == 0.75


def test_matrices_are_arrays_and_only_where_asked_for(logs):
    table = load_data_as_table([SPEC], module_metrics(("adj", "score"), layers=(0,)), logs)
    expected = made_up.evaluated(SPEC)["modules"]["forward_cov"][0]["adj"].numpy()
    np.testing.assert_array_equal(table["adj"].iloc[0], expected)
    assert not any(isinstance(x, np.ndarray) for x in table["score"])


def test_derived_fields_follow_from_the_arrays(logs):
    table = load_data_as_table([SPEC], align_metrics(("null_mean", "null_std"), layers=(0,)), logs)
    assert (table["null_mean"] == 0.5).all() and (table["null_std"] == 0.25).all()  # of 0.25 and 0.75
    table = load_data_as_table([SPEC], module_metrics(("sizes", "dead", "null_mean"), layers=(0,)), logs)
    assert (
        table["sizes"].iloc[0].tolist() == [3, 2] and (table["dead"] == 1).all() and (table["null_mean"] == 0.1).all()
    )


def test_trailing_empty_columns_are_no_clusters(logs):
    content = made_up.evaluated(SPEC)
    P = content["modules"]["forward_cov"][0]["clusters"]
    content["modules"]["forward_cov"][0]["clusters"] = torch.cat([P, torch.zeros(len(P), 4)], 1)
    write(logs, SPEC, content)
    assert load_data_as_table([SPEC], ["modules.forward_cov.0.sizes"], logs)["sizes"].item().tolist() == [3, 2]


def test_combined_matrices_are_read_as_one_layer(logs):
    content = made_up.evaluated(SPEC)
    content["modules"]["forward_cov_combined"] = content["modules"]["forward_cov"][:1]
    write(logs, SPEC, content)
    table = load_data_as_table([SPEC], ["modules.forward_cov_combined.0.score"], logs)
    assert table["assoc"].tolist() == ["forward_cov_combined"] and table["score"].item() == 0.25


# ---- which file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checkpoint, name",
    [
        (None, "weights/last.ckpt"),
        ("last", "weights/last.ckpt"),
        ("best", "weights/best.ckpt"),
        ("dummy.ckpt", "dummy.ckpt"),
        ("epoch=3-step=9.ckpt", "weights/epoch=3-step=9.ckpt"),
        ("weights/best.ckpt", "weights/best.ckpt"),
    ],
)
def test_the_checkpoint_field_chooses_the_file(tmp_path, checkpoint, name):
    for i, other in enumerate({"weights/last.ckpt", "weights/best.ckpt", name} - {name}):
        write(tmp_path, SPEC, {"test_acc": float(i)}, other)
    write(tmp_path, SPEC, {"test_acc": 0.9}, name)
    spec = SPEC if checkpoint is None else SPEC | {"checkpoint": checkpoint}
    assert load_data_as_table([spec], ["test_acc"], tmp_path)["test_acc"].item() == 0.9


def test_files_are_read_by_path_with_the_hyperparameters_they_record(logs):
    path = logs / grids.uid(**SPEC) / "weights" / "last.ckpt"
    table = analysis.load_checkpoints([path], ["test_acc", "modules.forward_cov.0.score"])
    assert table["drop"].item() == 0.3 and table["run"].item() == 1 and table["score"].item() == 0.25


# ---- what is missing or broken --------------------------------------------------------------------------------------


def test_what_a_checkpoint_lacks_is_nan_and_counted_in_the_report(logs, capsys):
    table = load_data_as_table(
        [SPEC], ["test_acc", "no_such_key", "modules.forward_cov.7.score", "modules.forward_cov.0.no"], logs
    )
    assert (table["test_acc"] == 0.5).all() and table[["no_such_key", "score", "no"]].isna().all(axis=None)
    report = capsys.readouterr().err
    assert (
        "no_such_key: not in 1 of 1" in report and "modules.forward_cov.7.score" in report and "test_acc" not in report
    )


def test_missing_and_broken_files_are_nan_and_reported_once_at_the_end(logs, capsys):
    specs = [SPEC | {"run": run} for run in (1, 2, 3, 4)]
    whole = (logs / grids.uid(**SPEC) / "weights" / "last.ckpt").read_bytes()
    for run, content in ((2, whole[: len(whole) // 2]), (3, b"not a checkpoint")):
        path = logs / grids.uid(**specs[run - 1]) / "weights" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    table = load_data_as_table(specs, ["test_acc", *module_metrics()], logs)
    assert len(table) == 4 * 16 and table.groupby("run")["score"].count().tolist() == [16, 0, 0, 0]
    report = capsys.readouterr().err
    assert report.count("NaN in the table") == 1 and all(f"run={run}" in report for run in (2, 3, 4))


def test_a_long_report_is_cut_short(logs, capsys):
    load_data_as_table([SPEC | {"run": run} for run in range(2, 40)], ["test_acc"], logs)
    report = capsys.readouterr().err
    assert len(report.splitlines()) == analysis.REPORTED + 2 and "and 33 more" in report


def test_a_run_with_other_hyperparameters_is_not_taken_for_the_one_asked_for(logs, capsys):
    write(logs, SPEC, made_up.evaluated(SPEC | {"seed": 7}))
    assert load_data_as_table([SPEC | {"seed": 8}], ["test_acc"], logs)["test_acc"].isna().all()
    assert "seed 7, not 8" in capsys.readouterr().err
    assert load_data_as_table([SPEC | {"seed": 7}], ["test_acc"], logs)["test_acc"].notna().all()


# ---- experiments ----------------------------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path):
    """The demo's networks, evaluated: run i of the trained ones has Q = i/100."""
    for part in grids.parts("demo"):
        name = "dummy.ckpt" if part == "dummy" else "weights/best.ckpt"
        for i, spec in enumerate(grids.specs("demo", part)):
            write(tmp_path / grids.save_dir("demo", part), spec, made_up.evaluated(spec, score=i / 100), name)
    return tmp_path


def test_an_experiment_has_a_row_per_network_method_and_pair(demo, capsys):
    found = experiments.load_experiment("demo", demo)
    assert [len(table) for table in found[:3]] == [20, 20 * 16, 20 * 72]
    assert found.models["part"].value_counts().to_dict() == {"dummy": 8, "l2": 6, "drop": 6, "l1": 0}
    assert found.modules[["score", "z", "test_acc"]].notna().all(axis=None)
    assert found.align["null_mean"].notna().all()
    assert (found.models["pass_mark"] == 0.8).all()
    assert set(found.examples["part"]) == {"dummy", "l2", "drop"} and found.examples["adj"].iloc[0].shape == (6, 6)
    assert capsys.readouterr().err == ""


def test_what_trainings_took_is_told_where_it_was_recorded(demo):
    assert list(summary.training(experiments.load_experiment("demo", demo))) == []
    for i, asked in enumerate(jobs.asked("demo", "drop")[:3]):
        record = {"epochs": 10 + i, "seconds": 1800.0 * i, "versions": {"torch": "9.9"}}
        asked = asked._replace(run_dir=demo / asked.run_dir)
        runs.write_record(asked, finished=True, early_stopped=True, **record)
    assert list(summary.training(experiments.load_experiment("demo", demo))) == [
        "training: 11 epochs (10–12) and 1800 seconds (0–3600), medians and ranges; 1.5 hours in all; torch 9.9"
    ]


def test_tables_are_kept_and_renewed_once_a_checkpoint_changes(demo, monkeypatch):
    first = experiments.load_experiment("demo", demo)
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "_examples", lambda *_: first.examples)
        patch.setattr(analysis, "table_of", lambda *_: pytest.fail("read the checkpoints again"))
        pd.testing.assert_frame_equal(experiments.load_experiment("demo", demo).align, first.align)
    spec = grids.specs("demo", "l2")[0]
    write(demo / "logs-demo-l2", spec, made_up.evaluated(spec, score=0.99), "weights/best.ckpt")
    assert experiments.load_experiment("demo", demo).modules["score"].max() == 0.99
    assert len(list(demo.glob("logs-demo-l2/.table-*"))) == 1


def test_an_incomplete_experiment_is_reported_every_time(demo, capsys):
    (demo / "logs-demo-drop" / grids.uid(**grids.specs("demo", "drop")[0]) / "weights" / "best.ckpt").unlink()
    for _ in range(2):
        found = experiments.load_experiment("demo", demo)
        assert found.models["test_acc"].isna().sum() == 1
        assert "no such file" in capsys.readouterr().err


def test_an_experiment_that_was_never_evaluated_is_one_line(tmp_path):
    (tmp_path / "logs-demo-drop").mkdir()
    with pytest.raises(UserError, match=r"run ./eval.sh logs-demo-\*"):
        experiments.load_experiment("demo", tmp_path)


def test_saved_tables_say_the_same_as_the_checkpoints(demo, tmp_path):
    found = experiments.load_experiment("demo", demo)
    experiments.save_results(found, tmp_path / "results", "demo")
    saved = experiments.open_results("demo", logs=tmp_path / "nowhere", folder=tmp_path / "results")
    for name in ("models", "modules", "align", "lesions"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(saved, name))
    assert len(found.examples) > 0 and len(saved.lesions) == 20 * 16
    for a, b in zip(found.examples.itertuples(), saved.examples.itertuples(), strict=True):
        for name in ("mean_effects", "zero_effects", "classes"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.assoc, a.layer, a.score) == (b.assoc, b.layer, b.score)
        np.testing.assert_array_equal(a.clusters, b.clusters)
        np.testing.assert_allclose(a.adj / a.adj.max(), b.adj, atol=1e-3)


def test_checkpoints_come_before_saved_tables(demo):
    found = experiments.load_experiment("demo", demo)
    old = found._replace(modules=found.modules.assign(score=9.0))
    experiments.save_results(old, demo / "results", "demo")
    opened = experiments.open_results("demo", logs=demo, folder=demo / "results")
    pd.testing.assert_frame_equal(opened.modules, found.modules)


def test_tables_saved_before_are_gone_with_the_lesions_that_there_are_no_more(tmp_path):
    found = made_up.results("demo")
    for lesions in (found.lesions, found.lesions.iloc[:0]):
        experiments.save_results(found._replace(lesions=lesions), tmp_path, "demo")
        assert len(experiments.load_results(tmp_path, "demo").lesions) == len(lesions)


@pytest.mark.parametrize(("units", "saved"), [(128, True), (129, False)])
def test_matrices_too_large_to_be_saved_are_left_out(tmp_path, units, saved):
    found = made_up.results("demo", units=units, layers=1)
    experiments.save_results(found, tmp_path, "demo")
    assert len(experiments.load_results(tmp_path, "demo").examples) == saved * len(found.examples)


def test_an_experiment_has_its_own_pass_mark(demo, monkeypatch):
    monkeypatch.setitem(grids.EXPERIMENTS, "demo", grids.EXPERIMENTS["demo"]._replace(pass_mark=0.5))
    assert (experiments.load_experiment("demo", demo).models["pass_mark"] == 0.5).all()


def test_untrained_networks_alone_are_no_experiment(demo):
    for part in ("l2", "drop"):
        shutil.rmtree(demo / grids.save_dir("demo", part))
    with pytest.raises(UserError, match="no trained and evaluated network of demo"):
        experiments.load_experiment("demo", demo)


def test_networks_whose_modules_were_not_lesioned_have_no_rows_of_lesions(demo, capsys):
    spec = grids.specs("demo", "l2")[0]
    content = made_up.evaluated(spec)
    del content["lesions"]
    write(demo / "logs-demo-l2", spec, content, "weights/best.ckpt")
    found = experiments.load_experiment("demo", demo)
    assert len(found.modules) == 20 * 16 and len(found.lesions) == 19 * 16 and capsys.readouterr().err == ""


def test_what_made_an_untrained_network_is_read_from_its_own_record(demo):
    spec = grids.specs("demo", "dummy")[1]
    run_dir = demo / grids.save_dir("demo", "dummy") / grids.uid(**spec)
    record = {"hyperparameters": evaluated.hyperparameters(**spec), "versions": {"torch": "9.9"}}
    (run_dir / "run.json").write_text(json.dumps(record))
    models = experiments.load_experiment("demo", demo).models
    assert models.loc[models["torch"].notna(), ["part", "run", "torch"]].astype(str).to_numpy().tolist() == [
        ["dummy", str(spec["run"]), "9.9"]
    ]


def test_nothing_to_open_is_one_line(tmp_path):
    for name, words in (("demo", "run ./train.sh demo"), ("nonsense", "unknown experiment")):
        with pytest.raises(UserError, match=words) as error:
            experiments.open_results(name, tmp_path, tmp_path)
        assert "\n" not in str(error.value)


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    for name in ("t.parquet", "none.parquet"):
        with pytest.raises(UserError, match=name):
            tables.load_table(tmp_path / name)


# ---- one checkpoint -------------------------------------------------------------------------------------------------


def test_the_summary_of_a_checkpoint_averages_the_other_methods_of_each_family(tmp_path):
    content = made_up.evaluated(SPEC)
    content["align"]["backward_jac:forward_cov"][0]["element_sim"] = 0.9
    content["align"]["forward_cov:forward_cov"][0]["element_sim"] = 1.0  # itself does not count
    own = {"mean_specialization": 0.1, "mean_specialization_z": 1.1}
    own |= {"zero_specialization": 0.2, "zero_specialization_z": 2.2}
    content["lesions"]["backward_jac"][1] |= own
    content["modules"]["backward_jac"][1] |= {"z": 3.5, "p": 0.125, "num_clusters": 2.5, "score": 0.375}
    path = write(tmp_path, SPEC, content)
    table = analysis.checkpoint_summary(path).set_index(["method", "layer"])
    assert len(table) == 16 and table.loc[("forward_cov", 0), "with upstream"] == 0.5
    assert table.loc[("forward_cov", 0), "with downstream"] == pytest.approx((0.9 + 3 * 0.5) / 4)
    assert table.loc[("backward_jac", 0), "with upstream"] == pytest.approx((0.9 + 3 * 0.5) / 4)
    assert table.loc[("backward_jac", 1), "with upstream"] == 0.5
    assert table.loc[("backward_jac", 1)].drop(["with upstream", "with downstream"]).to_dict() == {
        **{"Q": 0.375, "z": 3.5, "p": 0.125, "clusters": 2.5},
        **{"bits": 0.1, "bits z": 1.1, "zero: bits": 0.2, "zero: z": 2.2},
    }


def test_the_layer_asked_for_is_drawn(logs, monkeypatch):
    content, drawn = made_up.evaluated(SPEC), []
    for module in ("matrix_figures.sorted_matrices", "lesion_figures.effects_of_methods"):
        monkeypatch.setattr(f"report.{module}", drawn.append)
    monkeypatch.setattr("report.style.save", lambda *_: [])
    analysis.draw(logs / grids.uid(**SPEC) / "weights" / "last.ckpt", 1)
    for table, kind, field in ((drawn[0], "modules", "adj"), (drawn[1], "lesions", "mean_effects")):
        assert (table["layer"] == 1).all() and len(table) == len(METHODS)
        for row in table.to_dict("records"):
            np.testing.assert_array_equal(row[field], content[kind][row["assoc"]][1][field])


def run(*words, cwd):
    environment = os.environ | {"PYTHONPATH": str(made_up.REPOSITORY)}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_command_line_prints_and_draws_one_checkpoint(logs, program):
    status, out, err = program("analysis.py", logs / grids.uid(**SPEC) / "weights" / "last.ckpt", "--plot", cwd=logs)
    assert status == 0, err
    assert "forward_cov" in out and len(list((logs / "figures").iterdir())) == 4
    assert "bits z" in out and "0.750" in out


def test_the_command_line_fails_in_one_line(tmp_path, program):
    path = write(tmp_path, SPEC, {"hyper_parameters": SPEC})
    status, _, err = program("analysis.py", path, cwd=tmp_path)
    assert status == 1 and len(err.splitlines()) == 1 and "not evaluated" in err
    with pytest.raises(UserError, match="no such file"):
        analysis.checkpoint_summary(tmp_path / "none.ckpt")


def test_the_summary_of_an_experiment_has_five_lines(tmp_path, program):
    experiments.save_results(made_up.results("demo"), tmp_path / "results", "demo")
    status, out, err = program("report/summary.py", "demo", cwd=tmp_path)
    assert status == 0, err
    lines = out.splitlines()
    assert len(lines) == 5 and "12 trained and 4 untrained networks" in lines[0] and "(n = 2)" in lines[1]
    assert "0.100 without dropout" in lines[2].replace("0.099", "0.100").replace("0.101", "0.100")


def test_the_summary_prints_verdicts_and_tables_and_saves_them_where_it_is_asked_to(tmp_path, monkeypatch, capsys):
    for name in ("summary", "verdicts", "training", "tables"):
        monkeypatch.setattr(summary, name, lambda *_, name=name: [f"first of {name}", f"last of {name}"])
    monkeypatch.setattr(experiments, "open_results", lambda name: made_up.results(name))
    short = ["first of summary", "last of summary"]
    long = [*short, "", "first of verdicts", "last of verdicts", "first of training", "last of training"]
    long += ["", "first of tables", "", "last of tables"]
    for full, save in ((False, False), (True, False), (False, True)):
        options = {"experiment": "demo", "tables": full, "save": save, "add": False, "folder": tmp_path / "there"}
        summary.main(argparse.Namespace(**options))
        saved = ["", f"Saved to {tmp_path}/there/demo-*.parquet"] * save
        assert capsys.readouterr().out.splitlines() == (long if full else short) + saved
        assert len(list(tmp_path.glob("there/demo-*.parquet"))) == 5 * save
    monkeypatch.setattr(experiments, "open_results", lambda name: of_runs(made_up.results(name), drop_run_1))
    for save, add, networks in ((False, True, 16), (True, True, 16), (True, False, 3)):
        summary.main(argparse.Namespace(**options | {"save": save, "add": add}))
        assert len(experiments.load_results(tmp_path / "there", "demo").models) == networks


# ---- what users write, and what they find ---------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["dropout", "L2", "lr", "part"])
def test_an_unknown_field_of_a_spec_is_refused(logs, field):
    with pytest.raises(UserError, match=f"unknown field '{field}'"):
        load_data_as_table([SPEC | {field: 0.3}], ["test_acc"], logs)


@pytest.mark.parametrize("run", [1.5, "1", None, float("nan")])
def test_a_run_that_is_no_number_is_refused(logs, run):
    with pytest.raises(UserError, match="run"):
        load_data_as_table([SPEC | {"run": run}], ["test_acc"], logs)


@pytest.mark.parametrize(
    "numbers",
    [
        {"run": np.int64(1)},
        {"run": 1.0},
        {"drop": np.arange(0.1, 0.5, 0.1)[2], "l2": np.float64(1e-5)},
        {"drop": np.float32(0.3), "l1": 0},
    ],
    ids=str,
)
def test_numbers_name_the_same_run_whatever_their_type(logs, numbers, capsys):
    table = load_data_as_table([SPEC | numbers], ["test_acc"], logs)
    assert table["test_acc"].item() == 0.5 and table["run"].item() == 1 and capsys.readouterr().err == ""
    strong = SPEC | {"l1": 1.0}
    write(logs, strong, made_up.evaluated(strong))
    assert load_data_as_table([SPEC | {"l1": 1}], ["test_acc"], logs)["test_acc"].item() == 0.5


def test_the_layers_are_those_that_were_evaluated(demo):
    spec = grids.specs("demo", "drop")[0]
    write(demo / "logs-demo-drop", spec, made_up.evaluated(spec, layers=3), "weights/best.ckpt")
    found = experiments.load_experiment("demo", demo)
    assert len(found.models) == 20 and len(found.modules) == 19 * 16 + 24 and len(found.align) == 19 * 72 + 108
    assert found.modules.groupby("layer").size().to_dict() == {0: 160, 1: 160, 2: 8}


def test_methods_that_were_not_evaluated_have_no_rows_and_one_line(demo, capsys):
    for spec in grids.specs("demo", "l2"):
        content = made_up.evaluated(spec)
        for method in ("backward_hess", "forward_cov_norm"):
            del content["modules"][method], content["lesions"][method]
        write(demo / "logs-demo-l2", spec, content, "weights/best.ckpt")
    found = experiments.load_experiment("demo", demo)
    assert len(found.models) == 20 and len(found.modules) == 14 * 16 + 6 * 12
    assert capsys.readouterr().err.splitlines()[1:] == ["  modules.* (2 entries): not in 6 of 6 checkpoints"]


def test_an_optional_field_that_some_lack_is_neither_reported_nor_in_the_way_of_the_cache(demo, capsys, monkeypatch):
    spec = grids.specs("demo", "l2")[0]
    content = made_up.evaluated(spec)
    content["modules"]["forward_cov"][0] |= {"score_without_silent": 0.125}
    write(demo / "logs-demo-l2", spec, content, "weights/best.ckpt")
    first = experiments.load_experiment("demo", demo)
    assert first.modules["score_without_silent"].dropna().tolist() == [0.125] and capsys.readouterr().err == ""
    monkeypatch.setattr(experiments, "_examples", lambda *_: first.examples)
    monkeypatch.setattr(analysis, "table_of", lambda *_: pytest.fail("read the checkpoints again"))
    pd.testing.assert_frame_equal(experiments.load_experiment("demo", demo).modules, first.modules)


def test_a_field_that_all_lack_is_one_line_not_hundreds(demo, capsys):
    for spec in grids.specs("demo", "drop"):
        content = made_up.evaluated(spec)
        for layers in content["modules"].values():
            for entry in layers:
                del entry["z"]
        write(demo / "logs-demo-drop", spec, content, "weights/best.ckpt")
    experiments.load_experiment("demo", demo)
    assert capsys.readouterr().err.splitlines()[1:] == ["  modules.*.*.z (16 entries): not in 6 of 6 checkpoints"]


# ---- caches ---------------------------------------------------------------------------------------------------------


def cache_of(demo):
    (path,) = demo.glob("logs-demo-l2/.table-*")
    return path


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "another table", "a table of no origin"])
def test_a_damaged_cache_is_made_again(demo, damage):
    first = experiments.load_experiment("demo", demo)
    path = cache_of(demo)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "nonsense": b"PAR1"}.get(damage, whole))
    if damage == "another table":
        (other,) = demo.glob("logs-demo-drop/.table-*")
        path.write_bytes(other.read_bytes())
    if damage == "a table of no origin":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    again = experiments.load_experiment("demo", demo)
    for a, b in zip(first[:3], again[:3], strict=True):
        pd.testing.assert_frame_equal(a, b)
    assert tables.load_table(path).attrs["made_from"] in path.name


def test_a_cache_is_bound_to_the_very_files_and_the_code_that_made_it(demo, monkeypatch):
    experiments.load_experiment("demo", demo)
    spec = grids.specs("demo", "l2")[0]
    path = demo / "logs-demo-l2" / grids.uid(**spec) / "weights" / "best.ckpt"
    before = path.stat()
    write(demo / "logs-demo-l2", spec, made_up.evaluated(spec, score=0.75), "weights/best.ckpt")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and `rsync -a` leave it
    assert path.stat().st_size == before.st_size
    assert experiments.load_experiment("demo", demo).modules["score"].max() == 0.75
    name, source = cache_of(demo).name, experiments.inspect.getsource
    for changed in (analysis, tables):
        with monkeypatch.context() as patch:
            patch.setattr(experiments.inspect, "getsource", lambda m, new=changed: source(m) + "# new" * (m is new))
            experiments.load_experiment("demo", demo)
            assert cache_of(demo).name != name


def test_a_cache_that_cannot_be_written_is_done_without(demo, monkeypatch):
    def full(*_):
        raise FileError("no space left")

    monkeypatch.setattr(tables, "write_bytes", full)
    assert len(experiments.load_experiment("demo", demo).models) == 20
    assert not list(demo.glob("*/.table-*")) and not list(demo.glob("*/*.tmp"))


def test_old_tables_get_the_defaults_of_newer_regularizers_and_their_chance_level(monkeypatch):
    found = made_up.results("demo")
    found.modules["dead"] = 0.0
    old = [table.drop(columns=["l1", "element_sim_expected"], errors="ignore") for table in found]
    new = experiments.complete(experiments.Results(*old))
    assert all((table["l1"] == 0).all() for table in new)
    assert new.align["element_sim_expected"].notna().all()


# ---- one checkpoint -------------------------------------------------------------------------------------------------


def test_combined_matrices_are_in_the_summary_of_a_checkpoint(tmp_path):
    content = made_up.evaluated(SPEC)
    content["modules"]["forward_cov_combined"] = [content["modules"]["forward_cov"][0] | {"score": 0.625}]
    table = analysis.checkpoint_summary(write(tmp_path, SPEC, content))
    assert len(table) == 17 and table["layer"].iloc[-1] == "all" and table["Q"].iloc[-1] == 0.625
    assert table["method"].astype(str).iloc[-1] == "forward_cov_combined"


def test_figures_are_named_by_run_file_and_layer():
    name = analysis.figure_name
    assert name("logs/a_run=1/weights/best.ckpt", 0) == "matrices-a_run=1-best-layer-0"
    assert name("logs-x-dummy/a_run=1000/dummy.ckpt", 1) == "matrices-a_run=1000-dummy-layer-1"
    paths = [f"logs-x-dummy/{grids.uid('mnist', run=run)}/dummy.ckpt" for run in range(1000, 1004)]
    assert len({name(path, 0) for path in paths}) == 4


@pytest.mark.parametrize("modules", [None, [], {"forward_cov": None}, {"forward_cov": [None]}, {"forward_cov": 3}])
def test_modules_of_another_form_are_one_line(tmp_path, modules, capsys):
    path = write(tmp_path, SPEC, made_up.evaluated(SPEC) | {"modules": modules})
    with pytest.raises(UserError, match=r"not evaluated|evaluate it again|its modules "):
        analysis.checkpoint_summary(path)
    assert load_data_as_table([SPEC], ["modules.forward_cov.0.score"], tmp_path)["score"].isna().all()
    assert grids.uid(**SPEC) in capsys.readouterr().err or modules in (None, {"forward_cov": None})


@pytest.mark.parametrize("clusters", ["x", torch.ones(3), None])
def test_clusters_of_another_form_are_nan_in_tables_and_one_line_where_drawn(tmp_path, clusters, capsys):
    stored = made_up.evaluated(SPEC)
    stored["modules"]["forward_cov"][0]["clusters"] = clusters
    path = write(tmp_path, SPEC, stored)
    table = load_data_as_table([SPEC], ["test_acc", "modules.forward_cov.0.sizes"], tmp_path)
    assert table["sizes"].isna().all() and f"{path}: " in capsys.readouterr().err
    with pytest.raises(UserError, match=f"^{path}: [^\n]*$"):
        analysis.main(argparse.Namespace(checkpoint=[path], layer=0, plot=True))


@pytest.mark.parametrize("layer", ["9", "2", "-1"])
def test_a_layer_that_is_not_there_is_one_line(logs, layer):
    path = logs / grids.uid(**SPEC) / "weights" / "last.ckpt"
    with pytest.raises(UserError, match=f"no layer {layer}; its layers are 0 to 1"):
        analysis.main(argparse.Namespace(checkpoint=[path], layer=int(layer), plot=True))


def test_a_reader_that_stops_early_is_no_error(logs):
    path = logs / grids.uid(**SPEC) / "weights" / "last.ckpt"
    command = f"{sys.executable} {made_up.REPOSITORY / 'analysis.py'} {' '.join([str(path)] * 40)} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=logs, capture_output=True, text=True)
    assert done.stdout == f"{path}\n" and done.stderr == ""


def test_a_reader_that_is_gone_is_no_error_though_all_fits_into_the_buffer():
    reader, writer = os.pipe()
    os.close(reader)
    code = "from study import cli\nwith cli.one_line_errors('a.py'):\n    print('a')"
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=made_up.REPOSITORY, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_loading_tables_does_not_import_matplotlib():
    code = "import sys; from report import summary, sensitivity, experiments; experiments.original_program()"
    done = run("-c", f"{code}; print('matplotlib' in sys.modules)", cwd=made_up.REPOSITORY)
    assert done.stdout == "False\n", done.stderr


def test_a_method_and_a_regularizer_more_in_their_tables_are_everywhere(tmp_path):
    for name in ("study", "report", "numerics", "models"):
        shutil.copytree(made_up.REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*made_up.REPOSITORY.glob("*.py"), made_up.REPOSITORY / "tests" / "made_up.py"]:
        shutil.copy(path, tmp_path)
    table = tmp_path / "associations.py"
    line = '    Method("backward_new", "downstream", "#123456", "v", shown=True),\n)\nMETHODS ='
    table.write_text(table.read_text().replace(")\nMETHODS =", line, 1))
    done = subprocess.run([sys.executable, "-c", EXTENDED], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["9", "noise", "noise", "9", "5", "9"]


EXTENDED = """
from study import grids
grids.REGULARIZERS["noise"] = grids.Regularizer("input noise", 0.0, "linear", "#654321", "*")
grids.PARTS = (*grids.REGULARIZERS, "dummy")
import made_up
import numpy as np
from report import effect_figures, experiments, findings, matrix_figures, module_figures, summary
found = made_up.results("demo")
tables = []
for table in found[:3]:  # the noise grid: the networks with dropout as it would be without
    extra = table[table["part"] == "drop"].assign(part="noise", noise=lambda t: t["drop"], drop=0.0)
    import pandas as pd
    tables.append(pd.concat([table.assign(noise=0.0).astype({"part": str}), extra]))
found = experiments.complete(experiments.Results(*tables, found.examples))
effects = findings.regularizer_effects(found, False)
print(len(effects["assoc"].unique()), effects["regularizer"].iloc[0], findings.present_regularizers(found.models)[0])
print(len(module_figures.modules_vs_depth(found).axes))
print(len(set(findings.per_network(found.modules, ["score"]).columns) & {"part", "l2", "l1", "drop", "noise"}))
print(len(module_figures.modules_by_layer(found, "noise").axes))
"""


# ---- what is read, and what is kept ---------------------------------------------------------------------------------


def test_arrays_of_a_table_are_its_own_copies(logs):
    table = load_data_as_table([SPEC], module_metrics(("adj", "clusters"), layers=(0,)), logs)
    assert all(array.flags.owndata and array.flags.writeable for name in ("adj", "clusters") for array in table[name])


def test_the_number_of_layers_is_that_of_the_deepest_method(tmp_path):
    content = made_up.evaluated(SPEC)
    content["modules"]["backward_jac"] *= 2
    path = write(tmp_path, SPEC, content)
    assert analysis.checkpoint_layers(path) == 4 and len(analysis.checkpoint_summary(path)) == 18


def test_examples_spread_over_the_values_of_dropout(tmp_path, monkeypatch):
    grid = grids.EXPERIMENTS["demo"]._replace(
        values={"l2": [1e-5], "drop": grids.linspace(0.1, 0.7)}, runs=1, untrained=1
    )
    monkeypatch.setitem(grids.EXPERIMENTS, "demo", grid)
    for part in grids.parts("demo"):
        for spec in grids.specs("demo", part):
            name = "dummy.ckpt" if part == "dummy" else "weights/best.ckpt"
            write(tmp_path / grids.save_dir("demo", part), spec, made_up.evaluated(spec, layers=1), name)
    examples = experiments.load_experiment("demo", tmp_path).examples
    chosen = examples.drop_duplicates(["part", "l2", "drop", "run"])[["part", "l2", "drop", "run"]]
    assert chosen.astype({"part": str}).to_numpy().tolist() == [
        ["dummy", 0.0, 0.0, 1000],
        ["l2", 1e-5, 0.0, 0],
        *(["drop", 1e-5, drop, 0] for drop in (0.1, 0.3, 0.5, 0.7)),
    ]


LATER = "lesions", "examples"  # tables without rows of networks that were not evaluated


def of_runs(results, chosen):
    return experiments.Results(*(table[chosen(table)].reset_index(drop=True) for table in results))


def drop_run_1(table):
    return (table["part"] == "drop") & (table["run"] == 1)


def test_tables_gather_what_several_machines_evaluated(tmp_path):
    whole = made_up.results("demo")
    here, there = of_runs(whole, lambda table: ~drop_run_1(table)), of_runs(whole, drop_run_1)
    experiments.save_results(here, tmp_path, "demo")
    experiments.save_results(there, tmp_path, "demo", add=True)
    keys = [*experiments.NETWORK, "assoc", "assoc_a", "assoc_b", "layer"]
    experiments.save_results(whole, tmp_path / "whole", "demo")
    for kind in experiments.Results._fields:
        found, expected = (
            getattr(experiments.load_results(folder, "demo"), kind) for folder in (tmp_path, tmp_path / "whole")
        )
        order = [name for name in keys if name in expected]
        found, expected = (t.astype({"part": str}).sort_values(order).reset_index(drop=True) for t in (found, expected))
        pd.testing.assert_frame_equal(found[sorted(found)], expected[sorted(expected)], check_categorical=False)


def test_what_was_evaluated_again_replaces_what_the_tables_said_and_what_was_not_does_not(tmp_path):
    old = made_up.results("demo")
    new = of_runs(old, lambda table: table["part"] == "drop")
    new.modules["score"] = 9.0
    for table, evidence in ((new.models, "test_acc"), (new.modules, "version"), (new.align, "version")):
        table.loc[drop_run_1(table), evidence] = np.nan
    new = new._replace(**{kind: rows[~drop_run_1(rows)] for kind, rows in new._asdict().items() if kind in LATER})
    experiments.save_results(old, tmp_path, "demo")
    experiments.save_results(new, tmp_path, "demo", add=True)
    saved = experiments.load_results(tmp_path, "demo")
    assert [len(table) for table in saved] == [len(table) for table in old]
    again = (saved.modules["part"] == "drop") & (saved.modules["run"] == 0)
    assert (saved.modules["score"] == 9.0).equals(again)


def test_tables_by_another_version_of_the_evaluation_are_not_added_to(tmp_path):
    old = made_up.results("demo")
    experiments.save_results(old, tmp_path, "demo")
    before = (tmp_path / "demo-align.parquet").read_bytes()
    later = old._replace(align=old.align.assign(version=old.align["version"] + 1))
    partly = old._replace(align=pd.concat([old.align, later.align[:9]]))
    for new in (later, partly):
        with pytest.raises(UserError, match=r"demo-\*.parquet: align by another version of the evaluation"):
            experiments.save_results(new, tmp_path, "demo", add=True)
    assert (tmp_path / "demo-align.parquet").read_bytes() == before
    with pytest.raises(UserError, match="no such table"):
        experiments.save_results(old, tmp_path / "nowhere", "demo", add=True)


def test_networks_that_were_not_evaluated_are_not_saved(tmp_path):
    found = made_up.results("demo")
    for table, evidence in ((found.models, "test_acc"), (found.modules, "version"), (found.align, "version")):
        table.loc[(table["part"] == "drop") & (table["run"] == 1), evidence] = np.nan
    experiments.save_results(found, tmp_path, "demo")
    saved = experiments.load_results(tmp_path, "demo")
    assert [len(table) for table in saved[:3]] == [13, 13 * 16, 13 * 72]
    assert not any(((table["part"] == "drop") & (table["run"] == 1)).any() for table in saved[:3])
